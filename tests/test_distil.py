"""Healing and distillation: what may move and what may not, and what a student is told."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from codenas_hf.training.distil import DistilSettings, distillation, moving, taught, teacher_words

ENTRIES, KEPT = 40, torch.tensor([0, 3, 5, 6, 9, 12, 13, 20, 21, 30])


def model(entries: int, *, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=entries, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def descend(student: LlamaForCausalLM, ids: torch.Tensor) -> None:
    """One step."""
    student(input_ids=ids, labels=ids).loss.backward()
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


@pytest.mark.parametrize("what", ["norms", "embeddings", "low_rank", "all"])
def test_only_what_may_move_moves(what: Any) -> None:
    student, ids = model(10), torch.randint(10, (2, 12))
    start = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    answer = student(input_ids=ids).logits
    with moving(student, what, rank=2):
        assert torch.allclose(student(input_ids=ids).logits, answer, atol=1e-6)  # corrections begin at zero
        descend(student, ids)
    moved = {name for name, parameter in student.named_parameters() if not torch.equal(parameter, start[name])}
    vectors = {name for name in start if start[name].dim() == 1}
    table, matrices = "model.embed_tokens.weight", {name for name in start if name.endswith("proj.weight")}
    wanted = {"norms": vectors, "embeddings": vectors | {table}}.get(what, vectors | {table} | matrices)
    assert moved == wanted
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert student.lm_head.weight is student.model.embed_tokens.weight
    if what == "low_rank":
        change = student.model.layers[0].mlp.up_proj.weight - start["model.layers.0.mlp.up_proj.weight"]
        assert torch.linalg.matrix_rank(change.detach(), rtol=1e-4) <= 2


def test_corrections_are_where_the_model_is() -> None:
    student = model(10).to("meta")
    with moving(student, "low_rank", rank=2):
        assert {parameter.device.type for parameter in student.parameters()} == {"meta"}


def test_a_teacher_tells_the_most_likely_of_the_entries_that_stay(tmp_path: Path) -> None:
    teacher, ids = model(ENTRIES), torch.randint(10, (2, 7))
    tokens, logs = teacher_words(teacher, ids, top=3, kept=KEPT, cache=tmp_path)
    with torch.no_grad():
        whole = teacher(input_ids=KEPT[ids]).logits[..., KEPT].log_softmax(-1)
    best = whole.topk(3)
    assert torch.equal(tokens, best.indices)
    assert torch.allclose(logs.float(), best.values, atol=1e-2)
    # What was computed once is read again, whatever has become of the teacher.
    again = teacher_words(model(ENTRIES, seed=1), ids, top=3, kept=KEPT, cache=tmp_path)
    assert torch.equal(again[0], tokens)
    others = teacher_words(model(ENTRIES, seed=1), ids, top=2, kept=KEPT, cache=tmp_path)
    assert others[0].shape == (2, 7, 2)


def test_the_loss_is_least_where_the_student_says_what_the_teacher_says() -> None:
    told = torch.randn(5, 10).log_softmax(-1)
    best = told.topk(4)
    tokens, logs = best.indices, best.values
    least = distillation(told, tokens, logs)
    kept = logs.exp()
    left = 1 - kept.sum(-1)
    assert torch.allclose(least, -(kept * logs).sum(-1) - left * left.log(), atol=1e-4)
    for seed in range(5):
        other = told + torch.randn(5, 10, generator=torch.Generator().manual_seed(seed))
        assert (distillation(other, tokens, logs) > least).all()
    student = torch.zeros(5, 10, requires_grad=True)
    for _ in range(400):
        (gradient,) = torch.autograd.grad(distillation(student, tokens, logs, temperature=2.0).sum(), student)
        student = (student - gradient).detach().requires_grad_()
    flat = (logs / 2).softmax(-1)
    found = (student / 2).softmax(-1).gather(-1, tokens)
    assert torch.allclose(found / found.sum(-1, keepdim=True), flat, atol=1e-2)


def test_a_taught_model_has_both_losses_and_leaves_as_it_came() -> None:
    teacher, student = model(ENTRIES), model(10, seed=1)
    ids = torch.randint(10, (2, 9))
    labels = ids.clone()
    labels[0, :4] = -100
    plain = student(input_ids=ids, labels=labels).loss
    losses = {}
    with torch.autocast("cpu", dtype=torch.bfloat16), taught(student, teacher, settings=DistilSettings(), kept=KEPT):
        assert torch.isfinite(student(input_ids=ids, labels=labels).loss)  # as the loop computes it
    for weight in (0.0, 0.5, 1.0):
        with taught(student, teacher, settings=DistilSettings(top=10, weight=weight), kept=KEPT):
            output = student(input_ids=ids, labels=labels)
        losses[weight] = float(output.loss)
        assert float(output.plain_loss) == pytest.approx(float(plain), rel=1e-5)
    assert losses[0.0] == pytest.approx(float(plain), rel=1e-5)
    assert losses[0.5] == pytest.approx((losses[0.0] + losses[1.0]) / 2, rel=1e-5)
    with torch.no_grad():
        told = teacher(input_ids=KEPT[ids]).logits[..., KEPT].softmax(-1)
        said = student(input_ids=ids).logits.log_softmax(-1)
    each = -(told * said).sum(-1)[:, :-1][labels[:, 1:] != -100]
    assert losses[1.0] == pytest.approx(float(each.mean()), rel=1e-2)
    assert "forward" not in vars(student)


@pytest.mark.parametrize("values", [{"top": 0}, {"weight": 1.5}, {"weight": math.nan}, {"temperature": 0}])
def test_a_teaching_out_of_range_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        DistilSettings(**values)
