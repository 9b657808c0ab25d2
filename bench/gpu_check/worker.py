"""The process of one part: `python -m ebca.bench.gpu_check part NAME VISIT.json RESULT.json`."""

import faulthandler
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from ebca.bench.gpu_check.results import FAILED, PASSED, SKIPPED, Found, Skipped
from ebca.bench.gpu_check.table import ENGINES, PARTS
from ebca.bench.gpu_check.visit import Visit


def main(argv: Sequence[str]) -> int:
    """Run the part; its results and how it ended are in the file. Returns 1 if it failed."""
    name, visit, result = argv
    faulthandler.enable()
    part = next(part for part in (ENGINES, *PARTS) if part.name == name)
    found = Found(Path(result))
    try:
        import_module(part.module).run(Visit.read(Path(visit)), found)
    except Skipped as reason:
        found.end(SKIPPED, str(reason))
    except Exception as error:
        # Whatever a library raises: the part is over, and the next one runs.
        traceback.print_exc()
        found.end(FAILED, f"{type(error).__name__}: {error}")
        return 1
    else:
        found.end(PASSED)
    return 0
