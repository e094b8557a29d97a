"""From `runs/` to the Hub: model, study, corpus, playground, page, each complete in one commit, or not at all."""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils._validators import validate_repo_id

from codenas_hf.folders import Release, StudyFolder
from codenas_hf.release.hub_answers import answer_in, impatient, is_network_error, reason, retry_after
from codenas_hf.release.hub_licences import check_licence
from codenas_hf.release.parcels import Parcel, dataset_parcel, model_parcel, space_parcel, study_parcel, web_parcel

_log = logging.getLogger(__name__)

# The order of publication: a card links only to what is there already.
KINDS = ("dataset", "study", "model", "space", "web", "collection")
MAX_FILE_BYTES = 50_000_000_000
ATTEMPTS = 5
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 300.0
SILENCE_S = 120.0  # without a byte for so long, the line counts as cut

T = TypeVar("T")


class PublishError(RuntimeError):
    """Something was not published; the text says what, why, and how to go on. What was published before it stays."""


@dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """Where a winner goes.

    Args:
        repo_id: `owner/name` of the model on the Hub; None publishes nothing.
        private: create the repositories private.
        create_pr: open pull requests instead of committing to the main branch.
        what: any of model, space, web, dataset, study, collection.
        license: of the weights, one that the Hub knows (`HUB_LICENCES`).

    Raises:
        ValueError: an id or a licence that the Hub does not know, or an unknown kind.
    """

    repo_id: str | None = None
    private: bool = False
    create_pr: bool = False
    what: tuple[str, ...] = ("model",)
    license: str = "mit"

    def __post_init__(self) -> None:
        if self.repo_id is not None:
            _check_repo_id(self.repo_id)
        check_licence(self.license)
        unknown = [kind for kind in self.what if kind not in KINDS]
        if unknown or not self.what:
            raise ValueError(f"`what` must be some of {', '.join(KINDS)}, got {', '.join(unknown) or 'nothing'}")


@dataclass(frozen=True, kw_only=True)
class Published:
    """What became of one repository.

    Args:
        what: model, space, web, dataset, study or collection.
        repo_id: its id on the Hub; the slug of a collection.
        url: where people open it.
        files: paths in the repository.
        num_bytes: of all files together.
        card: text of its README.
        changed: False when the Hub had all of it already, and in a dry run.
        commit: id of the commit that holds it; None in a dry run.
        pr_url: the pull request, where one was asked for and something changed.
    """

    what: str
    repo_id: str
    url: str
    files: tuple[str, ...] = ()
    num_bytes: int = 0
    card: str = ""
    changed: bool = False
    commit: str | None = None
    pr_url: str | None = None


def publish(
    folder: Path,
    *,
    repo_id: str,
    private: bool = False,
    create_pr: bool = False,
    dry_run: bool = False,
    what: Sequence[str] = ("model",),
    license: str = "mit",
    token: str | None = None,
) -> list[Published]:
    """Publishes a winner and what belongs to it. Running it again changes nothing, or finishes what was interrupted.

    Everything is prepared and checked before the first byte leaves. Each repository gets one commit, which is read
    back and compared before it is reported. Files that are up already are not sent again.

    Args:
        folder: a release folder (`runs/<study>/winner`), or the run around it.
        repo_id: `owner/name` of the model, or `name` for the token's own account; the study goes to `<repo_id>-study`,
            the corpus to `<repo_id>-corpus`, the Space to `<repo_id>-playground`, the page to `<repo_id>-web`.
        private: create repositories private; those that exist keep their visibility.
        create_pr: open a pull request instead of committing to the main branch.
        dry_run: prepare everything, send nothing; only npm may fetch the engine of a page, once.
        what: any of model, space, web (a page that needs no server), dataset, study, collection.
        license: of the weights, as the Hub spells it.
        token: None takes it from the usual places (`HF_TOKEN`, `hf auth login`); it is never printed.

    Returns:
        One entry per repository, in the order of publication.

    Raises:
        PublishError: no token, no right, name taken, too large, offline, or the Hub failed for long.
        FileNotFoundError: `folder` holds no winner, no report, or no corpus, where that is to be published.
        ValueError: as `PublishSettings`.
    """
    asked = PublishSettings(repo_id=repo_id, private=private, create_pr=create_pr, what=tuple(what), license=license)
    with tempfile.TemporaryDirectory(prefix="codenas-publish-") as work, impatient(SILENCE_S):
        if dry_run:
            parcels = _parcels(Path(folder), repo_id=repo_id, asked=asked, work=Path(work))
            return [_described(parcel) for parcel in parcels]
        hub = _Hub(token)
        repo_id = hub.full_id(repo_id, foreign=create_pr)
        parcels = _parcels(Path(folder), repo_id=repo_id, asked=asked, work=Path(work))
        done: list[Published] = []
        try:
            for parcel in parcels:
                done.append(hub.send(parcel, private=private, create_pr=create_pr))
            if "collection" in asked.what:
                done.append(hub.collect(repo_id, done, private=private))
        except PublishError as error:
            before = ", ".join(f"{p.what} {p.repo_id}" for p in done)
            raise PublishError(f"{error}\nPublished before that: {before}." if done else str(error)) from error
    return done


def _parcels(folder: Path, *, repo_id: str, asked: PublishSettings, work: Path) -> list[Parcel]:
    """Everything that is to be published, in order, checked for size."""
    release = Release.find(folder)
    study = release.study
    around = study or StudyFolder(release.folder.parent)  # whose parcels say what is missing
    dataset_id = f"{repo_id}-corpus" if "dataset" in asked.what else None
    parcels = []
    for kind in (k for k in KINDS if k in asked.what):
        place = work / kind
        place.mkdir()
        if kind == "dataset":
            parcels.append(dataset_parcel(around, repo_id=f"{repo_id}-corpus", work=place))
        elif kind == "study":
            parcels.append(study_parcel(around, repo_id=f"{repo_id}-study", model_id=repo_id))
        elif kind == "model":
            known: dict[str, Any] = {"study": study, "licence": asked.license, "dataset_id": dataset_id}
            parcels.append(model_parcel(release, repo_id=repo_id, work=place, **known))
        elif kind == "space":
            parcels.append(space_parcel(release, repo_id=f"{repo_id}-playground", model_id=repo_id, work=place))
        elif kind == "web":
            parcels.append(web_parcel(release, repo_id=f"{repo_id}-web", model_id=repo_id, work=place))
    for parcel in parcels:
        for path in parcel.files:
            if parcel.size(path) > MAX_FILE_BYTES:
                raise PublishError(
                    f"{path} of the {parcel.what} is too large: {parcel.size(path) / 1e9:.1f} GB, "
                    f"the Hub takes files of at most {MAX_FILE_BYTES / 1e9:.0f} GB; nothing was sent"
                )
    return parcels


class _Hub:
    """The Hub's client with our patience and our words for its errors."""

    def __init__(self, token: str | None) -> None:
        self._token = token or huggingface_hub.get_token()
        if not self._token:
            raise PublishError(
                "no token for the Hub: run `hf auth login`, or set HF_TOKEN to a token with write access "
                "(https://huggingface.co/settings/tokens)"
            )
        self._api = HfApi(token=self._token)

    def full_id(self, repo_id: str, *, foreign: bool) -> str:
        """The id with its owner, checked against what the token may write to.

        Args:
            repo_id: with or without owner.
            foreign: the owner may be somebody else, as for a pull request.
        """
        me = self._patiently("the token could not be checked", self._api.whoami)
        owner, _, name = repo_id.rpartition("/")
        owners = [me["name"], *(org["name"] for org in me.get("orgs", ()))]
        if owner and owner not in owners and not foreign:
            raise PublishError(
                f"no right to publish as {owner}: the token belongs to {me['name']}"
                + (f", who is in {', '.join(owners[1:])}" if owners[1:] else "")
                + "; choose another `repo_id`, use that account's token, or open a pull request with `--create-pr`"
            )
        return f"{owner or me['name']}/{name}"

    def send(self, parcel: Parcel, *, private: bool, create_pr: bool) -> Published:
        """Makes the repository hold exactly the parcel, in one commit, and reads it back."""
        problem = f"{parcel.what} {parcel.repo_id} was not published"
        info = self._patiently(problem, lambda: self._open(parcel, private=private))
        there = {sibling.rfilename for sibling in info.siblings or ()}
        if parcel.marker not in there and there - {".gitattributes", "README.md"} and not create_pr:
            raise PublishError(
                f"{problem}: the name is taken; {self._url(parcel)} holds something else (it has no {parcel.marker}); "
                "choose another `repo_id`, or open a pull request with `--create-pr`"
            )
        stale = sorted(f for f in there - set(parcel.files) if any(fnmatch.fnmatch(f, p) for p in parcel.stale))
        commit = self._patiently(problem, lambda: self._commit(parcel, stale=stale, create_pr=create_pr))
        revision = commit.pr_revision or commit.oid
        self._patiently(problem, lambda: self._check(parcel, revision=revision))
        return _described(
            parcel,
            url=self._url(parcel),
            commit=commit.oid,
            changed=commit.oid != info.sha,
            pr_url=commit.pr_url,
        )

    def collect(self, repo_id: str, done: Sequence[Published], *, private: bool) -> Published:
        """Puts everything that was published into one collection."""
        owner, _, name = repo_id.partition("/")
        problem = f"the collection {name} was not completed"

        def collected() -> Any:
            made = self._api.create_collection(name, namespace=owner, private=private, exists_ok=True)
            for item in done:
                kind: Any = {"study": "dataset", "web": "space"}.get(item.what, item.what)
                made = self._api.add_collection_item(made.slug, item.repo_id, kind, exists_ok=True)
            return made

        made = self._patiently(problem, collected)
        return Published(
            what="collection", repo_id=made.slug, url=f"{self._api.endpoint}/collections/{made.slug}", changed=True
        )

    def _open(self, parcel: Parcel, *, private: bool) -> Any:
        """The repository's state, created if it is not there."""
        known: dict[str, Any] = {"repo_id": parcel.repo_id, "repo_type": parcel.repo_type}
        try:
            return self._api.repo_info(**known, timeout=SILENCE_S)
        except RepositoryNotFoundError:
            sdk = {"space": "gradio", "web": "static"}.get(parcel.what)
            self._api.create_repo(**known, space_sdk=sdk, private=private)
            return self._api.repo_info(**known, timeout=SILENCE_S)

    def _commit(self, parcel: Parcel, *, stale: Sequence[str], create_pr: bool) -> Any:
        """One commit. `upload_folder` would make several of a large folder, so it is not used."""
        known: dict[str, Any] = {"repo_id": parcel.repo_id, "repo_type": parcel.repo_type}
        operations = [CommitOperationAdd(path, content) for path, content in sorted(parcel.files.items())]
        head = self._api.repo_info(**known, timeout=SILENCE_S).sha
        return self._api.create_commit(
            **known,
            operations=[*(CommitOperationDelete(path) for path in stale), *operations],
            commit_message=f"Publish {parcel.what} with codenas_hf",
            create_pr=create_pr,
            parent_commit=head,
        )

    def _check(self, parcel: Parcel, *, revision: str) -> None:
        """Compares what the Hub holds at `revision` with the parcel."""
        paths = list(parcel.files)
        found = self._api.get_paths_info(parcel.repo_id, paths, revision=revision, repo_type=parcel.repo_type)
        there = {entry.path: entry for entry in found}
        for path in paths:
            entry: Any = there.get(path)
            if entry is None or entry.size != parcel.size(path) or not _same(parcel, path, entry):
                raise PublishError(
                    f"{parcel.what} {parcel.repo_id} is not complete: {path} is missing or differs at {revision}; "
                    "run the same command again"
                )

    def _url(self, parcel: Parcel) -> str:
        kind = "" if parcel.repo_type == "model" else f"{parcel.repo_type}s/"
        return f"{self._api.endpoint}/{kind}{parcel.repo_id}"

    def _patiently(self, problem: str, step: Callable[[], T]) -> T:
        """`step`, again after a while where the Hub was busy or the line was cut.

        Every step can be repeated: a commit that did arrive is found to change nothing the next time.

        Raises:
            PublishError: `problem` and its reason, in words.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return step()
            except OfflineModeIsEnabled as error:
                raise PublishError(f"{problem}: offline mode is on; unset HF_HUB_OFFLINE") from error
            except PublishError:
                raise
            except Exception as error:
                answer = answer_in(error)
                wait = FIRST_WAIT_S * 2 ** (attempt - 1)
                if answer is not None:
                    status = 0 if answer.response is None else answer.response.status_code
                    if status not in (408, 425, 429) and status < 500:
                        raise PublishError(self._clean(f"{problem}: {reason(status, answer)}")) from None
                    wait = retry_after(answer) or wait
                    last = f"the Hub answered {status} {attempt} times"
                elif is_network_error(error):
                    what = f"{type(error).__name__}, {attempt} times"
                    last = f"no connection to {self._api.endpoint} ({what}): are you offline?"
                elif isinstance(error, OSError):  # a file of ours
                    raise
                else:  # such as the page of a proxy
                    last = f"the Hub's answer cannot be understood ({type(error).__name__}: {error}), {attempt} times"
            if attempt < ATTEMPTS:
                _log.warning("%s; trying again in %.0f s", self._clean(last), min(wait, LONGEST_WAIT_S))
                time.sleep(min(wait, LONGEST_WAIT_S))
        raise PublishError(
            self._clean(f"{problem}: {last}; run the same command again later, what is uploaded is not sent twice")
        )

    def _clean(self, text: str) -> str:
        """Text without the token, whoever put it there."""
        return text.replace(self._token or "\0", "***")


def _same(parcel: Parcel, path: str, entry: Any) -> bool:
    """Whether the Hub's hash of a file is ours: SHA-256 of a large one, git's of a small one."""
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == parcel.sha256(path))
    content = parcel.files[path]
    content = content if isinstance(content, bytes) else content.read_bytes()
    return bool(entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())


def _described(parcel: Parcel, **known: Any) -> Published:
    """The report on a parcel."""
    kind = "" if parcel.repo_type == "model" else f"{parcel.repo_type}s/"
    known = {"url": f"{huggingface_hub.constants.ENDPOINT}/{kind}{parcel.repo_id}", **known}
    files = tuple(sorted(parcel.files))
    size = sum(parcel.size(path) for path in files)
    return Published(what=parcel.what, repo_id=parcel.repo_id, files=files, num_bytes=size, card=parcel.card, **known)


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`repo_id` must read like owner/name, got {repo_id!r}: {error}") from error
