"""Completion: boundaries, stop strings, streaming, batches, infilling, bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_models import SPECIAL, TEXT, learn, tiny_model, tiny_tokenizer

from codenas_hf.generation import sampling
from codenas_hf.generation.decode import (
    GREEDY,
    DecodeSettings,
    complete,
    complete_many,
    stream,
    supports_infilling,
)
from codenas_hf.generation.token_text import HealedPrompt, TokenText
from codenas_hf.generation.torch_runtime import TorchRuntime


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(tokenizer)


@pytest.fixture(scope="module")
def scholar(tokenizer):
    """A model that knows TEXT by heart."""
    model = tiny_model(tokenizer, seed=1, spread=0.05)
    learn(model, tokenizer, TEXT, steps=200)
    return model


def drain(generator):
    pieces = []
    while True:
        try:
            pieces.append(next(generator))
        except StopIteration as end:
            return pieces, end.value


def spy_on(runtime, monkeypatch):
    """What a runtime is asked for, one list of tokens for each question."""
    seen, original = [], runtime.logits

    def spy(token_ids):
        seen.append(list(token_ids))
        return original(token_ids)

    monkeypatch.setattr(runtime, "logits", spy)
    return seen


def test_greedy_equals_generate(model, tokenizer):
    settings = DecodeSettings(max_new_tokens=20, boundary="keep", start="never")
    ids = tokenizer("def add(", return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
    specials = [index for index, token in enumerate(expected) if token in TokenText.of(tokenizer).special_ids]
    expected = expected[: specials[0]] if specials else expected
    assert list(complete(model, tokenizer, "def add(", settings=settings).token_ids) == expected


@pytest.mark.parametrize("cut", [3, 10, 22, 24, 25, 27, 28, 31, 40, len(TEXT) - 9])
def test_healed_prompt_is_continued_as_if_it_had_not_been_cut(scholar, tokenizer, cut):
    done = complete(scholar, tokenizer, TEXT[:cut], settings=DecodeSettings(max_new_tokens=80))
    assert TEXT[:cut] + done.text == TEXT
    assert done.finish_reason == "eos"


def test_healing_matters_after_an_indent(scholar, tokenizer):
    prompt = TEXT[: TEXT.index("return")]  # ends with a whole indent, which is never a token boundary here
    healed = complete(scholar, tokenizer, prompt, settings=DecodeSettings(max_new_tokens=80))
    kept = complete(scholar, tokenizer, prompt, settings=DecodeSettings(max_new_tokens=80, boundary="keep"))
    stripped = complete(scholar, tokenizer, prompt, settings=DecodeSettings(max_new_tokens=80, boundary="strip"))
    assert prompt + healed.text == TEXT
    assert stripped.prompt + stripped.text == TEXT
    assert prompt + kept.text != TEXT


def test_generated_tokens_spell_the_pending_bytes_then_the_text(model, tokenizer):
    table = TokenText.of(tokenizer)
    for cut in range(1, len(TEXT), 7):
        for temperature in (0.0, 1.5):
            settings = DecodeSettings(max_new_tokens=6, temperature=temperature)
            done = complete(model, tokenizer, TEXT[:cut], settings=settings)
            healed = table.heal(TEXT[:cut], tokenizer(TEXT[:cut])["input_ids"])
            spelled = table.join(done.token_ids)
            assert spelled.startswith(healed.pending)
            text = spelled[len(healed.pending) :].decode(errors="replace")
            assert text.rstrip("�") == done.text.rstrip("�")


def test_empty_prompt_starts_a_document(scholar, tokenizer):
    assert complete(scholar, tokenizer, "", settings=DecodeSettings(max_new_tokens=80)).text == TEXT


def test_stop_string_ends_the_text_before_it(scholar, tokenizer):
    settings = DecodeSettings(max_new_tokens=80, stop=("\n\n\ndef", "never"))
    done = complete(scholar, tokenizer, "def add(", settings=settings)
    assert done.text == "first, second):\n    return first + second"
    assert done.finish_reason == "stop"


@pytest.mark.parametrize("stop", [(), ("\ndef",), ("return", "+"), ("second",)])
def test_stream_joins_to_the_completion(scholar, tokenizer, stop):
    settings = DecodeSettings(max_new_tokens=60, stop=stop)
    pieces, done = drain(stream(scholar, tokenizer, "def add(", settings=settings))
    whole = complete(scholar, tokenizer, "def add(", settings=settings)
    assert "".join(pieces) == whole.text == done.text
    assert len(pieces) > 1
    assert done.token_ids == whole.token_ids


def test_stream_never_yields_half_a_character():
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, seed=2, spread=0.05)
    learn(model, tokenizer, "é€😀" * 4, steps=40)
    pieces, done = drain(stream(model, tokenizer, "é€😀é", settings=DecodeSettings(max_new_tokens=20)))
    assert "".join(pieces) == done.text
    assert "�" not in done.text
    assert "€😀" in done.text


def test_closing_a_stream_computes_nothing_more(scholar, tokenizer):
    runtime = TorchRuntime(scholar)
    generator = stream(runtime, tokenizer, "def add(", settings=DecodeSettings(max_new_tokens=100))
    next(generator)
    before = runtime.computed_tokens
    generator.close()
    assert runtime.computed_tokens == before < 40


def test_what_the_model_raises_reaches_the_caller(model, tokenizer, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("no memory left")

    with monkeypatch.context() as patched:
        patched.setattr(model, "forward", broken)
        with pytest.raises(RuntimeError, match="no memory left"):
            list(stream(model, tokenizer, "def"))
    assert complete(
        model, tokenizer, "def", settings=DecodeSettings(max_new_tokens=2)
    ).token_ids  # and nothing stays broken


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("together", [True, False])
def test_a_batch_does_not_change_a_completion(model, tokenizer, temperature, together, monkeypatch):
    sizes = []
    original = TorchRuntime.generate_many
    monkeypatch.setattr(TorchRuntime, "in_batches", lambda self, count: together)
    monkeypatch.setattr(
        TorchRuntime, "generate_many", lambda self, rows, **how: sizes.append(len(rows)) or original(self, rows, **how)
    )
    prompts = ["def add(first", "x", "    return add(number, number)\n" * 2, "def"]
    settings = DecodeSettings(max_new_tokens=12, temperature=temperature, top_p=0.9, seed=5)
    alone = [complete(model, tokenizer, prompt, settings=settings).token_ids for prompt in prompts]
    batch = complete_many(model, tokenizer, prompts, settings=settings)
    assert [row[0].token_ids for row in batch] == alone
    assert sizes == ([4] if together else [])
    batch = complete_many(TorchRuntime(model), tokenizer, prompts, settings=settings)
    assert [row[0].token_ids for row in batch] == alone, "a runtime of torch does the same"


def test_samples_differ_and_repeat_with_their_seed(model, tokenizer):
    settings = DecodeSettings(max_new_tokens=8, temperature=1.0, seed=3)
    first = complete_many(model, tokenizer, ["def", "x ="], settings=settings, num_samples=3)
    again = complete_many(model, tokenizer, ["def", "x ="], settings=settings, num_samples=3)
    other = complete_many(
        model, tokenizer, ["def"], settings=DecodeSettings(max_new_tokens=8, temperature=1.0, seed=4), num_samples=3
    )
    texts = [[done.text for done in row] for row in first]
    assert texts == [[done.text for done in row] for row in again]
    assert len(set(texts[0])) == 3
    assert texts[0] != [done.text for done in other[0]]


def test_sampling_follows_the_distribution(model, tokenizer):
    ids = tokenizer("def", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        probabilities = model(ids).logits[0, -1].div(0.5).softmax(-1)
    settings = DecodeSettings(max_new_tokens=1, temperature=0.5, boundary="keep", start="never", batch_size=400)
    done = complete_many(model, tokenizer, ["def"], settings=settings, num_samples=400)[0]
    best = int(probabilities.argmax())
    share = sum(row.token_ids[:1] == (best,) for row in done) / len(done)
    error = 4 * float(probabilities[best] * (1 - probabilities[best]) / 400) ** 0.5
    assert abs(share - float(probabilities[best])) < error


@pytest.mark.parametrize(
    "settings",
    [
        DecodeSettings(temperature=0.7, top_p=0.9),
        DecodeSettings(temperature=5.0, top_p=0.999),  # flat: more than the few that are sorted first
        DecodeSettings(temperature=0.7, top_k=30),
        DecodeSettings(temperature=0.7, top_k=30, top_p=0.8, min_p=0.05),
        DecodeSettings(temperature=1.0, min_p=0.01),
        DecodeSettings(temperature=1.0),
    ],
)
def test_a_draw_is_what_sorting_everything_gives(settings, tokenizer, monkeypatch):
    rng = np.random.default_rng(0)
    table = TokenText.of(tokenizer)
    logits = [np.round(rng.normal(0, 3, len(table)), 1).astype(np.float32) for _ in range(200)]  # with ties
    drawn = []
    for few in (8, 10**9):
        monkeypatch.setattr(sampling, "_FEW", few)
        row = sampling.Row("", HealedPrompt([1], b"", 0), dropped=0, settings=settings, seed=3)
        choose = sampling.Chooser(row, table, settings)
        drawn.append([choose(each) for each in logits])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 20
    if settings.top_k:
        ranks = [int((each > each[token]).sum()) for each, token in zip(logits, drawn[0], strict=True)]
        assert max(ranks) < settings.top_k


def test_top_k_of_one_and_min_p_of_one_are_greedy(model, tokenizer):
    greedy = complete(model, tokenizer, "def", settings=DecodeSettings(max_new_tokens=10)).token_ids
    for options in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}):
        settings = DecodeSettings(max_new_tokens=10, temperature=1.0, **options)
        assert complete(model, tokenizer, "def", settings=settings).token_ids == greedy


def test_repetition_penalty_breaks_a_loop(tokenizer):
    model = tiny_model(tokenizer, seed=3, spread=0.05)
    learn(model, tokenizer, "add" + " add" * 40, steps=60)
    loop = complete(
        model, tokenizer, "add add", settings=DecodeSettings(max_new_tokens=20, boundary="keep", start="never")
    )
    free = complete(
        model,
        tokenizer,
        "add add",
        settings=DecodeSettings(max_new_tokens=20, boundary="keep", start="never", repetition_penalty=100.0),
    )
    assert loop.text == " add" * 20
    assert free.text != loop.text


def test_infilling_puts_the_prompt_in_psm_order(model, tokenizer, monkeypatch):
    runtime = TorchRuntime(model)
    seen = spy_on(runtime, monkeypatch)
    complete(runtime, tokenizer, "def f(", settings=DecodeSettings(max_new_tokens=2), suffix="\nreturn")
    assert tokenizer.decode(seen[0]) == "<|endoftext|><|fim_prefix|>def f(<|fim_suffix|>\nreturn<|fim_middle|>"


def test_infilling_needs_its_tokens():
    plain = tiny_tokenizer(special=["<|endoftext|>", "<|pad|>"])
    assert not supports_infilling(plain)
    assert supports_infilling(tiny_tokenizer())
    with pytest.raises(ValueError, match="trained to fill in the middle"):
        complete(tiny_model(plain), plain, "a", suffix="b")


@pytest.mark.parametrize("suffix", [None, "    return total\n"])
def test_line_ends_and_byte_order_mark_are_read_as_in_training(model, tokenizer, suffix):
    text = "import math\n\ndef mean(values):\n    total = "
    settings = DecodeSettings(max_new_tokens=4)
    wanted = complete(model, tokenizer, text, settings=settings, suffix=suffix)
    for odd in ("\ufeff" + text, text.replace("\n", "\r\n"), text.replace("\n", "\r")):
        other = suffix and "\ufeff" + suffix.replace("\n", "\r\n")
        found = complete(model, tokenizer, odd, settings=settings, suffix=other)
        assert (found.prompt, found.token_ids) == (text, wanted.token_ids)
        assert found.prompt_tokens == wanted.prompt_tokens


def test_suffixes_are_one_per_prompt(model, tokenizer):
    with pytest.raises(ValueError, match="one per prompt"):
        complete_many(model, tokenizer, ["a", "b"], suffixes=["c"])


def test_special_tokens_in_text_stay_text(model, tokenizer, monkeypatch):
    runtime = TorchRuntime(model)
    seen = spy_on(runtime, monkeypatch)
    complete(runtime, tokenizer, f"x = '{SPECIAL[0]}{SPECIAL[1]}' + y", settings=DecodeSettings(max_new_tokens=2))
    assert set(seen[0]) & TokenText.of(tokenizer).special_ids == {tokenizer.bos_token_id}


@pytest.mark.parametrize("suffix", [None, "y = 1\n" * 100])
def test_a_prompt_beyond_the_context_loses_what_is_far_away(model, tokenizer, suffix):
    settings = DecodeSettings(max_new_tokens=10**9)
    done = complete(model, tokenizer, "number = 1\n" * 200, settings=settings, suffix=suffix)
    assert done.dropped_tokens > 0
    assert done.prompt_tokens <= 64
    assert done.prompt_tokens + len(done.token_ids) <= 128


def test_only_tokens_of_the_tokenizer_are_drawn(tokenizer):
    model = tiny_model(tokenizer)
    model.resize_token_embeddings(len(tokenizer) + 50)
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer) :] = 100.0
    done = complete(model, tokenizer, "def", settings=DecodeSettings(max_new_tokens=5))
    assert max(done.token_ids) < len(tokenizer)


def test_max_seconds_ends_a_completion(model, tokenizer):
    done = complete(model, tokenizer, "d", settings=DecodeSettings(max_new_tokens=100, max_seconds=1e-6))
    assert done.finish_reason in ("time", "eos")
    assert len(done.token_ids) <= 1


def test_start_token(model, tokenizer, monkeypatch):
    for start, expected in (("auto", 4), ("always", 4), ("never", 3)):
        done = complete(
            model, tokenizer, "x y", settings=DecodeSettings(max_new_tokens=1, boundary="keep", start=start)
        )
        assert done.prompt_tokens == expected, start
    other = tiny_tokenizer()
    other.bos_token = other.pad_token  # start and end differ, and the tokenizer itself adds none
    assert complete(model, other, "x y", settings=DecodeSettings(max_new_tokens=1, boundary="keep")).prompt_tokens == 3


def test_empty_prompt_needs_a_start_token():
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no start token"):
        complete(model, tokenizer, "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_window", -1),
        ("seed", -1),
        ("batch_size", 0),
        ("boundary", "guess"),
        ("start", "maybe"),
        ("max_seconds", 0.0),
        ("stop", ("",)),
    ],
)
def test_settings_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"`{field}` must"):
        DecodeSettings(**{field: value})


def test_greedy_is_the_default():
    assert GREEDY.temperature == 0
    assert GREEDY.repetition_penalty == 1


@pytest.mark.parametrize("isolate", [False, True])
def test_tokens_spell_any_text(isolate):
    tokenizer = tiny_tokenizer(isolate_indent=isolate)
    table = TokenText.of(tokenizer)
    text = TEXT + "ü = '日本'\r\n\t# 😀 \x00"
    assert table.join(tokenizer(text)["input_ids"]).decode() == text
    for cut in range(1, len(text)):
        ids = tokenizer(text[:cut])["input_ids"]
        healed = table.heal(text[:cut], ids)
        assert (table.join(healed.token_ids) + healed.pending).decode() == text[:cut]
        assert healed.pending
