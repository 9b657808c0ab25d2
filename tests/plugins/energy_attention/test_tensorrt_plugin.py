"""The op as a TensorRT plugin, with stand-ins for the library and for the driver."""

import gc
from typing import Any

import pytest
from helpers import trt
from helpers.launcher import FakeLauncher

from ebca.errors import BackendError, ParameterError
from ebca.plugins.energy_attention import GUIDED_VARIANTS, VARIANTS, signature
from ebca.plugins.energy_attention.launches import EnergyAttention, OpShape, launches
from ebca.plugins.energy_attention.tensorrt_plugin import NAME, NAMESPACE, Settings, register
from ebca.plugins.kernels.binaries import KernelSet
from ebca.plugins.kernels.launch import KernelLibrary

SIZES = {"batch": 2, "positions": 1000, "contexts": 3, "tokens": 77}
SCRATCH, STREAM = 0x1000, 0xABC


@pytest.fixture(scope="module")
def kernels() -> KernelSet:
    return KernelSet.load()


@pytest.fixture
def driver(kernels: KernelSet) -> FakeLauncher:
    return FakeLauncher(kernels)


@pytest.fixture
def registry(driver: FakeLauncher) -> trt.Registry:
    made = trt.Registry()
    register(trt, made, EnergyAttention(KernelLibrary(driver, driver.kernels)))
    return made


def parsed(registry: trt.Registry, variant: str = "update", **changes: Any) -> Any:
    return registry.parse(NAME, {**Settings(8, 40, variant).attributes, **changes})


def shapes(variant: str, **sizes: int) -> list[tuple[int, ...]]:
    """Shapes of inputs, then of outputs."""
    known = {**SIZES, **sizes}
    tensors = signature(variant, 8, 40)
    specs = (*tensors.inputs.values(), *tensors.outputs.values())
    return [tuple(known[dim] if isinstance(dim, str) else dim for dim in spec.shape) for spec in specs]


def split(values: list[Any], variant: str) -> tuple[list[Any], list[Any]]:
    inputs = len(signature(variant, 8, 40).inputs)
    return values[:inputs], values[inputs:]


def run(plugin: Any, variant: str, pointers: dict[str, int]) -> None:
    descs = split([trt.fixed(shape, None) for shape in shapes(variant)], variant)
    plugin.enqueue(*descs, *split(list(pointers.values()), variant), SCRATCH, STREAM)


def addresses(variant: str) -> dict[str, int]:
    tensors = signature(variant, 8, 40)
    return {name: 0x7F00_0000_0000 + 4096 * i for i, name in enumerate((*tensors.inputs, *tensors.outputs))}


# --- building


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_have_the_shapes_and_dtypes_of_the_op(registry: trt.Registry, variant: str) -> None:
    plugin = parsed(registry, variant)
    tensors = signature(variant, 8, 40)
    inputs = [trt.DimsExprs(f"{name}.{axis}" for axis, _ in enumerate(s.shape)) for name, s in tensors.inputs.items()]
    made = plugin.get_output_shapes(inputs, [], None)
    assert all(type(shape) is trt.DimsExprs for shape in made) and len(made) == plugin.num_outputs
    like = {"out": "q", "g": "k", "energy_attn": "weights", "energy_norm": "weights"}
    for (name, spec), shape in zip(tensors.outputs.items(), made, strict=True):
        assert shape == [f"{like[name]}.{axis}" for axis in range(len(spec.shape))]
    dtypes = plugin.get_output_data_types([None] * len(inputs))
    assert dtypes == [trt.DataType.HALF, *[trt.DataType.FLOAT] * (len(tensors.outputs) - 1)]


def test_only_linear_tensors_of_the_kernels_dtypes_are_accepted(registry: trt.Registry) -> None:
    plugin, (inputs, outputs) = parsed(registry), split(shapes("update"), "update")
    every = [*inputs, *outputs]
    halves = {"q", "k", "v", "out"}
    for position, name in enumerate(addresses("update")):
        for dtype in trt.DataType:
            for format in trt.TensorFormat:
                descs = [trt.ranged(shape, dtype, format) for shape in every]
                right = trt.DataType.HALF if name in halves else trt.DataType.FLOAT
                expected = dtype is right and format is trt.TensorFormat.LINEAR
                assert plugin.supports_format_combination(position, descs, len(inputs)) is expected, (name, dtype)


def test_the_workspace_is_enough_for_every_size_of_the_profile(registry: trt.Registry, kernels: KernelSet) -> None:
    plugin = parsed(registry)
    largest = split([trt.ranged(shape) for shape in shapes("update", positions=4096)], "update")
    workspace = plugin.get_workspace_size(*largest)
    for positions in (64, 1000, 4032, 4095, 4096):
        for contexts in (1, 3):
            shape = OpShape(2, positions, contexts, 77, 8, 40)
            assert launches(kernels, "update", (8, 9), "float16", shape).scratch_bytes <= workspace
    without = split([trt.ranged(shape) for shape in shapes("attention")], "attention")
    assert parsed(registry, "attention").get_workspace_size(*without) == 0


# --- running


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_of_a_plan_reaches_the_kernels(registry: trt.Registry, driver: FakeLauncher, variant: str) -> None:
    built = parsed(registry, variant)
    gc.collect()
    plugin = trt.checked(registry.from_plan(built).attach_to_context(None))
    pointers = addresses(variant)
    run(plugin, variant, pointers)
    mine, driver.launched = driver.launched, []
    shape = OpShape(**SIZES, heads=8, head_dim=40)
    EnergyAttention(KernelLibrary(driver, driver.kernels)).bind(variant, "float16", shape, pointers, SCRATCH)(STREAM)
    assert mine == driver.launched
    # And so that a mistake they share is seen: every tensor is where the kernels look for it.
    for name, pointer in pointers.items():
        found = {launch[f"{name}_ptr"] for launch in mine if launch.get(f"{name}_ptr")}
        assert found == {pointer} or (name == "weights" and not found), name
    assert {launch["stream"] for launch in mine} == {STREAM}
    assert mine[0]["partial_ptr"] == (0 if variant == "attention" else SCRATCH)
    assert (mine[0]["N"], mine[0]["S"], mine[0]["T"], mine[0]["d"]) == (1000, 3, 77, 40)


def test_a_clone_has_the_same_settings_and_is_independent(registry: trt.Registry, driver: FakeLauncher) -> None:
    first = parsed(registry)
    clone = trt.checked(first.clone())
    assert clone is not first
    del first
    gc.collect()
    assert [field.name for field in clone.get_fields_to_serialize()] == ["num_heads", "head_dim", "variant"]
    run(clone, "update", addresses("update"))
    assert [launch["kernel"] for launch in driver.launched] == ["ebca_forward", "ebca_combine"]


@pytest.mark.parametrize(
    ("tensor", "shape", "message"),
    [
        (0, (2, 1000, 640), r"'q' of shape \[2, 1000, 640\], and expects \[2, 1000, 320\]"),
        (2, (2, 3, 76, 320), r"'v' of shape \[2, 3, 76, 320\], and expects \[2, 3, 77, 320\]"),
        (3, (1, 3), r"'weights' of shape \[1, 3\], and expects \[2, 3\]"),
        (7, (2, 3, 2), r"'tie' of shape \[2, 3, 2\], and expects \[2, 3, 3\]"),
        (6, (1,), r"'norm_factor' of shape \[1\], and expects \[\]"),
    ],
)
def test_tensors_with_contradictory_shapes_are_refused(
    registry: trt.Registry, driver: FakeLauncher, tensor: int, shape: tuple[int, ...], message: str
) -> None:
    given = shapes("update")
    given[tensor] = shape
    descs = split([trt.fixed(shape, None) for shape in given], "update")
    with pytest.raises(ParameterError, match=message):
        parsed(registry).enqueue(*descs, *split(list(addresses("update").values()), "update"), SCRATCH, STREAM)
    assert driver.launched == []


def test_a_head_size_without_a_kernel_is_refused_at_build_time(registry: trt.Registry) -> None:
    plugin = parsed(registry, head_dim=41)
    descs = split([trt.ranged((*shape[:-1], 328) if 320 in shape else shape) for shape in shapes("update")], "update")
    with pytest.raises(ParameterError, match="no GPU kernel for head_dim 41"):
        plugin.get_workspace_size(*descs)


# --- nodes and registries


def test_foreign_nodes_are_refused(registry: trt.Registry) -> None:
    attributes = Settings(8, 40, "update").attributes
    with pytest.raises(ParameterError, match="lacks the attribute head_dim and variant; export the engine again"):
        registry.parse(NAME, {n: v for n, v in attributes.items() if n not in ("head_dim", "variant")})
    with pytest.raises(ParameterError, match="unknown variant 'updates'"):
        parsed(registry, variant="updates")
    with pytest.raises(ParameterError, match="heads=0"):
        parsed(registry, num_heads=0)


@pytest.mark.parametrize("variant", GUIDED_VARIANTS)
def test_guided_variants_are_refused(registry: trt.Registry, variant: str) -> None:
    message = f"ebca::EnergyCrossAttention has no variant '{variant}'; use attention, .*outside the plan"
    with pytest.raises(ParameterError, match=message):
        Settings(8, 40, variant)
    with pytest.raises(ParameterError, match=message):
        registry.parse(NAME, {**Settings(8, 40, "update").attributes, "variant": variant})


def test_each_builder_and_runtime_has_its_own_registry(kernels: KernelSet) -> None:
    registries = trt.Registry(), trt.Registry()
    drivers = FakeLauncher(kernels, (8, 9)), FakeLauncher(kernels, (12, 0))
    creators = [
        register(trt, r, EnergyAttention(KernelLibrary(d, kernels))) for r, d in zip(registries, drivers, strict=True)
    ]
    assert [list(r.creators.values()) for r in registries] == [[creator] for creator in creators]
    run(parsed(registries[1]), "update", addresses("update"))
    assert drivers[1].launched and not drivers[0].launched


def test_a_library_without_plugins_or_with_this_one_is_refused(driver: FakeLauncher, registry: trt.Registry) -> None:
    library = EnergyAttention(KernelLibrary(driver, driver.kernels))

    class Rtx:
        __name__, __version__ = "tensorrt_rtx", "1.7.1"

    with pytest.raises(BackendError, match=r"tensorrt_rtx 1\.7\.1 takes no plugins like ebca::EnergyCrossAttention"):
        register(Rtx(), registry, library)
    with pytest.raises(BackendError, match=f"already has a plugin {NAMESPACE}::{NAME}, version 1"):
        register(trt, registry, library)
