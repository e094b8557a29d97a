"""Makes `codenas_hf.search` importable without the package's own imports (torch, transformers).

Test programs and the processes that evaluate import this first; it also proves that the engine needs nothing else of
ours.
"""

import importlib.util
import sys
import types
from pathlib import Path

if "codenas_hf" not in sys.modules:
    package = types.ModuleType("codenas_hf")
    package.__path__ = [str(Path(__file__).parent.parent / "codenas_hf")]
    package.__spec__ = importlib.util.spec_from_loader("codenas_hf", loader=None, is_package=True)
    sys.modules["codenas_hf"] = package
