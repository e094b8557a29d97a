"""What goes into one repository: its files, complete and clean, before anything touches the network."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from codenas_hf.data import SPLITS, Corpus, PreparedData
from codenas_hf.folders import Release, StudyFolder, bundled_folder, read_json
from codenas_hf.folders.files import EVALUATION, RECORD, SETTINGS, WEIGHTS
from codenas_hf.release.cards import dataset_card, model_card, study_card
from codenas_hf.release.spelling import TOKENIZER_FILES, text_without_places
from codenas_hf.report.architecture import architecture_table, tensors_of_folder
from codenas_hf.report.drawing import save
from codenas_hf.report.plots import architecture_figure

# Weights in other forms may run code when they are loaded; lines of JSON are what an evaluation left: prompts, perhaps
# somebody's own, and answers. They never leave the house.
_NEVER = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".tmp", ".lock", ".log", ".jsonl"}
_TEXT = {".json", ".yaml", ".yml", ".md", ".csv", ".html", ".journal", ".txt"}


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """One repository to be.

    Args:
        what: model, space, dataset or study.
        repo_id: `owner/name`.
        repo_type: model, dataset or space.
        files: path in the repository to its content: a file, or bytes.
        marker: a file that only repositories of ours have.
        stale: patterns of files that an earlier publication may have left and that would now mislead a loader.
    """

    what: str
    repo_id: str
    repo_type: str
    files: Mapping[str, Path | bytes]
    marker: str
    stale: tuple[str, ...] = field(default=())

    @property
    def card(self) -> str:
        """Text of its README."""
        content = self.files["README.md"]
        return (content if isinstance(content, bytes) else content.read_bytes()).decode()

    def size(self, path: str) -> int:
        """Bytes of one file."""
        content = self.files[path]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def sha256(self, path: str) -> str:
        """Hex SHA-256 of one file."""
        content = self.files[path]
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest()
        with content.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def model_parcel(
    release: Release, *, repo_id: str, study: StudyFolder | None, licence: str, dataset_id: str | None, work: Path
) -> Parcel:
    """Weights, tokenizer, record, card and its pictures. A stock architecture goes as it is, without code.

    Args:
        release: what `write_release` wrote.
        repo_id: where it goes.
        study: around it; its report gives the front.
        licence: of the weights, as the Hub spells it.
        dataset_id: the Hub id of the corpus where that is published too.
        work: an empty folder for pictures.
    """
    files: dict[str, Path | bytes] = {}
    for path in sorted(release.folder.rglob("*")):
        name = path.relative_to(release.folder)
        if path.is_file() and not _hidden(name) and path.suffix not in _NEVER:
            files[name.as_posix()] = _clean(path)
    layers = architecture_table(tensors_of_folder(release.folder), release.read_config())
    save(architecture_figure(layers), work / "architecture.png", label=f"Architecture of {repo_id}")
    files["assets/architecture.png"] = work / "architecture.png"
    front = study.report / "front.png" if study is not None else None
    if front is not None and front.is_file():
        files["assets/front.png"] = front
    card = model_card(release, repo_id=repo_id, study=study, licence=licence, dataset_id=dataset_id, layers=layers)
    files["README.md"] = _scrub(card.text).encode()
    if card.eval_results:
        files[".eval_results/codenas.yaml"] = card.eval_results.encode()
    weights = ("*.safetensors", f"{WEIGHTS}.index.json", "model-*.gguf")
    code = ("configuration_codenas.py", "modeling_codenas.py", "cache_codenas.py")
    told = (EVALUATION, SETTINGS, "assets/*.png", ".eval_results/codenas.yaml")
    return Parcel(
        what="model",
        repo_id=repo_id,
        repo_type="model",
        files=files,
        marker=RECORD,
        stale=(*weights, *code, *told),
    )


def study_parcel(study: StudyFolder, *, repo_id: str, model_id: str) -> Parcel:
    """A study as a dataset repository: its record, settings, report; the tables load with `load_dataset`.

    Raises:
        FileNotFoundError: the study has no report.
    """
    report = study.report
    if not (report / "trials.csv").is_file():
        raise FileNotFoundError(
            f"{study.folder} has no {report.name}/trials.csv: run `codenas plot {study.folder}` first"
        )
    files: dict[str, Path | bytes] = {}
    for path in sorted(report.iterdir()):
        if path.suffix in {".csv", ".md", ".png", ".svg", ".html"}:
            files[f"report/{path.name}"] = _clean(path)
    for path in (study.settings, study.journal):
        if path.is_file():
            files[path.name] = _clean(path)
    tables = [p.stem for p in sorted(report.glob("*.csv")) if p.read_text(encoding="utf-8").count("\n") > 1]
    text = study_card(study, repo_id=repo_id, model_id=model_id, tables=tables)
    files["README.md"] = _scrub(text).encode()
    files["study.json"] = json.dumps({"study": study.name, "model": model_id}).encode()
    return Parcel(
        what="study", repo_id=repo_id, repo_type="dataset", files=files, marker="study.json", stale=("report/*",)
    )


def dataset_parcel(study: StudyFolder, *, repo_id: str, work: Path) -> Parcel:
    """The corpus of a study as Parquet, with its report and card.

    Raises:
        FileNotFoundError: the study does not say where its corpus is.
    """
    corpus = corpus_of(study)
    if corpus is None:
        raise FileNotFoundError(f"{study.data} does not name a corpus that is still there; search again to build it")
    files: dict[str, Path | bytes] = {}
    for split in SPLITS:
        shards = corpus.shards(split)
        for number in range(len(shards)):
            target = work / f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
            corpus.split(split).shard(len(shards), number, contiguous=True).to_parquet(target)  # type: ignore[arg-type]
            files[f"data/{target.name}"] = target
    facts = {"digest": corpus.digest, "report": corpus.report}
    files["corpus.json"] = _scrub(json.dumps(facts, indent=2, sort_keys=True)).encode()
    text = dataset_card(corpus.report, digest=corpus.digest, repo_id=repo_id)
    files["README.md"] = _scrub(text).encode()
    return Parcel(
        what="dataset",
        repo_id=repo_id,
        repo_type="dataset",
        files=files,
        marker="corpus.json",
        stale=("data/*.parquet",),
    )


class BundleError(RuntimeError):
    """The files of a Space could not be put together."""


def space_parcel(release: Release, *, repo_id: str, model_id: str, work: Path) -> Parcel:
    """The playground as a Space that offers one model.

    Raises:
        FileNotFoundError: the playground's files are not installed.
        BundleError: its bundle could not be made, or the model needs code of its own, which no Space runs.
    """
    if "auto_map" in release.read_config():
        raise BundleError(
            "a Space runs no code that a model brings, and this architecture needs it: leave `space` out of `what`"
        )
    files = _bundled(work / "space", "--model", model_id)
    return Parcel(
        what="space", repo_id=repo_id, repo_type="space", files=files, marker="models.json", stale=("codenas_hf/*",)
    )


def web_parcel(release: Release, *, repo_id: str, model_id: str, work: Path) -> Parcel:
    """The playground as a static Space: a page that runs a release in the browser.

    Raises:
        FileNotFoundError: the playground's files are not installed.
        BundleError: the page could not be made; for one, llama.cpp does not know the architecture.
    """
    files = _bundled(work / "web", "--web", "--model", str(release.folder), "--hub-id", model_id)
    return Parcel(
        what="web", repo_id=repo_id, repo_type="space", files=files, marker="model.json", stale=("*.gguf", "engine/*")
    )


def _bundled(folder: Path, *arguments: str) -> dict[str, Path | bytes]:
    """The files of a Space that `bundle.py` makes in `folder`."""
    script = bundled_folder("spaces_app") / "bundle.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BundleError(f"the Space could not be bundled: {done.stderr.strip().splitlines()[-1]}")
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def corpus_of(study: StudyFolder) -> Corpus | None:
    """The corpus that a study was trained on, None where it is gone or unknown."""
    try:
        return PreparedData.from_dict(read_json(study.data)["data"], beside=study.folder).corpus
    except (OSError, ValueError, KeyError):
        return None


def _hidden(name: Path) -> bool:
    return any(part.startswith((".", "checkpoint")) or part == "__pycache__" for part in name.parts)


def _clean(path: Path) -> Path | bytes:
    """A file as it may be published: text without passwords and without the folders of this machine."""
    if path.suffix not in _TEXT or path.name in TOKENIZER_FILES:  # to a tokenizer, `/usr/` is a word like others
        return path
    content = path.read_bytes()
    try:
        cleaned = _scrub(content.decode()).encode()
    except UnicodeDecodeError:
        return path
    return path if cleaned == content else cleaned


def _scrub(text: str) -> str:
    """Text without passwords in URLs; the home folder becomes `~`, and of other paths the last name stays."""
    home = str(Path.home())
    text = re.sub(re.escape(home) + r"(?=[/\"'\s])", "~", text) if len(home) > 1 else text
    return text_without_places(text)
