"""Runtimes: the same tokens from each, a prefix computed once, and the fast one without torch."""

import gc
import json
import random
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import python_module
from test_readers import LLAMA_CPP, TEXT, disagreements, tokens_of, trained, words
from transformers import AutoTokenizer, PreTrainedModel

from codenas_hf import complete as complete_text
from codenas_hf.cli.main import main
from codenas_hf.compression.gguf import write_gguf
from codenas_hf.compression.onnx import write_onnx
from codenas_hf.generation.decode import DecodeSettings, complete, complete_many, stream
from codenas_hf.generation.llama_cpp import LlamaCppRuntime
from codenas_hf.generation.onnx_runtime import OnnxRuntime, OnnxRuntimeError
from codenas_hf.generation.runtimes import Runtime
from codenas_hf.generation.straight import StraightDecoder, is_watched
from codenas_hf.generation.torch_runtime import TorchRuntime
from codenas_hf.jobs.opening import OpenModel, gguf_of, open_runtime
from codenas_hf.release.targets import export_model

assert words  # the fixture of the tokenizer
TIE = 0.2  # llama.cpp's cache is float16 and it rounds activations; of two logits that are nearer either may win
STRAIGHT = ("llama", "qwen2", "qwen3", "arcee")


def many_prompts(ids: torch.Tensor, count: int = 120) -> list[list[int]]:
    """Beginnings of 8 to 40 tokens, each elsewhere."""
    rng = random.Random(3)
    starts = [rng.randrange(len(ids) - 41) for _ in range(count)]
    return [ids[at : at + rng.randint(8, 40)].tolist() for at in starts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Path:
    """A folder for transformers with a model that knows some text."""
    folder = tmp_path_factory.mktemp("runtimes") / "model"
    shutil.copytree(words, folder)
    trained("llama", tokens_of(words), tie_word_embeddings=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gguf(folder: Path) -> Path:
    """Its weights, unchanged, for llama.cpp; alone in a folder."""
    model = open_runtime(folder, runtime="torch").runtime.model  # type: ignore[attr-defined]
    return write_gguf(model, folder.parent / "alone" / "model.gguf", tokenizer=folder, form="f32")


def plain(model: PreTrainedModel) -> TorchRuntime:
    """A runtime that asks transformers for every token."""
    runtime = TorchRuntime(model)
    runtime._straight = False
    return runtime


@pytest.mark.parametrize("kind", STRAIGHT)
def test_the_straight_decoder_gives_the_tokens_of_transformers(kind: str, words: Path) -> None:
    ids = tokens_of(words)
    model = trained(kind, ids, steps=60 if kind == "llama" else 15, tie_word_embeddings=kind != "qwen3")
    runtime = TorchRuntime(model)
    runtime.logits([1, 2, 3])
    assert isinstance(runtime._cache, StraightDecoder)
    for prompt in many_prompts(ids):
        ours, theirs = list(prompt), model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0]
        while len(ours) < len(theirs):
            ours.append(int(runtime.logits(ours).argmax()))
        assert ours == theirs.tolist()


def test_batches_are_for_those_who_gain_by_them(words: Path) -> None:
    small = TorchRuntime(trained("llama", tokens_of(words), steps=1))
    assert not small.in_batches(1)
    assert not small.in_batches(8), "a step of `generate` takes longer than eight of its own"
    assert small.in_batches(64)
    assert plain(small.model).in_batches(2), "transformers' own step is as long alone"
    assert not Runtime("other", context_tokens=None).in_batches(64)


@LLAMA_CPP
@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_rows_of_llama_cpp_that_are_drawn_together_are_those_drawn_alone(
    temperature: float, folder: Path, gguf: Path
) -> None:
    opened = open_runtime(folder, runtime="torch")
    prompts = [opened.tokenizer.decode(ids) for ids in many_prompts(tokens_of(folder), 12)]
    prompts[3] = TEXT[: len(TEXT) // 2]  # the longest needs more than one pass
    settings = DecodeSettings(max_new_tokens=16, temperature=temperature, top_p=0.95, stop=("\n\n",), batch_size=6)
    runtime = LlamaCppRuntime(gguf)
    runtime.logits([1, 2, 3])
    together = complete_many(runtime, opened.tokenizer, prompts, settings=settings, num_samples=3)
    assert runtime.computed_tokens == 3, "in a context of their own"
    runtime.logits([1, 2, 3, 4])
    assert runtime.computed_tokens == 4, "and what was kept is still there"
    alone = complete_many(runtime, opened.tokenizer, prompts, settings=replace(settings, batch_size=1), num_samples=3)
    rows = [(a, b) for first, second in zip(together, alone, strict=True) for a, b in zip(first, second, strict=True)]
    different = [(a.text, b.text) for a, b in rows if (a.token_ids, a.finish_reason) != (b.token_ids, b.finish_reason)]
    assert all(len(a.token_ids) == len(b.token_ids) for a, b in rows if a.finish_reason == b.finish_reason == "length")
    assert len(different) <= len(rows) // 12, different  # near ties, which another order of sums may turn


def test_weights_that_are_changed_in_place_are_seen_at_once(words: Path) -> None:
    model = trained("llama", tokens_of(words), steps=2, tie_word_embeddings=True)
    runtime = TorchRuntime(model)
    before = runtime.logits([5, 6, 7])
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    found = runtime.logits([5, 6, 7])
    assert isinstance(runtime._cache, StraightDecoder)
    assert np.abs(found - model(torch.tensor([[5, 6, 7]])).logits[0, -1].detach().numpy()).max() < 1e-4
    assert np.abs(found - before).max() > 1e-2


@LLAMA_CPP
@pytest.mark.parametrize("kind", ["llama", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_every_runtime_gives_the_same_greedy_tokens_at_equal_weights(kind: str, words: Path, tmp_path: Path) -> None:
    ids = tokens_of(words)
    model = trained(kind, ids, tie_word_embeddings=kind != "qwen3")
    path = write_gguf(model, tmp_path / "model.gguf", tokenizer=words, form="f32")
    prompts = many_prompts(ids)
    assert disagreements(model, TorchRuntime(model), prompts, count=16, tie=1e-3)[1] == 0
    graph = write_onnx(model, tmp_path / "model.onnx", form="fp32")
    assert disagreements(model, OnnxRuntime(graph, context_tokens=128), prompts, count=16, tie=1e-3)[1] == 0
    different, wrong = disagreements(model, LlamaCppRuntime(path), prompts, count=16, tie=TIE)
    assert wrong == 0
    assert different <= len(prompts) // 20, "near ties are rare"


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    """The same for ONNX Runtime: a folder without weights for transformers."""
    model = open_runtime(folder, runtime="torch").runtime.model  # type: ignore[attr-defined]
    found = export_model(model, tokenizer=folder, out=folder.parent / "onnx", to="onnx", form="fp32")
    assert not is_watched(model), "the exporter leaves nothing behind in it"
    return found


NAMES = ("straight", "plain", "llama.cpp", "onnxruntime")


def runtimes(model: PreTrainedModel, gguf: Path, exported: Path) -> dict[str, Runtime]:
    """One of each."""
    return {
        "straight": TorchRuntime(model),
        "plain": plain(model),
        "llama.cpp": LlamaCppRuntime(gguf),
        "onnxruntime": OnnxRuntime(exported / "onnx" / "model.onnx", context_tokens=256),
    }


@LLAMA_CPP
@pytest.mark.parametrize("name", NAMES)
def test_the_next_keystroke_computes_only_what_is_new(name: str, folder: Path, gguf: Path, exported: Path) -> None:
    opened = open_runtime(folder, runtime="torch")
    model: Any = opened.runtime.model  # type: ignore[attr-defined]
    runtime, fresh = (runtimes(model, gguf, exported)[name] for _ in range(2))
    ids = opened.tokenizer(TEXT)["input_ids"][:110]
    runtime.logits(ids[:100])
    for changed, new in ((ids[:104], 4), (ids[:90], 1), ([*ids[:80], 7, 8, 9], 3), (ids, 30)):
        before = runtime.computed_tokens
        found = runtime.logits(changed)
        assert runtime.computed_tokens - before == new
        fresh.logits([1])  # shares nothing
        again, all_before = fresh.logits(changed), fresh.logits(changed[:-1])
        # llama.cpp's cache is float16 and it rounds what it multiplies: how far sums of other blocks lie apart depends
        # on the processor (0.05 on one without units for 8 bits). One token less is another world.
        bound = TIE if name == "llama.cpp" else 1e-4
        assert np.abs(found - again).max() < bound < np.abs(found - all_before).max() / 5


@LLAMA_CPP
@pytest.mark.parametrize(
    "settings",
    [
        DecodeSettings(max_new_tokens=24),
        DecodeSettings(max_new_tokens=24, stop=("):\n", "self.")),
        DecodeSettings(max_new_tokens=24, boundary="keep"),
        DecodeSettings(max_new_tokens=24, temperature=0.7, top_p=0.9, seed=5),
        DecodeSettings(max_new_tokens=24, temperature=0.2, min_p=0.05, repetition_penalty=1.1, stop=("\n\n",)),
    ],
)
@pytest.mark.parametrize("suffix", [None, "\n    return 1\n"])
def test_what_stands_above_the_runtimes_gives_the_same_text(
    settings: DecodeSettings, suffix: str | None, folder: Path, gguf: Path, exported: Path
) -> None:
    opened = open_runtime(folder, runtime="torch")
    model: Any = opened.runtime.model  # type: ignore[attr-defined]
    start = len(opened.tokenizer.decode(tokens_of(folder)[:70]))
    for cut in (start, start + 1, start + 3, start + 6):  # inside of words and of indents
        found = {
            name: complete(runtime, opened.tokenizer, TEXT[:cut], settings=settings, suffix=suffix)
            for name, runtime in runtimes(model, gguf, exported).items()
        }
        texts = {name: (done.text, done.token_ids, done.finish_reason) for name, done in found.items()}
        assert texts["plain"] == texts["straight"] == texts["onnxruntime"]
        if settings.temperature < 0.5:  # else a draw falls near an edge, which float16 moves, too often
            assert texts["plain"] == texts["llama.cpp"]


@LLAMA_CPP
@pytest.mark.parametrize("name", NAMES)
def test_a_closed_stream_computes_nothing_more_and_leaves_the_runtime_whole(
    name: str, folder: Path, gguf: Path, exported: Path
) -> None:
    opened = open_runtime(folder, runtime="torch")
    runtime = runtimes(opened.runtime.model, gguf, exported)[name]  # type: ignore[attr-defined]
    wanted = complete(runtime, opened.tokenizer, TEXT[:60])
    pieces = stream(runtime, opened.tokenizer, TEXT[:60])
    next(pieces)
    pieces.close()
    before = runtime.computed_tokens
    assert complete(runtime, opened.tokenizer, TEXT[:60]).text == wanted.text
    assert runtime.computed_tokens > before


def test_a_model_that_is_let_go_of_leaves_with_its_runtime(words: Path) -> None:
    model = trained("llama", tokens_of(words), steps=1)
    TorchRuntime.of(model).logits([1, 2, 3])
    assert TorchRuntime.of(model) is TorchRuntime.of(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_weights_that_changed_are_seen_by_the_next_completion(words: Path) -> None:
    model = trained("llama", tokens_of(words), steps=5)
    runtime = TorchRuntime(model)
    before = runtime.logits([1, 2, 3])
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    runtime.logits([4])
    assert np.abs(runtime.logits([1, 2, 3]) - before).max() > 0.1


def in_a_new_process(words: list[str]) -> tuple[str, list[str]]:
    """What `codenas` prints there, and which heavy modules it has loaded."""
    program = (
        "import json, sys\nfrom codenas_hf.cli.main import main\n"
        f"code = main({words!r})\n"
        "print(json.dumps([m for m in ('torch', 'gguf') if m in sys.modules]), file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout, json.loads(done.stderr.splitlines()[-1])


@LLAMA_CPP
@pytest.mark.parametrize("alone", [True, False])
def test_a_completion_in_llama_cpp_needs_no_torch(alone: bool, folder: Path, gguf: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "release")
    shutil.copyfile(gguf, tmp_path / "release" / "model-f32.gguf")
    place = gguf if alone else tmp_path / "release"
    asked = [str(place), TEXT[:60], "--temperature", "0", "--max-new-tokens", "12"]
    if alone:
        in_a_new_process(["complete", *asked])  # keeps the tokenizer
    text, modules = in_a_new_process(["complete", *asked])
    assert "torch" not in modules
    opened = open_runtime(folder, runtime="torch")
    settings = DecodeSettings(max_new_tokens=12, repetition_penalty=1.1)
    assert text == TEXT[:60] + complete(opened.runtime, opened.tokenizer, TEXT[:60], settings=settings).text + "\n"


@LLAMA_CPP
def test_a_folder_is_tried_in_both_and_then_read_by_the_faster(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODENAS_CACHE", str(tmp_path / "cache"))
    first = open_runtime(folder, device="cpu")
    (facts,) = (tmp_path / "cache" / "runtimes").glob("*.json")
    choice = json.loads(facts.read_text())
    assert choice["runtime"] == first.runtime.name == min(choice["decode_ms"], key=choice["decode_ms"].get)
    assert set(choice["decode_ms"]) == {"torch", "llama.cpp"}
    for wanted in ("torch", "llama.cpp"):
        facts.write_text(json.dumps({"runtime": wanted}))
        assert open_runtime(folder, device="cpu").runtime.name == wanted
        assert open_runtime(folder, runtime="torch").runtime.name == "torch"
        assert open_runtime(folder, runtime="llama.cpp").runtime.name == "llama.cpp"
    asked = ["complete", str(folder), TEXT[:60], "--max-new-tokens", "3"]
    assert in_a_new_process(asked)[1] == []
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    open_runtime(other, device="cpu")
    assert len(list((tmp_path / "cache" / "runtimes").glob("*.json"))) == 2, "another folder is another model"


@LLAMA_CPP
def test_without_the_package_that_writes_the_copy_torch_decodes_until_it_is_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODENAS_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "gguf", None)
        assert open_runtime(folder, device="cpu").runtime.name == "torch"
        with pytest.raises(ModuleNotFoundError, match="gguf"):
            open_runtime(folder, runtime="llama.cpp")
    assert list((tmp_path / "cache").rglob("*.json")) == []
    assert open_runtime(folder, runtime="llama.cpp").runtime.name == "llama.cpp"


@LLAMA_CPP
def test_what_llama_cpp_does_not_read_is_decoded_in_torch(tmp_path: Path, words: Path) -> None:
    from codenas_hf.architecture.genome import Genome
    from codenas_hf.modeling_codenas import CodeNASForCausalLM

    shutil.copytree(words, tmp_path / "ours")
    genome = Genome(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    CodeNASForCausalLM(genome.to_config()).save_pretrained(tmp_path / "ours")
    assert open_runtime(tmp_path / "ours").runtime.name == "torch"
    with pytest.raises(ValueError, match="it has genes that no stock architecture has"):
        open_runtime(tmp_path / "ours", runtime="llama.cpp")
    with pytest.raises(ValueError, match="it is no folder with weights"):
        open_runtime("nobody/nothing", runtime="llama.cpp")
    with pytest.raises(ValueError, match=r"`runtime` must be one of auto, torch, llama.cpp, onnxruntime, got 'fast'"):
        open_runtime(tmp_path / "ours", runtime="fast")  # type: ignore[arg-type]


def test_a_folder_that_was_exported_to_onnx_is_completed(folder: Path, exported: Path, tmp_path: Path) -> None:
    wanted = complete_text(open_runtime(folder, runtime="torch"), TEXT[:60], temperature=0, max_new_tokens=12)
    for name, runtime in ((exported, "auto"), (exported / "onnx" / "model.onnx", "onnxruntime")):
        opened = open_runtime(name, runtime=runtime)  # type: ignore[arg-type]
        assert opened.runtime.name == "onnxruntime"
        assert complete_text(opened, TEXT[:60], temperature=0, max_new_tokens=12) == wanted
    with pytest.raises(ValueError, match=r"onnxruntime cannot read .*: expected a folder with one onnx/\*.onnx"):
        open_runtime(folder, runtime="onnxruntime")
    shutil.copytree(exported, tmp_path / "broken")
    (tmp_path / "broken" / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(OnnxRuntimeError, match="ONNX Runtime cannot read"):
        open_runtime(tmp_path / "broken")
    (tmp_path / "broken" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no configuration and tokenizer beside"):
        open_runtime(tmp_path / "broken", runtime="onnxruntime")


def test_which_gguf_file_is_meant(tmp_path: Path) -> None:
    assert gguf_of(tmp_path) is None
    (tmp_path / "a.gguf").touch()
    assert gguf_of(tmp_path) == gguf_of(tmp_path / "a.gguf") == tmp_path / "a.gguf"
    (tmp_path / "config.json").write_text("{}")
    assert gguf_of(tmp_path) is None, "a folder for transformers ships `model-FORM.gguf`"
    (tmp_path / "model-q8_0.gguf").touch()
    assert gguf_of(tmp_path) == tmp_path / "model-q8_0.gguf"


def test_the_runtime_is_named_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["complete", "./nosuch", "x", "--runtime", "fast"])
    assert "invalid choice: 'fast'" in capsys.readouterr().err


def test_an_open_model_is_asked_more_than_once(folder: Path) -> None:
    model = open_runtime(folder, runtime="torch")
    assert isinstance(model, OpenModel)
    before = model.runtime.computed_tokens
    first = complete_text(model, python_module(random.Random(4))[:80], temperature=0, max_new_tokens=4)
    spent = model.runtime.computed_tokens - before
    assert complete_text(model, python_module(random.Random(4))[:80], temperature=0, max_new_tokens=4) == first
    assert model.runtime.computed_tokens - before - spent <= 5
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == model.tokenizer.get_vocab()
