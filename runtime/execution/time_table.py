"""The embeddings of all timesteps of a run, computed in one call.

They depend on nothing else, and cost as many products for two rows as for a hundred: 24 at SD 1.5 size, of 0.2 ms for
each evaluation on an H200.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ebca.engines.backends.protocol import Call
from ebca.engines.contract import dims
from ebca.engines.contract.manifest import UNetSpec
from ebca.runtime.devices.device import Device
from ebca.runtime.execution.binding import OpenRunner, bind_alone
from ebca.runtime.execution.block import Block
from ebca.runtime.execution.buffers import Buffers

_WORD_BYTES = 4


class TimeTable:
    """A table of embeddings with one row per timestep.

    Args:
        unet: the split UNet of a manifest, whose `time_step` is not None.
        open_runner: opens a component by name, for given sizes.
        buffers: of the evaluations that read the table.
        device: where the table is.
        timesteps: device array [rows] float32 that the call reads.

    Attributes:
        call: fills the table from the timesteps.
        rows: by name, the embeddings [rows,...]; arrays on the device.
        words: the table as int32 [W].
    """

    def __init__(
        self, unet: UNetSpec, open_runner: OpenRunner, buffers: Buffers, device: Device, timesteps: Any
    ) -> None:
        step = unet.time_step
        assert step is not None and step.segment is not None
        self._buffers = buffers
        sizes = {**buffers.sizes, "batch": timesteps.shape[0]}
        specs = {name: unet.tensors[name] for name in step.outputs}
        block = Block(
            {name: (dims.shape(spec.shape, sizes), np.dtype(spec.dtype)) for name, spec in specs.items()},
            device.allocate,
        )
        self._offsets = block.offsets
        self.rows: Mapping[str, Any] = block.arrays
        self.words = block.words
        with device.ready():
            runner = open_runner(step.segment, sizes)
            self.call: Call = bind_alone(runner, {"timestep": timesteps}, self.rows, device)

    def gather(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each word of the buffers' embeddings comes from: base and stride, int32 [E].

        Word e of an evaluation that reads row i is `words[base[e] + i * stride[e]]`. Every row of the batch gets the
        same embedding.
        """
        target = self._buffers.time_embeddings
        size = target.words.shape[0]
        base, stride = np.zeros(size, np.int32), np.zeros(size, np.int32)
        for name, array in target.arrays.items():
            batch = array.shape[0]
            row_words = array.nbytes // batch // _WORD_BYTES
            first = target.offsets[name] // _WORD_BYTES
            here = slice(first, first + batch * row_words)
            base[here] = self._offsets[name] // _WORD_BYTES + np.tile(np.arange(row_words, dtype=np.int32), batch)
            stride[here] = row_words
        return base, stride


def in_words(buffers: Buffers) -> bool:
    """Whether the rows of all embeddings are multiples of a word, so that `TimeTable.gather` can name them."""
    arrays = buffers.time_embeddings.arrays.values()
    return all(array.nbytes // array.shape[0] % _WORD_BYTES == 0 for array in arrays)
