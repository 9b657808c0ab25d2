"""Runs a split UNet. Every step is bound once; each evaluation replays the recording."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ebca.engines.backends.protocol import Call, Runner
from ebca.engines.contract.manifest import UNetSpec
from ebca.engines.machine import heap
from ebca.runtime.devices.device import Device
from ebca.runtime.execution.binding import OpenRunner, StepBinder
from ebca.runtime.execution.buffers import Buffers
from ebca.runtime.execution.control import ControlArrays
from ebca.runtime.execution.residuals import Residuals
from ebca.runtime.execution.time_table import TimeTable


class Executor:
    """One UNet evaluation at fixed sizes. Owns its buffers; use from one thread at a time.

    Args:
        unet: the split UNet of a manifest.
        open_runner: opens a component by name, for given sizes.
        sizes: batch, contexts, tokens, height, width (latent).
        device: where the buffers are allocated.
        full_unet_with_updates: component that runs the variant "update" as one graph; None: run its steps one by one.
        channels_last: tensors that are [B,h,w,C] in memory, see `UNetSpec.channels_last`.
        groups: of tokens, for the guided variants of the op; 0: none of these will run.

    Attributes:
        sample: [B,C,h,w] float32, input; keeps its values between evaluations.
        timestep: [B] float32, input; likewise.
        contexts: [B,S,T,D] float32, input; likewise.
        conditions: what an evaluation reads beside sample and timestep, by name: contexts, and for Stable Diffusion XL
            `ADDED_INPUTS`; likewise.
        noise: [B,C,h,w] float32, output; valid until the next run.
        contexts_out: [B,S,T,D] float32, output; likewise.
        residuals: ControlNets that run before the UNet; none are active at first.
    """

    def __init__(
        self,
        unet: UNetSpec,
        open_runner: OpenRunner,
        sizes: Mapping[str, int],
        device: Device,
        full_unet_with_updates: str | None = None,
        *,
        channels_last: Collection[str] = (),
        groups: int = 0,
    ) -> None:
        self.unet = unet
        self.device = device
        self.buffers = Buffers(unet, sizes, device, channels_last, groups)
        self._open_runner = open_runner
        self._binder = StepBinder(unet, open_runner, self.buffers, device)
        self._full_unet_with_updates = full_unet_with_updates
        self.residuals = Residuals(unet, open_runner, self.buffers, device)
        self._steps: dict[tuple[str, bool, bool], list[Call]] = {}
        self._full_unets: dict[str, list[Call]] = {}
        self._recorded: dict[tuple[object, ...], Call] = {}
        inputs = dict(zip(unet.inputs, (buffer.host for buffer in self.buffers.inputs), strict=True))
        self.sample, self.timestep = inputs.pop("sample"), inputs.pop("timestep")
        self.contexts, self.conditions = inputs["contexts"], inputs
        self.noise, self.contexts_out = (buffer.host for buffer in self.buffers.outputs)

    @property
    def sizes(self) -> dict[str, int]:
        """batch, contexts, tokens, height, width."""
        return self.buffers.sizes

    @property
    def energies(self) -> np.ndarray:
        """[L,2,B,S] float32: attention and norm term per layer, after a run of the variant "energies"."""
        return np.array([[term.host for term in layer] for layer in self.buffers.energies])

    def set_conditions(self, conditions: Mapping[str, np.ndarray]) -> None:
        """Copy conditions into the buffers that evaluations read; all of `conditions` are needed."""
        for name, host in self.conditions.items():
            host[...] = conditions[name]

    def set_control(self, control: ControlArrays) -> None:
        """Copy a control into the buffers that evaluations read."""
        self.buffers.set_control(control)

    def run(self, variant: str, *, embedded: bool = False) -> None:
        """Run one evaluation with a variant of the op (see `ebca.plugins.energy_attention.VARIANTS`).

        Args:
            variant: of the op. A guided one is used where `UNetSpec.subject_layers` say, and elsewhere the plain one.
            embedded: the time embeddings are in the buffers already, see `TimeTable`.
        """
        self.record(variant, embedded=embedded)()

    def record(self, variant: str, *, embedded: bool = False) -> Call:
        """Bind and record a variant with the active ControlNets on first use. Calling the result runs both."""
        key = variant, embedded, self.residuals.key
        if key not in self._recorded:
            reads, writes = self.buffers.reads(variant), self.buffers.writes(variant)
            self._recorded[key] = self.device.record(self.calls(variant, embedded=embedded), reads, writes)
        return self._recorded[key]

    def runs_steps(self, variant: str) -> bool:
        """Whether a variant runs the steps of the manifest, rather than a full UNet."""
        return self._full_unet(variant) is None

    def time_table(self, timesteps: Any) -> TimeTable:
        """A table of embeddings for evaluations of this executor.

        Args:
            timesteps: device array [rows] float32.
        """
        return TimeTable(self.unet, self._open_runner, self.buffers, self.device, timesteps)

    def record_full_unet(self, runner: Runner) -> Call:
        """Record a full UNet on this executor's inputs and outputs. It takes no control."""
        return self.device.record(self._binder.full_unet(runner), self.buffers.inputs, self.buffers.outputs)

    def calls(self, variant: str, *, embedded: bool = False) -> list[Call]:
        """The calls of a variant: the active ControlNets, then its bound steps; or an equivalent full UNet, which an
        engine with ControlNets does not have.

        With `embedded` the first step is left out if it only embeds the timestep.
        """
        component = self._full_unet(variant)
        if component is None:
            return [*self.residuals.calls(), *self.steps(variant, embedded=embedded)]
        if variant not in self._full_unets:
            controls = self.buffers.control if variant == "update" else ()
            self._full_unets[variant] = self._binder.full_unet(component, controls)
        return self._full_unets[variant]

    def steps(self, variant: str, *, embedded: bool = False) -> list[Call]:
        """One bound call per step of the manifest, shared by recorded evaluations and inspection; with `embedded`, as
        in `calls`."""
        key = variant, embedded and self.unet.time_step is not None, bool(self.residuals.active)
        if key not in self._steps:
            self._steps[key] = self._binder.steps(variant, int(key[1]), self.residuals.sums)
            # Components were opened for it.
            heap.trim()
        return self._steps[key]

    def upload(self) -> None:
        """Copy inputs, controls and masks to the device. `run` includes this."""
        guided = self.buffers.guided is not None
        self.device.upload(self.buffers.reads("energies_guided" if guided else "energies"))

    def download(self) -> None:
        """Wait for the device, and copy the outputs to the host. `run` includes this."""
        self.device.download(self.buffers.outputs)

    @property
    def arrays(self) -> dict[str, Any]:
        """The device arrays of inputs, outputs and controls, by name."""
        tensors = {name: self.buffers.tensors[name] for name in (*self.unet.inputs, *self.unet.outputs)}
        return tensors | {name: buffer.array for name, buffer in self.buffers.control.items()}

    def _full_unet(self, variant: str) -> str | None:
        if variant == "attention" and self.sizes["contexts"] == 1:
            return self.unet.full_unet
        return self._full_unet_with_updates if variant == "update" else None
