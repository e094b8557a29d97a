"""The package reads from the bottom up: a module imports only from lower layers, and there are no cycles."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "codenas_hf"

# Low to high. A folder is one layer; the modules inside a folder stand in an order of their own.
LAYERS = [
    *("strict_yaml", "hardware", "folders", "quantities", "engine"),
    *("configuration_codenas", "modeling_codenas", "architecture"),
    *("data", "training", "compression", "generation", "measure", "sandbox", "suite"),
    *("report", "release", "jobs", "cli"),
]
INSIDE = {
    "folders": ["ranges", "files", "share", "typed", "record", "places"],
    "engine": [
        *("records", "pareto", "objectives", "settings", "journal", "storage", "places"),
        *(
            "parameters",
            "study",
            "members",
            "surrogate",
            "evolution",
            "optuna_policy",
            "gaussian",
            "improvement",
            "guided",
        ),
        *("promotion", "stages", "dots", "intervals"),
        *("schedule", "result", "main_program", "main_import", "workers", "progress", "stopping", "driver"),
    ],
    "architecture": ["genes", "genome", "genome_file", "stock", "choices", "space"],
    "data": [
        *("storage", "licences", "filters", "source_files", "packages", "sources", "archives", "streams", "dedup"),
        *("contamination", "settings", "ledger", "candidates", "parts", "split", "selection", "shards", "corpus"),
        *("tokenizer", "encode", "nested", "tokens", "passages", "ngram", "prepare", "overview"),
    ],
    "training": [
        *(
            "budgets",
            "optim",
            "roles",
            "muon",
            "optimizers",
            "precision",
            "attention",
            "memory",
            "checkpoint",
            "settings",
            "outcome",
            "loop",
            "distil",
        ),
    ],
    "compression": [
        *("formats", "quantize", "repair", "vocabulary", "prune", "gguf_words", "gguf", "onnx", "packed"),
        *("squeezing", "squeeze_space", "parent"),
    ],
    "generation": [
        *(
            "token_text",
            "loading",
            "sampling",
            "runtimes",
            "straight",
            "torch_runtime",
            "llama_cpp",
            "onnx_runtime",
            "decode",
        ),
    ],
    "measure": [
        *(
            "metrics",
            "rows",
            "score",
            "timing",
            "latency",
            "provenance",
            "shipped",
            "checkpoints",
            "candidate",
            "squeezed",
            "confirm",
        ),
    ],
    "sandbox": [
        *("confinement", "jail_types", "jail_values", "jail_remote", "jail_link", "jail", "program_checks", "judge"),
    ],
    "suite": [
        *("prompts", "task_files", "code_tasks", "text_score", "completion_report", "next_line", "settings", "parts"),
        "evaluation",
        *("modules", "prompt_sets", "lm_eval_tasks"),  # read by path: by `evaluate`, by hand, by lm-eval
    ],
    "report": [
        "cells",
        "curve",
        "study_view",
        "texts",
        "tables",
        "comparison",
        "architecture",
        "drawing",
        "plots",
        "page",
    ],
    "release": ["spelling", "export", "targets", "squeezed", "cards", "parcels", "hub_licences", "hub_answers", "hub"],
    "jobs": [
        *(
            "durations",
            "policies",
            "wanted",
            "releases",
            "settings",
            "elsewhere",
            "spaces",
            "text",
            "study",
            "cost",
            "plan",
        ),
        *("launch", "status", "winner", "files", "latency", "opening", "complete", "asked", "serve"),
        *("release", "train", "prune", "finish", "search", "models"),
        *("parents", "squeeze_latency", "squeeze_prepare", "squeeze_release", "squeeze"),
    ],
    "cli": ["words", "models", "studies", "main"],
}
# The rooms of the house: root modules and folders of the package, and the folders beside it that import them.
BESIDE = ("recipes", "benchmarks", "spaces_app")


def is_module(name: str) -> bool:
    """True when a dotted name relative to the package is a module or folder of it."""
    path = PACKAGE.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name, relative to the package, of every import of ours in `path`, wherever it stands."""
    found = []
    here = path.relative_to(PACKAGE).with_suffix("").parts[:-1] if path.is_relative_to(PACKAGE) else ()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            module = ".".join((*base, *(node.module or "").split("."))).strip(".")
            inner = [f"{module}.{a.name}".lstrip(".") for a in node.names]
            found += [(node.lineno, name) for name in inner if is_module(name)] or [(node.lineno, module)]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "codenas_hf":
            module = (node.module or "").removeprefix("codenas_hf").lstrip(".")
            # `from codenas_hf.engine import study` and `from codenas_hf import hardware` import modules too.
            inner = [f"{module}.{a.name}".lstrip(".") for a in node.names]
            found += [(node.lineno, name) for name in inner if is_module(name)] or [(node.lineno, module)]
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
        if first == parts[0] and len(parts) > 1:
            order = INSIDE[parts[0]]
            assert rest, f"{where}: a module of a folder imports its neighbours, not the folder"
            assert order.index(rest[0]) < order.index(parts[1]), f"{where}, which comes later in {parts[0]}/"


def test_every_module_of_a_folder_has_a_place() -> None:
    for folder in PACKAGE.iterdir():
        if (folder / "__init__.py").exists():
            found = {p.stem for p in folder.glob("[!_]*.py")}
            found |= {p.parent.name for p in folder.glob("*/*.py")} - {"__pycache__"}
            assert found == set(INSIDE[folder.name]), folder.name


def rooms() -> dict[str, set[str]]:
    """Each root module or folder, and what it imports."""
    found: dict[str, set[str]] = {}
    for path in (*PACKAGE.rglob("*.py"), *(p for name in BESIDE for p in (PACKAGE.parent / name).rglob("*.py"))):
        room = path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else PACKAGE.parent).with_suffix("").parts[0]
        targets = {name.split(".")[0] or "__init__" for _, name in imports_of(path)}
        found.setdefault(room, set()).update(targets - {room})
    return found


def test_the_house_stays_small() -> None:
    arrows = rooms()

    def floor(room: str) -> int:
        return 1 + max((floor(other) for other in arrows[room]), default=0)

    assert len(arrows) <= 26
    assert max(map(floor, arrows)) <= 7
    assert sum(map(len, arrows.values())) <= 72


def test_every_public_name_says_what_it_is() -> None:
    silent = []
    for path in modules():
        if "suite/modules" in path.as_posix():
            continue  # in the form of `evaluate`, whose base class documents them
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                methods = node.body if isinstance(node, ast.ClassDef) else []
                named = [m for m in methods if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
                silent += [f"{path.name}: {n.name}" for n in (node, *named) if not ast.get_docstring(n)]
    assert silent == []


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
    for path in (PACKAGE / "engine").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {
            (n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level
        }
        assert not names & {"torch", "transformers", "datasets", "accelerate", "codenas_hf"}, path.name


def test_the_remote_code_pair_stands_alone() -> None:
    for name in ("configuration_codenas", "modeling_codenas"):
        assert {n for _, n in imports_of(PACKAGE / f"{name}.py")} <= {"configuration_codenas"}
