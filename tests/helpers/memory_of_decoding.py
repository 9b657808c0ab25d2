"""What decoding a large image leaves in a process, by this package or by the C library."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SIDE = 128


def check_given_back(engine: Path, *libraries: Path) -> None:
    """Decode in a process of its own. Else that memory would stay beside the UNet of the next image: six gigabytes for
    Stable Diffusion XL.

    Args:
        engine: the directory.
        libraries: the C library and ONNX Runtime's; none for this package.
    """
    if sys.platform != "linux":
        pytest.skip("/proc/self/status is Linux's")
    words = [sys.executable, __file__, str(engine), *map(str, libraries)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    before, most, after = map(int, done.stdout.split())
    assert most - before > 150, "a large image needs memory"
    assert after - before < (most - before) / 3


def _megabytes(name: str) -> int:
    found = re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) >> 10


def _decode(engine: str, *libraries: str) -> None:
    latents = np.random.default_rng(0).standard_normal((1, 4, SIDE, SIDE), np.float32)
    if libraries:
        from ebca.runtime import native

        decode = native.Library(*map(Path, libraries)).open(Path(engine)).decode
    else:
        import ebca

        decode = ebca.load(engine, device="cpu").decode
    decode(latents[..., :8, :8].copy())
    before = _megabytes("RssAnon")
    decode(latents)
    print(before, _megabytes("VmHWM"), _megabytes("RssAnon"))


if __name__ == "__main__":
    _decode(*sys.argv[1:])
