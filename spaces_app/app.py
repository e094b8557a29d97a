"""The few-shot playground: `python spaces_app/app.py`, or `app.py` of a Hub Space.

python spaces_app/app.py                              # the winners under runs/, on http://127.0.0.1:7860
python spaces_app/app.py --model my/folder --port 7900
python spaces_app/app.py --help
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import accelerator  # noqa: F401  (first: on ZeroGPU it must come before torch)
from chooser import PlaygroundError, PlaygroundSettings, find_models
from transformers.utils import logging as transformers_logging

try:
    from interface import Page, launch_options
except ModuleNotFoundError as missing:
    if missing.name != "gradio":
        raise
    raise SystemExit("gradio is not installed: pip install 'codenas-hf[app]'") from None

HERE = Path(__file__).parent
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a Space has none and takes the defaults."""
    parser = argparse.ArgumentParser(description="Few-shot playground for small code models.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of local runs (default: runs)")
    parser.add_argument("--model", action="append", default=[], help="a folder or Hub id to offer; may be repeated")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1; in a Space 0.0.0.0)")
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument(
        "--any-model",
        action=argparse.BooleanOptionalAction,
        help="visitors may name any model (default: only while this computer alone reaches the page)",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a model, unasked")
    parser.add_argument("--max-model-mb", type=int, default=2048, help="largest weights to load (default: 2048)")
    parser.add_argument("--concurrency", type=int, default=1, help="completions at the same time (default: 1)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    return parser.parse_args(arguments)


def named_models() -> list[str]:
    """What a Space offers: `models.json` beside this file, a list of Hub ids and of folders beside it."""
    path = HERE / "models.json"
    names = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return [str(HERE / name) if (HERE / name).is_dir() else name for name in names]


def settings_from(options: argparse.Namespace, *, host: str) -> PlaygroundSettings:
    """The launcher's settings; where others reach the page, they only use what is offered."""
    alone = host in LOOPBACK and "SPACE_ID" not in os.environ
    return PlaygroundSettings(
        runs=options.runs,
        models=(*options.model, *named_models()),
        any_model=alone if options.any_model is None else options.any_model,
        trust_remote_code=options.trust_remote_code,
        max_model_bytes=options.max_model_mb * 10**6,
        concurrency=options.concurrency,
    )


def warm_up(page: Page) -> None:
    """Loads the first model on offer, so that the first visitor does not wait for it."""
    offered = find_models(page.settings)
    if offered and (Path(offered[0][1]).is_dir() or offered[0][1] in page.settings.models):
        try:
            page.completer.shelf.load(offered[0][1])
        except PlaygroundError as error:
            print(f"{offered[0][0]} is offered but does not load: {error}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds the page and serves it until it is interrupted."""
    options = parse_arguments(arguments)
    default = "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1"
    host = options.host or os.environ.get("GRADIO_SERVER_NAME") or default
    transformers_logging.disable_progress_bar()
    page = Page(settings_from(options, host=host))
    demo = page.build()
    threading.Thread(target=warm_up, args=(page,), daemon=True).start()
    demo.launch(
        server_name=host,
        server_port=options.port,
        inbrowser=options.open,
        mcp_server=importlib.util.find_spec("mcp") is not None,
        **launch_options(),
    )


if __name__ == "__main__":
    main()
