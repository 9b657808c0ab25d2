"""Whatever a manifest says: an image, or an error of one line that the doctor reports too."""

import random
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.links import linked_copy

import ebca
from ebca.bench.reliability.mutations import Mutation, mutations
from ebca.engines.contract import manifest as manifests
from ebca.engines.contract.directory import open_directory
from ebca.errors import EbcaError, EngineError
from ebca.runtime.diagnostics.directory import check_engine

COUNT, SEED = 300, 1
# Of those that are stamped again and accepted, so many make an image.
RUNS = 8


def outcome(mutation: Mutation) -> str:
    """ "" if a manifest is accepted, else the error."""
    try:
        manifests.parse(mutation.contents, "it")
    except EngineError as error:
        assert len(str(error).splitlines()) == 1 and error.remedy and len(str(error)) < 1000, (mutation.text, error)
        return str(error)
    return ""


@pytest.fixture(scope="module")
def mutated(shapes_dir: Path) -> list[tuple[Mutation, str]]:
    contents = (shapes_dir / manifests.FILE_NAME).read_bytes()
    return [(mutation, outcome(mutation)) for mutation in mutations(contents, random.Random(SEED), COUNT)]


def test_every_change_is_an_error_unless_it_is_stamped(mutated: list[tuple[Mutation, str]]) -> None:
    accepted = [mutation for mutation, error in mutated if not error]
    assert all(mutation.stamped for mutation in accepted)
    # The rules do something besides the digest, and refuse most of what is stamped.
    refused = [error for mutation, error in mutated if mutation.stamped and "is broken" in error]
    assert len(refused) > COUNT // 6 and RUNS < len(accepted) < COUNT // 4


def test_what_takes_long_is_refused_too(shapes_dir: Path) -> None:
    """Lists as long as a manifest can have them are read in a time that grows with their length."""
    contents = (shapes_dir / manifests.FILE_NAME).read_bytes()
    names = ", ".join(f'"n{index}"' for index in range(200_000))
    began = time.perf_counter()
    with pytest.raises(EngineError):
        manifests.parse(contents.replace(b'"sample",\n', names.encode() + b",\n", 1))
    assert time.perf_counter() - began < 5


@pytest.fixture
def folder(shapes_dir: Path, tmp_path: Path) -> Path:
    return linked_copy(shapes_dir, tmp_path)


def put(folder: Path, contents: bytes) -> None:
    (folder / manifests.FILE_NAME).unlink()
    (folder / manifests.FILE_NAME).write_bytes(contents)


def problems(folder: Path) -> list[str]:
    return [finding.text for finding in check_engine(folder, "onnxruntime") if finding.level == "problem"]


def test_the_doctor_reports_what_opening_refuses(mutated: list[tuple[Mutation, str]], folder: Path) -> None:
    for mutation, error in [one for one in mutated if one[1]][:: COUNT // 30]:
        put(folder, mutation.contents)
        with pytest.raises(EngineError) as caught:
            open_directory(folder)
        assert problems(folder) == [caught.value.problem], mutation.text
        assert error


def image(folder: Path) -> np.ndarray:
    with ebca.load(folder, "cpu", "onnxruntime") as engine, engine.session(64, 64) as session:
        return np.asarray(session.generate("a red circle", steps=2, seed=1, gamma_attn=0.01).images[0])


def test_what_is_accepted_runs_or_is_an_error(
    mutated: list[tuple[Mutation, str]], shapes_dir: Path, folder: Path
) -> None:
    expected, equal, failed = image(shapes_dir), 0, 0
    accepted = [mutation for mutation, error in mutated if not error]
    for mutation in accepted[:: len(accepted) // RUNS]:
        put(folder, mutation.contents)
        try:
            made = image(folder)
        except EbcaError as error:
            failed += 1
            assert len(str(error).splitlines()) == 1, mutation.text
            assert problems(folder), mutation.text
        else:
            equal += np.array_equal(made, expected)
            assert made.dtype == np.uint8 and made.shape[2] == 3
            # The doctor also reads the files that other backends use.
            assert not [text for text in problems(folder) if "is corrupted" not in text], mutation.text
    assert equal and failed
