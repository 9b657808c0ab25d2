"""Write, or check, what the Python runtime and the C++ library share from schema.toml.

    python -m ebca.runtime.schema.generate [--check]

Works in a checkout, where the C++ sources are; the generated files are part of the repository.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from ebca.runtime.schema import write_abi, write_cpp, write_python
from ebca.runtime.schema.load import Schema, load

RUNTIME = Path(__file__).parents[1]
ROOT = RUNTIME.parent

# What to write where: the new content follows from the schema and, for a file with other parts, the present one.
Writer = Callable[[Schema, str], str]
FILES: dict[Path, Writer] = {
    RUNTIME / "schema" / "parameters.py": lambda schema, _: write_python.parameters(schema),
    RUNTIME / "native" / "structures.py": lambda schema, _: write_python.structures(schema),
    RUNTIME / "cpp" / "include" / "ebca.h": write_cpp.header,
    RUNTIME / "cpp" / "src" / "parameters.hpp": lambda schema, _: write_cpp.parameters(schema),
    RUNTIME / "cpp" / "src" / "api" / "defaults.hpp": lambda schema, _: write_cpp.struct_defaults(schema),
    RUNTIME / "cpp" / "src" / "api" / "names.cpp": lambda schema, _: write_abi.enum_names(schema, write_cpp.NOTICE),
    ROOT / "engines" / "contract" / "limits.py": lambda schema, _: write_python.manifest_limits(schema),
    RUNTIME / "cpp" / "src" / "contract" / "limits.hpp": lambda schema, _: write_cpp.manifest_limits(schema),
}


def outdated(schema: Schema) -> dict[Path, str]:
    """Generated files that are not what the schema says, with their right content."""
    found = {}
    for path, write in FILES.items():
        present = path.read_text() if path.is_file() else ""
        content = write(schema, present)
        if content != present:
            found[path] = content
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ebca.runtime.schema.generate", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    check = parser.parse_args(argv).check
    found = outdated(load())
    for path, content in found.items():
        if not check:
            path.write_text(content)
        print(f"{path.relative_to(ROOT)} {'is out of date' if check else 'written'}")
    return int(check and bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
