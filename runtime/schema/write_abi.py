"""What ebca.h has beside structs and enums: its version and the names of its enums; the first sizes of structs."""

import re
from collections.abc import Iterator

from ebca.runtime.schema.load import Enum, Schema, Struct
from ebca.version import __version__


def version(schema: Schema) -> list[str]:
    """The macros of ebca.h that say its version."""
    version = re.match(r"(\d+)\.(\d+)\.(\d+)", __version__)
    assert version is not None, __version__
    return [
        "/* Of this header. EBCA_VERSION is for comparisons: 10203 is 1.2.3. */",
        f"#define EBCA_VERSION_MAJOR {version[1]}",
        f"#define EBCA_VERSION_MINOR {version[2]}",
        f"#define EBCA_VERSION_PATCH {version[3]}",
        "#define EBCA_VERSION (EBCA_VERSION_MAJOR * 10000 + EBCA_VERSION_MINOR * 100 + EBCA_VERSION_PATCH)",
        f'#define EBCA_VERSION_TEXT "{__version__}"',
        "/* A host works with every library of the same number, from that of its header on. */",
        f"#define EBCA_ABI_VERSION {schema.abi_version}",
    ]


def declarations(enum: Enum) -> list[str]:
    """The functions of ebca.h that know the names of an enum."""
    kind, one = _kind(enum), enum.members[-1]
    about = f'{enum.prefix}{one.name} is "{one.name.lower()}"'
    return [
        f'/* {about}; {"what is not one flag" if enum.flags else "another value"} is "unknown". */',
        f"EBCA_API const char* {enum.name}_name({kind} value);",
        f"EBCA_API ebca_status {enum.name}_from_name(const char* name, {kind}* value);",
    ]


def enum_names(schema: Schema, notice: str) -> str:
    """src/api/names.cpp."""
    lines = ["// The names of the enums of ebca.h.", f"// {notice}", '#include "api/enum_names.hpp"', ""]
    lines += ["// clang-format off", "namespace ebca::internal {", 'extern "C" {', ""]
    for enum in (schema.status, *schema.enums):
        kind, table = _kind(enum), f"k_{enum.name.removeprefix('ebca_')}"
        lines += [f"static constexpr NamedValue {table}[] = {{", *_entries(enum), "};", ""]
        lines += [
            f"EBCA_API const char* {enum.name}_name({kind} value) {{",
            f"    return name_of({table}, value);",
            "}",
            "",
        ]
        lines += [f"EBCA_API ebca_status {enum.name}_from_name(const char* name, {kind}* value) {{"]
        lines += [f'    return from_name({table}, "{enum.name}", name, value);', "}", ""]
    return "\n".join([*lines, "}", "}  // namespace ebca::internal", ""])


def first_size(struct: Struct) -> list[str]:
    """How large a struct was in the first release that had it: what a host may announce at least."""
    added = [field.name for field in struct.fields if field.since]
    size = f"offsetof({struct.name}, {added[0]})" if added else f"sizeof({struct.name})"
    return ["template <>", f"inline constexpr size_t first_size<{struct.name}> = {size};", ""]


def _entries(enum: Enum) -> Iterator[str]:
    for member in enum.members:
        yield f'    {{"{member.name.lower()}", {enum.prefix}{member.name}}},'


def _kind(enum: Enum) -> str:
    return "uint32_t" if enum.flags else enum.name
