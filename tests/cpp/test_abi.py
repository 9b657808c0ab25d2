"""The binary interface: what a host that was compiled before relies on. runtime/cpp/README.md has the rules.

tests/cpp/abi holds the header of each release. Until 0.1 is released, a deliberate change is copied there:
`cp runtime/cpp/include/ebca.h tests/cpp/abi/ebca-0.1.h`.
"""

import ctypes
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from ctypes import byref, c_int, c_uint32, c_void_p
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import building

import ebca
from ebca.errors import BackendError, ParameterError
from ebca.runtime import native
from ebca.runtime.native import functions, structures
from ebca.runtime.schema import write_abi
from ebca.runtime.schema.load import Field, load

ROOT = Path(__file__).parents[2]
CPP = ROOT / "runtime" / "cpp"
HEADER = CPP / "include" / "ebca.h"
ABI = Path(__file__).parent / "abi"
SCHEMA = load()
EARLIER = [
    path for path in sorted(ABI.glob("ebca-*.h")) if f"EBCA_ABI_VERSION {SCHEMA.abi_version}\n" in path.read_text()
]

earlier = pytest.mark.parametrize("old", EARLIER, ids=lambda path: path.stem)


# ---- the layout ------------------------------------------------------------------------------------------------------


def structs(header: str) -> dict[str, list[str]]:
    """The fields of each struct of a header."""
    code = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    found = re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", code, re.DOTALL)
    return {name: re.findall(r"(\w+)(?:\[\d+\])?;", body) for body, name in found}


def constants(header: str) -> list[str]:
    return re.findall(r"^    (EBCA_\w+) = ", header, re.MULTILINE)


def functions_of(header: str) -> set[str]:
    return set(re.findall(r"^EBCA_API [^;(]*?(\w+)\(", header, re.MULTILINE))


def measured(header: Path, folder: Path) -> dict[str, int]:
    """Sizes, offsets and constants of a header, by the expressions of C that say them."""
    text = header.read_text()
    asked = constants(text)
    for name, fields in structs(text).items():
        asked.append(f"sizeof({name})")
        for field in fields:
            asked += [f"offsetof({name}, {field})", f"sizeof((({name}*)0)->{field})"]
    prints = "\n".join(f'    printf("%ld\\n", (long)({one}));' for one in asked)
    program = f'#include "{header}"\n#include <stdio.h>\nint main(void) {{\n{prints}\n    return 0;\n}}\n'
    (folder / "measure.c").write_text(program)
    building.run("cc", folder / "measure.c", "-o", folder / "measure")
    return dict(zip(asked, map(int, building.run(folder / "measure").split()), strict=True))


def promises(old: Path, new: str, folder: Path) -> str:
    """A file of C that compiles, after a header, if that keeps what an earlier one promised."""
    lines, values, present = ["#include <stddef.h>"], measured(old, folder), structs(new)
    text = old.read_text()
    for what, value in values.items():
        whole = re.fullmatch(r"sizeof\((\w+)\)", what)
        grows = whole and structs(text)[whole[1]][0] == "struct_size"
        lines.append(f'_Static_assert((long)({what}) {">=" if grows else "=="} {value}, "{what} was {value}");')
    for name, fields in structs(text).items():
        # Behind all of the old one, its padding included: hosts announce that size.
        size = values[f"sizeof({name})"]
        lines += [
            f'_Static_assert(offsetof({name}, {field}) >= {size}, "{name}.{field} is not at the end");'
            for field in present.get(name, [])
            if field not in fields
        ]
    # Functions and callbacks: another declaration of the same, or an error.
    lines += re.findall(r"^EBCA_API [^;]+;|^typedef \w+ \(\*[^;]+;", text, re.MULTILINE)
    return "\n".join([*lines, ""])


def broken(old: Path, new: str, folder: Path) -> str:
    """What the compiler says about a header that should keep the promises of an earlier one; "" if it does."""
    if shutil.which("cc") is None:
        pytest.skip("there is no cc to compile headers with")
    if gone := functions_of(old.read_text()) - functions_of(new):
        return f"{gone} are gone"
    (folder / "new.h").write_text(new)
    source = f'#include "{folder / "new.h"}"\n{promises(old, new, folder)}'
    words = ["cc", "-std=c11", "-fsyntax-only", "-x", "c", "-"]
    return subprocess.run(words, input=source, capture_output=True, text=True, check=False).stderr


@earlier
def test_the_header_keeps_the_promises_of_earlier_ones(old: Path, tmp_path: Path) -> None:
    assert broken(old, HEADER.read_text(), tmp_path) == ""


CHANGES: dict[str, tuple[Callable[[str], str], str]] = {
    "a field of another type": (lambda h: h.replace("int32_t steps;", "int64_t steps;"), "->steps) was 4"),
    "fields in another order": (
        lambda h: (
            h.replace("    int32_t jump_length;", "    int32_t jump;", 1)
            .replace("    int32_t jump_count;", "    int32_t jump_length;", 1)
            .replace("    int32_t jump;", "    int32_t jump_count;", 1)
        ),
        "offsetof(ebca_repaint_params, jump_length) was 8",
    ),
    "a field that is gone": (lambda h: re.sub(r"\n    size_t seed_count;.*", "", h, count=1), "seed_count"),
    "a new field in the middle": (lambda h: h.replace("    double eta;", "    double x;\n    double eta;"), "eta) was"),
    "a new field in the padding at the end": (
        lambda h: h.replace("} ebca_session_params;", "    int32_t depth;\n} ebca_session_params;"),
        "ebca_session_params.depth is not at the end",
    ),
    "a struct without a size that grew": (
        lambda h: h.replace("} ebca_image;", "    int64_t row;\n} ebca_image;"),
        "sizeof(ebca_image) was",
    ),
    "a constant of another value": (lambda h: h.replace("_CANCELLED = 5", "_CANCELLED = 9"), "EBCA_ERROR_CANCELLED"),
    "a function that is gone": (lambda h: h.replace("EBCA_API void ebca_edit_init(", "void ("), "ebca_edit_init"),
    "a function with another parameter": (
        lambda h: h.replace("ebca_session_cancel(ebca_session* session)", "ebca_session_cancel(ebca_engine* session)"),
        "ebca_session_cancel",
    ),
    "a callback with another parameter": (
        lambda h: h.replace("(const ebca_step_info* info, void* user_data)", "(ebca_step_info* info, void* user_data)"),
        "ebca_step_callback",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_breaks_hosts_is_noticed(change: str, tmp_path: Path) -> None:
    make, said = CHANGES[change]
    new = make(HEADER.read_text())
    assert new != HEADER.read_text() and said in broken(EARLIER[-1], new, tmp_path)


def test_a_struct_with_a_size_may_grow_at_its_end(tmp_path: Path) -> None:
    new = HEADER.read_text().replace("} ebca_generate_params;", "    double more[2];\n} ebca_generate_params;")
    assert new != HEADER.read_text() and broken(EARLIER[-1], new, tmp_path) == ""


@earlier
def test_a_host_of_an_earlier_release_runs(
    old: Path, library_file: Path, onnxruntime_file: Path, shapes: native.Engine, shapes_dir: Path, tmp_path: Path
) -> None:
    link = building.link_options(library_file)
    words = ["-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{ABI}", f'-DEBCA_HEADER="{old.name}"']
    building.run("cc", *words, ABI / "host.c", *link, "-o", tmp_path / "host")
    environment = {**os.environ, "EBCA_ORT_LIB": str(onnxruntime_file)}
    said = building.run(tmp_path / "host", shapes_dir, tmp_path / "pixels", env=environment)
    assert said == "text-to-image 64x64 steps 3 seed 3\n"
    with shapes.session() as session:
        edits = [ebca.Edit("a blue square", alpha=0.5), ebca.Edit("a blue square", direction=0, alpha=0.25)]
        given: dict[str, Any] = {"gamma_attn": [0.0, 0.01, 0.0], "token_weights": {"red": 2.0}, "edits": edits}
        expected = session.generate("a red circle", steps=2, seed=3, **given).pixels
    assert expected is not None and (tmp_path / "pixels").read_bytes() == expected.tobytes()


def test_the_first_size_of_a_struct_that_grew_ends_before_what_was_added() -> None:
    struct = next(struct for struct in SCHEMA.structs if struct.name == "ebca_edit")
    added = Field("double", "more", since="0.2")
    grown = replace(struct, fields=(*struct.fields, added))
    assert write_abi.first_size(struct)[1].endswith("= sizeof(ebca_edit);")
    assert write_abi.first_size(grown)[1].endswith("= offsetof(ebca_edit, more);")


# ---- the version -----------------------------------------------------------------------------------------------------


def test_the_version_is_said_once(library: native.Library) -> None:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        assert tomllib.load(stream)["project"]["version"] == ebca.__version__ == library.version
    cmake, exports = (CPP / "CMakeLists.txt").read_text(), (CPP / "src" / "api" / "exports.map").read_text()
    assert ebca.__version__ not in cmake and "project(ebca VERSION ${version} " in cmake
    assert exports.startswith(f"EBCA_{SCHEMA.abi_version} {{")
    assert library.lib.ebca_abi_version() == structures.ABI_VERSION == SCHEMA.abi_version


def test_the_macros_say_the_version(tmp_path: Path) -> None:
    major, minor, patch = (int(part) for part in re.findall(r"\d+", ebca.__version__)[:3])
    lines = [
        f'_Static_assert(EBCA_VERSION == {major * 10000 + minor * 100 + patch}, "");',
        f'_Static_assert(EBCA_VERSION_MAJOR == {major} && EBCA_VERSION_MINOR == {minor}, "");',
        f'_Static_assert(EBCA_VERSION_PATCH == {patch}, "");',
        f"#if EBCA_ABI_VERSION != {SCHEMA.abi_version}\n#error\n#endif",
    ]
    (tmp_path / "version.c").write_text("\n".join([f'#include "{HEADER}"', *lines, ""]))
    building.run("cc", "-std=c11", "-fsyntax-only", tmp_path / "version.c")


def test_the_soname_is_the_abi_version(library_file: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("there is no readelf")
    assert f"[libebca.so.{SCHEMA.abi_version}]" in building.run("readelf", "-d", library_file)


def test_an_engine_for_another_interface_is_refused(library: native.Library, shapes_dir: Path) -> None:
    params, out = library.init("engine_params"), c_void_p()
    params.path, params.abi_version = str(shapes_dir).encode(), 7
    # Whatever the size of the struct is there.
    for size in (params.struct_size, 16, 4096):
        params.struct_size = size
        assert library.lib.ebca_engine_open(byref(params), byref(out)) == 1 and out.value is None
        assert library.last_error() == (
            f"the host was compiled for version 7 of the binary interface, and this library has version "
            f"{SCHEMA.abi_version}; compile it with the header of this library ({ebca.__version__}), or load a library "
            "for version 7"
        )


@pytest.mark.parametrize("declared", ["unsigned ebca_abi_version(void) { return 7; }", "int other;"])
def test_the_binding_refuses_a_library_for_another_interface(declared: str, tmp_path: Path) -> None:
    (tmp_path / "other.c").write_text(declared)
    building.run("cc", "-shared", "-fPIC", tmp_path / "other.c", "-o", tmp_path / "libother.so")
    with pytest.raises(BackendError, match=rf"has version (7|unknown), this package needs {SCHEMA.abi_version}; build"):
        functions.Functions(tmp_path / "libother.so")


# ---- reserved words --------------------------------------------------------------------------------------------------

RESERVED = {
    "prompt": lambda params: params.prompt,
    "prompt.embeds": lambda params: params.prompt.embeds,
    "negative_prompt": lambda params: params.negative_prompt,
    "latents": lambda params: params.latents,
    "gamma_attn": lambda params: params.gamma_attn,
    "subject_balance": lambda params: params.subject_balance,
    "token_weights[0]": lambda params: params.token_weights[0],
    "images[0]": lambda params: params.images[0],
    "masks[0]": lambda params: params.masks[0],
    "regions[0]": lambda params: params.regions[0],
    "regions[0].mask": lambda params: params.regions[0].mask,
    "edits[0].prompt": lambda params: params.edits[0].prompt,
    "edits[0].alpha": lambda params: params.edits[0].alpha,
}


@pytest.mark.parametrize("name", RESERVED)
@pytest.mark.parametrize("word", [0, 1])
def test_a_reserved_word_that_is_not_zero_is_named(shapes: native.Engine, name: str, word: int) -> None:
    library = shapes.library
    params, edit = library.init("generate_params"), library.init("edit")
    for field, struct in (
        ("token_weights", structures.TokenWeight(b"red", 0, 1.0)),
        ("images", structures.Image()),
        ("masks", structures.Image()),
        ("regions", structures.Region(b"a red circle")),
        ("edits", edit),
    ):
        setattr(params, field, ctypes.pointer(struct))
        setattr(params, f"{field.removesuffix('s')}_count", 1)
    RESERVED[name](params).reserved[word] = 1 << 63
    with shapes.session() as session, pytest.raises(ParameterError) as caught:
        library.check(library.lib.ebca_session_generate(session.handle, byref(params), byref(c_void_p())))
    assert caught.value.problem == f"{name}.reserved is not zero" and "zeros before" in caught.value.remedy


# ---- names of enums --------------------------------------------------------------------------------------------------


def test_every_enum_has_names_both_ways(library: native.Library) -> None:
    for enum in (SCHEMA.status, *SCHEMA.enums):
        name_of, from_name = (getattr(library.lib, f"{enum.name}_{what}") for what in ("name", "from_name"))
        name_of.restype = ctypes.c_char_p
        names = []
        for member in enum.members:
            name = name_of(member.number)
            assert name.decode() == member.name.lower()
            value = c_int(-1)
            assert from_name(name, byref(value)) == 0 and value.value == member.number
            names.append(name.decode())
        assert name_of(77) == name_of(-1) == b"unknown"
        value = c_int(-5)
        for wrong in (b"unknown", b"", names[0].upper().encode(), names[0].encode() + b" "):
            assert from_name(wrong, byref(value)) == 1 and value.value == -5
            assert library.last_error() == (
                f"'{wrong.decode()}' is not the name of a value of {enum.name}; give one of: {', '.join(names)}"
            )
        assert from_name(None, byref(value)) == 1 and from_name(names[0].encode(), None) == 1
    assert library.lib.ebca_status_name(1) == b"error_parameter"
    flags = c_uint32()
    assert library.lib.ebca_task_from_name(b"inpainting", byref(flags)) == 0 and flags.value == 8
    assert library.lib.ebca_task_name(3) == b"unknown"


def test_the_names_of_schedules_are_python_s(library: native.Library) -> None:
    kinds = {kind.name.lower() for kind in structures.ScheduleKind}
    made = {ebca.Schedule.step(1, 0.5).kind, ebca.Schedule.reverse_step(1, 0.5).kind, ebca.Schedule.constant(1).kind}
    assert made <= kinds
