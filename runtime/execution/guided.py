"""What the guided variants of the op read and write beside the plain ones: a bias per group of tokens, and the groups'
attention maps."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ebca.engines.contract.manifest import UNetSpec
from ebca.engines.machine.memory import nbytes
from ebca.runtime.devices.device import Memory, MirroredBuffer

# The kernels read and write vectors of 16 bytes.
_ALIGNED = 4


class GuidedTensors:
    """Arrays of the layers that `UNetSpec.subject_layers` names, which all have N positions.

    Args:
        unet: the split UNet of a manifest, whose `subject_layers` is not None.
        sizes: batch B, contexts S, tokens T, height, width (latent).
        groups: of tokens, G.
        share: gives the host access to a device array.
        allocate: allocates memory of a size in bytes.

    Attributes:
        layers: which layers are biased, and which of them are sources.
        grid: height and width of the maps.
        token_groups: int32 [B,S,T], the group of each token; -1, as at first, for none.
        bias: float32 [B,S,G,N], zero at first.
        layer_stride: elements from the maps of one source to those of the next.
        source_maps: device array of the sources' maps [L,B,G,N] float32; those of a layer begin `layer_stride` elements
            after those of the layer before.
    """

    def __init__(
        self,
        unet: UNetSpec,
        sizes: Mapping[str, int],
        groups: int,
        share: Callable[[Any], MirroredBuffer],
        allocate: Callable[[int], Memory],
    ) -> None:
        assert unet.subject_layers is not None
        self.layers = unet.subject_layers
        self.grid = unet.layers[self.layers.biased[0]].size(sizes)
        self.groups = groups
        batch, contexts, tokens = (sizes[name] for name in ("batch", "contexts", "tokens"))
        self._shape = batch, groups, self.grid[0] * self.grid[1]

        def shared(shape: tuple[int, ...], dtype: type) -> MirroredBuffer:
            return share(allocate(nbytes(shape, dtype)).view(0, shape, dtype))

        self.token_groups = shared((batch, contexts, tokens), np.int32)
        self.token_groups.host[...] = -1
        self.bias = shared((batch, contexts, groups, self._shape[2]), np.float32)
        self.layer_stride = -(-batch * groups * self._shape[2] // _ALIGNED) * _ALIGNED
        # Maps of each source, and one for all other layers.
        sources, biased = len(self.layers.sources), len(self.layers.biased)
        slots = sources + (sources < biased), self.layer_stride
        self._maps = allocate(nbytes(slots, np.float32))
        self._all_maps = share(self._maps.view(0, slots, np.float32))
        self.source_maps = self._maps.view(0, (sources, *self._shape), np.float32)

    @property
    def reads(self) -> list[MirroredBuffer]:
        """What the host writes and guided variants read."""
        return [self.token_groups, self.bias]

    @property
    def writes(self) -> list[MirroredBuffer]:
        """What guided variants write and the host reads."""
        return [self._all_maps]

    def maps(self) -> np.ndarray:
        """A copy of the sources' maps [L,B,G,N] float32 after an evaluation that downloaded them."""
        count = len(self.layers.sources)
        used = self._all_maps.host[:count, : int(np.prod(self._shape))]
        return np.array(used).reshape(count, *self._shape)

    def of_layer(self, layer: int) -> dict[str, Any]:
        """Device arrays of the op at a layer, by the op's names. Maps of layers that are no sources are not kept."""
        sources = self.layers.sources
        slot = sources.index(layer) if layer in sources else len(sources)
        maps = self._maps.view(4 * slot * self.layer_stride, self._shape, np.float32)
        return {"bias": self.bias.array, "token_groups": self.token_groups.array, "maps": maps}
