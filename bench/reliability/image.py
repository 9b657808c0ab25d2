"""One image in a process of its own: `python -m ebca.bench.reliability.image ENGINE BACKEND` prints its SHA-256."""

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import ebca
from ebca.bench.reliability.table import Options

_STEPS = 2
# An image of a small engine takes seconds; whatever takes longer than this hangs.
_LIMIT_SECONDS = 300.0


def digest(session: ebca.Session, seed: int) -> str:
    """SHA-256 of the pixels of an image."""
    made = session.generate("a red circle", seed=seed, steps=_STEPS, gamma_attn=0.01, gamma_norm=0.01, output="np")
    return hashlib.sha256(made.images.tobytes()).hexdigest()


@dataclass(frozen=True)
class Made:
    """What a process printed: the digest, or the last line of its error."""

    digest: str
    error: str


def start(options: Options, cache: Path) -> subprocess.Popen[str]:
    """Start a process that makes the image, with a cache of its own."""
    words = [sys.executable, "-m", "ebca.bench.reliability.image", options.engine, options.backend]
    environment = {**os.environ, "EBCA_CACHE_DIR": str(cache)}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> Made:
    """Wait for a process; one that hangs is ended."""
    try:
        out, err = process.communicate(timeout=_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Made("", f"no end after {_LIMIT_SECONDS:.0f} s")
    last = err.strip().splitlines()[-1:] or [""]
    return Made(out.strip(), last[0] if process.returncode or err else "")


def make(options: Options, cache: Path) -> Made:
    """The image, made by another process."""
    return finish(start(options, cache))


def left_behind(cache: Path) -> list[str]:
    """Files and folders in a cache that no prepared engine consists of.

    Not the temporary file of a stamp, a few hundred bytes: it may be another process's, and goes after an hour.
    """
    return sorted(str(path.relative_to(cache)) for path in cache.rglob(".*.*"))


def main() -> int:
    engine, backend = sys.argv[1:]
    with ebca.load(engine, "cpu", backend, threads=1) as opened, opened.session() as session:
        print(digest(session, 0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
