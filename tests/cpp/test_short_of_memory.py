"""Memory that runs out: one status, found early where it can be, with nothing on the host's standard streams.

Allocations fail one by one in processes of their own (short_of_memory.cpp). EBCA_SLOW_TESTS=1 tries the first 2,000.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from ctypes import byref, c_char_p, c_void_p, pointer
from pathlib import Path

import pytest
from helpers import building

import ebca
from ebca.errors import OutOfMemoryError, ParameterError
from ebca.runtime import native
from ebca.runtime.native import structures

HERE = Path(__file__).parent
INCLUDE = HERE.parents[1] / "runtime" / "cpp" / "include"
SLOW = bool(os.environ.get("EBCA_SLOW_TESTS"))


def host(name: str, library_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A C++ program beside this file, linked to the library."""
    if shutil.which("c++") is None:
        pytest.skip("there is no c++ to build the program with")
    program = tmp_path_factory.mktemp(name) / name
    options = ["-std=c++17", "-O0", "-rdynamic", "-Wall", "-Wextra", "-Werror", f"-I{INCLUDE}"]
    library = [*building.link_options(library_file), "-ldl"]
    building.run("c++", *options, HERE / f"{name}.cpp", *library, "-o", program)
    return program


@pytest.fixture(scope="module")
def short_of_memory(library_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return host("short_of_memory", library_file, tmp_path_factory)


@pytest.mark.parametrize("how", ["once", "always"])
@pytest.mark.parametrize("what", ["open", "generate"])
def test_an_allocation_that_fails_is_a_status(
    short_of_memory: Path, what: str, how: str, shapes_dir: Path, onnxruntime_file: Path
) -> None:
    """ONNX Runtime may end the process; nothing else does. Opening an engine takes 60,000 allocations, most of them to
    read its manifest."""
    last, stride = ("2000", "1") if SLOW else ("60000", "1999") if what == "open" else ("2000", "97")
    *wrong, counts = building.run(
        short_of_memory, shapes_dir, onnxruntime_file, what, how, "1", last, stride
    ).splitlines()
    found = re.match(r"(\d+) ok, (\d+) out of memory", counts)
    assert found and int(found[2]) > int(found[1]), counts
    # Of some crashes in ONNX Runtime the stack cannot be walked. No run of this library alone has one.
    in_onnxruntime = r": (signal \d+ in libonnxruntime|signal 11, no frame$|ended with 11$)"
    assert [line for line in wrong if what == "open" or not re.search(in_onnxruntime, line)] == []


def test_callbacks_that_throw(
    library_file: Path, shapes_dir: Path, onnxruntime_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    program = host("throwing", library_file, tmp_path_factory)
    said = building.run(program, shapes_dir, onnxruntime_file, tmp_path_factory.mktemp("cache")).splitlines()
    remedy = "; catch it in the callback: nothing may be thrown through a function of C"
    assert said == [
        f"1 the callback on_step threw an exception: a full disk{remedy}",
        f"1 the callback on_step threw an exception{remedy}",
        f"1 the callback log threw an exception: no console{remedy}",
        "0 ",
        f"1 the callback on_prepare threw an exception: a closed window{remedy}",
        f"1 the callback read threw an exception: a removed disk{remedy}",
    ]


def test_a_call_that_cannot_fit_fails_at_once(shapes: native.Engine, python_shapes: ebca.Engine) -> None:
    """As in Python: what is needed at least is known before anything is computed."""
    with shapes.session(batch=512) as mine, python_shapes.session(batch=512) as theirs:
        # Terabytes for the matrices that tie contexts.
        edits = [ebca.Edit("a blue square")] * 1000
        needed = []
        for session in (mine, theirs):
            began = time.monotonic()
            with pytest.raises(OutOfMemoryError) as caught:
                session.generate("a red circle", steps=2, edits=edits)  # type: ignore[union-attr]
            assert time.monotonic() - began < 5
            text = str(caught.value)
            found = re.fullmatch(
                r"at least (\S+) [TG]B of memory is needed for 512 images of 64 x 64 pixels, and .* can be had; "
                "make a smaller image, or fewer at once",
                text,
            )
            assert found, text
            needed.append(float(found[1]))
        assert needed[0] == pytest.approx(needed[1], rel=0.02)


OUT_OF_MEMORY = """
import resource, sys
from ebca.errors import EbcaError
from ebca.runtime import native
from ebca.runtime.native import structures

engine = native.Library(sys.argv[1], sys.argv[2]).open(sys.argv[3], log=lambda level, text: said.append(text))
said = []
session = engine.session(256, 256, batch=2)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
statuses = set()
for extra in range(8, 160, 24):
    # Between what is estimated and what ONNX Runtime takes.
    resource.setrlimit(resource.RLIMIT_AS, (held + (extra << 20), resource.RLIM_INFINITY))
    try:
        session.generate("a red circle", steps=1)
        pass
    except EbcaError as error:
        statuses.add(type(error).__name__)
        last = str(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
session.cancel()
try:
    session.generate("a red circle", steps=1)
except EbcaError as error:
    pass
session.generate("a red circle", steps=1)
open(sys.argv[4], "w").write(f"{sorted(statuses)} {any('onnxruntime: ' in text for text in said)}")
"""


def test_memory_that_runs_out_is_one_status_and_the_standard_streams_stay_empty(
    library_file: Path, onnxruntime_file: Path, shapes_dir: Path, tmp_path: Path
) -> None:
    found = tmp_path / "found"
    command = [sys.executable, "-c", OUT_OF_MEMORY, library_file, onnxruntime_file, shapes_dir, found]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # What ONNX Runtime has to say about it goes to the log of the engine.
    assert found.read_text() == "['OutOfMemoryError'] True"


def test_texts_name_functions_that_the_header_has(shapes: native.Engine) -> None:
    header = (INCLUDE / "ebca.h").read_text()
    rules = (HERE.parents[1] / "runtime" / "schema" / "schema.toml").read_text().partition("\n# Numbers\n")[2]
    for name in re.findall(r"\bebca_\w+", rules):
        assert re.search(rf"\b{name}\b", header), name
    for struct in (*structures.PARAMS, "engine_info"):
        has_init = f" ebca_{struct}_init(" in header
        told = _refusal_of_size(shapes, struct)
        assert f"ebca_{struct} has struct_size 1," in told
        remedy = f"; call ebca_{struct}_init, and" if has_init else f"; set it to sizeof(ebca_{struct}), and"
        assert remedy in told, told


def _refusal_of_size(engine: native.Engine, struct: str) -> str:
    """What is said about a struct of size 1."""
    lib, out = engine.library.lib, c_void_p()
    info = structures.EngineInfo(struct_size=1)
    made = info if struct == "engine_info" else engine.library.init(struct)
    made.struct_size = 1
    with engine.session() as session:
        generate, invert = engine.library.init("generate_params"), engine.library.init("invert_params")
        for params in (generate, invert):
            params.prompt = structures.Prompt((c_char_p * 1)(b"a"), 1)
        if struct == "edit":
            generate.edits, generate.edit_count = (structures.Edit * 1)(made), 1
        if struct == "repaint_params":
            generate.repaint = pointer(made)
        if struct == "regularize_params":
            invert.regularize = pointer(made)
        calls = {
            "engine_params": lambda: lib.ebca_engine_open(byref(made), byref(out)),
            "engine_info": lambda: lib.ebca_engine_get_info(engine.handle, byref(made)),
            "session_params": lambda: lib.ebca_session_create(engine.handle, byref(made), byref(out)),
            "generate_params": lambda: lib.ebca_session_generate(session.handle, byref(made), byref(out)),
            "invert_params": lambda: lib.ebca_session_invert(session.handle, byref(made), byref(out)),
            "denoise_params": lambda: lib.ebca_session_denoise(session.handle, byref(made), byref(out)),
            "encode_prompt_params": lambda: lib.ebca_engine_encode_prompt(engine.handle, byref(made), byref(out)),
            "encode_images_params": lambda: lib.ebca_engine_encode_images(engine.handle, byref(made), byref(out)),
            "regularize_params": lambda: lib.ebca_session_invert(session.handle, byref(invert), byref(out)),
        }
        call = calls.get(struct, lambda: lib.ebca_session_generate(session.handle, byref(generate), byref(out)))
        with pytest.raises(ParameterError) as caught:
            engine.library.check(call())
    return str(caught.value)
