"""Imports the main program in the server of children, so that no child has to.

A child of `multiprocessing` imports the main program again, with all that it imports; that costs a second or more for
each candidate. The server could do it once for all (preload of `__main__`), but Python 3.11 to 3.13 look for the path
under a name that nobody sets (https://github.com/python/cpython/issues/126631), so it is handed over here.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from multiprocessing import spawn
from typing import Any

VARIABLE = "CODENAS_MAIN_PROGRAM"

logger = logging.getLogger(__name__)


def describe() -> str:
    """What `import_once` needs to find this process's main program."""
    data = spawn.get_preparation_data("child")
    return json.dumps({key: value for key, value in data.items() if key.startswith("init_main_from_")})


def import_once() -> None:
    """Imports the program that `VARIABLE` describes, as `__mp_main__`, where children find it."""
    described = os.environ.pop(VARIABLE, None)
    if described is None:
        return
    process: Any = multiprocessing.current_process()
    process._inheriting = True  # a main program without a guard must fail here as it does in a child
    try:
        spawn.prepare(json.loads(described))
    except BaseException as error:  # the children meet the same error, and say so as the outcome of an evaluation
        logger.debug("The main program was not imported ahead: %s", error)
    finally:
        del process._inheriting
