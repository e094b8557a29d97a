# ruff: noqa: E501
"""Programs that cheat and programs that do harm; none passes, none harms. And honest ones, which pass."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from codenas_hf.sandbox import judge
from codenas_hf.sandbox.judge import SandboxUnavailable, capabilities, run_program
from codenas_hf.sandbox.program_checks import split_checks

LEVELS = ["namespaces", "landlock"]
CHECK = "\nassert add(1, 2) == 3\nassert add(2, 2) == 4\n"


@pytest.fixture(params=LEVELS)
def level(request):
    """Both ways of locking in, where the kernel has them."""
    try:
        run_program("pass", level=request.param)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    return request.param


def processes_of_sandboxes() -> list[str]:
    """Processes of this test's programs that are left over a moment after the verdict."""
    deadline = time.monotonic() + 2
    while (found := _jails()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _jails() -> list[str]:
    """Jails that are ours, or nobody's. Those that another running Python waits for belong to a test beside this one."""
    words, parents = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words[folder.name] = (folder / "cmdline").read_bytes().split(b"\0")
                parents[folder.name] = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
    jails = {number for number, line in words.items() if any(word.endswith(b"jail.py") for word in line)}

    def ours(number: str) -> bool:
        while (parent := parents.get(number, "1")) in jails:
            number = parent
        return parent == str(os.getpid()) or b"python" not in words.get(parent, [b""])[0]

    return sorted(filter(ours, jails & set(parents)))


# Plain statements behind the program, which are taken for checks: with the judge's own names they write its verdict.
WRITES_THE_VERDICT = (
    "g['os'].write(g['_VERDICT'], g['json'].dumps({'passed': True, 'reason': 'passed', 'nonce': l['job']['nonce']})"
    ".encode() + b'\\n')\ng['os'].abort()\n"
)
WRONG = "def add(a, b):\n    return a - b\n"
FORGERIES = {
    "the frame of a generator": (
        WRONG
        + "q = (q.gi_frame.f_back.f_back for _ in [1])\nr = [*q][0]\ng = r.f_globals\nl = r.f_locals\n"
        + WRITES_THE_VERDICT
    ),
    "the frame of a generator, by a pattern": (
        "import collections\n"
        + WRONG
        + "".join(
            f"def test_{name}(x):\n    match x:\n        case collections.abc.Hashable({name}=y):\n            return y\n"
            for name in ("gi_frame", "f_back", "f_globals", "f_locals")
        )
        + "q = (test_f_back(test_f_back(test_gi_frame(q))) for _ in [1])\nr = [*q][0]\n"
        "g = test_f_globals(r)\nl = test_f_locals(r)\n" + WRITES_THE_VERDICT
    ),
    "the frame of a generator, by its name": (
        "import operator\n"
        + WRONG
        + "q = (operator.attrgetter('gi_frame.f_back.f_back')(q) for _ in [1])\nr = [*q][0]\n"
        "g, l = operator.attrgetter('f_globals', 'f_locals')(r)\n" + WRITES_THE_VERDICT
    ),
    **{
        f"a name that takes attributes, {how}": (
            f"from operator import {names}\n{WRONG}q = ({take}('gi_frame.f_back.f_back')(q) for _ in [1])\nr = [*q][0]\n"
            f"g, l = {take}('f_globals', 'f_locals')(r)\n{WRITES_THE_VERDICT}"
        )
        for how, names, take in (("imported", "attrgetter as take", "take"), ("by a star", "*", "attrgetter"))
    },
    "a module that a module holds": (
        "import dataclasses\n" + WRONG + "s = dataclasses.inspect.getmembers\n"
        "r = dict(s(dict(s(dataclasses.inspect.currentframe()))['f_back']))\ng = r['f_globals']\nl = r['f_locals']\n"
        + WRITES_THE_VERDICT
    ),
    "os._exit before the checks": "import os\nos._exit(0)",
    "sys.exit before the checks": "import sys\nsys.exit(0)",
    "os._exit in the function": "import os\ndef add(a, b):\n    os._exit(0)",
    "sys.exit in the function": "import sys\ndef add(a, b):\n    sys.exit(0)",
    "raise SystemExit": "raise SystemExit",
    "equal to everything": "class Any:\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Any()",
    "an int equal to everything": (
        "class Any(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\n"
        "def add(a, b):\n    return Any(7)"
    ),
    "never unequal": (
        "class Any:\n    __eq__ = __le__ = __ge__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n"
        "    __class__ = int\ndef add(a, b):\n    return Any()"
    ),
    "patched AssertionError": (
        "import builtins\nclass Quiet(Exception):\n    pass\nbuiltins.AssertionError = Quiet\ndef add(a, b):\n    return 0"
    ),
    "patched everything": (
        "import builtins, json, sys, os\nfor name in list(vars(builtins)):\n"
        "    if name not in ('__build_class__', '__import__'):\n        setattr(builtins, name, lambda *a, **k: True)\n"
        "json.dumps = json.loads = lambda *a, **k: {'passed': True}\ndef add(a, b):\n    return 0"
    ),
    "a reply of its own": (
        "import sys, gc, json, struct\n"
        "def reply(message):\n    frame = sys._getframe()\n    while frame:\n        link = frame.f_locals.get('self')\n"
        "        if hasattr(link, 'connection'):\n            link.send(message)\n        frame = frame.f_back\n"
        "def add(a, b):\n    for message in ({'passed': True, 'reason': 'passed', 'nonce': ''}, {'value': True}):\n"
        "        reply(message)\n    return 0"
    ),
    "harness functions replaced": (
        "import sys\nframe = sys._getframe()\nwhile frame:\n    for name, item in list(frame.f_globals.items()):\n"
        "        if callable(item) and not name.startswith('__'):\n"
        "            frame.f_globals[name] = lambda *a, **k: (True, 'passed')\n    frame = frame.f_back\n"
        "def add(a, b):\n    return 0"
    ),
    "writes on every descriptor": (
        "import os\nfor descriptor in range(256):\n"
        '    for text in (b\'{"nonce": "", "passed": true, "reason": "passed"}\\n\', b"passed\\n"):\n'
        "        try:\n            os.write(descriptor, text)\n        except OSError:\n            pass\n"
        "def add(a, b):\n    return 0"
    ),
    "looks for the nonce and the checks": (
        "import gc, re, sys\nfound = set()\nfor item in gc.get_objects():\n    for text in re.findall('[0-9a-f]{32}', "
        "repr(item)[:100000]):\n        found.add(text)\ntry:\n    memory = open('/proc/self/mem', 'rb', 0)\n"
        "    for line in open('/proc/self/maps'):\n        span, rights = line.split()[:2]\n"
        "        if rights.startswith('r') and 'vv' not in line and 'vsys' not in line:\n"
        "            low, high = (int(end, 16) for end in span.split('-'))\n            memory.seek(low)\n"
        "            data = memory.read(high - low)\n"
        '            found.update(re.findall(rb\'"nonce": "[0-9a-f]{32}\', data))\nexcept OSError:\n    pass\n'
        "print('FOUND', [item for item in found if b'nonce' in (item if isinstance(item, bytes) else b'')])\n"
        "def add(a, b):\n    return 0"
    ),
    "fork and let the child end well": (
        "import os\ndef add(a, b):\n    if os.fork():\n        os._exit(0)\n    return 0"
    ),
    "asserts switched off": "import sys, ast\nast.Assert = None\nsys.settrace(lambda *a: None)\ndef add(a, b):\n    return 0",
    "wrong": "def add(a, b):\n    return a - b",
    "does not parse": "def add(a, b:\n    return a + b",
    "raises": "def add(a, b):\n    raise KeyError(a)",
    "right only once": "seen = []\ndef add(a, b):\n    seen.append(a)\n    return 3",
    "null byte": "x = '\0'",
    "deep nesting": "def add(a, b):\n    value = []\n    for _ in range(5000):\n        value = [value]\n    return value",
    "a loop in the value": "def add(a, b):\n    value = []\n    value.append(value)\n    return value",
    "a huge value": "def add(a, b):\n    return 'x' * (40 * 2**20)",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_no_forgery_passes(name):
    outcome = run_program(FORGERIES[name] + CHECK, timeout_s=5)
    assert not outcome.passed, outcome
    assert "FOUND [b" not in outcome.stdout


def test_no_forgery_passes_with_trusted_checks():
    for name in ("equal to everything", "os._exit in the function", "a reply of its own", "patched everything"):
        source = FORGERIES[name] + "\nassert True\nimport os\n"
        outcome = run_program(source, checks="check(add)", prelude="def check(f):" + CHECK.replace("\n", "\n    "))
        assert not outcome.passed, name


def test_a_program_cannot_redefine_trusted_helpers():
    prelude = "def close(a, b):\n    return abs(a - b) < 1e-6\ndef half(x):\n    '''docstring'''\n"
    cheat = "def close(a, b):\n    return True\ndef half(x):\n    return 0\n"
    right = "def half(x):\n    return x / 2\n"
    checks = "assert close(half(3), 1.5)"
    assert not run_program(cheat, checks=checks, prelude=prelude, entry_point="half").passed
    assert run_program(right, checks=checks, prelude=prelude, entry_point="half").passed


@pytest.mark.parametrize(
    "check",
    [
        "def check(candidate):\n    assert candidate(1, 2) == 3\ncheck(add)",
        "METADATA = {}\ndef check(candidate):\n    assert candidate(1, 2) == 3, 'sum'\n\ncheck(add)\nprint('done')",
        "if __name__ == '__main__':\n    assert add(1, 2) == 3",
        "def main():\n    assert add(1, 2) == 3\nmain()",
        "for a, b in [(1, 2)]:\n    assert add(a, b) == a + b",
        "result = add(1, 2)\nassert result == 3",
        "assert add(1, 2) == 3\ndef unrelated():\n    return 1",
        "try:\n    assert add(1, 2) == 3\nfinally:\n    pass",
    ],
)
def test_checks_are_judged_outside_wherever_they_stand(check):
    honest, cheat = "def add(a, b):\n    return a + b\n", FORGERIES["equal to everything"] + "\n"
    assert run_program(honest + check).passed
    assert not run_program(cheat + check).passed
    assert not run_program(FORGERIES["os._exit in the function"] + "\n" + check).passed


HONEST = {
    "numbers": "def f(x):\n    return x * 2\nassert f(2) == 4\nassert abs(f(0.1) - 0.2) < 1e-9\nassert f(1j) == 2j",
    "containers": (
        "def f():\n    return {'a': [1, (2, {3}), b'x', None, True, 10**40]}\n"
        "assert f() == {'a': [1, (2, {3}), b'x', None, True, 10**40]}"
    ),
    "text": "def f(s):\n    return s[::-1]\nassert f('añ😀') == '😀ña'",
    "counter": "from collections import Counter\ndef f(s):\n    return Counter(s)\nassert f('aab') == {'a': 2, 'b': 1}",
    "imports in checks": "import math\ndef f(x):\n    return math.sqrt(x)\nassert math.isclose(f(2), 2 ** 0.5)",
    "in place": "def f(x):\n    x.sort()\nvalues = [3, 1, 2]\nf(values)\nassert values == [1, 2, 3]",
    "callback": "def f(g, x):\n    return [g(i) for i in x]\nassert f(lambda i: i + 1, [1, 2]) == [2, 3]",
    "error": "def f():\n    raise ValueError('no')\ntry:\n    f()\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'no'",
    "objects": (
        "class Stack:\n    def __init__(self):\n        self.items = []\n    def push(self, x):\n        self.items.append(x)\n"
        "    def __len__(self):\n        return len(self.items)\n"
        "stack = Stack()\nstack.push(4)\nassert len(stack) == 1\nassert stack.items == [4]\nassert isinstance(stack, Stack)"
    ),
    "dataclasses": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(x):\n    return P(x)\n"
        "assert f(3) == P(3)\nassert not f(3) == P(4)"
    ),
    "generator": "def f(n):\n    yield from range(n)\nassert list(f(3)) == [0, 1, 2]",
    "no checks": "print('hello')",
    "early constant": "LIMIT = 5\ndef f():\n    return LIMIT\nassert f() == 5",
    "rebound": "def f(x):\n    return x\ny = f(1)\nassert y == 1\ny = f(2)\nassert y == 2\ndef g():\n    return y\nassert g() == 2",
    "future": "from __future__ import annotations\ndef f(x: int | None) -> int:\n    return 1\nassert f(2) == 1",
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_pass(name):
    outcome = run_program(HONEST[name])
    assert outcome.passed, outcome


# Program, checks: right programs under checks that are handed over apart.
RIGHT = {
    "named like a built-in": ("def sum(a, b):\n    return a - b\n", "assert sum(5, 3) == 2\nprint('done')"),
    "set attributes": (
        "class Node:\n    def __init__(self, data):\n        self.data, self.left = data, None\n        self.kids = []\n"
        "def depth(n):\n    return 0 if n is None else 1 + depth(n.left)\n",
        "root = Node(1)\nroot.left = Node(2)\nroot.kids.append(Node(3))\nassert depth(root) == 2\n"
        "assert len(root.kids) == 1 and root.kids[0].data == 3\nassert root.left.left is None\ndel root.left.left\n",
    ),
    "types as arguments": (
        "def f(items, kind):\n    return [i for i in items if isinstance(i, kind)]\n",
        "assert f([1, 'a', 2.5], str) == ['a']\nassert f([1, 'a'], (int, float)) == [1]",
    ),
    "functions as arguments": (
        "def f(g, items):\n    return [g(i) for i in items]\n",
        "import math\nassert f(len, ['a', 'bb']) == [1, 2]\nassert f(str.upper, 'ab') == ['A', 'B']\n"
        "assert f(math.sqrt, [4.0]) == [2.0]\nassert f(lambda i: [i], (1, 2)) == [[1], [2]]",
    ),
    "types as values": ("def f(x):\n    return type(x)\n", "assert f(1) is int\nassert f([]) == list"),
    "dates": (
        "import datetime as d\ndef f(n):\n    return d.datetime(2020, 1, 1, tzinfo=d.timezone.utc) + d.timedelta(days=n)\n",
        "from datetime import *\nassert f(1) == datetime(2020, 1, 2, tzinfo=timezone.utc)\n"
        "assert f(3) - f(1) == timedelta(2)",
    ),
    "numbers": (
        "from fractions import Fraction\nfrom decimal import Decimal\ndef f(x):\n    return [Fraction(x, 3), Decimal(x) / 4, x * 1j]\n",
        "from fractions import Fraction\nfrom decimal import Decimal\nassert f(2) == [Fraction(2, 3), Decimal('0.5'), 2j]",
    ),
    "collections": (
        "from collections import *\nP = namedtuple('P', 'a b')\ndef f(s):\n    d = defaultdict(list)\n    d[1].append(s)\n"
        "    return Counter(s), deque(s, 2), OrderedDict(a=1), P(1, [2]), d\n",
        "from collections import Counter, deque\nc, q, o, p, d = f('aab')\nassert c.most_common(1) == [('a', 2)] and c['z'] == 0\n"
        "assert q == deque('ab') and q.maxlen == 2\nassert list(o) == ['a']\nassert p.b == [2] and p == (1, [2]) and p._replace(a=3)[0] == 3\n"
        "assert d[5] == [] and d[1] == ['aab']",
    ),
    "sets of sets": ("def f():\n    return {frozenset({1}), frozenset()}\n", "assert f() == {frozenset(), frozenset({1})}"),
    "ranges and views": ("def f(d):\n    return range(3), d.keys()\n", "assert f({1: 2}) == (range(3), {1})"),
    "bytes": ("def f(b):\n    b += b'x'\n    return bytes(b)\n", "b = bytearray(b'a')\nassert f(b) == b'ax' and b == bytearray(b'ax')"),
    "nan": (
        "def f(x):\n    return [x, float('inf')]\n",
        "import math\nn = float('nan')\nassert f(n) == [n, math.inf]\nassert math.isnan(f(n)[0])\nassert f(n)[0] is n",
    ),
    "a million numbers": ("def f(n):\n    return list(range(n))\n", "assert f(10**6) == list(range(10**6))"),
    "long ints": ("def f(n):\n    return [10**n, -(2**63)]\n", "assert f(5000) == [10**5000, -(2**63)]"),
    "deep lists": ("def f(n):\n    return [f(n - 1)] if n else []\n", "v = f(90)\nfor _ in range(90):\n    v = v[0]\nassert v == []"),
    "aliases": (
        "def f(grid):\n    grid[0][0] = 5\n    return grid\n",
        "row = [1]\ngrid = [row, row]\nassert f(grid) is grid\nassert row == [5] and grid[1] is row",
    ),
    "asynchronous": (
        "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x * x\nasync def g(n):\n    for i in range(n):\n        yield i\n",
        "import asyncio\nasync def main():\n    assert [i async for i in g(3)] == [0, 1, 2]\n    return await asyncio.gather(f(2), f(3))\n"
        "assert asyncio.run(main()) == [4, 9]",
    ),
    "main guard": ("def f(x):\n    return x\nif __name__ == '__main__':\n    print(f(int(input())))\n", "assert f(2) == 2"),
    "generators": (
        "def f():\n    n = 0\n    while True:\n        n += (yield n) or 1\n",
        "from itertools import islice\nassert list(islice(f(), 4)) == [0, 1, 2, 3]\ng = f()\nassert next(g) == 0 and g.send(5) == 5",
    ),
    "an iterator as argument": ("def f(i):\n    return next(i), sum(i)\n", "assert f(iter([1, 2, 3])) == (1, 5)"),
    "exceptions as values": (
        "def f():\n    return ValueError('no', 2)\n",
        "e = f()\nassert isinstance(e, ValueError) and e.args == ('no', 2) and type(e) is ValueError",
    ),
    "exceptions of its own": (
        "class A(Exception):\n    pass\nclass B(A):\n    def __init__(self, n):\n        super().__init__(f'{n}!')\n        self.n = n\ndef f(n):\n    raise B(n)\n",
        "try:\n    f(3)\n    assert False\nexcept A as e:\n    assert e.n == 3 and str(e) == '3!' and isinstance(e, B)",
    ),
    "exceptions of modules": (
        "import json\ndef f(s):\n    return json.loads(s)\n",
        "import json\ntry:\n    f('{')\n    assert False\nexcept json.JSONDecodeError as e:\n    assert e.pos == 1",
    ),
    "leaving": ("import sys\ndef f():\n    sys.exit(3)\n", "try:\n    f()\nexcept SystemExit as e:\n    assert e.code == 3 or e.args == (3,)"),
    "operators": (
        "class V:\n    def __init__(self, a):\n        self.a = a\n    def __add__(self, o):\n        return V(self.a + o.a)\n"
        "    def __lt__(self, o):\n        return self.a < o.a\n    def __neg__(self):\n        return V(-self.a)\n",
        "assert (V(1) + V(2)).a == 3\nassert V(1) < V(2)\nassert (-V(1)).a == -1\nassert max([V(1), V(3)]).a == 3",
    ),
    "derived from built-ins": (
        "class L(list):\n    def total(self):\n        return sum(self)\nclass N(int):\n    pass\ndef f():\n    return N(4)\n",
        "l = L([1, 2])\nl.append(3)\nassert l.total() == 6 and l == [1, 2, 3] and 2 in l and isinstance(l, list)\nassert f() + 1 == 5 and f() == 4 and isinstance(f(), int)",
    ),
    "enumerations": (
        "import enum\nclass C(enum.Enum):\n    R = 1\nclass I(enum.IntEnum):\n    X = 2\ndef f():\n    return C.R, I.X\n",
        "assert f()[0] is C.R and C.R.value == 1 and C(1) == C.R\nassert f()[1] == 2 and f()[1].name == 'X'",
    ),
    "equal objects": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass P:\n    x: int\n    below: object = None\ndef f(x):\n    return P(x, P(2))\n",
        "assert f(1) == P(1, P(2)) and f(1) != P(1, P(3))\nassert {f(1), f(1)} == {f(1)}",
    ),
    "annotations": ("def f(x: int) -> str:\n    return ''\n", "assert f.__annotations__ == {'x': int, 'return': str} and f.__name__ == 'f'"),
    "managers": (
        "class M:\n    def __enter__(self):\n        return self\n    def __exit__(self, kind, error, trace):\n        return kind is ValueError\n",
        "with M() as m:\n    raise ValueError('x')\nassert isinstance(m, M)",
    ),
    "decorators": (
        "import functools\ndef twice(g):\n    @functools.wraps(g)\n    def h(*a, **k):\n        return 2 * g(*a, **k)\n    return h\n",
        "@twice\ndef g(x, *, y=0):\n    return x + y\nassert g(2, y=1) == 6 and g.__name__ == 'g'",
    ),
    "modules of the program": ("import math\ndef f(x):\n    return math.sqrt(x)\n", "assert math.isclose(f(2), 2**0.5)"),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right_programs_pass_under_checks_apart(name):
    program, checks = RIGHT[name]
    exec(compile(f"{program}\n{checks}", name, "exec", dont_inherit=True), {"__name__": "program"})  # Python agrees
    outcome = run_program(program, checks=checks, timeout_s=10)
    assert outcome.passed, outcome


UNJUDGED = {
    "its own idea of equality": (
        "class R:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n    def __eq__(self, o):\n        return self.a * o.b == self.b * o.a\n",
        "assert R(1, 2) == R(2, 4)",
    ),
    "equal to what is plain": ("class M(object):\n    def __eq__(self, o):\n        return o == 3\ndef f():\n    return M()\n", "assert f() == 3"),
    "what it prints": (
        "def f():\n    print('hello')\n",
        "import io, contextlib\nout = io.StringIO()\nwith contextlib.redirect_stdout(out):\n    f()\nassert out.getvalue() == 'hello\\n'",
    ),
    "a seed": ("import random\ndef f():\n    return random.random()\n", "import random\nrandom.seed(1)\na = f()\nrandom.seed(1)\nassert a == f()"),
    "a class of the checks": ("def f(o):\n    return o.x\n", "class O:\n    x = 3\nassert f(O()) == 3"),
    "a class below one of the program's": ("class A:\n    def g(self):\n        return 1\n", "class B(A):\n    pass\nassert B().g() == 1"),
    "bare except": ("class M:\n    def __eq__(self, o):\n        return True\ndef f():\n    return M()\n", "try:\n    f() == 3\nexcept:\n    pass"),
    "files": ("def f():\n    open('x.txt', 'w').write('hi')\n", "f()\nassert open('x.txt').read() == 'hi'"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNJUDGED)
def test_what_cannot_be_judged_is_neither_passed_nor_failed(name):
    program, checks = UNJUDGED[name]
    outcome = run_program(program, checks=checks, timeout_s=10)
    assert not outcome.passed
    assert not outcome.judged, outcome
    assert outcome.reason.startswith("cannot be judged: ")
    broken = program.replace("return", "return None and").replace("print", "str").replace("open", "len")
    outcome = run_program(broken, checks=checks, timeout_s=10)
    if name not in ("a seed", "bare except"):  # there nothing is what is expected
        assert not outcome.passed
        assert outcome.judged, "what fails in plain Python has failed"


FAILS = """
import os, sys
left = int(open({count!r}).read())
open({count!r}, "w").write(str(left - 1))
if left > 0:
    print("OSError: no memory for a moment", flush=True)
    os.write(int(sys.argv[1]), b'{{"unavailable": "EOFError: "}}\\n')
    os._exit(1)
os.execv(sys.executable, [sys.executable, "-I", "-S", "-B", {jail!r}, *sys.argv[1:]])
"""


@pytest.mark.parametrize("failures", [1, 2, 99])
def test_a_jail_that_could_not_be_set_up_is_tried_again_and_then_says_why(failures, tmp_path, monkeypatch):
    capabilities()
    count, script = tmp_path / "count", tmp_path / "jail.py"
    count.write_text(str(failures))
    script.write_text(FAILS.format(count=str(count), jail=str(judge._JAIL)))
    monkeypatch.setattr(judge, "_JAIL", script)
    monkeypatch.setattr(judge, "_PAUSES", (0.0, 0.0))
    if failures > 2:
        with pytest.raises(SandboxUnavailable, match="EOFError: ; OSError: no memory for a moment"):
            run_program("assert 1 == 1")
        assert count.read_text() == str(failures - 3)
    else:
        assert run_program("assert 1 == 1").passed
        assert not run_program("assert 1 == 2").passed
        assert count.read_text() == "-2", "what was judged is not run twice"


def test_checks_may_import_installed_packages(level):
    pytest.importorskip("numpy")
    program = "import numpy as np\ndef f(n):\n    return np.arange(n) * 2, np.float64(n), np.int64(n)\n"
    checks = (
        "import numpy as np\na, x, n = f(3)\nassert (a == np.array([0, 2, 4])).all() and a.dtype == np.int64\n"
        "np.testing.assert_allclose(x, 3)\nassert n == 3 and x == 3.0"
    )
    outcome = run_program(program, checks=checks, timeout_s=20, level=level)
    assert outcome.passed, outcome
    wrong = run_program(program.replace("* 2", "* 3"), checks=checks, timeout_s=20, level=level)
    assert (wrong.passed, wrong.judged) == (False, True)
    outcome = run_program("x = 1", checks="import no_such_package_of_anybody\nassert x == 1")
    assert not outcome.judged
    assert "pip install no_such_package_of_anybody" in outcome.reason
    assert not run_program("x = 1", checks="assert x ==").judged
    assert run_program("import no_such_package_of_anybody", checks="assert True").judged


def test_installed_packages_may_lie_below_tmp(level, monkeypatch):
    """As where a virtual environment was made in a temporary folder: program and checks both import from it."""
    name = f"codenas_probe_{level}"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        site = Path(folder) / "lib" / "site-packages"
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text("VALUE = 7\n")
        for path in (Path(folder), site.parent, site, site / name):
            path.chmod(0o755)
        (site / name / "__init__.py").chmod(0o644)
        monkeypatch.syspath_prepend(str(site))
        importlib.invalidate_caches()
        program = f"import {name}\ndef f():\n    open('x', 'w').close()\n    return {name}.VALUE\n"
        outcome = run_program(
            program, checks=f"import {name}\nassert f() == {name}.VALUE == 7", timeout_s=20, level=level
        )
        assert outcome.passed, outcome


def test_why_a_jail_could_not_be_set_up_is_said(monkeypatch):
    """The process that fails has no verdict to write, so its words come through its output."""
    monkeypatch.setattr(judge, "_PAUSES", ())
    monkeypatch.setattr(judge, "DISK_BYTES", "nonsense")
    with pytest.raises(SandboxUnavailable, match=r"mount .*: Invalid argument"):
        run_program("pass", level="namespaces")


HANDED_OVER = {
    "a number with operators of its own": "class N:\n    def __sub__(self, o):\n        return 0.0\n    __rsub__ = __sub__\n",
    "an int with operators of its own": (
        "class N(int):\n    def __sub__(self, o):\n        return 0.0\n    __rsub__ = __sub__\n"
        "    __abs__ = lambda s: 0.0\n    __lt__ = __le__ = __eq__ = lambda s, o: True\n"
    ),
    "contains everything": "class N:\n    def __contains__(self, o):\n        return True\n    def __iter__(self):\n        return iter([0])\n",
    "remembers what it is compared with": (
        "class N:\n    seen = 0\n    def __eq__(self, o):\n        N.seen = o\n        return True\n    def __iter__(self):\n"
        "        return iter([N.seen])\n    __float__ = lambda s: float(N.seen)\n    __index__ = lambda s: N.seen\n"
    ),
    "a helper of the checks": "def abs(x):\n    return 0\nclass N:\n    pass\n",
}  # fmt: skip
TRIALS = (
    "assert abs(f(2) - 7.5) < 1e-6", "assert 7 in f(2)", "v = f(2)\nassert v == 7 or float(v) == 7", "assert f(2) == 7",
    "v = f(2)\ntry:\n    v == 7\nexcept BaseException:\n    pass\nassert list(v) == [7]", "assert 7 == f(2)",
    "assert not f(2) < 7 < 8", "import math\nassert math.isclose(f(2), 7)", "assert [1, 2, 3][f(2) - 6] == 2",
)  # fmt: skip


@pytest.mark.parametrize("name", HANDED_OVER)
def test_expected_values_are_never_handed_to_operators(name):
    program = HANDED_OVER[name] + "def f(x):\n    return N()\n"
    for checks in TRIALS:
        assert not run_program(program, checks=checks).passed, checks


def test_a_program_cannot_name_or_forge_values():
    """What it sends over the wire by itself is no more than what a value could be."""
    send = (
        "import sys, json, struct\ndef add(a, b):\n    frame = sys._getframe()\n    while not hasattr(frame.f_locals.get('self'), 'connection'):\n"
        "        frame = frame.f_back\n    frame.f_locals['self'].send({'value': VALUE})\n    return 0\n"
    )
    for value in (
        ["T", "builtins", "eval"], ["T", "os", "system"], ["v", "os.system", ["true"]], ["l", [3], 12345, None],
        ["X", 1, "A", "builtins", ["T", "builtins", "object"]], ["M", 1, "class", ["import os"], [3]], ["k", 1], ["r", 1],
        ["D", [[], []], None, ["T", "os", "getcwd"]], ["n", "O", [3]], ["A", "|O", [1], [3]], ["o", "x", "y", "z"],
        ["E", ["T", "builtins", "int"], [], []], ["v", "fractions.Fraction", [1, 0]], ["i", "zz"], ["N", [1]], [[], []],
    ):  # fmt: skip
        outcome = run_program(send.replace("VALUE", repr(value)), checks="assert add(1, 2) == 3")
        assert not outcome.passed, value
        assert "eval" not in outcome.reason


def test_a_check_that_asks_much_is_not_failed_for_its_time():
    checks = "for i in range(300000):\n    assert f(i) == i"
    outcome = run_program("def f(x):\n    return x\n", checks=checks, timeout_s=1)
    assert outcome.passed or not outcome.judged


def test_output_and_reason():
    outcome = run_program("import sys\nprint('out')\nprint('err', file=sys.stderr)\nassert 1 == 2, 'numbers differ'")
    assert outcome.stdout.splitlines() == ["out", "err"] or set(outcome.stdout.splitlines()) == {"out", "err"}
    assert outcome.reason == "failed: numbers differ"
    assert 0 < outcome.seconds < 3


def test_limits_have_to_be_positive():
    with pytest.raises(ValueError, match="above 0"):
        run_program("pass", timeout_s=0)


# Harm ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["while True:\n    pass", "import time\ntime.sleep(60)"])
def test_endless_programs_end(level, body):
    start = time.perf_counter()
    outcome = run_program(body + CHECK, timeout_s=0.5, level=level)
    assert not outcome.passed
    assert "timed out" in outcome.reason
    assert time.perf_counter() - start < 8
    assert not processes_of_sandboxes()


def test_ignored_signals_do_not_help(level):
    body = (
        "import signal\nfor number in range(1, 65):\n    try:\n        signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass"
    )
    assert "timed out" in run_program(body, timeout_s=0.5, level=level).reason
    assert not processes_of_sandboxes()


def test_fork_bomb(level):
    body = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    assert not run_program(body + CHECK, timeout_s=1, level=level).passed
    assert not processes_of_sandboxes()


def test_orphans_do_not_live_on(level):
    body = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n"
        "        os._exit(0)\n    os._exit(0)\ndef add(a, b):\n    return a + b"
    )
    start = time.perf_counter()
    outcome = run_program(body + CHECK, timeout_s=3, level=level)
    assert outcome.passed or level == "landlock"  # there, nothing may fork
    assert time.perf_counter() - start < 8
    assert not processes_of_sandboxes()


@pytest.mark.parametrize("body", ["x = 'x' * 10**10", "x = []\nwhile True:\n    x.append(bytearray(10**7))"])
def test_ten_gigabytes(level, body):
    outcome = run_program(body + CHECK, level=level, memory_bytes=200 * 2**20)
    assert not outcome.passed
    assert "MemoryError" in outcome.reason or "ended" in outcome.reason or "memory" in outcome.reason


@pytest.mark.slow
def test_memory_of_many_processes_is_counted_together():
    body = (
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        x = b'x' * (100 * 2**20)\n"
        "        time.sleep(60)\ntime.sleep(60)"
    )
    if capabilities().level != "namespaces":
        pytest.skip("nothing may fork here")
    outcome = run_program(body, timeout_s=20, memory_bytes=300 * 2**20)
    assert not outcome.passed
    assert outcome.seconds < 15


def test_disk_filling(level, tmp_path):
    body = (
        "import os\nwritten = 0\ntry:\n    for index in range(2000):\n        with open(f'f{index}', 'wb') as file:\n"
        "            written += file.write(b'x' * 2**20)\nexcept OSError as error:\n    print(written, error)\n"
        "print('wrote', written)"
    )
    outcome = run_program(body, timeout_s=10, level=level)
    if "wrote" in outcome.stdout:
        assert int(outcome.stdout.split("wrote")[1]) <= judge.DISK_BYTES
    else:
        assert not outcome.passed


def test_a_file_of_any_size(level):
    outcome = run_program("open('big', 'wb').truncate(2**40)", level=level)
    assert not outcome.passed


def test_files_of_the_host_stay(level, tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    victim.chmod(0o666)
    tmp_path.chmod(0o777)
    body = f"""
import os, shutil
path = {str(victim)!r}
for attack in (
    lambda: os.remove(path), lambda: open(path, 'w').write('gone'), lambda: os.truncate(path, 0),
    lambda: os.chmod(path, 0), lambda: os.rename(path, path + 'x'), lambda: shutil.rmtree(os.path.dirname(path)),
    lambda: os.utime(path, (0, 0)), lambda: os.link(path, 'here'), lambda: os.symlink(path, path + 'y'),
    lambda: open({str(tmp_path)!r} + '/new', 'w'), lambda: os.remove({judge.__file__!r}),
    lambda: open({judge.__file__!r}, 'a').write('# was here'),
):
    try:
        attack()
        print('DONE')
    except OSError:
        pass
try:
    print(open(path).read())
except OSError:
    pass
"""
    before, code = victim.stat(), Path(judge.__file__).read_text()
    outcome = run_program(body, level=level)
    assert "precious" not in outcome.stdout
    assert "DONE" not in outcome.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["victim.txt"]
    after = victim.stat()
    assert (after.st_mode, after.st_mtime, after.st_size) == (before.st_mode, before.st_mtime, before.st_size)
    assert Path(judge.__file__).read_text() == code


def test_environment_is_empty(level, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    body = (
        "import os\nprint(dict(os.environ))\nfor name in ['self', *(n for n in (os.listdir('/proc') if "
        "os.access('/proc', os.R_OK) else ()) if n.isdigit()), 'thread-self', str(os.getppid())]:\n    try:\n"
        "        print(open(f'/proc/{name}/environ', 'rb').read())\n    except OSError:\n        pass"
    )
    outcome = run_program(body, level=level)
    assert outcome.stdout.startswith("{}")
    assert "secret" not in outcome.stdout


def test_the_parent_cannot_be_signalled(level):
    body = (
        f"import os, signal\nfor pid in ({os.getpid()}, os.getppid(), 1, -1, 0, -{os.getpgrp()}):\n"
        "    for call in (os.kill, os.killpg):\n        try:\n            call(pid, signal.SIGTERM)\n"
        "        except OSError:\n            pass\n"
        "import resource\ntry:\n"
        f"    resource.prlimit({os.getpid()}, resource.RLIMIT_NOFILE, (1, 1))\n    print('LIMITED')\nexcept OSError:\n    pass\n"
        "print('still here')"
    )
    outcome = run_program(body, level=level)  # we are here to see it
    assert "LIMITED" not in outcome.stdout


def test_no_network(level):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.2)
        body = (
            f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=1).send(b'x')\n"
            "print('CONNECTED')"
        )
        outcome = run_program(body, level=level)
        assert not outcome.passed
        assert "CONNECTED" not in outcome.stdout
        with pytest.raises(TimeoutError):
            server.accept()


def test_namespaces_alone_have_no_network(monkeypatch):
    if capabilities().level != "namespaces":
        pytest.skip("no namespaces")
    monkeypatch.setattr(judge.confinement, "has_seccomp_filter", lambda: False)
    outcome = run_program("import socket\nsocket.create_connection(('127.0.0.1', 22), timeout=1)")
    assert "unreachable" in outcome.reason


def test_dangerous_calls_are_refused(level):
    body = (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "for name, args in (('ptrace', (16, 1, 0, 0)), ('unshare', (0x10000000,)), ('chroot', (b'/',)), "
        "('memfd_create', (b'x', 0)), ('shmget', (0, 10**9, 0o1600)), ('setuid', (0,))):\n"
        "    if getattr(libc, name)(*args) >= 0 and not (name == 'setuid' and os.getuid() == 0):\n"
        "        print('ALLOWED', name)"
    )
    assert "ALLOWED" not in run_program(body, level=level).stdout


def test_output_is_capped(level):
    outcome = run_program("while True:\n    print('x' * 1000)", timeout_s=0.7, level=level)
    assert len(outcome.stdout) <= judge.STDOUT_BYTES
    assert "timed out" in outcome.reason


def test_nothing_is_left_behind(level, tmp_path, monkeypatch):
    monkeypatch.setattr(judge.tempfile, "tempdir", str(tmp_path))
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run_program("open('left', 'w').write('x')", level=level)
    assert not list(tmp_path.iterdir())
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_without_means_nothing_is_run(monkeypatch):
    capabilities.cache_clear()
    monkeypatch.setattr(judge.confinement, "landlock_abi", lambda: 0)
    monkeypatch.setattr(judge, "_run", lambda *a, **k: ({"unavailable": "unshare: refused"}, "", 0.0))
    with pytest.raises(SandboxUnavailable, match=r"nothing here would hold it.*unshare: refused"):
        run_program("pass")
    with pytest.raises(SandboxUnavailable, match="could not be set up"):
        run_program("pass", level="namespaces")
    monkeypatch.setattr(judge.sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="only on Linux"):
        capabilities()
    capabilities.cache_clear()


def test_what_moves_out_of_a_program_is_harmless():
    moved = split_checks("def f():\n    return 1\n__import__('os')._exit(0)\nassert f() == 1").checks
    assert moved is not None
    assert "__import__" not in moved
    hostile_ones = (
        "f.__globals__",
        "eval('1')",
        "getattr(f, 'x')",
        "open('x')",
        "int.mro()",
        "f.f_globals",
        "f.tb_frame",
    )
    for hostile in hostile_ones:
        checked = split_checks(f"def f():\n    return 1\nassert {hostile}\n")
        assert checked.checks is None
    for harmless in ("f.f_score", "f.total", "f.types_of()"):
        assert split_checks(f"def f():\n    return 1\nassert {harmless}\n").checks is not None


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
@pytest.mark.parametrize("level_name", LEVELS)
def test_unprivileged_users_are_held_too(tmp_path, level_name):
    """The same attacks, started by a user without rights, with the system's own interpreter."""
    python = shutil.which("python3", path="/usr/bin")
    if python is None or subprocess.run([python, "-c", "import sys; assert sys.version_info >= (3, 11)"]).returncode:
        pytest.skip("no system Python that another user can start")
    package = Path("/var/tmp") / f"codenas_sandbox_test_{os.getpid()}" / "codenas_hf" / "sandbox"
    try:
        package.mkdir(parents=True)
        for name in (
            "judge",
            "confinement",
            "jail",
            "jail_types",
            "jail_values",
            "jail_remote",
            "jail_link",
            "program_checks",
        ):
            shutil.copy(Path(judge.__file__).with_name(f"{name}.py"), package)
        (package / "__init__.py").touch()
        (package.parent / "__init__.py").touch()
        for path in (package.parent.parent, package.parent, package, *package.iterdir()):
            path.chmod(0o755)
        victim = package.parent.parent / "victim"
        victim.write_text("precious")
        os.chown(victim, 65534, 65534)
        script = f"""
from codenas_hf.sandbox.judge import capabilities, run_program
level, check = {level_name!r}, {CHECK!r}
assert run_program("def add(a, b):\\n    return a + b" + check, level=level).passed
bomb = "import os\\nwhile True:\\n    try:\\n        os.fork()\\n    except OSError:\\n        pass"
assert not run_program(bomb + check, level=level, timeout_s=1).passed
for body in ("import os\\nos._exit(0)", "import os, signal\\nos.kill({{}}, signal.SIGKILL)".format(__import__("os").getpid()),
             "import os\\nos.remove({str(victim)!r})", "import os\\nos.chmod({str(victim)!r}, 0)",
             "import socket\\nsocket.create_connection(('127.0.0.1', 22))", "x = 'x' * 10**10"):
    outcome = run_program(body + check, level=level)
    assert not outcome.passed, body
print("held")
"""
        done = subprocess.run(
            [python, "-c", script], cwd=package.parent.parent, user=65534, group=65534, env={}, capture_output=True,
            text=True, timeout=60, extra_groups=[],
        )  # fmt: skip
        assert done.stdout == "held\n", done.stderr
        assert victim.read_text() == "precious"
        assert not processes_of_sandboxes()
    finally:
        shutil.rmtree(package.parent.parent, ignore_errors=True)


@pytest.mark.slow
def test_many_at_once_do_not_disturb_each_other():
    from concurrent.futures import ThreadPoolExecutor

    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    honest = (
        "import threading\ndef add(a, b):\n    t = threading.Thread(target=int)\n    t.start()\n    return a + b"
        + CHECK
    )
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda source: run_program(source, timeout_s=10), [bomb, honest] * 4))
    assert [outcome.passed for outcome in outcomes] == [False, True] * 4
    assert sys.platform == "linux"
