"""The file that says where each weight of the checkpoint lies, for LoRAs and textual inversions.

Graph optimisation renames weights, so they are found by what they hold: every stored matrix or convolution is compared
with those of the checkpoint, as it is and transposed. That holds for every graph, and for components of an interrupted
export.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

from ebca.engines.contract.manifest import Component
from ebca.engines.contract.weights import FILE, Copy, StoredWeight, Weights, to_json
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.stages.context import Context, StageResult

# Values of a weight that are compared first.
_SAMPLES = 61
_DTYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}

_Parameters = Mapping[tuple[str, str], np.ndarray]
_Signature = tuple[tuple[int, ...], bytes]


def export(context: Context) -> StageResult:
    """Find the weights of the UNet and the text encoder in the components that earlier stages wrote."""
    context.report("where weights lie")
    found = find(context.checkpoint, context.before.components, context.folder)
    (context.folder / FILE).write_text(to_json(found), encoding="utf-8")
    return StageResult(files=(FILE,), sections={"weights": FILE})


def find(checkpoint: Checkpoint, components: Mapping[str, Component], folder: Path) -> Weights:
    """Every weight of UNet and text encoders with two axes or more, and each place in the files of components. Those
    that no component reads have none.

    A weight that equals another one, as two that are all zero, is told by its name in the graph if it has kept that,
    and left out otherwise.
    """
    parameters = _parameters(checkpoint)
    by_signature: dict[_Signature, list[tuple[str, str]]] = {}
    for key, value in parameters.items():
        by_signature.setdefault(_signature(value), []).append(key)
    places: dict[tuple[str, str], list[Copy]] = {}
    for component in components.values():
        if component.weights is not None:
            for name, array, offset in _stored(folder, component):
                if (match := _match(name, array, parameters, by_signature)) is not None:
                    key, transposed = match
                    copy = Copy(component.weights, offset, str(array.dtype), transposed)
                    copies = places.setdefault(key, [])
                    # Components may share a file of weights.
                    if copy not in copies:
                        copies.append(copy)
    weights: dict[str, dict[str, StoredWeight]] = {}
    for (part, name), value in parameters.items():
        copies = places.get((part, name), [])
        if copies or checkpoint.is_unread(part, name):
            weights.setdefault(part, {})[name] = StoredWeight(value.shape, tuple(copies))
    return weights


def _parameters(checkpoint: Checkpoint) -> _Parameters:
    """(part, name) -> values in float32."""
    return {
        (part, name): value.detach().numpy()
        for part, named in checkpoint.matrices().items()
        for name, value in named.items()
    }


def _stored(folder: Path, component: Component) -> Iterator[tuple[str, np.ndarray, int]]:
    """(name, values, offset) of the weights of a component that lie in its weights file."""
    assert component.weights is not None
    graph = onnx.load(folder / component.graph, load_external_data=False).graph
    for tensor in graph.initializer:
        external = {entry.key: entry.value for entry in tensor.external_data}
        if external and len(tensor.dims) in (2, 4) and tensor.data_type in _DTYPES:
            offset = int(external.get("offset", 0))
            dtype = np.dtype(_DTYPES[tensor.data_type])
            yield tensor.name, np.memmap(folder / component.weights, dtype, "r", offset, tuple(tensor.dims)), offset


def _signature(values: np.ndarray) -> _Signature:
    """Shape, and some values as float16 would have them."""
    step = max(1, values.size // _SAMPLES)
    at = np.unravel_index(np.arange(0, values.size, step), values.shape)
    with np.errstate(over="ignore"):
        return values.shape, values[at].astype(np.float16).tobytes()


def _match(
    name: str,
    array: np.ndarray,
    parameters: _Parameters,
    by_signature: Mapping[_Signature, list[tuple[str, str]]],
) -> tuple[tuple[str, str], bool] | None:
    """The parameter that a stored array holds, and whether transposed."""
    for transposed in (False, True) if array.ndim == 2 else (False,):
        values = array.T if transposed else array
        equal = [
            key
            for key in by_signature.get(_signature(values), ())
            if np.array_equal(parameters[key].astype(array.dtype, copy=False), values)
        ]
        if len(equal) > 1:
            equal = [key for key in equal if key[1].removeprefix("text_model.") in name]
        if len(equal) == 1:
            return equal[0], transposed
    return None
