"""Two processes start at the same time on an empty cache: each makes the right image, and nothing is left behind."""

import shutil
from typing import Any

from ebca.bench.reliability import image
from ebca.bench.reliability.table import Options


def run(options: Options) -> dict[str, Any]:
    """count: pairs of processes."""
    cache = options.folder / "cache"
    expected = image.make(options, options.folder / "first").digest
    failures = [] if expected else ["the first process made no image"]
    for index in range(options.count):
        processes = [image.start(options, cache) for _ in range(2)]
        for made in [image.finish(process) for process in processes]:
            if made.digest != expected:
                failures.append(f"pair {index}: {made.error or 'another image'}")
            elif made.error:
                failures.append(f"pair {index}: {made.error}")
        failures += [f"pair {index}: left behind '{path}'" for path in image.left_behind(cache)]
        shutil.rmtree(cache)
    return {"image": expected, "failures": failures}
