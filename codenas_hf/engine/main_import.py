"""What the server of children imports last: by then the engine is whole, and a main program may import from it."""

from .main_program import import_once

import_once()
