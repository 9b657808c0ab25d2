"""From torch's dimension symbols (`s53`, `((s30 - 1)//2) + 1`) to the names of `ebca.engines.contract.dims`."""

import math
import re
from collections.abc import Sequence
from itertools import combinations_with_replacement

import onnx_ir as ir

from ebca.engines.contract import dims
from ebca.engines.contract.dims import Dim
from ebca.engines.contract.entries import TIME_IDS
from ebca.errors import ExportError

MAX_HALVINGS = 8

Factors = tuple[str, ...]
"""Names of `ebca.engines.contract.dims`, to be multiplied."""

# Two sets of sizes at which no two expressions of the language have the same value by accident.
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
        terms = [(atom,) for atom in atoms] + list(combinations_with_replacement(atoms, 2))
        # The sizes of all rows in a row, which Stable Diffusion XL embeds.
        terms.append((str(TIME_IDS), "batch"))
        # Of terms with the same value, the first one is kept.
        self._known: dict[tuple[int, ...], Factors] = {self._fingerprint(term): term for term in reversed(terms)}
        self._cache: dict[str, Factors] = {}

    def shape(self, value: ir.Value) -> tuple[Dim, ...]:
        """The shape of a graph value in the names of `ebca.engines.contract.dims`.

        Raises:
            ExportError: the exporter left the shape open, or a dimension is outside the language.
        """
        if value.shape is None:
            raise ExportError(f"the traced graph has no shape for '{value.name}'")
        return tuple(d if isinstance(d, int) else "*".join(self._factors(d, value)) for d in value.shape)

    def shape_if_known(self, value: ir.Value) -> ir.Shape | None:
        """As `shape`, with None for a dimension outside the language, and for an open shape."""
        if value.shape is None:
            return None
        try:
            return ir.Shape(self.shape(value))
        except ExportError:
            return ir.Shape([d if isinstance(d, int) else None for d in value.shape])

    def name_dimensions(self, graph: ir.Graph) -> None:
        """Give the values of a graph shapes in our names. Raises ExportError for an input or output without one."""
        named = {value: ir.Shape(self.shape(value)) for value in (*graph.inputs, *graph.outputs)}
        for node in graph:
            for value in node.outputs:
                value.shape = named.get(value) or self.shape_if_known(value)
        for value in graph.inputs:
            value.shape = named[value]

    def height_and_width(self, value: ir.Value, axis: int) -> tuple[Dim, Dim]:
        """The height and the width of image positions that are flattened into one axis.

        Raises:
            ExportError: the axis is not a height times a width.
        """
        dim = value.shape[axis] if value.shape is not None else None
        factors = self._factors(dim, value) if isinstance(dim, ir.SymbolicDim) else ()
        by_base = {factor.partition("_")[0]: factor for factor in factors}
        if len(factors) != 2 or by_base.keys() != {"height", "width"}:
            raise ExportError(f"axis {axis} of '{value.name}' is {dim}, not a height times a width")
        return by_base["height"], by_base["width"]

    def _factors(self, dim: ir.SymbolicDim, value: ir.Value) -> Factors:
        """The names whose product a symbolic dimension is."""
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
    def _fingerprint(factors: Factors) -> tuple[int, ...]:
        return tuple(math.prod(dims.evaluate(factor, sizes) for factor in factors) for sizes in _PROBES)
