"""The memory of one UNet evaluation: an arena for the tensors between segments, and buffers shared with the host."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ebca.engines.contract import dims
from ebca.engines.contract.manifest import UNetSpec
from ebca.engines.contract.tensors import TO_CHANNELS_LAST
from ebca.engines.machine.memory import nbytes
from ebca.plugins.energy_attention import is_guided, plain
from ebca.runtime.devices.device import Device, Memory, MirroredBuffer
from ebca.runtime.execution.arena import Layout, lay_out, lifetimes
from ebca.runtime.execution.block import Block
from ebca.runtime.execution.control import ControlArrays
from ebca.runtime.execution.guided import GuidedTensors

_CONTROL_DIMENSIONS = {
    "weights": ("batch", "contexts"),
    "gamma_attn": ("batch", "contexts", "tokens"),
    "gamma_norm": ("batch", "contexts"),
    "norm_factor": (),
    "tie": ("batch", "contexts", "contexts"),
}


@dataclass(frozen=True)
class _Plan:
    """What an evaluation allocates at some sizes.

    Attributes:
        shapes, dtypes: of the tensors between segments, as they lie in memory.
        embeddings: names of the time embeddings, which lie outside of the arena.
        layout: of the others in the arena.
        layer_sizes: height and width of each layer's positions.
        widest: channels of the widest layer.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype[Any]]
    embeddings: Sequence[str]
    layout: Layout
    layer_sizes: Sequence[tuple[int, int]]
    widest: int


def buffer_bytes(unet: UNetSpec, sizes: Mapping[str, int]) -> int:
    """What `Buffers` allocate on the device at some sizes, up to alignment; nothing is allocated. Scratch memory of
    runners comes on top, and so do guided tensors, whose groups are known only when prompts have been read."""
    batch, contexts, tokens = (sizes[name] for name in ("batch", "contexts", "tokens"))
    plan = _plan(unet, sizes)
    shapes = [tuple(sizes[axis] for axis in axes) for axes in _CONTROL_DIMENSIONS.values()]
    shapes += [(batch, contexts, height * width) for height, width in set(plan.layer_sizes)]
    shapes += [(batch, contexts, tokens, plan.widest), (2 * len(unet.layers), batch, contexts)]
    shapes += sorted(control_shapes(unet, sizes).values(), key=math.prod)[-1:]
    embeddings = sum(nbytes(plan.shapes[name], plan.dtypes[name]) for name in plan.embeddings)
    return plan.layout.nbytes + embeddings + sum(nbytes(shape, np.float32) for shape in shapes)


def control_shapes(unet: UNetSpec, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of what ControlNets write, by name; all float32."""
    return {name: dims.shape(unet.tensors[name].shape, sizes) for name in unet.controls}


def _plan(unet: UNetSpec, sizes: Mapping[str, int], channels_last: Collection[str] = ()) -> _Plan:
    shapes = {name: dims.shape(spec.shape, sizes) for name, spec in unet.tensors.items()}
    shapes |= {name: tuple(shapes[name][axis] for axis in TO_CHANNELS_LAST) for name in channels_last}
    dtypes = {name: np.dtype(spec.dtype) for name, spec in unet.tensors.items()}
    sizes_in_bytes = {name: nbytes(shape, dtypes[name]) for name, shape in shapes.items()}
    alive = lifetimes(unet.steps, sizes_in_bytes, (*unet.inputs, *unet.outputs))
    embeddings = unet.time_step.outputs if unet.time_step else ()
    elsewhere = {*embeddings, *unet.controls}
    return _Plan(
        shapes,
        dtypes,
        embeddings,
        lay_out({name: lifetime for name, lifetime in alive.items() if name not in elsewhere}),
        [layer.size(sizes) for layer in unet.layers],
        max((layer.heads * layer.head_dim for layer in unet.layers), default=0),
    )


class Buffers:
    """All arrays of one UNet evaluation at fixed sizes, allocated once.

    Args:
        unet: the split UNet of a manifest.
        sizes: batch, contexts, tokens, height, width (latent).
        device: where the arrays are allocated.
        channels_last: tensors that are [B,h,w,C] in memory, see `UNetSpec.channels_last`.
        groups: of tokens, for the guided variants of the op; 0: none of these will run.

    Attributes:
        tensors: device arrays by their names in the manifest's steps. Those of `UNetSpec.controls` are zero.
        time_embeddings: what the first step writes, if that depends on the timestep alone.
        inputs: those of the UNet, in its order.
        outputs: noise, contexts_out.
        control: one buffer per control of the op.
        energies: attention and norm term [B,S] of each layer.
        guided: what guided variants read and write beside these; None without groups.
    """

    def __init__(
        self,
        unet: UNetSpec,
        sizes: Mapping[str, int],
        device: Device,
        channels_last: Collection[str] = (),
        groups: int = 0,
    ) -> None:
        self.sizes = dict(sizes)
        self._device = device
        self._allocated = self._scratch = 0
        self.channels_last = frozenset(channels_last)
        plan = _plan(unet, sizes, self.channels_last)
        shapes, dtypes = plan.shapes, plan.dtypes
        self._arena = self._allocate(plan.layout.nbytes)
        self.tensors: dict[str, Any] = {
            name: self._arena.view(offset, shapes[name], dtypes[name]) for name, offset in plan.layout.offsets.items()
        }
        self.time_embeddings = Block({name: (shapes[name], dtypes[name]) for name in plan.embeddings}, self._allocate)
        self.tensors |= self.time_embeddings.arrays
        self.tensors |= self._zero_controls(control_shapes(unet, sizes))
        batch, contexts, tokens = (sizes[name] for name in ("batch", "contexts", "tokens"))
        self.control = {
            name: self._mirrored(tuple(sizes[axis] for axis in axes)) for name, axes in _CONTROL_DIMENSIONS.items()
        }
        self.control["weights"].host[...] = 1
        self.control["norm_factor"].host[...] = 1
        self._layer_sizes = plan.layer_sizes
        self._masks = {s: self._mirrored((batch, contexts, s[0] * s[1])) for s in set(self._layer_sizes)}
        # Replaces g in the variant "attention", which computes none.
        self._zero_g = self._allocate(nbytes((batch, contexts, tokens, plan.widest), np.float32))
        self.energies = [[self._mirrored((batch, contexts)) for _ in range(2)] for _ in unet.layers]
        self.guided = GuidedTensors(unet, sizes, groups, device.share, self._allocate) if groups else None
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

    def allocate(self, size: int) -> Memory:
        """Further memory of the evaluation; it lives as long as the caller keeps it."""
        return self._allocate(size)

    def set_control(self, control: ControlArrays) -> None:
        """Copy a control into the host's side of the buffers; `reads` says which of them to upload."""
        for name, buffer in self.control.items():
            buffer.host[...] = getattr(control, name)
        for size, mask in self._masks.items():
            mask.host[...] = control.masks.get(size, 1.0)

    def reads(self, variant: str) -> list[MirroredBuffer]:
        """The buffers that the host writes and a variant of the op reads."""
        guided = self.guided.reads if is_guided(variant) and self.guided else ()
        variant = plain(variant)
        if variant == "attention":
            return [*self.inputs, self.control["weights"], *guided]
        masks = self._masks.values() if variant in ("update_masked", "energies") else ()
        return [*self.inputs, *self.control.values(), *masks, *guided]

    def writes(self, variant: str) -> list[MirroredBuffer]:
        """The buffers that a variant writes and the host reads."""
        maps = self.guided.writes if is_guided(variant) and self.guided else ()
        return [*self.outputs, *(chain(*self.energies) if plain(variant) == "energies" else ()), *maps]

    @property
    def memory(self) -> dict[str, int]:
        """Bytes on the device: "arena" (tensors between segments), "scratch" (runners), "control" (the rest)."""
        arena = self._arena.nbytes
        return {"arena": arena, "scratch": self._scratch, "control": self._allocated - arena - self._scratch}

    def _zero_controls(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Zeros in place of what ControlNets write, which nothing writes to: views of the same memory."""
        if not shapes:
            return {}
        zeros = self._allocate(max(nbytes(shape, np.float32) for shape in shapes.values()))
        return {name: zeros.view(0, shape, np.float32) for name, shape in shapes.items()}

    def _mirrored(self, shape: tuple[int, ...]) -> MirroredBuffer:
        """A small float32 array that the host writes or reads."""
        return self._device.share(self._allocate(nbytes(shape, np.float32)).view(0, shape, np.float32))

    def _allocate(self, size: int) -> Memory:
        self._allocated += size
        return self._device.allocate(size)
