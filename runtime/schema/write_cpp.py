"""The generated parts of ebca.h, and the C++ library's tables of defaults and rules, from the schema."""

import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from ebca.runtime.schema import write_abi
from ebca.runtime.schema.load import Enum, Field, Schema, Struct, Text

_WIDTH = 120
_BEGIN = "/* from runtime/schema/schema.toml: {name} */"
_END = "/* end */"
_BLOCK = re.compile(re.escape(_BEGIN).replace(r"\{name\}", r"(\w+)") + r"\n.*?" + re.escape(_END), re.DOTALL)

NOTICE = "Written by `python -m ebca.runtime.schema.generate` from schema.toml; edit that file instead."

_CLASSES = {
    "parameter": "ParameterError",
    "memory": "OutOfMemoryError",
    "engine": "EngineError",
    "backend": "BackendError",
    "numerical": "NumericalError",
    "cancelled": "CancelledError",
    "unsupported": "UnsupportedError",
    "warning": "std::string",
}


def header(schema: Schema, present: str) -> str:
    """ebca.h with its version and its marked enums and structs as the schema has them.

    Raises ValueError for a marker of something that the schema lacks, or one that is missing.
    """
    blocks = {"version": write_abi.version(schema)}
    blocks |= {enum.name: [*_enum(enum), "", *write_abi.declarations(enum)] for enum in (schema.status, *schema.enums)}
    blocks |= {struct.name: _struct(struct) for struct in schema.structs}
    marked = _BLOCK.findall(present)
    if sorted(marked) != sorted(blocks):
        raise ValueError(f"ebca.h marks {sorted(marked)}, the schema has {sorted(blocks)}")
    return _BLOCK.sub(lambda m: "\n".join([_BEGIN.format(name=m[1]), *blocks[m[1]], _END]), present)


def parameters(schema: Schema) -> str:
    """src/parameters.hpp."""
    lines = ["// Defaults and rules of parameters, the same in Python and C++.", f"// {NOTICE}", "#pragma once", ""]
    lines += ["#include <cstdint>", "#include <string>", "", '#include "error.hpp"', "", "// clang-format off"]
    lines += ["namespace ebca::internal::defaults {", ""]
    for name, data in schema.constants.items():
        lines += [
            f"// {data['doc']}",
            f"inline constexpr {_constant_type(data['value'])} {name} = {data['value']};",
            "",
        ]
    for struct in schema.structs:
        values = [field for field in struct.fields if field.default not in (None, "nan")]
        if values:
            lines += [f"namespace {_short(struct)} {{", *map(_constant, values), "}", ""]
    lines += ["}  // namespace ebca::internal::defaults", "", "namespace ebca::internal::limits {", ""]
    for name, data in schema.limits.items():
        lines += [f"// {data['doc']}", f"inline constexpr int64_t {name} = {data['value']};", ""]
    lines += ["}  // namespace ebca::internal::limits", "", "// The errors of rules that parameters break."]
    lines += ["namespace ebca::internal::rules {", ""]
    for rule in schema.rules["c"]:
        lines += [*_rule(rule), ""]
    return "\n".join([*lines, "}  // namespace ebca::internal::rules", ""])


def manifest_limits(schema: Schema) -> str:
    """src/contract/limits.hpp."""
    lines = ["// Bounds of what manifest.json says, the same in Python and C++.", f"// {NOTICE}", "#pragma once", ""]
    lines += ["#include <cstdint>", "", "// clang-format off", "namespace ebca::internal::limits {", ""]
    for name, data in schema.manifest_limits.items():
        kind = "double" if isinstance(data["value"], float) else "int64_t"
        lines += [f"// {data['doc']}", f"inline constexpr {kind} {name} = {data['value']};", ""]
    return "\n".join([*lines, "}  // namespace ebca::internal::limits", ""])


def struct_defaults(schema: Schema) -> str:
    """src/api/defaults.hpp."""
    lines = [
        "// What the _init functions of ebca.h set, in structs that are zero, and the sizes of these structs.",
        f"// {NOTICE}",
        "#pragma once",
        "",
    ]
    lines += ["#include <cmath>", "#include <cstddef>", "", '#include "ebca.h"', ""]
    lines += ["// clang-format off", "namespace ebca::internal {", ""]
    lines += ["// Of a struct in the first release that had it: the least that a host may announce."]
    lines += ["template <typename Params>", "inline constexpr size_t first_size = 0;", ""]
    for struct in schema.structs:
        if not struct.fields or struct.fields[0].name != "struct_size":
            continue
        # What is 0 anyway needs no assignment.
        values = [field for field in struct.fields if field.default]
        if values:
            lines += [f"inline void set_defaults({struct.name}& params) {{", *map(_assignment, values), "}", ""]
        else:
            lines += [f"inline void set_defaults({struct.name}&) {{}}", ""]
        lines += write_abi.first_size(struct)
    return "\n".join([*lines, "}  // namespace ebca::internal", ""])


def _enum(enum: Enum) -> list[str]:
    entries = [(f"{enum.prefix}{member.name} = {member.number},", member.doc) for member in enum.members]
    head, tail = ("enum {", "};") if enum.flags else (f"typedef enum {enum.name} {{", f"}} {enum.name};")
    return [head, *_with_comments(entries), tail]


def _struct(struct: Struct) -> list[str]:
    lines: list[str] = []
    entries: list[tuple[str, str]] = []
    for field in struct.fields:
        if field.group:
            lines += [*_with_comments(entries), f"    /* {field.group} */"]
            entries = []
        entries.append((_declaration(field), _documented(field)))
    typedef = [f"typedef struct {struct.name} {{", *lines, *_with_comments(entries), f"}} {struct.name};"]
    return [*_comment(struct.doc), *typedef]


def _comment(text: str) -> list[str]:
    lines = textwrap.wrap(text, _WIDTH - 6)
    return [*(f"{'/*' if index == 0 else ' *'} {line}" for index, line in enumerate(lines[:-1])), _last(lines)]


def _last(lines: Sequence[str]) -> str:
    return f"{'/*' if len(lines) == 1 else ' *'} {lines[-1]} */"


def _documented(field: Field) -> str:
    """The comment of a field with its default, unless that is 0 or the comment has it."""
    if not field.default or field.default == "nan":
        return field.doc
    value = f'"{field.default}"' if isinstance(field.default, str) else f"{field.default:g}"
    return f"{field.doc} (default {value})"


def _declaration(field: Field) -> str:
    return f"{field.type} {field.name}{f'[{field.length}]' if field.length else ''};"


def _with_comments(entries: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Lines of code with comments beside them, in one column per run of lines that have one, as clang-format has it."""
    for documented, run in itertools.groupby(entries, key=lambda entry: bool(entry[1])):
        lines = list(run)
        column = 4 + max(len(code) for code, _ in lines) + 1
        for code, doc in lines:
            yield from _beside(f"    {code}", doc, column) if documented else [f"    {code}"]


def _beside(code: str, doc: str, column: int) -> Iterator[str]:
    parts = textwrap.wrap(doc, _WIDTH - column - 6)
    for index, part in enumerate(parts):
        opening = f"{code:<{column}}/* " if index == 0 else f"{'':<{column}}   "
        yield f"{opening}{part}{' */' if index == len(parts) - 1 else ''}"


def _short(struct: Struct) -> str:
    return struct.name.removeprefix("ebca_")


def _constant_type(value: object) -> str:
    return "int64_t" if isinstance(value, int) else "double"


def _constant(field: Field) -> str:
    if isinstance(field.default, str):
        return f'inline constexpr const char* {field.name} = "{field.default}";'
    return f"inline constexpr {_constant_type(field.default)} {field.name} = {field.default};"


def _assignment(field: Field) -> str:
    target = f"params.{field.name}" + (".value" if field.type == "ebca_schedule" else "")
    if field.default == "nan":
        return f'    {target} = std::nan("");'
    if isinstance(field.default, str):
        return f'    {target} = "{field.default}";'
    return f"    {target} = {field.default};"


def _rule(rule: Text) -> list[str]:
    result = _CLASSES[rule.error]
    problem, remedy = _pieces(rule.problem), _pieces(rule.remedy)
    if rule.error == "warning":
        made = f"text({', '.join([*problem, _quoted('; '), *remedy])})"
    else:
        arguments = [_joined(problem), *([_joined(remedy)] if rule.remedy else [])]
        made = f"{result}({', '.join(arguments)})"
    if not rule.values:
        return [f"inline {result} {rule.id}() {{", f"    return {made};", "}"]
    kinds = ", ".join(f"typename {_camel(name)}" for name in rule.values)
    parameters = ", ".join(f"const {_camel(name)}& {name}" for name in rule.values)
    return [f"template <{kinds}>", f"{result} {rule.id}({parameters}) {{", f"    return {made};", "}"]


def _pieces(text: str) -> list[str]:
    """Literals and names of values, as arguments of text(...)."""
    parts = re.split(r"\{(\w+)\}", text)
    return [part if index % 2 else _quoted(part) for index, part in enumerate(parts) if part]


def _joined(pieces: Iterable[str]) -> str:
    parts = list(pieces)
    return parts[0] if len(parts) == 1 and parts[0].startswith('"') else f"text({', '.join(parts)})"


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
