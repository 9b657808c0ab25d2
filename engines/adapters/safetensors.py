"""Reads .safetensors files with numpy alone; their contents are parsed as untrusted input.

The format: the length of the header in 8 bytes (little-endian), the header as JSON, the bytes of all tensors. For each
tensor the header has its dtype, its shape, and where its bytes begin and end after the header.
"""

import hashlib
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ebca.engines.contract import limits, strict_json
from ebca.engines.contract.checked import Entry
from ebca.errors import EbcaError, EngineError, ParameterError

_LENGTH = 8
_METADATA = "__metadata__"
_FILE_BYTES = 8 << 30
# numpy has no bfloat16: its bits are the upper half of a float32.
_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U8": "|u1"},
}


@dataclass(frozen=True)
class TensorFile:
    """A file that has been read.

    Attributes:
        path: of the file.
        sha256: of its contents.
        metadata: texts that its writer has left.
    """

    path: Path
    sha256: str
    metadata: Mapping[str, str]
    _stored: Mapping[str, tuple[np.ndarray, bool]]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in the order of the file."""
        return tuple(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name][0].shape

    def array(self, name: str) -> np.ndarray:
        """A tensor in float32. Raises ParameterError if a value is not finite."""
        stored, is_bfloat16 = self._stored[name]
        wide = (stored.astype(np.uint32) << 16).view(np.float32) if is_bfloat16 else stored.astype(np.float32)
        if not np.isfinite(wide).all():
            raise ParameterError(f"'{self.path}' has values that are not finite in '{name}'", "use another file")
        return wide


def read(path: str | Path) -> TensorFile:
    """Read a file.

    Raises:
        ParameterError: it is missing, cannot be read, or is no .safetensors file.
    """
    contents = _contents(Path(path))
    try:
        return _parsed(Path(path), contents)
    except (UnicodeDecodeError, EngineError) as error:
        problem = error.problem if isinstance(error, EbcaError) else "its header is no text"
        pickled = contents[:2] in (b"PK", b"\x80\x02")
        remedy = "convert it: pickled files can run code, so they are not opened" if pickled else "download it again"
        raise ParameterError(f"'{path}' is not a .safetensors file: {problem}", remedy) from None


def _contents(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode) or info.st_size > _FILE_BYTES:
                raise ParameterError(f"'{path}' is no file of weights", "name a .safetensors file")
            return file.read()
    except IsADirectoryError:
        raise ParameterError(f"'{path}' is a folder", "name the .safetensors file in it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ParameterError(f"'{path}' cannot be read: {reason}", "name a .safetensors file") from None


def _parsed(path: Path, contents: bytes) -> TensorFile:
    length = int.from_bytes(contents[:_LENGTH], "little")
    if len(contents) < _LENGTH or length > min(len(contents) - _LENGTH, limits.MANIFEST_BYTES):
        raise EngineError("the length of its header is wrong")
    header = Entry(strict_json.parse(contents[_LENGTH : _LENGTH + length].decode("utf-8")), "")
    data = memoryview(contents)[_LENGTH + length :]
    stored, metadata = dict[str, tuple[np.ndarray, bool]](), dict[str, str]()
    for name, entry in header.items():
        if name == _METADATA:
            metadata = {key: value.text() for key, value in entry.items()}
        else:
            stored[name] = _tensor(entry, data)
    return TensorFile(path, hashlib.sha256(contents).hexdigest(), metadata, stored)


def _tensor(entry: Entry, data: memoryview) -> tuple[np.ndarray, bool]:
    kind = entry["dtype"].choice(*_DTYPES)
    dtype = np.dtype(_DTYPES[kind])
    shape = tuple(size.integer(0, limits.DIMENSION) for size in entry["shape"].elements())
    offsets = [offset.integer(0, len(data)) for offset in entry["data_offsets"].elements()]
    if len(offsets) != 2 or len(shape) > 8 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        entry.refuse("a tensor whose bytes fit its shape")
    return np.frombuffer(data[offsets[0] : offsets[1]], dtype).reshape(shape), kind == "BF16"
