"""Runs a split UNet: everything is bound once, and each evaluation replays what was recorded."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ebca.engines.backends.protocol import Call, Runner
from ebca.engines.contract.manifest import UNetSpec
from ebca.runtime.devices.device import Device
from ebca.runtime.execution.binding import OpenRunner, StepBinder
from ebca.runtime.execution.buffers import Buffers
from ebca.runtime.execution.control import ControlArrays


class Executor:
    """One UNet evaluation at fixed sizes. Owns its buffers; use from one thread at a time.

    Args:
        unet: the split UNet of a manifest.
        open_runner: opens a component by name.
        sizes: batch, contexts, tokens, height, width (latent).
        device: where buffers live.
        full_unet_with_updates: component that runs the variant "update" as one graph; None: its steps run one by one.

    Attributes:
        sample [B,C,h,w], timestep [B], contexts [B,S,T,D]: inputs, kept from evaluation to evaluation.
        noise [B,C,h,w], contexts_out [B,S,T,D]: outputs, valid until the next run.
    """

    def __init__(
        self,
        unet: UNetSpec,
        open_runner: OpenRunner,
        sizes: Mapping[str, int],
        device: Device,
        full_unet_with_updates: str | None = None,
    ) -> None:
        self.unet = unet
        self.device = device
        self.buffers = Buffers(unet, sizes, device)
        self._binder = StepBinder(unet, open_runner, self.buffers, device)
        self._full_unet_with_updates = full_unet_with_updates
        self._steps: dict[str, list[Call]] = {}
        self._full_unets: dict[str, list[Call]] = {}
        self._recorded: dict[str, Call] = {}
        self.sample, self.timestep, self.contexts = (buffer.host for buffer in self.buffers.inputs)
        self.noise, self.contexts_out = (buffer.host for buffer in self.buffers.outputs)

    @property
    def sizes(self) -> dict[str, int]:
        """batch, contexts, tokens, height, width."""
        return self.buffers.sizes

    @property
    def energies(self) -> np.ndarray:
        """[L,2,B,S] attention and norm term per layer, after a run of the "energies" variant."""
        return np.array([[term.host for term in layer] for layer in self.buffers.energies])

    def set_control(self, control: ControlArrays) -> None:
        """Copy a control into the buffers that recorded evaluations read."""
        self.buffers.set_control(control)

    def run(self, variant: str) -> None:
        """One evaluation with a variant of the op (see `ebca.plugins.energy_attention.VARIANTS`)."""
        self.record(variant)()

    def record(self, variant: str) -> Call:
        """Bind a variant on first use; calling the result runs it."""
        if variant not in self._recorded:
            reads, writes = self.buffers.reads(variant), self.buffers.writes(variant)
            self._recorded[variant] = self.device.record(self.calls(variant), reads, writes)
        return self._recorded[variant]

    def record_full_unet(self, runner: Runner) -> Call:
        """Record an unsplit UNet on this executor's inputs and outputs; it takes no control."""
        return self.device.record(self._binder.full_unet(runner), self.buffers.inputs, self.buffers.outputs)

    def calls(self, variant: str) -> list[Call]:
        """What a variant runs: its bound steps, or the full UNet if there is one that computes the same."""
        component = self._full_unet(variant)
        if component is None:
            return self.steps(variant)
        if variant not in self._full_unets:
            controls = self.buffers.control if variant == "update" else ()
            self._full_unets[variant] = self._binder.full_unet(component, controls)
        return self._full_unets[variant]

    def steps(self, variant: str) -> list[Call]:
        """One bound call per step of the manifest; recorded evaluations and inspections share them."""
        if variant not in self._steps:
            self._steps[variant] = self._binder.steps(variant)
        return self._steps[variant]

    def upload(self) -> None:
        """Copy inputs, controls and masks to the device; `run` does so too."""
        self.device.upload(self.buffers.reads("energies"))

    def download(self) -> None:
        """Wait, and copy the outputs to the host; `run` does so too."""
        self.device.download(self.buffers.outputs)

    @property
    def arrays(self) -> dict[str, Any]:
        """The device's arrays: inputs, outputs, and the controls."""
        tensors = {name: self.buffers.tensors[name] for name in (*self.unet.inputs, *self.unet.outputs)}
        return tensors | {name: buffer.array for name, buffer in self.buffers.control.items()}

    def _full_unet(self, variant: str) -> str | None:
        if variant == "attention" and self.sizes["contexts"] == 1:
            return self.unet.full_unet
        return self._full_unet_with_updates if variant == "update" else None
