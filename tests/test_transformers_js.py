"""transformers.js reads what `codenas export --to onnx` writes, in Node and in Chromium: our own model's tokens."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_onnx import STORED
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from web_model import ROOT, chromium, plain_server, prompts_of, source_text

from benchmarks import web_readers
from codenas_hf.cli.main import main
from codenas_hf.compression.formats import FORMATS
from codenas_hf.compression.quantize import store_in

RELEASE = ROOT / "model_cards" / "codenas-py-4mb"
PROMPTS, NEW_TOKENS = 50, 32
NEAR_TIE = 0.05
MOST = PROMPTS // 20
# In Node, left to itself, ONNX Runtime rounds activations to 8 bits, which moves these logits by up to 0.3: of two
# that are nearer either may win, in some prompts; a mistake in the file would change every prompt.
ROUNDED_TIE = 0.5

pytestmark = [pytest.mark.timeout(600), pytest.mark.parametrize("form", ["int8", "int4"])]


@pytest.fixture(scope="module")
def packages() -> Path:
    """transformers.js with what it needs, kept between runs."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm and node are needed to run transformers.js; install Node.js 20 or newer")
    place = os.environ.get("CODENAS_NODE_FOLDER", Path(tempfile.gettempdir()) / "codenas_transformers_js")
    try:
        return web_readers.packages(Path(place))
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders that the command writes."""
    place = tmp_path_factory.mktemp("exports")
    for form in ("int8", "int4"):
        assert main(["export", str(RELEASE), "--to", "onnx", "--format", form, "--out", str(place / form)]) == 0
    return {form: place / form for form in ("int8", "int4")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def differences(form: str, found: list[dict[str, Any]], prompts: list[str], *, tie: float = NEAR_TIE) -> list[str]:
    """Where greedy tokens are not those of our own model, its weights as the form stores them; each a near tie."""
    tokenizer = AutoTokenizer.from_pretrained(RELEASE)
    ours: PreTrainedModel = AutoModelForCausalLM.from_pretrained(RELEASE, dtype=torch.float32).eval()
    store_in(ours, FORMATS[str(STORED[form])])
    near = []
    for number, (prompt, answer) in enumerate(zip(prompts, found, strict=True)):
        given, ids = answer["given"], answer["ids"]
        assert given == tokenizer(prompt)["input_ids"]
        assert len(ids) == NEW_TOKENS or ids[-1] == tokenizer.eos_token_id
        with torch.no_grad():  # in one pass: up to the first difference the tokens before are the same
            logits = ours(torch.tensor([given + ids[:-1]]), use_cache=False).logits[0, len(given) - 1 :]
        places = (logits.argmax(dim=-1) != torch.tensor(ids)).nonzero()
        if len(places):
            at = int(places[0])
            apart = float(logits[at].max() - logits[at, ids[at]])
            assert apart < tie, f"prompt {number}, token {at}: logits {apart:.3g} apart"
            near.append(f"prompt {number}, token {at}: logits {apart:.2g} apart")
    print(f"{form}: {len(found) - len(near)} of {len(found)} equal; near ties: {near or 'none'}")
    return near


@pytest.mark.node
def test_in_node_it_gives_the_tokens_of_our_model(form: str, packages: Path, exports: dict[str, Path]) -> None:
    prompts = prompts_of(source_text(), PROMPTS)
    wish = web_readers.asked(exports[form], form=form, prompts=prompts, count=NEW_TOKENS, session=web_readers.EXACT)
    assert len(differences(form, web_readers.in_node(packages, wish)["found"], prompts)) <= MOST


@pytest.mark.browser
def test_in_a_page_it_gives_the_tokens_of_our_model(
    form: str, browser: Any, packages: Path, exports: dict[str, Path], tmp_path: Path
) -> None:
    prompts = prompts_of(source_text(), PROMPTS)
    wish = web_readers.asked(exports[form], form=form, prompts=prompts, count=NEW_TOKENS)
    with plain_server(web_readers.site(tmp_path / "site", packages, exports[form])) as where:
        page = browser.new_context().new_page()
        others: list[str] = []
        page.on("request", lambda sent: None if sent.url.startswith((where, "blob:")) else others.append(sent.url))
        page.goto(where)
        found = web_readers.in_page(page, wish)["found"]
        assert others == []
    assert len(differences(form, found, prompts)) <= MOST


@pytest.mark.node
def test_left_to_itself_it_differs_in_near_ties_only(form: str, packages: Path, exports: dict[str, Path]) -> None:
    prompts = prompts_of(source_text(), PROMPTS)
    wish = web_readers.asked(exports[form], form=form, prompts=prompts, count=NEW_TOKENS)
    near = differences(form, web_readers.in_node(packages, wish)["found"], prompts, tie=ROUNDED_TIE)
    assert len(near) < PROMPTS // 2, near
