"""Which way the rooms of the package depend on each other. docs/architecture.md shows the same rooms."""

import ast
import functools
import graphlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("engines", "plugins", "runtime", "export", "bench")
HEAVY = {"torch", "diffusers", "transformers", "onnx", "onnxscript"}

# What each room may import beside itself. A room may only name rooms above it in this table, so there is no circle.
_CONTRACT = ("errors", "engines.contract", "engines.machine")
_BACKENDS = (*_CONTRACT, "engines.backends")
_OPERATORS = (
    *("errors", "plugins.kernels", "plugins.energy_attention", "plugins.sampling"),
    "plugins.exclusive_attention",
)
_EXECUTION = (*_BACKENDS, *_OPERATORS, "runtime.shown", "runtime.schema", "runtime.devices", "runtime.execution")
_VALUES = ("errors", "result_files", "runtime.shown", "runtime.schema", "runtime.validation", "runtime.noise")
_STAGES = (*_VALUES, *_EXECUTION, "runtime.text", "runtime.components")
_SAMPLING = (*_STAGES, "runtime.sampling")
_REQUEST = (*_SAMPLING, "runtime.conditioning", "runtime.images", "runtime.telemetry")
_SESSION = (
    *_REQUEST,
    "runtime.request",
    "runtime.runners",
    "runtime.memory",
    "runtime.results",
    "runtime.generation",
    "runtime.session",
    "engines.cache",
    "engines.adapters",
)
_EXPORT = (
    *("export.quiet", "export.checkpoint", "export.graph", "export.plans", "export.options"),
    *("export.spacing", "export.distilled"),
    *("export.scheduler_choice", "export.scheduler_basis", "export.scheduler_recurrence", "export.scheduler_tables"),
    *("export.weights", "export.parity", "export.lock", "export.output", "export.workspace"),
)
_ENGINE = (*_SESSION, "runtime.engine", "runtime.denoiser", "version")

ROOMS: Mapping[str, tuple[str, ...]] = {
    "errors": (),
    "version": (),
    "result_files": ("errors",),
    "console": ("errors", "version", "result_files"),
    "runtime.shown": (),
    "engines.contract": ("errors",),
    "engines.machine": ("errors",),
    "engines.backends": _CONTRACT,
    "engines.cache": _BACKENDS,
    "engines.adapters": (*_CONTRACT, "engines.cache"),
    "plugins.kernels": ("errors",),
    "plugins.energy_attention": ("errors", "plugins.kernels"),
    "plugins.sampling": ("errors",),
    "plugins.exclusive_attention": ("errors",),
    "plugins.compile": _OPERATORS,
    "runtime.schema": ("errors", "version"),
    "runtime.validation": ("errors", "runtime.schema"),
    "runtime.native": ("errors", "runtime.schema"),
    "runtime.noise": ("errors", "runtime.schema"),
    "runtime.text": ("errors", "runtime.schema"),
    "runtime.devices": (*_BACKENDS, *_OPERATORS),
    "runtime.execution": _EXECUTION,
    "runtime.tiling": (),
    "runtime.runners": (*_EXECUTION, "engines.cache", "runtime.schema", "runtime.validation"),
    "runtime.components": (*_EXECUTION, "runtime.schema", "runtime.text", "runtime.tiling", "runtime.runners"),
    "runtime.images": _STAGES,
    "runtime.telemetry": (*_EXECUTION, "result_files", "runtime.images"),
    "runtime.sampling": _STAGES,
    # Reads the regions of subjects, and makes what the samplers need for them.
    "runtime.conditioning": (*_STAGES, "runtime.images", "runtime.sampling"),
    "runtime.request": _REQUEST,
    "runtime.results": ("errors", "runtime.shown", "runtime.images"),
    "runtime.memory": (*_REQUEST, "runtime.request", "runtime.tiling"),
    "runtime.generation": (*_REQUEST, "runtime.request", "runtime.results"),
    "runtime.session": (*_REQUEST, "runtime.request", "runtime.memory", "runtime.results", "runtime.generation"),
    "runtime.engine": _SESSION,
    "runtime.denoiser": (*_SESSION, "runtime.engine"),
    "runtime.diagnostics": (*_ENGINE, "console"),
    "runtime.cli": (*_ENGINE, "console", "runtime.diagnostics"),
    # The public names.
    "": _ENGINE,
    "export.quiet": (),
    "export.checkpoint": ("errors", "engines.contract", "engines.adapters"),
    "export.graph": (*_CONTRACT, *_OPERATORS, "export.quiet"),
    "export.plans": (*_BACKENDS, *_OPERATORS),
    "export.spacing": ("errors",),
    "export.options": (*_CONTRACT, "export.plans", "export.spacing"),
    "export.distilled": ("engines.contract", "export.checkpoint", "export.options"),
    "export.scheduler_choice": ("errors",),
    "export.scheduler_basis": ("export.spacing",),
    # What reads the tables says what they are worth.
    "export.scheduler_recurrence": ("engines.contract", "runtime.sampling"),
    "export.scheduler_tables": (
        *("errors", "engines.contract", "export.options", "export.scheduler_choice", "export.scheduler_recurrence"),
        *("export.scheduler_basis", "export.spacing", "runtime.sampling"),
    ),
    "export.weights": (*_CONTRACT, "export.checkpoint", "export.options"),
    "export.lock": (),
    "export.output": (*_CONTRACT, "export.lock"),
    "export.workspace": (*_CONTRACT, "export.lock", "export.output"),
    "export.parity": (*_CONTRACT, *_OPERATORS, "export.graph"),
    "export.stages": (*_BACKENDS, *_OPERATORS, *_EXPORT),
    "export.merging": ("errors", "engines.contract", "engines.adapters", "export.checkpoint"),
    "export.api": ("errors", "version", *_EXPORT, "export.stages"),
    # `export_unet`, which imports PyTorch when it is called.
    "export": ("export.api",),
    # Prepares what it has exported, and compares backends.
    "export.cli": (*_ENGINE, *_EXPORT, "console", "runtime.diagnostics", "export.merging", "export.api"),
    "bench.judges": ("errors", "export.quiet"),
    # Measures everything.
    "bench": (
        *(*_ENGINE, *_EXPORT, "console", "export", "export.api", "export.cli", "plugins.compile"),
        *("runtime.cli", "runtime.diagnostics", "runtime.native", "bench.judges"),
    ),
    # Take statistics and the journal from `bench.alignment`.
    "bench.ane": (*_ENGINE, "console", "runtime.cli", "bench.judges", "bench"),
    "bench.edit": (*_ENGINE, "console", "runtime.cli", "bench.judges", "bench"),
}


def modules(folder: str) -> Iterator[Path]:
    return (ROOT / folder).rglob("*.py")


def module_name(path: Path) -> str:
    """Of a file of the package, without "ebca."; "" for the package itself."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "src":
        parts = parts[2:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, in functions and under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def uses(path: Path, name: str) -> bool:
    return any(i == name or i.startswith(name + ".") for i in imports(path))


def package() -> dict[str, Path]:
    """Every module of the package by name."""
    paths = (path for folder in ("src", *FOLDERS) for path in modules(folder))
    return {module_name(path): path for path in paths if "cpp" not in path.relative_to(ROOT).parts}


def room_of(module: str) -> str:
    """The room a module lies in: the longest name in the table that it begins with."""
    while module and module not in ROOMS:
        module = module.rpartition(".")[0]
    return module


def edges() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports; names of a module count as the module."""
    every = package()
    found: dict[str, set[str]] = {}
    for module, path in every.items():
        names = {name.removeprefix("ebca.") for name in imports(path) if name.startswith("ebca.")}
        known = names & every.keys()
        # "from ebca.engines import cache" imports the module cache, not the package around it.
        found[module] = {one for one in known if not any(other.startswith(f"{one}.") for other in known)} - {module}
    return found


def test_the_table_has_no_circle() -> None:
    above: set[str] = set()
    for room, allowed in ROOMS.items():
        assert set(allowed) - {room} <= above, f"'{room}' names a room that is not above it"
        above.add(room)


def test_every_module_lies_in_a_room() -> None:
    folders = {*FOLDERS, "runtime"} - ROOMS.keys()
    assert [name for name in package() if name and name not in folders and room_of(name) == ""] == []


def test_dependencies_point_one_way() -> None:
    checked = 0
    for module, imported in edges().items():
        room = room_of(module)
        for other in imported:
            there = room_of(other)
            assert there == room or there in ROOMS[room], f"{module} ({room}) imports {other} ({there})"
            checked += 1
    assert checked > 300


def test_no_module_imports_itself_through_others() -> None:
    # Raises CycleError, which names the modules.
    assert len(list(graphlib.TopologicalSorter(edges()).static_order())) > 150


@pytest.mark.parametrize("folder", ["engines", "plugins", "runtime"])
def test_pytorch_and_onnx_stay_in_the_export(folder: str) -> None:
    for path in modules(folder):
        name = path.relative_to(ROOT).as_posix()
        allowed = {"onnx"} if name == "plugins/energy_attention/onnx_model.py" else set()
        for library in HEAVY - allowed:
            assert not uses(path, library), f"{name} imports {library}"


@pytest.mark.parametrize("folder", [*FOLDERS, "tests", "src"])
def test_folders_are_imported_as_parts_of_the_package(folder: str) -> None:
    for path in modules(folder):
        for bare in FOLDERS:
            assert not uses(path, bare), f"{path.relative_to(ROOT)} imports {bare} instead of ebca.{bare}"


def test_nothing_is_unpickled() -> None:
    for folder in FOLDERS:
        for path in modules(folder):
            text = path.read_text(encoding="utf-8")
            name = path.relative_to(ROOT).as_posix()
            assert not uses(path, "pickle"), name
            assert "allow_pickle=True" not in text and "torch.load(" not in text, name


def test_devices_are_told_apart_only_where_they_are_made() -> None:
    for folder in ("runtime", "bench", "export"):
        for path in modules(folder):
            if "devices" not in path.parts:
                assert not re.search(r"isinstance\([^)]*\b\w*Device\b", path.read_text(encoding="utf-8")), path
