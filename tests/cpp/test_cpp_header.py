"""ebca.hpp: what must compile, what must not, and what its objects do when they are moved or empty.

Compilers are asked for the syntax only, but for two programs that run.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import building

from ebca.runtime import native

INCLUDE = Path(__file__).parents[2] / "runtime" / "cpp" / "include"
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
CPP = ["-Wold-style-cast", "-Wnon-virtual-dtor"]
PROGRAMS = Path(__file__).parent / "hosts"


def compiled(compiler: str, source: str, *options: str, language: str = "c++") -> str:
    """What the compiler says about a program; "" if it compiles."""
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    words = [compiler, f"-I{INCLUDE}", "-fsyntax-only", "-x", language, *options, "-"]
    done = subprocess.run(words, input=source, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (not done.stderr), done.stderr
    return done.stderr


def in_function(body: str) -> str:
    return f"#include <ebca.hpp>\nvoid host();\nvoid host() {{\n{body}\n}}\n"


# Every function of the header is used, so that templates and lambdas are compiled too.
WHOLE = in_function("""
    ebca::EngineParams open;
    ebca::Engine engine(open), other("shapes"), empty;
    empty = std::move(engine);
    ebca::SessionParams size;
    ebca::Session first(other), second(other, size), none;
    std::vector<ebca::Session> sessions;
    sessions.push_back(std::move(first));
    ebca::Text prompt("a circle"), list(std::vector<std::string>{"a", "b"}), nothing;
    std::vector<ebca::Text> texts;
    texts.push_back(std::move(list));
    nothing = std::move(texts[0]);
    std::vector<double> each{0.1, 0.2};
    ebca::EditParams edit;
    ebca::RePaintParams repaint;
    ebca::RegularizeParams regularize;
    ebca::InvertParams find;
    find.regularize = &regularize;
    ebca::GenerateParams make;
    make.prompt = prompt;
    make.edits = &edit;
    make.edit_count = 1;
    make.repaint = &repaint;
    make.subjects = prompt.data();
    make.subject_count = prompt.size();
    for (ebca_schedule one : {ebca::constant(1), ebca::step(1, 0.5), ebca::reverse_step(1, 0.5),
                              ebca::linear(1, 0.5), ebca::exponential(1, 0.5), ebca::values(each)}) {
        make.gamma_attn = one;
    }
    ebca::Result result;
    if (!result) result = second.generate(make, [](const ebca_step_info& info) { return info.index < 3; });
    result = second.invert(find);
    second.cancel();
    static_cast<void>(result->pixels);
    static_cast<void>((*result).latents);
    static_cast<void>(other.info().width);
    static_cast<void>(ebca::check(result.status()));
""")


@pytest.mark.parametrize(
    ("compiler", "options"),
    [
        ("g++", ["-std=c++17"]),
        ("clang++", ["-std=c++20"]),
        ("g++", ["-std=c++23"]),
        ("g++", ["-std=c++17", "-fno-exceptions", "-fno-rtti"]),
        ("clang++", ["-std=c++17", "-fno-exceptions", "-fno-rtti"]),
    ],
)
def test_it_compiles_without_a_warning(compiler: str, options: list[str]) -> None:
    assert compiled(compiler, WHOLE, *options, *STRICT, *CPP) == ""


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("options", [["-std=c99"], ["-std=c11"], ["-std=c99", "-DEBCA_STATIC"]])
def test_the_c_header_compiles_without_a_warning(compiler: str, options: list[str]) -> None:
    source = "#include <ebca.h>\nint main(void) { return ebca_status_name(EBCA_OK) == NULL; }\n"
    assert compiled(compiler, source, *options, *STRICT, "-Wstrict-prototypes", language="c") == ""


# One a line.
REFUSED = """
void prompt_of_a_temporary_text() { ebca::GenerateParams make; make.prompt = ebca::Text("a"); }
void phrases_of_a_temporary_text() { ebca::GenerateParams make; make.subjects = ebca::Text("a").data(); }
void values_in_braces() { ebca::GenerateParams make; make.gamma_attn = ebca::values({0.1, 0.2}); }
void values_of_a_temporary() { ebca::EditParams edit; edit.alpha = ebca::values(std::vector<double>(3)); }
void prompt_of_a_moved_text(ebca::Text a) { ebca::InvertParams find; find.prompt = std::move(a); }
void copied_engine(ebca::Engine& a) { ebca::Engine b(a); }
void copied_session(ebca::Session& a) { ebca::Session b(a); }
void copied_result(ebca::Result& a) { ebca::Result b(a); }
void copied_text(ebca::Text& a) { ebca::Text b(a); }
"""


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_what_would_dangle_and_copies_do_not_compile(compiler: str) -> None:
    said = compiled(compiler, f"#include <ebca.hpp>{REFUSED}", "-std=c++17")
    errors = re.findall(r"<stdin>:(\d+):\d+: error: .*deleted", said)
    assert [int(line) for line in errors] == list(range(2, 2 + len(REFUSED.strip().splitlines()))), said


@pytest.mark.parametrize(
    ("program", "options"), [("moves.cpp", []), ("no_exceptions.cpp", ["-fno-exceptions", "-fno-rtti"])]
)
def test_moves_and_empty_objects(
    program: str,
    options: list[str],
    library_file: Path,
    onnxruntime_file: Path,
    shapes: native.Engine,
    shapes_dir: Path,
    tmp_path: Path,
) -> None:
    link = building.link_options(library_file)
    words = ["-std=c++17", "-O0", *STRICT, *CPP, *options, f"-I{INCLUDE}"]
    building.run("c++", *words, PROGRAMS / program, *link, "-o", tmp_path / "host")
    environment = {**os.environ, "EBCA_ORT_LIB": str(onnxruntime_file)}
    assert building.run(tmp_path / "host", shapes_dir, env=environment) == "ok\n"
