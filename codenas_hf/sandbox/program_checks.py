"""Splits the checks off a program, so that they can run where the program cannot reach them.

Of a source that ends in assertions (or in a `check` function and its call) the assertions are moved out. What is
moved has to be harmless by itself, since it was written by the program's author: plain statements, no imports but a
few, no private attributes, none of the names that reach frames, other modules or the interpreter. That is a list of
what is known; where a verdict matters, checks are handed over apart.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

REFUSED_BUILTINS = frozenset(
    "eval exec compile open __import__ getattr setattr delattr hasattr globals locals vars input breakpoint help exit "
    "quit type object super memoryview classmethod staticmethod property copyright credits license".split()
)
MODULES = frozenset(
    "math cmath random copy itertools functools collections string re datetime decimal fractions statistics operator "
    "typing heapq bisect json array enum dataclasses numbers textwrap calendar zlib hashlib base64 struct".split()
)
# Attributes, or names of a module, that lead from a plain value to the judge: what takes an attribute by its name,
# evaluates text or writes into modules, and modules that other modules happen to hold.
_REACHING = frozenset(
    "mro attrgetter methodcaller Formatter get_field update_wrapper wraps get_type_hints ForwardRef global_enum "
    "sys os builtins bltns inspect types codecs".split()
)
_FRAMES = re.compile(r"(?:gi|cr|ag|tb|co)_|f_(?:back|builtins|code|globals|lasti|lineno|locals|trace)")
_SHARED_STATE = frozenset(
    "redirect_stdout redirect_stderr stdout stdin stderr patch mock environ chdir getcwd open input globals locals "
    "vars eval exec compile seed random setrecursionlimit getrecursionlimit setlocale getcontext setcontext "
    "localcontext breakpoint gc weakref id time sys os".split()
)
_PLAIN = (
    ast.Assert, ast.Expr, ast.If, ast.For, ast.With, ast.Try, ast.Assign, ast.AugAssign, ast.FunctionDef,
)  # fmt: skip


@dataclass(frozen=True)
class CheckedProgram:
    """A program and its checks, apart.

    Args:
        program: runs locked in.
        checks: run by the judge; None where the source holds none that could be taken out.
        imports: import statements that the checks need.
        names: names that the checks use and the program defines.
    """

    program: str
    checks: str | None
    imports: str
    names: tuple[str, ...]


def _reaches(name: str) -> bool:
    return name.startswith("_") or name in _REACHING or _FRAMES.match(name) is not None


def _harmless(node: ast.AST) -> bool:
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and _reaches(part.attr):
            return False
        if isinstance(part, ast.MatchClass) and any(map(_reaches, part.kwd_attrs)):  # takes attributes, too
            return False
        if isinstance(part, ast.Name) and (part.id in REFUSED_BUILTINS or part.id.startswith("__")):
            if part.id != "__name__":
                return False
        if isinstance(part, ast.Import | ast.ImportFrom | ast.ClassDef | ast.Global | ast.Nonlocal | ast.Await):
            return False
        if isinstance(part, ast.FunctionDef) and part.decorator_list:
            return False
    return True


def _bound(nodes: list[ast.stmt]) -> list[str]:
    """Names that statements of a module bind at its top level, with repeats."""
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names += [(alias.asname or alias.name).split(".")[0] for alias in node.names]
        else:
            names += [
                part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            ]
    return names


def _loaded(nodes: list[ast.stmt]) -> set[str]:
    return {
        part.id
        for node in nodes
        for part in ast.walk(node)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)
    }


def _has_assert(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Assert) for part in ast.walk(node))


def _may_move(node: ast.stmt, rest: list[ast.stmt]) -> bool:
    if not isinstance(node, _PLAIN) or not _harmless(node):
        return False
    if isinstance(node, ast.FunctionDef) and not (_has_assert(node) or node.name.startswith(("check", "test"))):
        return False
    if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call | ast.Constant):
        return False
    return not set(_bound([node])) & (_loaded(rest) | set(_bound(rest)))


def _plain_import(node: ast.stmt) -> bool:
    """Whether an import gives the checks nothing but what they may use."""
    if isinstance(node, ast.Import):
        return all(alias.name in MODULES for alias in node.names)
    if not isinstance(node, ast.ImportFrom) or node.level or node.module not in MODULES:
        return False
    return not any(_reaches(alias.name) for alias in node.names)  # what a star brings is asked of the program anyway


def _unparse(nodes: Sequence[ast.stmt]) -> str:
    return ast.unparse(ast.Module(body=list(nodes), type_ignores=[])) + "\n" if nodes else ""


def needed_names(checks: str, *, prelude: str = "", program: str = "", entry_point: str | None = None) -> list[str]:
    """Names that checks need of a program: those that nothing else defines.

    A built-in name comes from the program only where it must be what is tested: it is the entry point, or the checks
    use no other name of the program's. Else a program could pass with an `abs` of its own.
    """
    tree, before, defined = ast.parse(checks), ast.parse(prelude), set(_bound(ast.parse(program).body))
    arguments = {part.arg for part in ast.walk(tree) if isinstance(part, ast.arg)}
    used = _loaded(tree.body) - set(_bound(before.body)) - set(_bound(tree.body)) - arguments
    names = used - set(dir(builtins))
    shadowed = used & defined & set(dir(builtins))
    if entry_point is not None:
        names.add(entry_point)
    elif len(shadowed) == 1 and not names & defined:
        names |= shadowed
    return sorted(names)


def imported_modules(source: str) -> set[str]:
    """Top-level names of the modules that a source imports, wherever in it; empty where it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


@functools.cache
def _site(name: str) -> str | None:
    """The folder of installed packages that holds a module beyond the standard library; None without one."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    origin = found.origin if found is not None else None
    for parent in Path(origin).parents if origin else ():
        if parent.name in ("site-packages", "dist-packages"):
            return str(parent)
    return None


def package_folders(sources: Iterable[str]) -> tuple[tuple[str, ...], list[str]]:
    """Folders of the installed packages that sources import, and the modules that are not installed."""
    names = sorted(set().union(*map(imported_modules, sources)) - sys.stdlib_module_names)
    return tuple(sorted({site for name in names if (site := _site(name))})), [
        name for name in names if not _site(name)
    ]


def reach_the_process(checks: str) -> bool:
    """Whether checks may look at, or change, what does not cross to a process of their own: streams, files, random."""
    tree = ast.parse(checks)
    names = {part.id for part in ast.walk(tree) if isinstance(part, ast.Name)}
    names |= {part.attr for part in ast.walk(tree) if isinstance(part, ast.Attribute)}
    return bool(names & _SHARED_STATE) or not imported_modules(checks) <= MODULES - {"random", "decimal"} | {"numpy"}


def split_checks(source: str) -> CheckedProgram:
    """Takes the checks at the end of a source out of it.

    Single assertions further up are checked again at the end, where all names that they use are bound only once.

    Raises:
        SyntaxError: the source does not parse.
        ValueError: the source holds a null byte.
    """
    tree = ast.parse(source)
    cut = len(tree.body)
    while cut > 0 and _may_move(tree.body[cut - 1], tree.body[: cut - 1]):
        cut -= 1
    head, tail = tree.body[:cut], tree.body[cut:]
    bound = _bound(tree.body)
    again: list[ast.stmt] = [
        node
        for node in head
        if isinstance(node, ast.Assert)
        and _harmless(node)
        and all(bound.count(name) == 1 or hasattr(builtins, name) for name in _loaded([node]))
    ]
    checks = again + tail
    if not any(_has_assert(node) for node in checks):
        return CheckedProgram(source, None, "", ())
    imports = [node for node in head if _plain_import(node)]
    text = _unparse(checks)
    names = needed_names(text, prelude=_unparse(imports), program=_unparse(head))
    return CheckedProgram(_unparse(head), text, _unparse(imports), tuple(set(names) - REFUSED_BUILTINS))
