"""Memory and descriptors of a process over many images, with a new session for each."""

import gc
from typing import Any

import psutil

import ebca
from ebca.bench.reliability.image import digest
from ebca.bench.reliability.table import Options

# Until then libraries and allocators reach their size.
_WARM_IMAGES = 10
# What a process may grow by over any number of images: fragments of the heap.
_ALLOWED_BYTES = 24 << 20
_MARKS = 10


def run(options: Options) -> dict[str, Any]:
    """count: images."""
    process, failures = psutil.Process(), []
    memory: list[int] = []
    descriptors: list[int] = []
    with ebca.load(options.engine, "cpu", options.backend, threads=1) as engine:
        first = ""
        for index in range(_WARM_IMAGES + options.count):
            with engine.session() as session:
                made = digest(session, options.seed)
            first = first or made
            if made != first:
                failures.append(f"image {index} differs")
            counted = index - _WARM_IMAGES + 1
            if counted >= 0 and counted % max(options.count // _MARKS, 1) == 0:
                gc.collect()
                memory.append(process.memory_info().rss)
                descriptors.append(process.num_fds() if hasattr(process, "num_fds") else process.num_handles())
    # The last ones against the first: a leak grows steadily.
    grown = min(memory[-2:]) - max(memory[:2])
    if grown > _ALLOWED_BYTES:
        failures.append(f"memory grew by {grown / 1e6:.0f} MB over {options.count} images")
    if descriptors[-1] > descriptors[0]:
        failures.append(f"descriptors grew from {descriptors[0]} to {descriptors[-1]}")
    return {"rss_bytes": memory, "descriptors": descriptors, "failures": failures}
