"""What is known of the latents (`ebca.runtime.sampling.known`) in device memory, for all evaluations of a run."""

from collections.abc import Iterable

import numpy as np

from ebca.engines.machine.memory import nbytes
from ebca.plugins.sampling import EMBED
from ebca.runtime.devices.device import GraphDevice, Memory


class DeviceKnown:
    """Before each scheduler step, one kernel copies known_i to where the sampler has `start`.

    It is the kernel that copies the time embeddings of an evaluation out of their table: it copies words of 32 bits.

    Args:
        device: allocates and records.
        step: int32 [1] on the device, the index of the evaluation.
        start: memory of the sampler's tensor `start`.
        shape: of the latents [n,C,h,w].
        room: evaluations at most.
    """

    def __init__(
        self, device: GraphDevice, step: object, start: Memory, shape: tuple[int, int, int, int], room: int
    ) -> None:
        elements = int(np.prod(shape))
        table = device.allocate(nbytes((room, *shape), np.float32))
        self._known = device.share(table.view(0, (room, *shape), np.float32))
        places = {"embedding_base": np.arange(elements), "embedding_stride": np.full(elements, elements)}
        words = {}
        for name, values in places.items():
            words[name] = device.share(device.allocate(4 * elements).view(0, (elements,), np.int32))
            words[name].host[...] = values
        device.upload(list(words.values()))
        self._device = device
        self.call = device.sampling(
            EMBED,
            {
                "step": step,
                "embeddings": table.view(0, (room * elements,), np.int32),
                "time_embeddings": start.view(0, (elements,), np.int32),
                **{name: buffer.array for name, buffer in words.items()},
            },
        )

    def begin(self, known: Iterable[np.ndarray]) -> None:
        """Upload known_0, known_1, ... of a run."""
        for i, latents in enumerate(known):
            self._known.host[i] = latents
        self._device.upload([self._known])
