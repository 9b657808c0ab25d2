"""The op inside a TensorRT plan: a plugin (IPluginV3) that launches the compiled kernels.

    creator = register(tensorrt, builder.get_plugin_registry(), EnergyAttention(KernelLibrary(CudaLauncher(0))))

TensorRT's ONNX parser creates the plugin from a node `EnergyCrossAttention` in domain `ebca` with
`Settings.attributes`. A plan stores its settings, and the runtime that opens the plan needs the plugin registered too.
TensorRT for RTX supports no plugins.

Tensors are in the order of `signature(variant, ...)` and in C order: q, k, v and out in float16, all others in float32.
Nothing is allocated and nothing waits, so a run can be captured in a CUDA graph.

Written against the Python bindings of TensorRT 11.4 and not run on a GPU yet.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np

from ebca.errors import BackendError, ParameterError
from ebca.plugins.energy_attention.contract import GUIDED_VARIANTS, VARIANTS, TensorSpec, signature
from ebca.plugins.energy_attention.launches import EnergyAttention, OpShape

NAME: Final = "EnergyCrossAttention"
NAMESPACE: Final = "ebca"
VERSION: Final = "1"

STORAGE: Final = "float16"
_STORED: Final = ("q", "k", "v", "out")


@dataclass(frozen=True)
class Settings:
    """The settings of a plugin: attributes of its ONNX node, fields in a plan."""

    num_heads: int
    head_dim: int
    variant: str

    def __post_init__(self) -> None:
        if self.variant in GUIDED_VARIANTS:
            raise ParameterError(
                f"the TensorRT plugin {NAMESPACE}::{NAME} has no variant '{self.variant}'",
                f"use {', '.join(VARIANTS)}; guidance needs the operator outside the plan",
            )

    @classmethod
    def from_fields(cls, fields: Iterable[Any]) -> Self:
        """The settings in a PluginFieldCollection, whose data are numpy arrays.

        Raises:
            ParameterError: a field is missing, the op has no such variant or sizes, or the variant is a guided one.
        """
        given = {field.name: np.asarray(field.data) for field in fields}
        if missing := [name for name in cls.__dataclass_fields__ if name not in given]:
            raise ParameterError(
                f"a node {NAMESPACE}::{NAME} lacks the attribute {' and '.join(missing)}", "export the engine again"
            )
        # A string from TensorRT's ONNX parser ends in a zero byte, one from a plan does not.
        variant = given["variant"].tobytes().rstrip(b"\0").decode("ascii", "replace")
        settings = cls(int(given["num_heads"].item()), int(given["head_dim"].item()), variant)
        signature(settings.variant, settings.num_heads, settings.head_dim)
        return settings

    @property
    def attributes(self) -> dict[str, int | str]:
        """Attributes of the ONNX node that TensorRT's parser turns into this plugin."""
        return {**asdict(self), "plugin_namespace": NAMESPACE, "plugin_version": VERSION}

    @property
    def inputs(self) -> dict[str, TensorSpec]:
        """Inputs by name, in order, with the dtypes that the kernels expect."""
        return _stored(signature(self.variant, self.num_heads, self.head_dim).inputs)

    @property
    def outputs(self) -> dict[str, TensorSpec]:
        """Outputs by name, in order, with the dtypes that the kernels write."""
        return _stored(signature(self.variant, self.num_heads, self.head_dim).outputs)

    def sizes(self, inputs: Iterable[Sequence[int]]) -> OpShape:
        """Sizes from the shapes of all inputs. Raises ParameterError if they contradict each other."""
        channels = self.num_heads * self.head_dim
        found: dict[str | int, int] = {channels: channels}
        for (name, spec), shape in zip(self.inputs.items(), inputs, strict=True):
            given = [int(n) for n in shape]
            taken: list[str | int] = list(spec.shape)
            if len(given) == len(taken):
                taken = [found.setdefault(dim, n) for dim, n in zip(spec.shape, given, strict=True)]
            if given != taken:
                raise ParameterError(f"{NAME} is given '{name}' of shape {given}, and expects {taken}", "export again")
        return OpShape(
            **{name: found[name] for name in ("batch", "positions", "contexts", "tokens")},
            heads=self.num_heads,
            head_dim=self.head_dim,
        )


def register(trt: Any, registry: Any, library: EnergyAttention) -> Any:
    """Register the plugin with TensorRT.

    Args:
        trt: the module `tensorrt`.
        registry: the plugin registry of a builder or a runtime (`get_plugin_registry()`).
        library: the kernels of the GPU that the builder or runtime is for.

    Returns:
        The creator, which must live as long as the registry.

    Raises:
        BackendError: the library supports no such plugins, or already has one of this name.
    """
    if not hasattr(trt, "IPluginV3"):
        raise BackendError(
            f"{trt.__name__} {trt.__version__} takes no plugins like {NAMESPACE}::{NAME}",
            "use TensorRT 10 or newer (TensorRT for RTX takes none), or export without --full-unet-plan",
        )
    creator = _creator_class(trt, _plugin_class(trt, library))()
    if not registry.register_creator(creator, NAMESPACE):
        raise BackendError(
            f"TensorRT already has a plugin {NAMESPACE}::{NAME}, version {VERSION}", "deregister the other one"
        )
    return creator


def _stored(specs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(STORAGE if name in _STORED else spec.dtype, spec.shape) for name, spec in specs.items()}


class _Fields:
    """Settings as TensorRT reads them: by address and at any time, so everything is kept alive.

    Attributes:
        collection: the library's own type. A PluginFieldCollection would have to be converted each time TensorRT asks,
            which the bindings can only do during a call from Python.
    """

    def __init__(self, trt: Any, settings: Settings) -> None:
        self._fields = [
            trt.PluginField(name, value.encode(), trt.PluginFieldType.CHAR)
            if isinstance(value, str)
            else trt.PluginField(name, np.array([value], np.int32), trt.PluginFieldType.INT32)
            for name, value in asdict(settings).items()
        ]
        self._list = trt.PluginFieldCollection(self._fields)
        self.collection = trt.PluginFieldCollection_(self._list)


def _plugin_class(trt: Any, library: EnergyAttention) -> Any:
    dtypes = {"float16": trt.DataType.HALF, "float32": trt.DataType.FLOAT}
    bases = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)

    class Plugin(*bases):  # type: ignore[misc]
        """All three capabilities: core, build and runtime. It keeps no state between runs, so a clone is a new plugin
        with the same settings."""

        def __init__(self, settings: Settings) -> None:
            for base in bases:
                base.__init__(self)
            self.plugin_name, self.plugin_namespace, self.plugin_version = NAME, NAMESPACE, VERSION
            self.num_outputs = len(settings.outputs)
            # Layers of the same settings and shapes are timed once.
            self.timing_cache_id = f"{settings.variant}_h{settings.num_heads}_d{settings.head_dim}"
            self._settings = settings
            self._fields = _Fields(trt, settings)

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return Plugin(self._settings)

        # Building

        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            return [dtypes[spec.dtype] for spec in self._settings.outputs.values()]

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], expr_builder: Any) -> list[Any]:
            # Every output has the shape of an input: out that of q, g that of k, an energy that of the weights.
            shapes = [spec.shape for spec in self._settings.inputs.values()]
            like = [inputs[shapes.index(spec.shape)] for spec in self._settings.outputs.values()]
            return [trt.DimsExprs([shape[axis] for axis in range(len(shape))]) for shape in like]

        def supports_format_combination(self, pos: int, in_out: Sequence[Any], num_inputs: int) -> bool:
            specs, desc = [*self._settings.inputs.values(), *self._settings.outputs.values()], in_out[pos].desc
            return bool(desc.format == trt.TensorFormat.LINEAR and desc.type == dtypes[specs[pos].dtype])

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            """Nothing depends on the configuration."""

        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            largest = self._settings.sizes(tensor.max for tensor in inputs)
            return library.scratch_bytes(self._settings.variant, STORAGE, largest)

        # Running

        def get_fields_to_serialize(self) -> Any:
            return self._fields.collection

        def attach_to_context(self, resource_context: Any) -> Any:
            return self.clone()

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            """`enqueue` gets the shapes."""

        def enqueue(
            self,
            input_desc: Sequence[Any],
            output_desc: Sequence[Any],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            shape = self._settings.sizes(desc.dims for desc in input_desc)
            names = (*self._settings.inputs, *self._settings.outputs)
            pointers = dict(zip(names, (*inputs, *outputs), strict=True))
            library.bind(self._settings.variant, STORAGE, shape, pointers, workspace)(stream)

    return Plugin


def _creator_class(trt: Any, plugin: Any) -> Any:
    class Creator(trt.IPluginCreatorV3One):
        """Creates the plugin from the attributes of a node, and from the fields in a plan."""

        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = NAME, NAMESPACE, VERSION
            # Only the names are read: the parser looks for attributes with these names.
            self._fields = _Fields(trt, Settings(1, 1, VARIANTS[0]))
            self.field_names = self._fields.collection

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            return plugin(Settings.from_fields(fields))

    return Creator
