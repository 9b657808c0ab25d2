"""The memory of one UNet evaluation: an arena for the tensors between segments, and buffers shared with the host."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np

from ebca.engines.contract import dims
from ebca.engines.contract.manifest import UNetSpec
from ebca.engines.machine.memory import nbytes
from ebca.runtime.devices.device import Device, Memory, MirroredBuffer
from ebca.runtime.execution.arena import lay_out, lifetimes
from ebca.runtime.execution.control import ControlArrays

_CONTROL_DIMENSIONS = {
    "weights": ("batch", "contexts"),
    "gamma_attn": ("batch", "contexts", "tokens"),
    "gamma_norm": ("batch", "contexts"),
    "norm_factor": (),
    "tie": ("batch", "contexts", "contexts"),
}


class Buffers:
    """All arrays of one UNet evaluation at fixed sizes, allocated once.

    Args:
        unet: the split UNet of a manifest.
        sizes: batch, contexts, tokens, height, width (latent).
        device: where the arrays are allocated.

    Attributes:
        tensors: device arrays by their names in the manifest's steps.
        inputs: sample, timestep, contexts.
        outputs: noise, contexts_out.
        control: one buffer per control of the op.
        energies: attention and norm term [B,S] of each layer.
    """

    def __init__(self, unet: UNetSpec, sizes: Mapping[str, int], device: Device) -> None:
        self.sizes = dict(sizes)
        self._device = device
        self._allocated = self._scratch = 0
        shapes = {name: dims.shape(spec.shape, sizes) for name, spec in unet.tensors.items()}
        dtypes = {name: np.dtype(spec.dtype) for name, spec in unet.tensors.items()}
        sizes_in_bytes = {name: nbytes(shape, dtypes[name]) for name, shape in shapes.items()}
        layout = lay_out(lifetimes(unet.steps, sizes_in_bytes, (*unet.inputs, *unet.outputs)))
        self._arena = self._allocate(layout.nbytes)
        self.tensors: Mapping[str, Any] = {
            name: self._arena.view(offset, shapes[name], dtypes[name]) for name, offset in layout.offsets.items()
        }
        batch, contexts, tokens = (sizes[name] for name in ("batch", "contexts", "tokens"))
        self.control = {
            name: self._mirrored(tuple(sizes[axis] for axis in axes)) for name, axes in _CONTROL_DIMENSIONS.items()
        }
        self.control["weights"].host[...] = 1
        self.control["norm_factor"].host[...] = 1
        self._layer_sizes = [layer.size(sizes) for layer in unet.layers]
        self._masks = {s: self._mirrored((batch, contexts, s[0] * s[1])) for s in set(self._layer_sizes)}
        # Replaces g in the variant "attention", which computes none.
        widest = max((layer.heads * layer.head_dim for layer in unet.layers), default=0)
        self._zero_g = self._allocate(nbytes((batch, contexts, tokens, widest), np.float32))
        self.energies = [[self._mirrored((batch, contexts)) for _ in range(2)] for _ in unet.layers]
        self.inputs = [device.share(self.tensors[name]) for name in unet.inputs]
        self.outputs = [device.share(self.tensors[name]) for name in unet.outputs]

    def mask(self, layer: int) -> Any:
        """The device array of a layer's mask [B,S,N]."""
        return self._masks[self._layer_sizes[layer]].array

    def zero_g(self, shape: tuple[int, ...]) -> Any:
        """Zeros in place of a layer's g, float32."""
        return self._zero_g.view(0, shape, np.float32)

    def scratch(self, size: int) -> Memory:
        """Scratch memory for runners; it lives as long as the caller keeps it."""
        self._scratch += size
        return self._allocate(size)

    def set_control(self, control: ControlArrays) -> None:
        """Copy a control into the host's side of the buffers; `reads` says which of them to upload."""
        for name, buffer in self.control.items():
            buffer.host[...] = getattr(control, name)
        for size, mask in self._masks.items():
            mask.host[...] = control.masks.get(size, 1.0)

    def reads(self, variant: str) -> list[MirroredBuffer]:
        """The buffers that the host writes and a variant of the op reads."""
        if variant == "attention":
            return [*self.inputs, self.control["weights"]]
        masks = self._masks.values() if variant in ("update_masked", "energies") else ()
        return [*self.inputs, *self.control.values(), *masks]

    def writes(self, variant: str) -> list[MirroredBuffer]:
        """The buffers that a variant writes and the host reads."""
        return [*self.outputs, *(chain(*self.energies) if variant == "energies" else ())]

    @property
    def memory(self) -> dict[str, int]:
        """Bytes on the device: "arena" (tensors between segments), "scratch" (runners), "control" (the rest)."""
        arena = self._arena.nbytes
        return {"arena": arena, "scratch": self._scratch, "control": self._allocated - arena - self._scratch}

    def _mirrored(self, shape: tuple[int, ...]) -> MirroredBuffer:
        """A small float32 array that the host writes or reads."""
        return self._device.share(self._allocate(nbytes(shape, np.float32)).view(0, shape, np.float32))

    def _allocate(self, size: int) -> Memory:
        self._allocated += size
        return self._device.allocate(size)
