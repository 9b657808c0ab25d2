"""ControlNets of one UNet evaluation: their images, their scales, and the residuals that the UNet's segments read.

The active ControlNets run one after the other before the UNet. Each adds its residuals to those before it, so the first
reads zeros and the last writes what the segments read. Without an active one, the segments read zeros themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebca.engines.backends.protocol import Call
from ebca.engines.contract.manifest import UNetSpec
from ebca.engines.machine.memory import nbytes
from ebca.runtime.devices.device import Device, MirroredBuffer
from ebca.runtime.execution.binding import OpenRunner, bind_alone
from ebca.runtime.execution.block import Block
from ebca.runtime.execution.buffers import Buffers, control_shapes

_FLOAT = np.dtype(np.float32)


@dataclass(frozen=True, eq=False)
class ControlHint:
    """One use of a ControlNet in a run.

    Attributes:
        component: the ControlNet's.
        hint: [n,C,h,w] float32, its image encoded.
        scale: factor of its residuals.
    """

    component: str
    hint: np.ndarray
    scale: float


class Residuals:
    """Runs ControlNets on the inputs of an executor. Takes no memory before the first `load`.

    Args:
        unet: the split UNet of a manifest.
        open_runner: opens a component by name, for given sizes.
        buffers: of the evaluations.
        device: where the buffers are.

    Attributes:
        active: which of the loaded ControlNets the next evaluation runs, in order.
    """

    def __init__(self, unet: UNetSpec, open_runner: OpenRunner, buffers: Buffers, device: Device) -> None:
        self._unet = unet
        self._open = open_runner
        self._buffers = buffers
        self._device = device
        self._components: tuple[str, ...] = ()
        self._hints: list[MirroredBuffer] = []
        self._scales: list[MirroredBuffer] = []
        # Two, because no call may write what it reads.
        self._sums: list[Mapping[str, Any]] = []
        self._calls: dict[tuple[int, str, int, bool], Call] = {}
        self.active: tuple[int, ...] = ()

    def load(self, controls: Sequence[ControlHint]) -> None:
        """Use these ControlNets from now on, none of them active yet. With guidance, both halves of the rows get the
        same images."""
        self.active, self._components = (), tuple(control.component for control in controls)
        for index, control in enumerate(controls):
            if index == len(self._hints):
                shape = (self._buffers.sizes["batch"], *control.hint.shape[1:])
                self._hints.append(self._shared(shape))
                self._scales.append(self._shared(()))
            self._hints[index].host.reshape(-1, *control.hint.shape)[...] = control.hint
            self._scales[index].host[...] = control.scale
        if controls:
            self._device.upload([*self._hints[: len(controls)], *self._scales[: len(controls)]])

    @property
    def key(self) -> tuple[tuple[int, str], ...]:
        """What tells the recordings of evaluations apart: the active ControlNets."""
        return tuple((index, self._components[index]) for index in self.active)

    @property
    def sums(self) -> Mapping[str, Any]:
        """The arrays that segments read, by name: empty for zeros."""
        return self._sum(0) if self.active else {}

    def calls(self) -> list[Call]:
        """One bound call for each active ControlNet. They end in `sums`."""
        last = len(self.active) - 1
        return [self._call(index, (last - place) % 2, first=place == 0) for place, index in enumerate(self.active)]

    def _call(self, index: int, target: int, *, first: bool) -> Call:
        component = self._components[index]
        key = index, component, target, first
        if key not in self._calls:
            tensors = self._buffers.tensors
            # As they are, the tensors are zero.
            before = tensors if first else self._sum(1 - target)
            inputs = {name: tensors[name] for name in self._unet.inputs}
            inputs |= {"hint": self._hints[index].array, "scale": self._scales[index].array}
            inputs |= {f"before_{name}": before[name] for name in self._unet.controls}
            with self._device.ready():
                runner = self._open(component, self._buffers.sizes)
                self._calls[key] = bind_alone(runner, inputs, self._sum(target), self._device)
        return self._calls[key]

    def _sum(self, index: int) -> Mapping[str, Any]:
        while len(self._sums) <= index:
            shapes = control_shapes(self._unet, self._buffers.sizes)
            block = Block({name: (shape, _FLOAT) for name, shape in shapes.items()}, self._buffers.allocate)
            self._sums.append(block.arrays)
        return self._sums[index]

    def _shared(self, shape: tuple[int, ...]) -> MirroredBuffer:
        return self._device.share(self._buffers.allocate(nbytes(shape, _FLOAT)).view(0, shape, _FLOAT))


def residual_bytes(unet: UNetSpec, sizes: Mapping[str, int], count: int) -> int:
    """What `Residuals` allocate for so many ControlNets at once, up to alignment and hints."""
    one = sum(nbytes(shape, _FLOAT) for shape in control_shapes(unet, sizes).values())
    return min(count, 2) * one
