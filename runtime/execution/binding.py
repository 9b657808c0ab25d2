"""Binds each step of a schedule of segments to a runner and its arrays."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ebca.engines.backends.protocol import Arrays, Call, Runner
from ebca.engines.contract.manifest import Step, UNetSpec
from ebca.engines.machine.memory import address
from ebca.plugins.energy_attention import is_guided, plain, signature
from ebca.runtime.devices.device import Device, Memory
from ebca.runtime.execution.buffers import Buffers

OpenRunner = Callable[[str, Mapping[str, int]], Runner]
"""Opens a component by name, for given sizes: batch, contexts, tokens, height, width."""

Operands = tuple[Runner, Arrays, Arrays]
"""A runner, its inputs and its outputs."""


def bind_alone(runner: Runner, inputs: Arrays, outputs: Arrays, device: Device, *, once: bool = False) -> Call:
    """A bound call with scratch memory of its own. Hold `device.ready` meanwhile. `once`: see `Runner.bind`."""
    need = runner.workspace_bytes(inputs, outputs)
    if not need:
        return runner.bind(inputs, outputs, once=once)
    scratch = device.allocate(need).view(0, (need,), np.uint8)
    bound = runner.bind(inputs, outputs, address(scratch), once=once)

    def call(_keep: object = scratch) -> None:
        bound()

    return call


class StepBinder:
    """Binds the steps of a split UNet to one set of buffers.

    Args:
        unet: the split UNet of a manifest.
        open_runner: opens a component by name, for given sizes.
        buffers: hold all inputs and outputs.
        device: where the buffers are.
    """

    def __init__(self, unet: UNetSpec, open_runner: OpenRunner, buffers: Buffers, device: Device) -> None:
        self._unet = unet
        self._open = open_runner
        self._buffers = buffers
        self._device = device
        self._workspaces: list[Memory] = []

    def steps(self, variant: str, first: int = 0, replaced: Arrays | None = None) -> list[Call]:
        """One bound call per step of the manifest, in order.

        Args:
            variant: of the op.
            first: the first step to bind.
            replaced: arrays that segments read instead of those of the buffers, by name.
        """
        with self._device.ready():
            return self._bind([self._step(step, variant, replaced or {}) for step in self._unet.steps[first:]])

    def full_unet(self, runner: Runner | str, controls: Iterable[str] = ()) -> list[Call]:
        """A full UNet bound to the inputs, the outputs and these controls.

        Args:
            runner: an opened runner, or the name of a component.
            controls: names of its further inputs.
        """
        with self._device.ready():
            opened = self._open(runner, self._buffers.sizes) if isinstance(runner, str) else runner
            names, tensors = self._unet, self._buffers.tensors
            inputs = {name: tensors[name] for name in names.inputs}
            inputs |= {name: self._buffers.control[name].array for name in controls}
            return self._bind([(opened, inputs, {name: tensors[name] for name in names.outputs})])

    def _bind(self, steps: Sequence[Operands]) -> list[Call]:
        """Bound calls. They run one after the other, so they share one scratch buffer."""
        need = max((runner.workspace_bytes(inputs, outputs) for runner, inputs, outputs in steps), default=0)
        workspace = 0
        if need:
            self._workspaces.append(self._buffers.scratch(need))
            workspace = address(self._workspaces[-1].view(0, (need,), np.uint8))
        return [runner.bind(inputs, outputs, workspace) for runner, inputs, outputs in steps]

    def _step(self, step: Step, variant: str, replaced: Arrays) -> Operands:
        if step.segment is not None:
            return self._segment(step, variant, replaced)
        assert step.layer is not None
        layer, tensors, guided = self._unet.layers[step.layer], self._buffers.tensors, self._buffers.guided
        if not (guided and step.layer in guided.layers.biased):
            variant = plain(variant)
        names = signature(variant, layer.heads, layer.head_dim)
        arrays = {name: buffer.array for name, buffer in self._buffers.control.items()}
        arrays |= dict(zip(("q", "k", "v"), (tensors[n] for n in step.inputs), strict=True))
        arrays |= dict(zip(("out", "g"), (tensors[n] for n in step.outputs), strict=True))
        arrays["mask"] = self._buffers.mask(step.layer)
        arrays["energy_attn"], arrays["energy_norm"] = (term.array for term in self._buffers.energies[step.layer])
        sizes = {**self._buffers.sizes, "positions": arrays["q"].shape[1]}
        if guided and is_guided(variant):
            arrays |= guided.of_layer(step.layer)
            sizes["groups"] = guided.groups
        kernel = self._device.operator(variant, layer, np.dtype(arrays["q"].dtype))
        runner = kernel or self._open(self._unet.ops[layer.op][variant], sizes)
        return runner, {n: arrays[n] for n in names.inputs}, {n: arrays[n] for n in names.outputs}

    def _segment(self, step: Step, variant: str, replaced: Arrays) -> Operands:
        assert step.segment is not None
        tensors = self._buffers.tensors
        inputs = {name: replaced.get(name, tensors[name]) for name in step.inputs}
        if plain(variant) == "attention":
            for op in self._unet.steps:
                if op.layer is not None and (g := op.outputs[1]) in inputs:
                    inputs[g] = self._buffers.zero_g(inputs[g].shape)
        return self._open(step.segment, self._buffers.sizes), inputs, {name: tensors[name] for name in step.outputs}
