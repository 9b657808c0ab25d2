"""parameters.py and structures.py from the schema."""

from collections.abc import Mapping, Sequence
from typing import Any

from ebca.runtime.schema.load import Enum, Field, Schema, Struct, Text

_WIDTH = 120

_HEADER = '''"""{title}

Written by `python -m ebca.runtime.schema.generate` from schema.toml; edit that file instead.
"""
'''

_RULE_CLASS = '''
@dataclass(frozen=True)
class Rule:
    """One rule about parameters: what an error says about it.

    Attributes:
        kind: the class of the error.
        problem: template of what is wrong; placeholders in braces are values.
        remedy: template of what to do about it, or "".
    """

    kind: type[EbcaError]
    problem: str
    remedy: str = ""

    def error(self, **values: Any) -> EbcaError:
        """The error to raise, with these values in its texts."""
        shown = {name: _shown(value) for name, value in values.items()}
        return self.kind(self.problem.format(**shown), self.remedy.format(**shown))

    def text(self, **values: Any) -> str:
        """Problem and remedy as one line, for a warning."""
        return str(self.error(**values))


def shortened(text: str, limit: int) -> str:
    """The text, or its first `limit` characters and how many more there are."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text) - limit} more characters)"


def _shown(value: Any) -> str:
    """Numbers as C++ writes them; no value fills the screen."""
    return f"{value:g}" if isinstance(value, float) else shortened(str(value), 2000)
'''

_CLASSES = {
    "parameter": "ParameterError",
    "memory": "OutOfMemoryError",
    "engine": "EngineError",
    "backend": "BackendError",
    "numerical": "NumericalError",
    "cancelled": "CancelledError",
    "unsupported": "BackendError",
    "warning": "EbcaError",
}


def parameters(schema: Schema) -> str:
    """The module `ebca.runtime.schema.parameters`."""
    rules = schema.rules["python"]
    classes = sorted({"EbcaError", *(_CLASSES[rule.error] for rule in rules)})
    tables = [struct for struct in schema.structs if struct.defaults]
    parts = [
        _HEADER.format(title="Defaults and rules of parameters, the same in Python and C++."),
        "from dataclasses import dataclass\nfrom typing import Any\n",
        _errors(classes),
        "\n".join(_constant(f"DEFAULT_{name}", data) for name, data in schema.constants.items()),
        "\n".join(_constant(f"MAX_{name}", data) for name, data in schema.limits.items()),
        *(_class(struct) for struct in tables),
        "\n" + "\n".join(f"{_constant_name(struct)} = {struct.defaults}Defaults()" for struct in tables) + "\n",
        _RULE_CLASS,
        "\n" + "\n".join(_rule(rule) for rule in rules) + "\n",
    ]
    return "\n".join(parts)


def manifest_limits(schema: Schema) -> str:
    """The module `ebca.engines.contract.limits`."""
    header = _HEADER.format(title="Bounds of what manifest.json says, the same in Python and C++.")
    constants = [
        f'{name.upper()} = {data["value"]!r}\n"""{data["doc"]}"""\n' for name, data in schema.manifest_limits.items()
    ]
    return "\n".join([header, *constants])


def _errors(classes: Sequence[str]) -> str:
    """The import of some errors."""
    return _import("ebca.errors", classes)


def _import(module: str, names: Sequence[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= _WIDTH:
        return f"{line}\n"
    return "\n".join([f"from {module} import (", *(f"    {name}," for name in names), ")"]) + "\n"


def _constant_name(struct: Struct) -> str:
    assert struct.defaults is not None
    return {"RePaint": "REPAINT"}.get(struct.defaults, struct.defaults.upper())


def _constant(name: str, data: Mapping[str, Any]) -> str:
    return f'{name.upper()} = {data["value"]!r}\n"""{data["doc"]}"""\n'


def _class(struct: Struct) -> str:
    lines = ["", "@dataclass(frozen=True)", f"class {struct.defaults}Defaults:"]
    lines += [f'    """What the fields of {struct.name} are where they are not given."""', ""]
    for field in struct.fields:
        if field.python is not None:
            lines.append(f"    {field.python.get('name', field.name)}: {field.python['type']} = {_default(field)}")
    return "\n".join(lines) + "\n"


def _default(field: Field) -> str:
    assert field.python is not None
    if "default" in field.python:
        return field.python["default"]
    value = bool(field.default) if field.python["type"] == "bool" else field.default
    return repr(value)


def _rule(rule: Text) -> str:
    arguments = [_CLASSES[rule.error], _quoted(rule.problem), *([_quoted(rule.remedy)] if rule.remedy else [])]
    line = f"{rule.id.upper()} = Rule({', '.join(arguments)})"
    if len(line) <= _WIDTH:
        return line
    inner = f"    {', '.join(arguments)}"
    if len(inner) <= _WIDTH:
        return f"{rule.id.upper()} = Rule(\n{inner}\n)"
    return f"{rule.id.upper()} = Rule(\n" + "".join(f"    {each},\n" for each in arguments) + ")"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


_CTYPES = {
    "char": "c_char",
    "size_t": "c_size_t",
    "int32_t": "c_int32",
    "int64_t": "c_int64",
    "uint32_t": "c_uint32",
    "uint64_t": "c_uint64",
    "double": "c_double",
    "const char*": "c_char_p",
    "void*": "c_void_p",
    "const char* const*": "POINTER(c_char_p)",
    "const float*": "POINTER(c_float)",
    "const double*": "POINTER(c_double)",
    "const int64_t*": "POINTER(c_int64)",
    "const uint8_t*": "POINTER(c_uint8)",
}

_CALLBACKS = """
# void (*)(ebca_log_level level, const char* message, void* user_data)
LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
# void (*)(int64_t done, int64_t total, const char* component, void* user_data)
PrepareCallback = ctypes.CFUNCTYPE(None, c_int64, c_int64, c_char_p, c_void_p)
# int64_t (*)(const char* file, int64_t offset, void* buffer, int64_t size, void* user_data)
ReadCallback = ctypes.CFUNCTYPE(c_int64, c_char_p, c_int64, c_void_p, c_int64, c_void_p)
"""

_STEP_CALLBACK = """
# int (*)(const ebca_step_info* info, void* user_data)
StepCallback = ctypes.CFUNCTYPE(ctypes.c_int, POINTER(StepInfo), c_void_p)
"""


def structures(schema: Schema) -> str:
    """The module `ebca.runtime.native.structures`."""
    used = {name for kind in _CTYPES.values() for name in kind.replace("POINTER(", "").rstrip(")").split()}
    ctypes = sorted(used, key=lambda name: (name.rstrip("0123456789_t"), len(name), name))
    errors = {member.number: member.python for member in schema.status.members if member.python}
    table = "".join(f"    {number}: {name},\n" for number, name in errors.items())
    parts = [
        _HEADER.format(title="The enums and structs of ebca.h for ctypes."),
        f"import ctypes\n{_import('ctypes', ['POINTER', *ctypes])}from enum import IntEnum, IntFlag\n",
        _errors(sorted(["EbcaError", *errors.values()])),
        f'ABI_VERSION = {schema.abi_version}\n"""EBCA_ABI_VERSION of the header that these structs are from."""\n',
        *(_int_enum(enum) for enum in (schema.status, *schema.enums)),
        f"\nERRORS: dict[int, type[EbcaError]] = {{\n{table}}}\n"
        '"""The error of each status that has one in `ebca.errors`."""\n',
        _CALLBACKS,
    ]
    for struct in schema.structs:
        parts.append(_structure(struct))
        if struct.name == "ebca_step_info":
            parts.append(_STEP_CALLBACK)
    inits = [struct for struct in schema.structs if struct.init]
    names = "".join(f'    "{struct.name.removeprefix("ebca_")}": {class_name(struct.name)},\n' for struct in inits)
    parts.append(
        f"\nPARAMS: dict[str, type[ctypes.Structure]] = {{\n{names}}}\n"
        '"""Structs with an _init function, by the name of that function."""\n'
    )
    return "\n".join(parts)


def _int_enum(enum: Enum) -> str:
    lines = ["", f"class {class_name(enum.name)}({'IntFlag' if enum.flags else 'IntEnum'}):"]
    lines += [f"    {member.name.removeprefix('ERROR_')} = {member.number}" for member in enum.members]
    return "\n".join([*lines, ""])


def class_name(struct: str) -> str:
    """ebca_generate_params -> GenerateParams."""
    words = struct.removeprefix("ebca_").split("_")
    return "".join({"repaint": "RePaint"}.get(word, word.capitalize()) for word in words)


def _structure(struct: Struct) -> str:
    lines = [
        "",
        f"class {class_name(struct.name)}(ctypes.Structure):",
        f'    """{struct.name}."""',
        "",
        "    _fields_ = (",
    ]
    for field in struct.fields:
        kind = _ctype(field.type)
        lines.append(f'        ("{field.name}", {kind}{f" * {field.length}" if field.length else ""}),')
    return "\n".join([*lines, "    )", ""])


def _ctype(kind: str) -> str:
    if kind in _CTYPES:
        return _CTYPES[kind]
    if kind.endswith("*"):
        return f"POINTER({_ctype(kind.removeprefix('const ').removesuffix('*'))})"
    return class_name(kind)
