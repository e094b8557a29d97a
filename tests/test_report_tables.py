"""Tables of a study: every number is one that can be worked out by hand or by another program."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from study_records import PlainGenome, make_records, make_result

from codenas_hf.engine.objectives import Scale
from codenas_hf.engine.records import Evaluation, TrialRecord
from codenas_hf.folders.record import Record, Training, Trial
from codenas_hf.report.architecture import Tensor, architecture_table, architecture_text, tensors_of_folder
from codenas_hf.report.cells import Column, Table, format_value
from codenas_hf.report.comparison import budget_table, compare_table
from codenas_hf.report.plots import _places, front_figure, parallel_table, points_table, projections
from codenas_hf.report.study_view import StudyView, evaluation_of
from codenas_hf.report.tables import (
    correlation_table,
    explained_share,
    front_table,
    gene_table,
    hypervolume_table,
    rank_table,
    seconds_table,
    trials_table,
)

RECORDS = make_records()


def view(records: Sequence[TrialRecord] = RECORDS, *, winner: TrialRecord | None = None, **known: Any) -> StudyView:
    result = make_result(records, **known)
    return StudyView(name="s", result=result if winner is None else replace(result, winner=winner))


def trial(
    number: int, quality: float, size: float = 1e6, ms: float = 1.0, *, rung: int = 0, **known: object
) -> TrialRecord:
    values = {"bits_per_byte": quality, "artifact_bytes": size, "decode_ms": ms}
    evaluation = Evaluation(objectives=values, **known)  # type: ignore[arg-type]
    return TrialRecord(number, PlainGenome((("n", number),)), rung, "complete", evaluation)


def test_front_holds_what_nothing_dominates() -> None:
    a, b, worse, infeasible = trial(0, 2.0, 1e6), trial(1, 1.5, 2e6), trial(2, 2.1, 1e6), trial(3, 1.0, 1e6)
    infeasible = replace(infeasible, evaluation=replace(evaluation_of(infeasible), constraints={"limit": 1.0}))
    assert view([a, b, worse, infeasible]).front_members() == [b, a]


def test_front_table_marks_the_winner_and_keeps_raw_values() -> None:
    winner = view().front_members()[1]
    table = front_table(view(winner=winner, limits={"artifact_bytes": 2e7}))
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert float(rows[1]["artifact_bytes"]) == evaluation_of(winner).objectives["artifact_bytes"]
    assert table.marked == {1}
    assert f"**{winner.genome.genome_id[:8]}**" in table.to_markdown()
    assert "artifact at most 20.0 MB" in table.note
    below = next(r for r in RECORDS if r.rung == 0 and r.number == winner.parent)
    spent = evaluation_of(winner).seconds["train"] + evaluation_of(below).seconds["train"]
    assert float(rows[1]["train_seconds"]) == pytest.approx(spent)


def test_a_latency_far_beyond_its_prediction_is_said_below_the_front() -> None:
    warned = trial(0, 2.0, measurements={"latency_warning": "timed 2 ms a token where 1 were predicted: busy"})
    table = front_table(view([warned, trial(1, 1.9, 2e6)]))
    assert table.note == f"{warned.genome.genome_id[:8]}: timed 2 ms a token where 1 were predicted: busy."


def test_what_was_not_measured_is_an_empty_cell() -> None:
    table = front_table(view([trial(0, 2.0)]))
    row = next(csv.DictReader(io.StringIO(table.to_csv())))
    assert row["num_parameters"] == ""
    assert row["train_seconds"] == ""
    assert "parameters" not in table.to_markdown()


def test_trials_table_tells_why_a_trial_failed() -> None:
    table = trials_table(view())
    assert len(table.rows) == len(RECORDS)
    assert sum(row["failure"] == "RuntimeError: loss is nan" for row in table.rows) == 4


def test_rank_correlation_is_over_promoted_and_audits_only() -> None:
    table = correlation_table(view())
    (row,) = table.rows
    assert (row["pairs"], row["audits"]) == (16, 4)
    pairs = rank_table(view()).rows
    assert {p["rank0"] for p in pairs} == {p["rank1"] for p in pairs} == set(range(1, 17))
    concordant = sum(
        np.sign(a["rank0"] - b["rank0"]) == np.sign(a["rank1"] - b["rank1"]) for a in pairs for b in pairs
    )
    assert row["tau"] == pytest.approx(((concordant - 16) / 2 * 2 - 120) / 120)


def test_what_the_size_of_the_embedding_alone_predicts_stands_beside_the_rung() -> None:
    def both(number: int, *, width: int, bits: tuple[float, float]) -> list[TrialRecord]:
        genome = PlainGenome((("vocab_size", 1024), ("hidden_size", width)))
        lower, upper = trial(number, bits[0]), trial(number, bits[1])
        return [
            replace(lower, genome=genome, rung=0, number=number),
            replace(upper, genome=genome, rung=1, number=number, parent=number),
        ]

    wide = [(64, (3.0, 2.0)), (96, (2.9, 1.9)), (128, (3.1, 1.8)), (160, (3.2, 1.7))]
    records = [r for i, (width, bits) in enumerate(wide) for r in both(i, width=width, bits=bits)]
    (row,) = correlation_table(view(records)).rows
    assert row["tau_baseline"] == 1  # the widest is the best, whatever rung 0 said
    assert row["tau"] < 0


def test_seconds_add_up_and_the_share_outside_training_is_told() -> None:
    records = [
        trial(0, 2.0, seconds={"train": 9.0, "evaluate": 1.0}),
        trial(1, 2.1, seconds={"train": 6.0, "wait": 4.0}),
    ]
    (row,) = seconds_table(view(records)).rows
    assert row["total"] == 20
    assert row["outside_train_share"] == pytest.approx(0.25)


def test_hypervolume_grows_to_the_closed_form() -> None:
    ideal = {"bits_per_byte": 1.0, "artifact_bytes": 2.0**20, "decode_ms": 1.0}
    reference = {"bits_per_byte": 3.0, "artifact_bytes": 2.0**22, "decode_ms": 4.0}
    first = trial(0, 2.0, 2.0**21, 2.0, seconds={"train": 3.0})
    second = trial(1, 1.0, 2.0**21, 2.0, seconds={"train": 4.0})
    beyond = trial(2, 9.0, 2.0**19, 0.5, seconds={"train": 5.0})
    infeasible = trial(3, 1.0, 2.0**20, 1.0, seconds={"train": 1.0}, constraints={"limit": 1.0})
    known = view([first, second, beyond, infeasible], frame={"ideal": ideal, "reference": reference})
    rows = hypervolume_table(known).rows
    assert [row["hypervolume"] for row in rows] == pytest.approx([1 / 8, 1 / 4, 1 / 4, 1 / 4])
    assert [row["seconds"] for row in rows] == [3, 7, 12, 13]


def test_hypervolume_never_falls_in_the_order_of_generations() -> None:
    table = hypervolume_table(view(RECORDS[::-1]))
    volumes = [row["hypervolume"] for row in table.rows]
    assert len(volumes) > 40
    assert volumes == sorted(volumes)
    assert "not comparable" in table.note
    assert "order of generations" in table.note
    ordered = view(RECORDS[::-1]).complete()
    assert [(r.generation, r.rung, r.number) for r in ordered] == sorted(
        (r.generation, r.rung, r.number) for r in RECORDS if r.evaluation is not None
    )
    assert hypervolume_table(view([])).rows == ()


def test_scales_are_those_of_the_study_and_no_name_decides_them() -> None:
    """A study may compare what it likes on log2: `num_parameters` ends on no unit, `wall_ms` is linear here."""
    scales: dict[str, Scale] = {"error": "linear", "num_parameters": "log2", "wall_ms": "linear"}
    points = [(0.3, 1024.0, 1.0), (0.2, 2048.0, 2.0), (0.1, 4096.0, 4.0)]
    records = [
        TrialRecord(i, PlainGenome((("n", i),)), 0, "complete", Evaluation(dict(zip(scales, point, strict=True))))
        for i, point in enumerate(points)
    ]
    known = view(records, scales=scales)
    assert known.objectives == tuple(scales)
    for table in (front_table(known), trials_table(known)):
        assert len({column.name for column in table.columns}) == len(table.columns)
        assert [row["num_parameters"] for row in table.rows] != [None] * 3
    columns = {column.name: column for column in points_table(known).columns}
    assert {name: columns[name].scale for name in scales} == scales
    assert columns["num_parameters"].title == "parameters"
    assert (columns["wall_ms"].title, columns["wall_ms"].kind) == ("wall ms", "number")
    axes = front_figure(points_table(known), projections(known)).axes
    drawn = {(ax.get_xlabel(), ax.get_xscale()) for ax in axes}
    assert {("parameters", "log"), ("wall ms", "linear")} <= drawn
    # In log2 the three lie evenly, so the middle one has half the height on an axis of parallel coordinates.
    table = parallel_table(known, genes=["n"])
    height, _ = _places(table, next(c for c in table.columns if c.name == "num_parameters"))
    assert height(2048.0) == pytest.approx(0.5)
    height, _ = _places(table, next(c for c in table.columns if c.name == "wall_ms"))
    assert height(2.0) == pytest.approx(1 / 3)


def test_gene_importance_finds_the_gene_that_matters() -> None:
    rng = np.random.default_rng(1)
    values = ["a", "b", "c"] * 30
    effect = np.array([{"a": 0.0, "b": 1.0, "c": 2.0}[v] for v in values])
    noise = rng.normal(0, 1, 90)
    strong, none = explained_share(values, effect + 0.1 * noise), explained_share(values, noise)
    assert strong is not None
    assert none is not None
    assert strong > 0.95
    assert none < 0.05
    assert explained_share(["a"] * 4, np.arange(4.0)) is None
    # Four choices among twelve candidates "explain" 3/11 of pure noise; the estimate takes that off.
    chance = [explained_share(list("abcd") * 3, rng.normal(0, 1, 12)) or 0.0 for _ in range(200)]
    assert np.mean(chance) < 0.16
    top = [row["gene"] for row in gene_table(view()).rows[:2]]
    assert set(top) == {"hidden_size", "num_layers"}


def test_next_budget_is_what_was_measured_and_nothing_else() -> None:
    records = [trial(0, 2.0, 8e6), trial(1, 1.8, 18e6), trial(2, 1.7, 25e6), trial(3, 1.0, 5e6, ms=99.0)]
    known = view(records, limits={"artifact_bytes": 10e6, "decode_ms": 5.0})
    rows = {row["limit"]: row for row in budget_table(known, "artifact_bytes", step=10e6).rows}
    assert rows[10e6]["bits_per_byte"] == 2.0
    assert rows[20e6]["change"] == pytest.approx(-0.2)
    assert rows[30e6]["change"] == pytest.approx(-0.3)
    latency = budget_table(view(records[:1], limits=known.limits), "decode_ms", step=5.0)
    assert [row["genome"] for row in latency.rows[-2:]] == ["not measured"] * 2


def test_compare_puts_models_side_by_side_and_leaves_the_unmeasured_empty() -> None:
    trial = Trial(rung=0, number=1, objectives={"bits_per_byte": 1.5}, measurements={"loss": 2.0})
    known = Record(trial=trial, training=Training(seconds=8.0)).quantities()
    assert known == {
        "bits_per_byte": 1.5,
        "loss": 2.0,
        "perplexity": pytest.approx(math.exp(2.0)),
        "train_seconds": 8,
    }
    table = compare_table({"a": known, "b": {"num_parameters": 5}})
    cells = {row["quantity"]: (row.get("a"), row.get("b")) for row in table.rows}
    assert cells["parameters"] == (None, "5")
    assert cells["bits per byte"] == ("1.5000", None)
    assert {row["key"]: row["better"] for row in table.rows}["bits_per_byte"] == "lower"
    with pytest.raises(ValueError, match="at least one model to compare"):
        compare_table({})


def test_a_study_without_a_complete_trial_says_so() -> None:
    assert "Nothing measured yet." in front_table(view([])).to_markdown()
    assert view([]).quality == "bits_per_byte"
    with pytest.raises(ValueError, match="it has no evaluation"):
        evaluation_of(TrialRecord(0, PlainGenome(()), 0, "waiting"))


def test_architecture_reads_exact_bytes_and_names_a_tied_head(tmp_path: object) -> None:
    import torch
    from safetensors.torch import save_file

    folder = tmp_path
    tensors = {
        "model.embed_tokens.weight": torch.zeros(16, 8, dtype=torch.bfloat16),
        "model.layers.0.self_attn.q_proj.weight": torch.zeros(8, 8, dtype=torch.bfloat16),
        "model.layers.0.mlp.gate_proj.weight": torch.zeros(24, 8, dtype=torch.bfloat16),
        "model.layers.0.input_layernorm.weight": torch.zeros(8, dtype=torch.bfloat16),
        "model.norm.weight": torch.zeros(8, dtype=torch.bfloat16),
    }
    save_file(tensors, folder / "model.safetensors")  # type: ignore[operator]
    config = {"num_attention_heads": 2, "hidden_act": "silu", "intermediate_size": 99, "tie_word_embeddings": True}
    config["per_layer_config"] = {"0": {"intermediate_size": 24}}
    table = architecture_table(tensors_of_folder(folder), config)  # type: ignore[arg-type]
    assert sum(row.get("num_bytes", 0) for row in table.rows) == 2 * sum(t.numel() for t in tensors.values())
    what = {row["part"]: row["what"] for row in table.rows}
    assert what["feed-forward"] == "gated silu to 24"
    assert what["head"] == "tied to the embedding"
    assert "2 heads" in architecture_text(table)
    with pytest.raises(FileNotFoundError, match="holds no"):
        tensors_of_folder(folder / "empty")  # type: ignore[operator]


def test_parts_follow_the_forward_pass() -> None:
    names = [
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.10.mlp.w",
        "model.layers.2.mlp.w",
        "model.embed.weight",
    ]
    table = architecture_table({name: Tensor((2, 2), 8) for name in names})
    assert [row["part"] for row in table.rows] == ["embedding", "feed-forward", "feed-forward", "final norm", "head"]
    assert [row["layer"] for row in table.rows][1:3] == [2, 10]


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, "bytes", ""),
        (20_000_000, "bytes", "20.0 MB"),
        (0.5518, "ms", "0.552 ms"),
        (4000, "seconds", "1 h 06 min"),
        (0.1234, "share", "12.3 %"),
        (1_234_567, "integer", "1.23 M"),
        (float("nan"), "number", ""),
        (-0.05, "change", "-0.0500"),
    ],
)
def test_values_as_people_read_them(value: float, kind: str, text: str) -> None:
    assert format_value(value, kind) == text  # type: ignore[arg-type]


def test_markdown_keeps_a_cell_in_its_cell() -> None:
    table = Table("t", "T", (Column("a", "a"),), ({"a": "x|y\nz"},))
    assert "| x\\|y z |" in table.to_markdown()


def test_quality_comes_first_however_the_study_stored_it() -> None:
    turned = trial(0, 2.0)
    values = dict(reversed(evaluation_of(turned).objectives.items()))
    known = view([replace(turned, evaluation=Evaluation(objectives=values))])
    assert known.quality == "bits_per_byte"
    assert known.values(known.records[0])[0] == 2.0
    assert "bits per byte" in front_table(known).to_markdown().split("|")[2]


def test_every_kind_of_layer_is_named_and_every_parameter_counted() -> None:
    import torch

    from codenas_hf.architecture.genome import Genome
    from codenas_hf.modeling_codenas import CodeNASForCausalLM
    from codenas_hf.report.architecture import tensors_of_model

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    genome = Genome.from_dict(
        {
            **sizes,
            "num_hidden_layers": 6,
            "layer_repeats": 2,
            "layer_pattern": "fsc",
            "sliding_window": 16,
            "residual_scalars": True,
        }
    )
    config = genome.to_config()
    with torch.device("meta"):
        model = CodeNASForCausalLM(config)
    table = architecture_table(tensors_of_model(model), config.to_dict())
    assert sum(row.get("num_parameters", 0) for row in table.rows) == genome.num_parameters()
    what = [row["what"] for row in table.rows if row["part"] in ("attention", "convolution")]
    assert what == [
        "2 heads of 16, applied 2 times",
        "2 heads of 16, window 16, applied 2 times",
        "convolution over 3 tokens, applied 2 times",
    ]
    assert "residual scalars" in architecture_text(table)
