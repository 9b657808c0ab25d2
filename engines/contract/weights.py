"""The file that says where each weight of the checkpoint lies: what a LoRA or an embedding needs to change it.

    {"unet": {"down_blocks.0. ... .attn2.to_k.weight": {
        "shape": [320, 768],
        "copies": [{"file": "unet/segment_00.onnx.data", "offset": 0, "dtype": "float16", "transposed": false}, ...]}},
     "text_encoder": {"text_model.encoder.layers.0. ...": ...}, "text_encoder_2": {...}}

Names are PyTorch's, those of the text encoders always with `text_model.`. Only weights with two axes or more are there:
a matrix [out, in], or a convolution [out, in, h, w]. A graph may store one more than once, and a matrix as its
transpose. A weight without copies is one that no graph reads: in Stable Diffusion XL, the first text encoder's last
layer. A change of it changes nothing.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final

import numpy as np

from ebca.engines.contract import limits, strict_json
from ebca.engines.contract.checked import Entry
from ebca.errors import EngineError

FILE: Final = "weights.json"
PARTS: Final = ("unet", "text_encoder", "text_encoder_2")
EMBEDDINGS: Final = "text_model.embeddings.token_embedding.weight"
"""The text encoder's table of tokens, [tokens, width]."""

_DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class Copy:
    """Where the bytes of a weight lie: `offset` bytes into `file`, in C order; of the transpose if `transposed`."""

    file: str
    offset: int
    dtype: str
    transposed: bool = False


@dataclass(frozen=True)
class StoredWeight:
    """A weight of the checkpoint: its shape in PyTorch, and every place that has it."""

    shape: tuple[int, ...]
    copies: tuple[Copy, ...]

    def nbytes(self, copy: Copy) -> int:
        """Bytes of one copy."""
        return math.prod(self.shape) * np.dtype(copy.dtype).itemsize


Weights = Mapping[str, Mapping[str, StoredWeight]]
"""Part of the model -> name -> the weight."""


def to_json(weights: Weights) -> str:
    """The text of the file, compact: a full model has some four hundred weights."""
    data = {part: {name: asdict(weight) for name, weight in named.items()} for part, named in weights.items()}
    return json.dumps(data, separators=(",", ":")) + "\n"


def parse(contents: bytes, sizes: Mapping[str, int]) -> Weights:
    """Read the file.

    Args:
        contents: of the file.
        sizes: bytes of each file of the engine directory.

    Raises:
        EngineError: a value of the wrong type or range, or a weight that is not inside a file of the directory.
    """
    try:
        document = Entry(strict_json.parse(contents.decode("utf-8")), "")
        found: dict[str, dict[str, StoredWeight]] = {"unet": {}, "text_encoder": {}}
        found |= {part: _named(entry) for part in PARTS if (entry := document.get(part)) is not None}
        for weight in (weight for named in found.values() for weight in named.values()):
            for copy in weight.copies:
                if copy.offset + weight.nbytes(copy) > sizes.get(copy.file, -1):
                    raise EngineError(f"a weight lies outside the file '{copy.file}'")
    except (UnicodeDecodeError, EngineError) as error:
        raise EngineError(f"{FILE} is broken: {error}", "export the engine again") from None
    return found


def with_rows(weights: Weights, rows: int) -> Weights:
    """The map after the table of tokens has grown to `rows` rows: what lies behind it in its file has moved."""
    table = weights["text_encoder"][EMBEDDINGS]
    added = math.prod(table.shape[1:]) * (rows - table.shape[0])
    starts = {copy.file: (copy.offset, added * np.dtype(copy.dtype).itemsize) for copy in table.copies}

    def moved(copy: Copy) -> Copy:
        start, by = starts.get(copy.file, (copy.offset, 0))
        return replace(copy, offset=copy.offset + by) if copy.offset > start else copy

    changed = {
        part: {name: replace(w, copies=tuple(moved(copy) for copy in w.copies)) for name, w in named.items()}
        for part, named in weights.items()
    }
    grown = changed["text_encoder"][EMBEDDINGS]
    changed["text_encoder"][EMBEDDINGS] = replace(grown, shape=(rows, *grown.shape[1:]))
    return changed


def _named(entry: Entry) -> dict[str, StoredWeight]:
    return {name: _weight(weight) for name, weight in entry.items()}


def _weight(entry: Entry) -> StoredWeight:
    shape = tuple(size.integer(1, limits.DIMENSION) for size in entry["shape"].elements())
    copies = tuple(_copy(copy, len(shape)) for copy in entry["copies"].elements())
    if len(shape) not in (2, 4):
        entry.refuse("a weight with two or four axes")
    return StoredWeight(shape, copies)


def _copy(entry: Entry, axes: int) -> Copy:
    transposed = entry["transposed"].boolean()
    if transposed and axes != 2:
        entry.refuse("a convolution as it is in PyTorch")
    return Copy(
        entry["file"].text(),
        entry["offset"].integer(0, limits.FILE_BYTES),
        entry["dtype"].choice(*_DTYPES),
        transposed,
    )
