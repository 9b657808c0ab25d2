"""Invalid calls of the C ABI: always a status and a text, never a crash.

The calls are in `helpers.bad_calls` and run in another process. One that dies fails its test; the next gets a new one.
"""

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import bad_calls, building

Run = Callable[..., None]

STUBS = {
    # A library of another kind, and ONNX Runtimes without an API, or without a version that is new enough.
    "nothing": "int nothing(void) { return 0; }",
    "null": "const void* OrtGetApiBase(void) { return 0; }",
    "old": """
        static const void* api(unsigned version) { return version > 3 ? 0 : (const void*)&api; }
        static const char* version(void) { return "1.2.3"; }
        static const struct { const void* (*api)(unsigned); const char* (*version)(void); } base = {api, version};
        const void* OrtGetApiBase(void) { return &base; }
    """,
}

GROUPS = [
    bad_calls.null_everywhere,
    bad_calls.sizes_of_structs,
    bad_calls.numbers_in_every_field,
    bad_calls.announced_sizes,
    bad_calls.tensors_of_wrong_shapes,
    bad_calls.texts_that_are_not_utf8,
    bad_calls.huge_texts,
    bad_calls.strange_paths,
    bad_calls.links_out_of_the_directory,
    bad_calls.truncated_and_flipped_files,
    bad_calls.files_that_a_manifest_vouches_for,
    bad_calls.manifests_that_lie,
    bad_calls.numbers_of_threads,
    bad_calls.caches_that_fail,
    bad_calls.cancelling,
    bad_calls.callbacks_that_call_back,
]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Calls a function in a process that is shared until it dies."""
    context = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, mp_context=context)]

    def call(function: Callable[..., None], *arguments: Any) -> None:
        try:
            pools[0].submit(function, *arguments).result(timeout=300)
        except BrokenProcessPool:
            pools[0] = ProcessPoolExecutor(1, mp_context=context)
            pytest.fail(f"{function.__name__} ended the process")

    yield call
    pools[0].shutdown()


@pytest.fixture
def place(
    library_file: Path, onnxruntime_file: Path, shapes_dir: Path, tmp_path: Path, cache_dir: Path
) -> bad_calls.Place:
    return bad_calls.Place(library_file, onnxruntime_file, shapes_dir, tmp_path, cache_dir)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_a_status_and_a_text_and_never_a_crash(group: Run, run: Run, place: bad_calls.Place) -> None:
    run(group, place)


def test_numbers_in_the_fields_of_stable_diffusion_xl(run: Run, place: bad_calls.Place, tiny_xl_dir: Path) -> None:
    run(bad_calls.numbers_in_every_field, replace(place, engine=tiny_xl_dir))


def test_libraries_that_are_not_onnxruntime(run: Run, place: bad_calls.Place, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no cc to make libraries with")
    stubs = {}
    for name, source in STUBS.items():
        stubs[name] = tmp_path / f"{name}.so"
        (tmp_path / f"{name}.c").write_text(source)
        building.run("cc", "-shared", "-fPIC", tmp_path / f"{name}.c", "-o", stubs[name])
    run(bad_calls.libraries_that_are_not_onnxruntime, place, stubs)


def test_a_crash_is_detected(run: Run) -> None:
    with pytest.raises(pytest.fail.Exception, match="ended the process"):
        run(os.abort)
    run(os.getpid)
