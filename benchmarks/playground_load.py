"""What 50 visitors at once meet: `python -m benchmarks.playground_load`.

Each visitor speaks the browser's protocol: joins the queue, then reads its event stream. Measured: the time until each
knows something (a piece of its result, or its position), whether results come in the order of the queue, and how much
the server's memory grows. `--model FOLDER` takes a trained model; without it, one with random weights.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results_file import protocol, target, write

ROOT = Path(__file__).parent.parent
NAMES = ("endoftext", "fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "file_sep", "repo_name", "pad")
SPECIAL = [f"<|{name}|>" for name in NAMES]
KNOWING = ("estimation", "process_generating", "process_completed")
PROMPT = "def total(numbers):\n    result = 0\n    for number in numbers:\n"


def random_model(
    folder: Path, *, seed: int = 0, layers: int = 2, hidden: int = 32, vocab_size: int = 400, context: int = 1024
) -> Path:
    """A Llama with random weights and a byte-level BPE with the package's special tokens, saved in `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bytes_only = Tokenizer(models.BPE())
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bytes_only.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, bos_token=SPECIAL[0], eos_token=SPECIAL[0], pad_token=SPECIAL[-1]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[1:-1]})
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=len(SPECIAL) - 1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass
class Visitor:
    """What one visitor met; times in seconds since it joined."""

    number: int
    known_s: float = float("nan")
    position: int = 0
    done_s: float = float("nan")
    finished: int = 0
    succeeded: bool = False


async def visit(client: Any, visitor: Visitor, *, endpoint: int, call: Sequence[Any], finished: list[int]) -> None:
    """Joins the queue as a browser does and reads the event stream until the result is whole."""
    session = f"load{visitor.number:04d}"
    body = {"data": list(call), "fn_index": endpoint, "session_hash": session}
    start = time.perf_counter()
    answer = await client.post("/gradio_api/queue/join", json=body)
    answer.raise_for_status()
    async with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as events:
        async for line in events.aiter_lines():
            if not line.startswith("data:"):
                continue
            message = json.loads(line[5:])
            kind = message["msg"]
            if kind == "estimation" and not visitor.position:
                visitor.position = int(message["rank"]) + 1
            if kind in KNOWING and math.isnan(visitor.known_s):
                visitor.known_s = time.perf_counter() - start
            if kind == "process_completed":
                visitor.done_s = time.perf_counter() - start
                visitor.succeeded = bool(message["success"])
                finished.append(visitor.number)
                visitor.finished = len(finished)
                return


def memory_bytes(process: int) -> int:
    """Resident memory of a process as Linux counts it."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) * 1024 if found else 0


async def crowd(url: str, *, visitors: int, new_tokens: int, process: int) -> tuple[list[Visitor], int, int]:
    """The visitors' experience, and resident bytes before and at the highest."""
    import httpx

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        config = (await client.get("/config")).json()
        endpoint = next(d["id"] for d in config["dependencies"] if d["api_name"] == "complete")
        info = (await client.get("/gradio_api/info")).json()["named_endpoints"]["/complete"]["parameters"]
        wishes = {"prompt": PROMPT, "max_new_tokens": new_tokens, "temperature": 0.8, "one_block": False}
        call = [wishes.get(field["parameter_name"], field["parameter_default"]) for field in info]
        options = {"endpoint": endpoint, "call": call}
        for number in range(2):  # the model is loaded and the allocator warm before memory is read
            await visit(client, Visitor(9000 + number), finished=[], **options)
        before = memory_bytes(process)
        everybody = [Visitor(number) for number in range(visitors)]
        finished: list[int] = []
        watched = [before]

        async def watch() -> None:
            while True:
                watched.append(memory_bytes(process))
                await asyncio.sleep(0.1)

        watcher = asyncio.create_task(watch())
        await asyncio.gather(*(visit(client, one, finished=finished, **options) for one in everybody))
        watcher.cancel()
    return everybody, before, max(watched)


def out_of_order(everybody: Sequence[Visitor]) -> int:
    """Pairs of visitors of whom the one further back in the queue was served first; 0 is first come, first served."""
    waited = [one for one in everybody if one.position]
    return sum(a.position < b.position and a.finished > b.finished for a in waited for b in waited)


def start_server(model: Path, *, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The playground with `model` in a process of its own, and its address once it answers.

    Raises:
        RuntimeError: it ended or did not answer within two minutes; its output is in the message.
    """
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    command = [sys.executable, str(ROOT / "spaces_app" / "app.py"), "--no-any-model"]
    command += ["--runs", str(folder / "none"), "--model", str(model), "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            httpx.get(f"{url}/config", timeout=5).raise_for_status()
            return process, url
        except httpx.HTTPError:
            if process.poll() is not None:
                break
            time.sleep(0.5)
    process.kill()
    raise RuntimeError(f"the playground did not start:\n{log.read_text()[-2000:]}")


def measure(model: Path, *, visitors: int, new_tokens: int, folder: Path) -> dict[str, Any]:
    """One row: what `visitors` at once met with `model`."""
    process, url = start_server(model, folder=folder)
    try:
        everybody, before, peak = asyncio.run(
            crowd(url, visitors=visitors, new_tokens=new_tokens, process=process.pid)
        )
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
    return {
        "visitors": visitors,
        "succeeded": sum(one.succeeded for one in everybody),
        "slowest_to_know_s": max(one.known_s for one in everybody),
        "first_result_s": min(one.done_s for one in everybody),
        "last_result_s": max(one.done_s for one in everybody),
        "furthest_position": max(one.position for one in everybody),
        "pairs_out_of_order": out_of_order(everybody),
        "memory_before_mb": before / 1e6,
        "memory_growth_mb": (peak - before) / 1e6,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes `benchmarks/results/playground_load.json` (not with `--smoke`)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="model folder (default: random weights)")
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--smoke", action="store_true", help="a toy model, print the row, write nothing")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = {} if options.smoke else {"layers": 8, "hidden": 384, "vocab_size": 1000}
        model = options.model.resolve() if options.model else random_model(folder / "random", **size)
        row = measure(model, visitors=options.visitors, new_tokens=options.new_tokens, folder=folder)
    print(json.dumps(row, indent=1))
    if options.smoke:
        return
    goals = [
        target("visitors with a result", row["succeeded"], options.visitors, better="higher"),
        target("seconds until all know their result or position", row["slowest_to_know_s"], 2.0, better="lower"),
        target("pairs served out of order", row["pairs_out_of_order"], 0, better="lower"),
        target("memory growth in MB", row["memory_growth_mb"], 200, better="lower"),
    ]
    name = options.model.name if options.model else "random Llama, 8 layers of 384"
    conditions = protocol(model=name, new_tokens=options.new_tokens, concurrency=1)
    write("playground_load", protocol=conditions, rows=[row], targets=goals)


if __name__ == "__main__":
    main()
