"""From torch's dimension symbols (`s53`, `((s30 - 1)//2) + 1`) to the names of `ebca.engines.contract.dims`."""

import re
from collections.abc import Sequence
from itertools import combinations_with_replacement

import onnx_ir as ir

from ebca.engines.contract import dims
from ebca.engines.contract.dims import Dim
from ebca.errors import ExportError

MAX_HALVINGS = 8

# Two sets of sizes at which no two expressions of the language agree by accident.
_PROBES: tuple[dict[str, int], ...] = (
    {"batch": 3, "contexts": 5, "tokens": 79, "height": 1009, "width": 2003},
    {"batch": 7, "contexts": 2, "tokens": 113, "height": 4099, "width": 1511},
)
_SAFE = re.compile(r"[\w\s()+\-*/]*")


class Symbols:
    """Translates the dimensions of one traced graph.

    Args:
        inputs: per graph input, the value and the names of its dynamic axes, e.g. {0: "batch", 2: "height"}.
    """

    def __init__(self, inputs: Sequence[tuple[ir.Value, dict[int, str]]]) -> None:
        self._names: dict[str, str] = {}
        for value, axes in inputs:
            assert value.shape is not None
            for axis, name in axes.items():
                symbol = value.shape[axis]
                assert isinstance(symbol, ir.SymbolicDim) and symbol.value is not None
                self._names[symbol.value] = name
        names = sorted(set(self._names.values()))
        atoms = list(names)
        atoms += [f"{n}_{k}" for n in names if n in ("height", "width") for k in range(1, MAX_HALVINGS + 1)]
        products = ["*".join(pair) for pair in combinations_with_replacement(atoms, 2)]
        self._known = {self._fingerprint(e): e for e in reversed(atoms + products)}
        self._cache: dict[str, Dim] = {}

    def shape(self, value: ir.Value) -> tuple[Dim, ...]:
        """The shape of a graph value in the names of `ebca.engines.contract.dims`.

        Raises:
            ExportError: the exporter left the shape open, or a dimension is outside the language.
        """
        if value.shape is None:
            raise ExportError(f"the traced graph has no shape for '{value.name}'")
        return tuple(self._dim(d, value) for d in value.shape)

    def _dim(self, dim: int | ir.SymbolicDim, value: ir.Value) -> Dim:
        if isinstance(dim, int):
            return dim
        text = dim.value
        if text is None:
            raise ExportError(f"the traced graph has an open dimension in '{value.name}': {value.shape}")
        if text not in self._cache:
            if not _SAFE.fullmatch(text):
                raise ExportError(f"dimension '{text}' of '{value.name}' cannot be translated")
            point = tuple(self._evaluate(text, sizes) for sizes in _PROBES)
            if point not in self._known:
                raise ExportError(f"dimension '{text}' of '{value.name}' is not a product of known sizes")
            self._cache[text] = self._known[point]
        return self._cache[text]

    def _evaluate(self, text: str, sizes: dict[str, int]) -> int:
        values = {symbol: sizes[name] for symbol, name in self._names.items()}
        return int(eval(compile(text, "<dimension>", "eval"), {"__builtins__": {}}, values))

    @staticmethod
    def _fingerprint(expression: str) -> tuple[int, ...]:
        return tuple(dims.evaluate(expression, sizes) for sizes in _PROBES)
