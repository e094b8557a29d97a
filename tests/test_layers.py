"""The package reads from the bottom up: a module imports only from lower layers, and there are no cycles."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "codenas_hf"

# Low to high. A folder is one layer; modules inside a folder stand in an order of their own.
LAYERS = [
    "search",
    "configuration_codenas",
    "cache_codenas",
    "modeling_codenas",
    "vllm_plugin",
    "stock",
    "genome",
    "genome_file",
    "choices",
    "space",
    "data",
    "training",
    "evaluation",
    "report",
    "release",
    "hardware",
    "strict_yaml",
    "settings",
    "training_job",
    "search_job",
    "cli_words",
    "cli_models",
    "cli_studies",
    "cli",
]
INSIDE = {
    "search": [
        *("records", "pareto", "objectives", "settings", "journal", "study", "members", "surrogate", "evolution"),
        *("schedule", "result", "main_program", "workers", "progress", "driver"),
    ],
    "data": [
        *("storage", "licences", "filters", "sources", "archives", "streams", "dedup", "contamination", "ledger"),
        *("parts", "selection", "shards", "corpus", "tokenizer", "encode", "nested", "tokens", "ngram", "prepare"),
        "overview",
    ],
    "report": ["cells", "study_view", "tables", "comparison", "architecture", "drawing", "plots", "page"],
}


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name, relative to the package, of every import of ours in `path`, wherever it stands."""
    found = []
    here = path.relative_to(PACKAGE).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            names = (
                [".".join((*base, node.module))] if node.module else [".".join((*base, a.name)) for a in node.names]
            )
            found += [(node.lineno, name) for name in names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "codenas_hf":
            found.append((node.lineno, (node.module or "").removeprefix("codenas_hf").lstrip(".")))
        elif isinstance(node, ast.Import):
            ours = [a.name for a in node.names if a.name.split(".")[0] == "codenas_hf"]
            found += [(node.lineno, name.removeprefix("codenas_hf").lstrip(".")) for name in ours]
    return found


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")


def test_every_module_has_a_layer() -> None:
    for path in PACKAGE.iterdir():
        if path.name.startswith(("_", ".")) or not (path.suffix == ".py" or (path / "__init__.py").exists()):
            continue
        assert path.stem in LAYERS, f"{path.name} has no place in the order of layers"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    layer = LAYERS.index(parts[0])
    for line, name in imports_of(path):
        first, *rest = name.split(".")
        where = f"{path.name}:{line} imports {name or 'the package root'}"
        assert first in LAYERS, f"{where}: nothing of ours imports that"
        assert LAYERS.index(first) <= layer, f"{where}, which is a higher layer"
        if first == parts[0] and len(parts) > 1 and parts[0] in INSIDE:
            order = INSIDE[parts[0]]
            assert rest, f"{where}: a module of a folder imports its neighbours, not the folder"
            assert order.index(rest[0]) < order.index(parts[1]), f"{where}, which comes later in {parts[0]}/"


def test_no_cycles_inside_folders() -> None:
    graph = {p: imports_of(p) for p in modules()}
    edges = {
        ".".join(p.relative_to(PACKAGE).with_suffix("").parts): {n for _, n in found} for p, found in graph.items()
    }

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        for other in sorted(edges.get(name, ())):
            visit(other, (*trail, name))

    for name in edges:
        visit(name, ())


def test_the_engine_knows_no_torch() -> None:
    for path in (PACKAGE / "search").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {
            (n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level
        }
        assert not names & {"torch", "transformers", "datasets", "accelerate", "codenas_hf"}, path.name


def test_the_remote_code_pair_stands_alone() -> None:
    for name in ("configuration_codenas", "modeling_codenas", "cache_codenas"):
        path = PACKAGE / f"{name}.py"
        if path.exists():
            assert {n for _, n in imports_of(path)} <= {"configuration_codenas", "cache_codenas"}
