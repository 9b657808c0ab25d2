"""A stand-in for the module `tensorrt`, as far as plugins use it, and for what TensorRT does with a plugin.

As strict as the bindings: it detects a base class whose constructor was not called, a field is readable only as long as
the Python object that created it lives, and a string from an ONNX node ends in a zero byte.
"""

import enum
import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

__version__ = "11.4.0.106"


def _base(name: str) -> type:
    def construct(self: Any) -> None:
        self.__dict__.setdefault("constructed", set()).add(name)

    return type(name, (), {"__init__": construct})


IPluginV3 = _base("IPluginV3")
IPluginV3OneCore = _base("IPluginV3OneCore")
IPluginV3OneBuild = _base("IPluginV3OneBuild")
IPluginV3OneRuntime = _base("IPluginV3OneRuntime")
IPluginCreatorV3One = _base("IPluginCreatorV3One")

DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT32")
TensorFormat = enum.Enum("TensorFormat", "LINEAR CHW2 HWC8")
PluginFieldType = enum.Enum("PluginFieldType", "INT32 CHAR UNKNOWN")
TensorRTPhase = enum.Enum("TensorRTPhase", "BUILD RUNTIME")


class PluginField:
    """Its data are always returned as a numpy array."""

    def __init__(self, name: str, data: Any, type: Any) -> None:
        assert (type, bytes if type is PluginFieldType.CHAR else np.ndarray) == (type, data.__class__)
        assert type is not PluginFieldType.INT32 or data.dtype == np.int32
        self.name, self.type = name, type
        self.data = np.frombuffer(data, np.int8) if isinstance(data, bytes) else data


class PluginFieldCollection:
    """Holds addresses of fields, not the fields."""

    def __init__(self, fields: Sequence[PluginField]) -> None:
        self._fields = [weakref.ref(field) for field in fields]

    def __iter__(self) -> Iterator[PluginField]:
        for reference in self._fields:
            field = reference()
            assert field is not None, "a field is read after it was freed"
            yield field


class PluginFieldCollection_:
    """The type that the library itself reads: the address of a collection."""

    def __init__(self, fields: PluginFieldCollection) -> None:
        self._fields = weakref.ref(fields)

    def __iter__(self) -> Iterator[PluginField]:
        fields = self._fields()
        assert fields is not None, "a collection is read after it was freed"
        return iter(fields)


class DimsExprs(list[Any]):
    """Dimensions as expressions; here any objects."""


class Registry:
    """The plugin registry of one builder or runtime."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, plugin_namespace: str = "") -> bool:
        assert creator.constructed == {"IPluginCreatorV3One"}
        key = creator.name, creator.plugin_version, plugin_namespace
        assert creator.plugin_namespace == plugin_namespace
        return self.creators.setdefault(key, creator) is creator

    def parse(self, op_type: str, attributes: Mapping[str, int | str]) -> Any:
        """The plugin that the ONNX parser creates from a node, with a field per attribute that the creator names."""
        key = op_type, attributes.get("plugin_version", "1"), attributes.get("plugin_namespace", "")
        creator = self.creators[key]  # type: ignore[index]
        fields = [
            PluginField(field.name, value.encode() + b"\0", PluginFieldType.CHAR)
            if isinstance(value := attributes[field.name], str)
            else PluginField(field.name, np.array([value], np.int32), PluginFieldType.INT32)
            for field in creator.field_names
            if field.name in attributes
        ]
        collection = PluginFieldCollection(fields)
        return checked(creator.create_plugin("layer", PluginFieldCollection_(collection), TensorRTPhase.BUILD))

    def from_plan(self, plugin: Any) -> Any:
        """The plugin that a runtime creates from the fields that the builder stored."""
        creator = self.creators[plugin.plugin_name, plugin.plugin_version, plugin.plugin_namespace]
        fields = plugin.get_fields_to_serialize()
        assert type(fields) is PluginFieldCollection_
        return checked(creator.create_plugin("layer", fields, TensorRTPhase.RUNTIME))


def checked(plugin: Any) -> Any:
    """The plugin, after checking that the bindings would accept it."""
    assert plugin.constructed == {"IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime"}
    assert plugin.num_outputs >= 1 and isinstance(plugin.timing_cache_id, str)
    assert all(plugin.get_capability_interface(kind) is plugin for kind in ("core", "build", "runtime"))
    return plugin


def fixed(shape: Sequence[int], type: Any) -> Any:
    """PluginTensorDesc."""
    return SimpleNamespace(dims=tuple(shape), format=TensorFormat.LINEAR, type=type)


def ranged(largest: Sequence[int], type: Any = None, format: Any = TensorFormat.LINEAR) -> Any:
    """DynamicPluginTensorDesc, every dimension open."""
    desc = SimpleNamespace(dims=(-1,) * len(largest), format=format, type=type)
    return SimpleNamespace(desc=desc, min=(1,) * len(largest), max=tuple(largest))
