"""Engine directories that are damaged at random: the C++ library refuses each, or makes exactly the right image.

The right image is that of the undamaged directory, unless the manifest says that what is there was exported so: then it
is the one that Python makes of the same directory.

    python tests/helpers/damage.py LIBEBCA LIBONNXRUNTIME 500

damages 500 copies of the bundled engine. They are opened in a process of their own; one that ends, or takes too long
for a directory, is a finding, and the next process goes on behind it.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from helpers import manifests

import ebca
from ebca.bench.reliability.mutations import mutations
from ebca.engines.contract.directory import BUNDLED, sha256
from ebca.engines.contract.manifest import FILE_NAME
from ebca.errors import EbcaError
from ebca.runtime import native
from ebca.runtime.native.structures import Status

HANGS_SECONDS = 20
CALL: dict[str, Any] = {"steps": 2, "seed": 1, "gamma_attn": 0.01}
PROMPT = "a red circle"
# Kept for what is wrong; the others are only counted.
Findings = list[str]


@dataclass(frozen=True)
class Damage:
    """What was done to a directory. vouched: its manifest says that what is there was exported so."""

    text: str
    vouched: bool


def replace(path: Path, contents: bytes) -> None:
    """In place of a link."""
    path.unlink()
    path.write_bytes(contents)


def damaged(contents: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Bytes with some flipped, cut off, added or zeroed."""
    way = rng.choice(("flipped", "cut", "longer", "zeroed", "empty"))
    changed = bytearray(contents)
    at = rng.randrange(len(changed))
    if way == "flipped":
        for _ in range(rng.choice((1, 1, 8, 100))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif way == "cut":
        del changed[at : len(changed) if rng.random() < 0.5 else at + rng.randrange(1, 40)]
    elif way == "longer":
        changed[at:at] = rng.randbytes(rng.randrange(1, 40))
    elif way == "zeroed":
        size = min(rng.choice((8, 512, 4096)), len(changed) - at)
        changed[at : at + size] = bytes(size)
    else:
        changed.clear()
    return f"{way} at {at}", bytes(changed)


def damage(folder: Path, rng: random.Random) -> Damage:
    """Damage an engine directory of links."""
    manifest = folder / FILE_NAME
    way = rng.choice(("manifest", "manifest", "manifest", "file", "file", "vouched file"))
    if way == "manifest":
        # Every other one is stamped, as if it had been exported so.
        one = list(mutations(manifest.read_bytes(), rng, 2))[rng.randrange(3) // 2]
        replace(manifest, one.contents)
        return Damage(f"manifest: {one.text}", vouched=one.stamped)
    names = sorted(json.loads(manifest.read_text())["files"])
    if way == "vouched file":
        # Graphs and weights are programs: a manifest that vouches for broken ones is not told from the right one.
        names = [name for name in names if name.endswith((".f64", ".json"))]
    name = rng.choice(names)
    text, contents = damaged((folder / name).read_bytes(), rng)
    replace(folder / name, contents)
    if way == "vouched file":
        record = {"size": len(contents), "sha256": sha256(folder / name)}
        manifests.edit(folder, lambda data: data["files"].update({name: record}))
    return Damage(f"{way} '{name}': {text}", vouched=way == "vouched file")


def linked(engine: Path, folder: Path) -> None:
    for path in engine.rglob("*"):
        if path.is_file():
            link = folder / path.relative_to(engine)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)


class Judge:
    """Opens directories with both runtimes, in one cache."""

    def __init__(self, library: native.Library, engine: Path) -> None:
        self._library, self._engine = library, engine
        self._good = self.mine(engine)
        assert not isinstance(self._good, str) and np.array_equal(self._good, self.theirs(engine)), "both are broken"

    def mine(self, folder: Path) -> np.ndarray | str:
        """An image, or what is refused."""
        try:
            with self._library.open(folder, threads=1) as engine, engine.session() as session:
                pixels = session.generate(PROMPT, **CALL).pixels
                assert pixels is not None
                return pixels
        except EbcaError as error:
            if getattr(error, "status", None) == Status.INTERNAL or not str(error).strip():
                raise AssertionError(f"an internal error: {error}") from None
            return str(error)

    def theirs(self, folder: Path) -> np.ndarray | str:
        try:
            with ebca.load(folder, backend="onnxruntime", threads=1) as engine, engine.session() as session:
                images = session.generate(PROMPT, output="np", **CALL).images
                return np.asarray(np.rint(images * 255).astype(np.uint8))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def verdict(self, index: int, scratch: Path) -> str:
        """One word; AssertionError if the image is wrong."""
        rng = random.Random(index)
        folder = scratch / str(index)
        linked(self._engine, folder)
        damage_ = damage(folder, rng)
        print(f"{index} {damage_.text}"[:300].replace("\n", " "), file=sys.stderr, flush=True)
        mine = self.mine(folder)
        if isinstance(mine, str):
            word = "refused"
        elif np.array_equal(mine, self._good):
            word = "the same image"
        else:
            theirs = self.theirs(folder)
            if isinstance(theirs, str) or not np.array_equal(mine, theirs):
                raise AssertionError(f"a wrong image; Python says {theirs if isinstance(theirs, str) else 'another'}")
            assert damage_.vouched, "a wrong image, and nothing vouches for it"
            word = "the image that the manifest says"
        shutil.rmtree(folder)
        return word


def child(library: str, onnxruntime: str, first: int, last: int, seconds: float) -> None:
    """Judge directories until `last` or the time is up; prints a line for each: its number and the verdict."""
    judge = Judge(native.Library(library, onnxruntime), BUNDLED / "shapes")
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(first, last):
            if time.monotonic() > end:
                return
            # Ends this process wherever it is.
            signal.alarm(HANGS_SECONDS)
            try:
                word = judge.verdict(index, Path(scratch))
            except AssertionError as error:
                word = f"WRONG {error}"
            signal.alarm(0)
            print(json.dumps([index, word]), flush=True)


def judged(library: Path, onnxruntime: Path, count: int, seconds: float) -> tuple[Counter[str], Findings]:
    """How often each verdict was given, for `count` directories or as many as the time allows; and what is wrong."""
    verdicts: Counter[str] = Counter()
    findings: Findings = []
    first, end = 0, time.monotonic() + seconds
    while first < count and (left := end - time.monotonic()) > 0:
        arguments = [str(part) for part in (library, onnxruntime, first, count, left)]
        helpers = str(Path(__file__).parents[1])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((helpers, os.environ.get("PYTHONPATH", "")))}
        done = subprocess.run(
            [sys.executable, __file__, "--child", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        for index, word in _lines(done.stdout):
            first = index + 1
            verdicts[word.split(" ", 1)[0] if word.startswith("WRONG") else word] += 1
            if word.startswith("WRONG"):
                findings.append(f"{index}: {word}; {_last(done.stderr, index)}")
        if done.returncode == 0:
            break
        how = "takes too long" if done.returncode == -signal.SIGALRM else f"ended with {done.returncode}"
        findings.append(f"{first}: {how}; {done.stderr[-600:]}")
        first += 1
    return verdicts, findings


def _lines(output: str) -> Iterator[tuple[int, str]]:
    for line in output.splitlines():
        index, word = json.loads(line)
        yield int(index), str(word)


def _last(stderr: str, index: int) -> str:
    return next((line for line in stderr.splitlines() if line.startswith(f"{index} ")), "")


def main(arguments: list[str]) -> int:
    if arguments[0] == "--child":
        library, onnxruntime, first, last, seconds = arguments[1:]
        child(library, onnxruntime, int(first), int(last), float(seconds))
        return 0
    verdicts, findings = judged(Path(arguments[0]), Path(arguments[1]), int(arguments[2]), 3600)
    print(dict(verdicts))
    print("\n".join(findings))
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
