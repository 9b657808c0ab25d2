"""schema.toml and what is generated from it."""

import ctypes
import math
import shutil
import string
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers import building

import ebca
from ebca.errors import EbcaError, ParameterError
from ebca.runtime.native import structures
from ebca.runtime.schema import generate, parameters, write_cpp, write_python
from ebca.runtime.schema.load import load

SCHEMA = load()
INCLUDE = generate.RUNTIME / "cpp" / "include"

checkout = pytest.mark.skipif(not INCLUDE.is_dir(), reason="an installed package has no C++ sources")


@checkout
def test_generated_files_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, f"{capsys.readouterr().out}run python -m ebca.runtime.schema.generate"


@checkout
def test_a_file_that_is_out_of_date_is_named_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "parameters.py"
    path.write_text("old")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "FILES", {path: lambda schema, _: write_python.parameters(schema)})
    assert generate.main(["--check"]) == 1 and path.read_text() == "old"
    assert generate.main([]) == 0 and generate.main(["--check"]) == 0
    assert capsys.readouterr().out.splitlines() == ["parameters.py is out of date", "parameters.py written"]


@checkout
def test_a_marker_that_the_schema_lacks_is_refused() -> None:
    header = (INCLUDE / "ebca.h").read_text()
    with pytest.raises(ValueError, match="ebca_other"):
        write_cpp.header(SCHEMA, header.replace("schema.toml: ebca_edit */", "schema.toml: ebca_other */"))


@checkout
def test_structs_and_enums_agree_with_the_compiled_header(tmp_path: Path) -> None:
    """Sizes, offsets of every field, and numbers of every constant."""
    if shutil.which("cc") is None:
        pytest.skip("there is no cc to compile the header with")
    expected, prints = [], []
    for struct in SCHEMA.structs:
        kind = getattr(structures, write_python.class_name(struct.name))
        expected.append((struct.name, ctypes.sizeof(kind)))
        prints.append(f'printf("{struct.name} %zu\\n", sizeof({struct.name}));')
        assert [name for name, _ in kind._fields_] == [field.name for field in struct.fields]
        for field in struct.fields:
            descriptor = getattr(kind, field.name)
            expected += [(f"{struct.name}.{field.name}", descriptor.offset), ("size", descriptor.size)]
            prints.append(
                f'printf("{struct.name}.{field.name} %zu\\nsize %zu\\n", offsetof({struct.name}, {field.name}), '
                f"sizeof((({struct.name}*)0)->{field.name}));"
            )
    for enum in (SCHEMA.status, *SCHEMA.enums):
        kind = getattr(structures, write_python.class_name(enum.name))
        for member in enum.members:
            expected.append((enum.prefix + member.name, kind[member.name.removeprefix("ERROR_")]))
            prints.append(f'printf("{enum.prefix}{member.name} %d\\n", {enum.prefix}{member.name});')
    source = tmp_path / "layout.c"
    source.write_text(
        "#include <ebca.h>\n#include <stdio.h>\nint main(void) {\n" + "\n".join(prints) + "\nreturn 0;}\n"
    )
    building.run("cc", f"-I{INCLUDE}", source, "-o", tmp_path / "layout")
    lines = [line.split() for line in building.run(tmp_path / "layout").splitlines()]
    assert [(name, int(number)) for name, number in lines] == [(name, int(number)) for name, number in expected]


@pytest.mark.parametrize("text", SCHEMA.rules["python"], ids=lambda text: text.id)
def test_a_rule_makes_an_error_with_its_values(text: write_python.Text) -> None:
    rule = getattr(parameters, text.id.upper())
    error = rule.error(**{name: f"<{name}>" for name in text.values})
    assert isinstance(error, EbcaError) and type(error).__module__ == "ebca.errors"
    for name in text.values:
        assert f"<{name}>" in str(error)
    assert "{" not in str(error) and error.problem and not error.problem.endswith(".")


def test_numbers_are_written_as_in_cpp() -> None:
    for value, shown in (
        (0.5, "0.5"),
        (1e39, "1e+39"),
        (math.nan, "nan"),
        (1 / 3, "0.333333"),
        (7, "7"),
        (None, "None"),
    ):
        assert parameters.FINITE_NUMBER.error(field="x", value=value).problem == f"x is {shown}"
    assert parameters.PROMPT_TRUNCATED.text(name="prompt", limit=75, dropped="a") == (
        "the prompt is longer than 75 tokens; dropped: 'a'"
    )


def test_both_languages_have_the_same_values_in_a_shared_rule() -> None:
    python = {text.id: text for text in SCHEMA.rules["python"]}
    shared = [(python[text.id], text) for text in SCHEMA.rules["c"] if text.id in python]
    assert len(shared) > 50
    for one, other in shared:
        assert (one.error, sorted(one.values)) == (other.error, sorted(other.values)), one.id


def test_an_error_of_c_names_fields_of_c() -> None:
    text = next(text for text in SCHEMA.rules["c"] if text.id == "guidance_needs_negative")
    assert text.problem == "guidance needs negative_prompt.embeds beside prompt.embeds"
    for text in SCHEMA.rules["c"]:
        used = {name for _, name, _, _ in string.Formatter().parse(text.problem + text.remedy) if name}
        assert used == set(text.values)


def test_defaults_are_those_of_the_public_classes() -> None:
    for made, table in ((ebca.RePaint(), parameters.REPAINT), (ebca.Edit(), parameters.EDIT)):
        for name, value in asdict(table).items():
            assert getattr(made, name) == value and type(getattr(made, name)) is type(value), name
    regularize = ebca.NoiseRegularization()
    assert all(getattr(regularize, name) == value for name, value in asdict(parameters.REGULARIZE).items())


def test_rules_raise_what_they_say() -> None:
    with pytest.raises(ParameterError) as caught:
        raise parameters.STRENGTH_RANGE.error(value=1.5)
    assert caught.value.problem == "strength is 1.5" and "up to 1" in caught.value.remedy
