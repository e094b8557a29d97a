"""What stands in release folders, read without torch: records side by side, an architecture layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..engine.intervals import paired_ratio
from ..folders import Release
from ..report.architecture import architecture_table, tensors_of_folder
from ..report.cells import Table
from ..report.comparison import compare_table


def compare(models: Sequence[Path]) -> Table:
    """What was measured of release folders, or of the winners of studies, side by side.

    Those that were scored on the same text as the first are compared with it in pairs, project by project.

    Raises:
        FileNotFoundError: a folder that is neither, or has no record.
        RecordError: a record that is damaged, or of a newer schema.
    """
    records = {str(path): Release.find(path).read_record() for path in models}
    files = {
        name: {
            f"{file.format} in {file.runtime}": {
                "artifact_bytes": file.bytes,
                "bits_per_byte": file.bits_per_byte,
                "decode_ms": file.decode_ms,
            }
            for file in record.release.files
        }
        for name, record in records.items()
    }
    parts = {name: record.measured.bits_by_project for name, record in records.items()}
    first = next(iter(parts.values()), None)
    found = {name: paired_ratio(own, first) for name, own in list(parts.items())[1:]}
    differences = {name: difference for name, difference in found.items() if difference is not None}
    known = {name: record.quantities() for name, record in records.items()}
    return compare_table(known, files=files, differences=differences)


def describe(model: Path) -> Table:
    """The layers of a release folder, or of a study's winner, with their parameters and bytes.

    Raises:
        FileNotFoundError: a folder that is neither.
    """
    release = Release.find(model)
    return architecture_table(tensors_of_folder(release.folder), release.read_config())


def draw(layers: Table, picture: Path, *, label: str) -> None:
    """Draws what `describe` returned, as .png or .svg."""
    from ..report.drawing import save  # loads matplotlib
    from ..report.plots import architecture_figure

    save(architecture_figure(layers), picture, label=label)
