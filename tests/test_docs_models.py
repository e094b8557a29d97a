"""docs/models.md says what the code and the last run of the peer suite say."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from codenas_hf.architecture.genome import Genome
from codenas_hf.architecture.space import SearchSpace
from codenas_hf.architecture.stock import ROWS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def test_every_gene_and_every_stock_row_is_named() -> None:
    for field in dataclasses.fields(Genome):
        if field.name != "max_position_embeddings":
            assert f"`{field.name}`" in TEXT, field.name
    for row in ROWS:
        assert f"| {row.model_type} |" in TEXT


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "spaces").glob("[!s]*.yaml")), ids=lambda path: path.stem)
def test_the_sizes_are_counted(path: Path) -> None:
    found = re.search(rf"`configs/spaces/{path.name}` \| ([\d,]+) \|", TEXT)
    assert found is not None, f"{path.name} is missing"
    assert int(found[1].replace(",", "")) == SearchSpace.from_yaml(path).size()


def test_the_peer_count_is_that_of_the_last_run() -> None:
    result = json.loads((ROOT / "docs" / "peer_suite.json").read_text(encoding="utf-8"))
    assert f"{result['passed']} passed" in TEXT
