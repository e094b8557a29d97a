"""The files of a corpus: what they hold, byte for byte, and how often the parts are read for that."""

import numpy as np
import pyarrow as pa
import pytest
from test_corpus import build, plant, unlike

from codenas_hf.data import parts, shards
from codenas_hf.data.parts import Part
from codenas_hf.data.split import SPLITS

SHARD_BYTES = 40_000
SCHEMA = pa.schema([(name, pa.string()) for name in ("text", "path", "project", "licence", "sha256")])


def cut(chosen, sizes, limit):
    groups, before = {}, 0
    for row in chosen:
        groups.setdefault(before // limit, []).append(row)
        before += int(sizes[row])
    return list(groups.values())


def columns(row, rows, read):
    """One row, straight from its part."""
    part, place = read[rows.part[row]], rows.place[row]
    size, offset = (int(array[place]) for array in part.arrays("size", "offset"))
    text = part.stem.with_suffix(".bin").read_bytes()[offset : offset + size].decode()
    described = part.rows()[place]
    return {"text": text, "sha256": rows.sha[row].tobytes().hex()} | {
        name: described[name] for name in ("path", "project", "licence")
    }


def expected_files(rows, read, batch_bytes):
    files = {}
    for number, name in enumerate(SPLITS):
        inside = sorted(np.flatnonzero(rows.split == number), key=lambda row: rows.sha[row].tobytes())
        for at, shard in enumerate(cut(inside, rows.size, SHARD_BYTES)):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, SCHEMA) as writer:
                for batch in cut(shard, rows.size, batch_bytes):
                    writer.write_table(pa.Table.from_pylist([columns(r, rows, read) for r in batch], schema=SCHEMA))
            files[f"{name}-{at:05d}.arrow"] = sink.getvalue().to_pybytes()
    return files


@pytest.mark.parametrize("batch_bytes", [3_000, 20_000])
@pytest.mark.parametrize("max_bytes", [None, 100_000])
def test_every_row_is_in_its_place_and_the_tables_of_each_part_are_read_once(
    tmp_path, monkeypatch, batch_bytes, max_bytes
):
    files = {f"P{n % 9}/é{n}.py": unlike(n) + f"# {'ü' * (n % 7)} {n}\n" for n in range(60)}
    files |= {f"p{n}/again.py": unlike(n) + f"# {'ü' * (n % 7)} {n}\n" for n in range(3)}  # duplicates leave
    plant(tmp_path / "src", files)
    monkeypatch.setattr(parts.split_into_parts, "__defaults__", (8_000,))
    monkeypatch.setattr(shards, "_BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(shards, "_SHARD_BYTES", SHARD_BYTES)
    expected, loads, number = {}, [], []

    def checked(rows, read, report, **known):
        expected.update(expected_files(rows, read, batch_bytes))
        number.append(len(read))
        with monkeypatch.context() as patch:
            for name in ("rows", "arrays"):
                real = getattr(Part, name)
                patch.setattr(
                    Part, name, lambda part, *names, real=real, name=name: loads.append(name) or real(part, *names)
                )
            return shards.write_splits(rows, read, report, **known)

    monkeypatch.setattr("codenas_hf.data.corpus.write_splits", checked)
    build(tmp_path / "src", tmp_path / "out", max_bytes=max_bytes)
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.arrow")}
    assert written == expected
    assert number[0] > 8
    assert len(expected) > 3, "several shards"
    assert loads.count("rows") == loads.count("arrays") == number[0], "whatever the number of batches"
