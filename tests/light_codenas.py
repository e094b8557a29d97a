"""Makes the engine's modules importable without the packages' own imports (torch, transformers, Optuna).

Test programs and the processes that evaluate import this first: they start in a fraction of the time. It also proves
that the engine needs nothing else of ours. In pytest's own process the packages stay whole, for the other tests.
"""

import importlib.util
import sys
import types
from pathlib import Path

server = any("forkserver" in word for word in sys.orig_argv)
if "codenas_hf" not in sys.modules and ("pytest" not in sys.modules or server):
    for name in ("codenas_hf", "codenas_hf.engine"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(__file__).parent.parent.joinpath(*name.split(".")))]
        package.__spec__ = importlib.util.spec_from_loader(name, loader=None, is_package=True)
        sys.modules[name] = package
