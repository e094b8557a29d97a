"""Makes the prompt sets: `python -m codenas_hf.suite.prompt_sets.make FOLDER`.

`short` and `few_shot` come from the two text files beside this script, `mid_file` from the standard library of the
running interpreter, which has to be Python 3.11 for version 1.
"""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 1
_HERE = Path(__file__).parent
_CUTS_PER_MODULE = 5
_BEFORE, _AFTER = 28, 16
_MODULES = (
    "argparse ast bisect calendar cmd codecs codeop collections/__init__ colorsys configparser contextlib copy csv "
    "dataclasses datetime difflib doctest enum fileinput fnmatch fractions functools getopt glob gzip heapq inspect "
    "json/decoder json/encoder linecache logging/__init__ mailbox mimetypes operator optparse pathlib pickle pprint "
    "queue random sched selectors shelve shlex shutil statistics string tarfile tempfile textwrap threading timeit "
    "tokenize traceback typing urllib/parse uuid weakref zipfile"
).split()


def short() -> list[dict[str, Any]]:
    """One prompt a line."""
    return [{"prompt": line, "source": "codenas_hf"} for line in (_HERE / "short.txt").read_text().splitlines()]


def few_shot() -> list[dict[str, Any]]:
    """Every function three times as the target, after two or three others of its theme."""
    rng = np.random.default_rng(VERSION)
    rows: list[dict[str, Any]] = []
    for theme in (_HERE / "functions.txt").read_text().split("====\n"):
        functions = [text.strip() for text in theme.split("\n\n\n")]
        for target, function in enumerate(functions):
            others = [text for index, text in enumerate(functions) if index != target]
            order = [others[index] for index in rng.permutation(len(others))]
            for start, end in ((0, 2), (2, 5), (5, 8)):
                header, _, body = function.partition("\n")
                prompt = "\n\n\n".join([*order[start:end], header])
                rows.append({"prompt": prompt, "reference": "\n" + body + "\n", "source": "codenas_hf"})
    return rows


def mid_file() -> list[dict[str, Any]]:
    """Cuts in front of a statement inside a function, at places drawn at random."""
    rng = np.random.default_rng(VERSION)
    rows: list[dict[str, Any]] = []
    folder = Path(sysconfig.get_path("stdlib"))
    for module in _MODULES:
        text = (folder / f"{module}.py").read_text(encoding="utf-8")
        lines = text.splitlines()
        places = sorted(
            {
                statement.lineno - 1
                for function in ast.walk(ast.parse(text))
                if isinstance(function, ast.FunctionDef)
                for statement in function.body[1:]
                if len(lines[statement.lineno - 1].strip()) >= 8
            }
        )
        for place in sorted(rng.choice(places, size=min(_CUTS_PER_MODULE, len(places)), replace=False)):
            prompt = "\n".join(lines[max(0, place - _BEFORE) : place]).strip("\n").rstrip()
            reference = "\n" + "\n".join(lines[place : place + _AFTER])
            rows.append(
                {"prompt": prompt, "reference": reference, "source": f"cpython-3.11/Lib/{module}.py:{place + 1}"}
            )
    return rows


def write(folder: Path) -> None:
    """Writes the three files.

    Raises:
        RuntimeError: the interpreter is not the one that the version was made with.
    """
    if sys.version_info[:2] != (3, 11):
        raise RuntimeError(
            f"version {VERSION} is cut from Python 3.11, this is {sys.version_info[0]}.{sys.version_info[1]}"
        )
    makers = {"short": (short, "MIT"), "few_shot": (few_shot, "MIT"), "mid_file": (mid_file, "PSF-2.0")}
    folder.mkdir(parents=True, exist_ok=True)
    for kind, (make, licence) in makers.items():
        with (folder / f"{kind}.v{VERSION}.jsonl").open("w", encoding="utf-8") as file:
            for index, row in enumerate(make()):
                entry = {"id": f"{kind}/{VERSION}/{index:03d}", **row, "licence": licence}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else _HERE)
