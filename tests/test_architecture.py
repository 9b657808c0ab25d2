"""Which way the rooms of the package depend on each other. docs/architecture.md draws the same picture."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("engines", "plugins", "runtime", "export", "bench")
HEAVY = {"torch", "diffusers", "transformers", "onnx", "onnxscript"}

_CONTRACT = ("engines.contract", "engines.machine")
_ENGINES = (*_CONTRACT, "engines.backends")
_CACHED = (*_ENGINES, "engines.cache")
_OPERATORS = ("plugins.kernels", "plugins.energy_attention", "plugins.sampling")
_EXECUTION = (*_CONTRACT, "plugins.energy_attention", "runtime.validation", "runtime.execution")
_PREPARATION = (*_EXECUTION, "runtime.components", "runtime.noise")

# What each room may import beside itself and `ebca.errors`. A room may only name rooms above it in this table.
ROOMS: Mapping[str, tuple[str, ...]] = {
    "errors": (),
    "version": (),
    "console": (),
    "engines.contract": (),
    "engines.machine": (),
    "engines.backends": _CONTRACT,
    "engines.cache": _ENGINES,
    "plugins.kernels": (),
    "plugins.energy_attention": ("plugins.kernels",),
    "plugins.sampling": (),
    "plugins.compile": _OPERATORS,
    "runtime.validation": (),
    "runtime.noise": (),
    "runtime.text": (),
    "runtime.devices": (*_ENGINES, *_OPERATORS),
    "runtime.execution": (*_ENGINES, "plugins.energy_attention", "runtime.devices"),
    "runtime.components": (*_CACHED, "runtime.devices", "runtime.execution", "runtime.text"),
    "runtime.conditioning": (*_PREPARATION, "runtime.text"),
    "runtime.images": _PREPARATION,
    "runtime.telemetry": (*_EXECUTION, "runtime.images"),
}


def modules(folder: str) -> Iterator[Path]:
    return (ROOT / folder).rglob("*.py")


def module_name(path: Path) -> str:
    """Of a file of the package, without "ebca."; "" for the package itself."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "src":
        parts = parts[2:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, in functions and under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def uses(path: Path, name: str) -> bool:
    return any(i == name or i.startswith(name + ".") for i in imports(path))


def package() -> dict[str, Path]:
    """Every module of the package by name."""
    return {module_name(path): path for folder in ("src", *FOLDERS) for path in modules(folder)}


def room_of(module: str) -> str | None:
    """The room a module lies in: itself, or the nearest folder of the table."""
    while module and module not in ROOMS:
        module = module.rpartition(".")[0]
    return module or None
