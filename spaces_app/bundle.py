"""Builds the folder of a Hub Space: `python spaces_app/bundle.py FOLDER --model owner/model`.

The folder runs with its `requirements.txt` alone: the playground's own files, and of `codenas_hf` just the modules
that it uses, copied as they are. With `--web` it is a page for any static host instead, and needs no server
(`web_page.py`). Upload either with `hf upload OWNER/SPACE FOLDER --repo-type space`.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = "codenas_hf"
COPIED = {".py", ".json", ".css", ".txt", ".md"}
LEFT_OUT = {"bundle.py", "models.json", "web_page.py"}
# Of a model's folder: weights that may run code, checkpoints, prompts and answers of an evaluation, our GGUF file.
LEFT_BEHIND = ("*.bin", "*.pt", "checkpoint*", "*.jsonl", "answers", "*.gguf")
PACKAGE_DOC = '"""The part of codenas_hf that the playground uses."""\n'


def bundle(folder: Path, *, models: Sequence[str] = ()) -> Path:
    """Writes the Space into `folder`, which must be empty or absent.

    Args:
        folder: where to write.
        models: what the Space offers: Hub ids, or model folders, which are copied into it.

    Raises:
        ValueError: `folder` is not empty, or codenas_hf is not installed.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder")
    package = package_folder()
    folder.mkdir(parents=True, exist_ok=True)
    own = [path for path in sorted(HERE.iterdir()) if path.suffix in COPIED and path.name not in LEFT_OUT]
    for path in own:
        shutil.copyfile(path, folder / path.name)
    for path in used_modules([path for path in own if path.suffix == ".py"], package=package):
        target = folder / PACKAGE / path.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        for parent in target.relative_to(folder).parents[:-1]:
            # The package's own __init__ imports everything; here it must import nothing.
            (folder / parent / "__init__.py").write_text(PACKAGE_DOC, encoding="utf-8")
    offered = [_place(model, folder) for model in models]
    (folder / "models.json").write_text(json.dumps(offered, indent=1) + "\n", encoding="utf-8")
    hub_ids = [name for name in offered if not (folder / name).is_dir()]
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8").replace("models: []", f"models: {json.dumps(hub_ids)}", 1)
    readme.write_text(text, encoding="utf-8")
    return folder


def package_folder() -> Path:
    """Where codenas_hf is installed, found without running it.

    Raises:
        ValueError: it is not installed.
    """
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise ValueError(f"{PACKAGE} is not installed here, so its decoding cannot be copied; pip install codenas-hf")
    return Path(package.submodule_search_locations[0])


def used_modules(files: Sequence[Path], *, package: Path) -> list[Path]:
    """The package's modules that `files` import, and those that these import, and so on."""
    found: dict[Path, None] = {}
    waiting = list(files)
    while waiting:
        for module in _imports(waiting.pop(), package=package):
            if module not in found:
                found[module] = None
                waiting.append(module)
    return sorted(found)


def _imports(path: Path, *, package: Path) -> Iterator[Path]:
    """Files of the package's modules that `path` imports by name."""
    own = [PACKAGE, *path.relative_to(package).parts[:-1]] if path.is_relative_to(package) else []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = own[: len(own) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            names = [start, *(f"{start}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            file = package.joinpath(*parts[1:]).with_suffix(".py") if len(parts) > 1 else package / "__init__.py"
            if parts[0] == PACKAGE and len(parts) > 1 and file.is_file():
                yield file


def _place(model: str, folder: Path) -> str:
    source = Path(model)
    if not source.is_dir():
        return model
    winner = source / "winner"
    if (winner / "config.json").is_file() and not (source / "config.json").is_file():
        source = winner  # a study means its winner
    name = source.resolve().parent.name if source.name == "winner" else source.resolve().name
    shutil.copytree(source, folder / "models" / name, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    return f"models/{name}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Builds the folder of a Hub Space.")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        help="a Hub id, or a model folder to copy in (a page: the newest one in runs/)",
    )
    parser.add_argument(
        "--web", action="store_true", help="a page for any static host, with one release folder's model"
    )
    parser.add_argument("--hub-id", help="with --web: the model's Hub id, for a link to its card")
    options = parser.parse_args()
    try:
        if options.web:
            from web_page import web_page  # loads transformers

            from codenas_hf.folders import default_model

            if len(options.model) > 1:
                raise ValueError("a page has one model: name one folder with --model")
            model = options.model[0] if options.model else str(default_model())
            print(web_page(options.folder, model=model, hub_id=options.hub_id))
        else:
            print(bundle(options.folder, models=options.model))
    except (ValueError, OSError) as error:
        raise SystemExit(f"bundle.py: {error}") from error


if __name__ == "__main__":
    main()
