"""A process is killed at a random moment of its first start, mostly while it prepares: the next one makes the right
image, and cleans up."""

import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from ebca.bench.reliability import image
from ebca.bench.reliability.table import Options
from ebca.engines.cache.storage import MARKER

# About as long as preparing one component of a small engine takes.
_LONG_COMPONENT_SECONDS = 0.1


def run(options: Options) -> dict[str, Any]:
    """count: killed processes."""
    chance = random.Random(options.seed)
    cache, first = options.folder / "cache", options.folder / "first"
    began = time.perf_counter()
    expected = image.make(options, first).digest
    longest, components = time.perf_counter() - began, _prepared(first)
    failures = [] if expected else ["the first process made no image"]
    killed = half_prepared = 0
    for index in range(options.count):
        process = image.start(options, cache)
        if index % 4 == 3:
            where = _wait(chance.uniform(0, longest))
        else:
            where = _wait_for(process, cache, chance.randrange(components), chance.uniform(0, _LONG_COMPONENT_SECONDS))
        killed += process.poll() is None
        process.kill()
        process.communicate()
        half_prepared += bool(image.left_behind(cache))
        made = image.make(options, cache)
        if made.digest != expected or made.error:
            failures.append(f"kill {index} {where}: {made.error or 'another image'}")
        failures += [f"kill {index}: left behind '{path}'" for path in image.left_behind(cache)]
        shutil.rmtree(cache, ignore_errors=True)
    return {"image": expected, "killed": killed, "killed_within_a_component": half_prepared, "failures": failures}


def _wait(seconds: float) -> str:
    time.sleep(seconds)
    return f"after {seconds:.2f} s"


def _wait_for(process: subprocess.Popen[str], cache: Path, components: int, seconds: float) -> str:
    """Wait until so many components are prepared, or the process has ended, and then for some seconds."""
    while process.poll() is None and _prepared(cache) < components:
        time.sleep(0.002)
    return f"{_wait(seconds)} with {components} components prepared"


def _prepared(cache: Path) -> int:
    """The number of components in a cache."""
    return sum(1 for file in cache.glob("*/*.json") if file.name != MARKER)
