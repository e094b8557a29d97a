"""The committed table of trained genomes is whole, and says of each genome what the code says."""

import json

import pytest

from benchmarks.results_file import RESULTS, read
from benchmarks.search_table import BUDGETS, SEEDS, TEXTS, genome_of, load, summary, wanted


def test_every_run_is_there_once_and_adds_up() -> None:
    rows, texts = load(), json.loads(TEXTS.read_text(encoding="utf-8"))
    found = sorted((row["genome_id"], row["seed"]) for row in rows)
    assert found == sorted((genome_of(values).genome_id, seed) for values, seed in wanted())
    for row in rows:
        genome = genome_of(row["genes"])
        assert (row["genome_id"], row["num_parameters"]) == (genome.genome_id, genome.num_parameters())
        assert [point["steps"] for point in row["budgets"]] == list(BUDGETS)
        assert row["budgets"][0]["artifact_bytes"] > genome.weights_bytes()
        for point in row["budgets"]:
            for which in {"search", "report"} & point.keys():
                bits = sum(point[which]["bits"]) / sum(texts[which]["bytes"])
                assert point[which]["bits_per_byte"] == pytest.approx(bits, rel=1e-4)


def test_the_noise_floor_is_that_of_the_genomes_with_seeds() -> None:
    rows = load()
    repeated = {row["genome_id"] for row in rows if row["seed"]}
    texts = json.loads(TEXTS.read_text(encoding="utf-8"))
    stored = read(RESULTS / "search_table.json")["rows"]
    found = summary(rows, texts["search"]["bytes"])
    assert found == [pytest.approx(line) for line in stored], "the result file is that of the table"
    for line in found:
        assert line["genomes_with_seeds"] == len(repeated)
        assert 0 < line["seed_deviation"] < 0.1
    assert SEEDS * len(repeated) == sum(row["genome_id"] in repeated for row in rows)
