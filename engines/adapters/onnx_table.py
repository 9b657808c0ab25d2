"""Lets the table of tokens of a text encoder's graph grow. The runtime has no ONNX library, so the graph's protobuf is
edited in place: https://protobuf.dev/programming-guides/encoding/.

What changes: the number of rows and the length of the table's entry, and the offsets of all weights behind it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ebca.errors import EngineError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Numbers of fields in onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER, _GRAPH_VALUE_INFO = 5, 13
_TENSOR_DIMS, _TENSOR_NAME, _TENSOR_EXTERNAL = 1, 8, 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE, _SHAPE_DIM, _DIM_VALUE = 2, 1, 2, 1, 1


@dataclass(frozen=True)
class Growth:
    """A table in an external file that gets more rows.

    Attributes:
        offset: of the table in the weights file, in bytes.
        row_bytes: of one row.
        rows: before.
        new_rows: after.
        width: of a row.
    """

    offset: int
    row_bytes: int
    rows: int
    new_rows: int
    width: int

    @property
    def added(self) -> int:
        """Bytes that the file grows by."""
        return (self.new_rows - self.rows) * self.row_bytes


def grown(model: bytes, growth: Growth) -> bytes:
    """The bytes of an ONNX model whose weights file has a longer table.

    Raises:
        EngineError: it is no ONNX model, or has no such table.
    """
    try:
        edit = _Edit(growth)
        edited = b"".join(
            _field(n, kind, edit.graph(value)) if n == _MODEL_GRAPH and kind == _BYTES else raw
            for n, kind, value, raw in _fields(model)
        )
    except (IndexError, ValueError):
        raise EngineError("a graph of the text encoder cannot be read", "export the engine again") from None
    if not edit.found:
        raise EngineError("a graph of the text encoder has its table of tokens elsewhere", "export the engine again")
    return edited


class _Edit:
    def __init__(self, growth: Growth) -> None:
        self._growth = growth
        self.found = False

    def graph(self, graph: bytes) -> bytes:
        parts = []
        for number, kind, value, raw in _fields(graph):
            if number == _GRAPH_INITIALIZER:
                parts.append(_field(number, kind, self._tensor(value)))
            # Recorded shapes of the table, and of what a Cast makes of it. They are optional.
            elif number != _GRAPH_VALUE_INFO or _shape(value) != [self._growth.rows, self._growth.width]:
                parts.append(raw)
        return b"".join(parts)

    def _tensor(self, tensor: bytes) -> bytes:
        growth = self._growth
        external = [_entry(value) for number, _, value, _ in _fields(tensor) if number == _TENSOR_EXTERNAL]
        offset = next((int(value) for key, value in external if key == b"offset"), None)
        if offset is None or offset < growth.offset:
            return tensor
        table = offset == growth.offset
        self.found |= table
        changed = {b"offset": offset if table else offset + growth.added}
        if table:
            changed[b"length"] = growth.new_rows * growth.row_bytes
        parts, dims = [], 0
        for number, kind, value, raw in _fields(tensor):
            if number == _TENSOR_EXTERNAL:
                key, text = _entry(value)
                text = str(changed[key]).encode() if key in changed else text
                raw = _field(number, kind, _field(_ENTRY_KEY, _BYTES, key) + _field(_ENTRY_VALUE, _BYTES, text))
            elif number == _TENSOR_DIMS and table:
                # Packed or one by one.
                shape = _varints(value) if kind == _BYTES else [int.from_bytes(value, "little")]
                shape = [growth.new_rows if dims + i == 0 else size for i, size in enumerate(shape)]
                dims += len(shape)
                raw = b"".join(_varint(number << 3 | _VARINT) + _varint(size) for size in shape)
            parts.append(raw)
        return b"".join(parts)


def _entry(entry: bytes) -> tuple[bytes, bytes]:
    found = {number: value for number, _, value, _ in _fields(entry)}
    return found.get(_ENTRY_KEY, b""), found.get(_ENTRY_VALUE, b"")


def _shape(value_info: bytes) -> list[int]:
    """The shape that a value is said to have; empty if it is not that of a tensor with fixed sizes."""
    found = [value_info]
    for field in (_VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE, _SHAPE_DIM):
        found = [value for part in found for number, _, value, _ in _fields(part) if number == field]
    sizes = [[value for number, _, value, _ in _fields(dim) if number == _DIM_VALUE] for dim in found]
    return [int.from_bytes(size[0], "little") for size in sizes] if all(len(size) == 1 for size in sizes) else []


def _fields(message: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """(number, wire type, value, the field as it is) of each field. A varint's value is 8 bytes, little-endian."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            number, at = _read_varint(message, at)
            value = (number & (1 << 64) - 1).to_bytes(8, "little")
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
            value, at = message[at : at + size], at + size
        elif kind == _BYTES:
            length, at = _read_varint(message, at)
            value, at = message[at : at + length], at + length
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(message):
            raise ValueError("truncated")
        yield tag >> 3, kind, value, message[start:at]


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number is too long")


def _varints(packed: bytes) -> list[int]:
    found, at = [], 0
    while at < len(packed):
        value, at = _read_varint(packed, at)
        found.append(value)
    return found


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, kind: int, value: bytes) -> bytes:
    return _varint(number << 3 | kind) + _varint(len(value)) + value
