"""Bits per byte: one sum for passages and texts; its interval; two models compared in pairs."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_models import TEXT, tiny_tokenizer
from evaluation_models import tiny_model as text_model
from training_fakes import VOCAB, tiny_model

from codenas_hf.engine.intervals import ratio_interval, t_quantile
from codenas_hf.folders.record import Measured
from codenas_hf.measure import rows as summing
from codenas_hf.measure.rows import copied_tokens, sum_rows
from codenas_hf.measure.score import Score, paired_difference, score_passages
from codenas_hf.suite.text_score import score_texts


@dataclass(frozen=True)
class FakePassages:
    input_ids: Any
    targets: Any
    position_ids: Any
    num_bytes: Any
    project: Any
    projects: Any


def passages(count: int = 23, length: int = 20, seed: int = 0) -> FakePassages:
    """Rows of different lengths that begin with context that is not scored."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(VOCAB, size=(count, length))
    targets = np.roll(ids, -1, axis=1)
    targets[:, :3] = -100
    for row in range(count):
        targets[row, rng.integers(8, length + 1) :] = -100
    num_bytes = (targets != -100).sum(axis=1) * 3
    project = np.arange(count) % 6
    positions = np.tile(np.arange(length), (count, 1))
    return FakePassages(ids, targets, positions, num_bytes, project, tuple("abcdef"))


def lively_model(seed: int = 0) -> Any:
    """Whose weights are all drawn, so that something depends on everything."""
    torch.manual_seed(seed)
    model = tiny_model(width=32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model.eval()


def test_batch_size_threads_and_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = lively_model(), passages()
    whole = score_passages(model, text, batch_size=64)
    threads = torch.get_num_threads()
    for batch_size, number, chunk, logits in [(1, 1, 2**22, 2**28), (5, 2, 2**22, 2**28), (64, 1, VOCAB * 3, 10_000)]:
        monkeypatch.setattr(summing, "_CHUNK_LOGITS", chunk)
        monkeypatch.setattr(summing, "_LOGIT_BYTES", logits)
        torch.set_num_threads(number)
        other = score_passages(model, text, batch_size=batch_size)
        torch.set_num_threads(threads)
        np.testing.assert_allclose(other.rows.nats, whole.rows.nats, rtol=1e-6)
        assert other.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-6)
        assert np.array_equal(other.rows.correct, whole.rows.correct)


def test_a_pass_never_holds_more_logits_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = lively_model(), []
    forward = model.forward

    def watched(*, input_ids: torch.Tensor, **more: Any) -> Any:
        seen.append(input_ids.numel() * VOCAB * 4)
        return forward(input_ids=input_ids, **more)

    monkeypatch.setattr(model, "forward", watched)
    monkeypatch.setattr(summing, "_LOGIT_BYTES", 4 * VOCAB * 50)
    score_passages(model, passages(), batch_size=64)
    assert max(seen) <= 4 * VOCAB * 50
    assert len(seen) > 5


def test_rows_are_summed_in_their_own_order() -> None:
    """Against torch's cross-entropy, row by row and whole."""
    model, text = lively_model(), passages()
    score = score_passages(model, text, batch_size=4)
    for row in (0, 7, 22):
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(text.input_ids[row : row + 1])).logits[0]
        targets = torch.from_numpy(text.targets[row])
        expected = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
        assert score.rows.nats[row] == pytest.approx(float(expected), rel=1e-5)
        assert score.rows.tokens[row] == int((targets != -100).sum())
    assert score.bits_per_byte == pytest.approx(score.rows.nats.sum() / math.log(2) / text.num_bytes.sum())
    assert (score.num_bytes, score.num_tokens) == (text.num_bytes.sum(), (text.targets != -100).sum())


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    torch.set_float32_matmul_precision("high")
    try:
        score_passages(model, passages())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert model.training


def test_texts_and_passages_give_one_number() -> None:
    """The same text, asked for in two ways."""
    tokenizer = tiny_tokenizer()
    model = text_model(tokenizer, context=256)
    ids = [tokenizer.bos_token_id, *tokenizer(TEXT)["input_ids"]]
    arrays = [np.array([row]) for row in (ids[:-1], ids[1:], range(len(ids) - 1))]
    size = len(TEXT.encode())
    many = FakePassages(*arrays, np.array([size]), np.array([0]), ("a",))
    texts = score_texts(model, tokenizer, [TEXT])
    assert score_passages(model, many).bits_per_byte == pytest.approx(texts.bits_per_byte, rel=1e-6)
    assert texts.low is texts.high is None


def test_texts_belong_to_projects() -> None:
    tokenizer = tiny_tokenizer()
    model = text_model(tokenizer, context=64)
    texts = [TEXT * 3, TEXT, "def f():\n    return 1\n", "x = 2\n", "import os\n"]
    score = score_texts(model, tokenizer, texts, projects=["b", "a", "b", "c", "a"])
    assert score.projects == ("a", "b", "c")
    size = [len(text) for text in texts]
    assert list(score._bytes()) == [size[1] + size[4], size[0] + size[2], size[3]]
    assert score.interval is not None
    assert score.interval.low < score.bits_per_byte < score.interval.high
    with pytest.raises(ValueError, match=r"`projects` must be one per text \(5\), got 1"):
        score_texts(model, tokenizer, texts, projects=["a"])


def test_copied_tokens_are_those_that_stood_there_before() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(4, size=(30, 15))
    targets = np.roll(ids, -1, axis=1)
    targets[:, -1] = rng.integers(4, size=30)
    targets[rng.random(targets.shape) < 0.2] = -100
    expected = np.zeros(ids.shape, bool)
    for row in range(30):
        for place in range(15):
            pairs = {(ids[row, before], ids[row, before + 1]) for before in range(place)}
            expected[row, place] = (ids[row, place], targets[row, place]) in pairs
    assert np.array_equal(copied_tokens(ids, targets), expected)
    assert 0 < expected.sum() < expected.size
    assert not copied_tokens(ids[:, :1], targets[:, :1]).any()


def test_facts_leave_out_what_was_not_measured() -> None:
    text = passages()
    facts = score_passages(lively_model(), text).facts()
    assert facts["bits_per_byte_low"] < facts["bits_per_byte"] < facts["bits_per_byte_high"]
    assert facts["scored_bytes"] == text.num_bytes.sum()
    alone = score_passages(lively_model(), replace(text, project=text.project * 0, projects=("one",))).facts()
    assert set(facts) - set(alone) == {"bits_per_byte_low", "bits_per_byte_high"}
    assert all(alone[name] == pytest.approx(facts[name]) for name in alone)
    assert set(facts) <= {field.name for field in fields(Measured)}


def test_copied_and_new_tokens_add_up() -> None:
    model = lively_model()
    text = replace(passages(), input_ids=passages().input_ids % 3, targets=np.where(passages().targets < 0, -100, 1))
    score = score_passages(model, text)
    assert 0 < score.copied_tokens < score.num_tokens
    assert 0 < score.copied_bits_per_byte < score.bits_per_byte
    assert score.copied_bits_per_byte + score.new_bits_per_byte == pytest.approx(score.bits_per_byte)


def made_up(bits: np.ndarray, *, num_bytes: int = 1000) -> Score:
    """A score in which each project is one row of so many bits per byte."""
    count = len(bits)
    ones = np.ones(count, np.int64)
    sums = summing.RowSums(
        nats=bits * num_bytes * math.log(2),
        tokens=ones,
        correct=0 * ones,
        copied_nats=0.0 * ones,
        copied_tokens=0 * ones,
    )
    names = tuple(map(str, range(count)))
    return Score(rows=sums, row_bytes=num_bytes * ones, project=np.arange(count), projects=names)


@pytest.mark.parametrize("projects", [6, 12, 40])
def test_intervals_hold_the_truth_nineteen_times_in_twenty(projects: int) -> None:
    rng = np.random.default_rng(projects)
    held = 0
    for _ in range(300):
        score = made_up(2.0 + 0.3 * rng.standard_normal(projects))
        assert score.low is not None
        assert score.high is not None
        held += score.low <= 2.0 <= score.high
    assert 0.90 <= held / 300 <= 0.99


def test_pairs_see_what_single_intervals_do_not() -> None:
    """Projects differ by far more than the models do, but they are hard for both."""
    rng = np.random.default_rng(0)
    hard = 2.0 + 0.4 * rng.standard_normal(20)
    a, b = made_up(hard), made_up(hard + 0.05 + 0.02 * rng.standard_normal(20))
    assert a.interval is not None
    assert b.interval is not None
    assert a.interval.high > b.interval.low, "the intervals overlap"
    found = paired_difference(a, b)
    assert found is not None
    assert found.value == pytest.approx(a.bits_per_byte - b.bits_per_byte)
    assert found.clears_zero
    assert found.high < 0
    assert found == paired_difference(a, b), "the same draw every time"
    same = paired_difference(a, a)
    assert same is not None
    assert (same.value, same.clears_zero) == (0.0, False)


def test_what_cannot_be_compared_or_estimated() -> None:
    with pytest.raises(ValueError, match="the scores are of other text"):
        paired_difference(made_up(np.ones(4)), made_up(np.ones(4), num_bytes=999))
    assert made_up(np.ones(2)).interval is None
    assert paired_difference(made_up(np.ones(2)), made_up(np.ones(2))) is None
    assert ratio_interval(np.ones(4), np.array([1.0, 1.0, 0.0, 0.0])) is None, "projects without text do not count"
    empty = np.zeros((0, 0), np.int64)
    with pytest.raises(ValueError, match="nothing to score"):
        score_passages(tiny_model(), FakePassages(empty, empty, None, empty.ravel(), empty.ravel(), ()))
    assert sum_rows(tiny_model(), empty, empty).nats.shape == (0,)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (9, 2.2622), (30, 2.0423)]
)
def test_quantiles_of_students_t(freedom: int, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, rel=0.01)
