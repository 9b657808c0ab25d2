"""Runs the plan of a split UNet: one arena, everything bound once, each step a replay."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from ebca.engines.backends.protocol import Arrays, Call, Runner
from ebca.engines.contract import dims
from ebca.engines.contract.manifest import Step, UNetSpec
from ebca.engines.machine.memory import address, nbytes
from ebca.plugins.energy_attention import VARIANTS, signature
from ebca.runtime.devices.device import Device, Memory, MirroredBuffer
from ebca.runtime.execution.arena import lay_out, lifetimes
from ebca.runtime.execution.control import ControlArrays

OpenRunner = Callable[[str], Runner]

_Operands = tuple[Runner, Arrays, Arrays]

_Seen = list[np.ndarray]

Probe = Callable[[int, np.ndarray, np.ndarray], None]
"""Called with layer, q [B,N,C], k [B,S,T,C] right after a layer's op has run; they are overwritten later."""


class Executor:
    """One UNet evaluation at fixed sizes. Owns its buffers; use from one thread at a time.

    Args:
        unet: the split UNet of a manifest.
        open_runner: opens a component by name.
        sizes: batch, contexts, tokens, height, width (latent).
        device: where buffers live.
        whole: component of the uncut UNet that runs the variant "update"; None: the plan runs it.

    Attributes:
        sample [B,C,h,w], timestep [B], contexts [B,S,T,D]: inputs, kept from step to step.
        noise [B,C,h,w], contexts_out [B,S,T,D]: outputs, valid until the next run.
    """

    def __init__(
        self,
        unet: UNetSpec,
        open_runner: OpenRunner,
        sizes: Mapping[str, int],
        device: Device,
        whole: str | None = None,
    ) -> None:
        self.sizes = dict(sizes)
        self._unet = unet
        self._open = open_runner
        self._device = device
        self._whole = whole
        shapes = {name: dims.shape(spec.shape, sizes) for name, spec in unet.tensors.items()}
        dtypes = {name: np.dtype(spec.dtype) for name, spec in unet.tensors.items()}
        sizes_in_bytes = {name: nbytes(shape, dtypes[name]) for name, shape in shapes.items()}
        layout = lay_out(lifetimes(unet.steps, sizes_in_bytes, (*unet.inputs, *unet.outputs)))
        self._allocated = 0
        self._arena = self._allocate(layout.nbytes)
        self._tensors = {
            name: self._arena.view(offset, shapes[name], dtypes[name]) for name, offset in layout.offsets.items()
        }
        batch, contexts, tokens = (sizes[n] for n in ("batch", "contexts", "tokens"))
        self._layer_sizes = [layer.size(sizes) for layer in unet.layers]
        controls = {
            "weights": (batch, contexts),
            "gamma_attn": (batch, contexts, tokens),
            "gamma_norm": (batch, contexts),
            "norm_factor": (),
            "tie": (batch, contexts, contexts),
        }
        self._control = {name: self._shared(shape) for name, shape in controls.items()}
        self._control["weights"].host[...] = 1
        self._control["norm_factor"].host[...] = 1
        self._masks = {s: self._shared((batch, contexts, s[0] * s[1])) for s in set(self._layer_sizes)}
        # What stands in for g in the variant that computes none.
        widest = max((layer.heads * layer.head_dim for layer in unet.layers), default=0)
        self._zero_g = self._allocate(nbytes((batch, contexts, tokens, widest), np.float32))
        self._energies = [[self._shared((batch, contexts)) for _ in range(2)] for _ in unet.layers]
        self._bound: dict[str, list[Call]] = {}
        self._uncut: dict[str, list[Call]] = {}
        self._workspaces: list[Memory] = []
        self._recorded: dict[str, Call] = {}
        self._inputs = [device.share(self._tensors[name]) for name in unet.inputs]
        self._outputs = [device.share(self._tensors[name]) for name in unet.outputs]
        self.sample, self.timestep, self.contexts = (shared.host for shared in self._inputs)
        self.noise, self.contexts_out = (shared.host for shared in self._outputs)

    def _shared(self, shape: tuple[int, ...]) -> MirroredBuffer:
        """A small float32 array of its own that the host writes or reads."""
        return self._device.share(self._allocate(nbytes(shape, np.float32)).view(0, shape, np.float32))

    def _allocate(self, nbytes: int) -> Memory:
        self._allocated += nbytes
        return self._device.allocate(nbytes)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes on the device: "arena" of all tensors between segments, "scratch" of engines and kernels, "control",
        what is left."""
        arena, scratch = self._arena.nbytes, sum(memory.nbytes for memory in self._workspaces)
        return {"arena": arena, "scratch": scratch, "control": self._allocated - arena - scratch}

    @property
    def energies(self) -> np.ndarray:
        """[L,2,B,S] attention and norm term per layer, after a run of the "energies" variant."""
        return np.array([[term.host for term in layer] for layer in self._energies])

    def set_control(self, control: ControlArrays) -> None:
        """Copy a control into the buffers that the recorded steps read."""
        for name in self._control:
            self._control[name].host[...] = getattr(control, name)
        for size, mask in self._masks.items():
            mask.host[...] = control.masks.get(size, 1.0)

    def run(self, variant: str, probe: Probe | None = None) -> None:
        """One evaluation with a variant of the op (see `ebca.plugins.energy_attention.VARIANTS`).

        probe: looks at every layer on the way; without one nothing is spent on it.
        """
        self.record(variant)() if probe is None else self._probed(variant, probe)

    def record(self, variant: str) -> Call:
        """Bind a variant on first use; calling the result runs it."""
        if variant not in self._recorded:
            self._recorded[variant] = self._device.record(
                self.calls(variant), self._reads(variant), self._writes(variant)
            )
        return self._recorded[variant]

    def _reads(self, variant: str) -> list[MirroredBuffer]:
        """What the host wrote and the variant reads."""
        if variant == "attention":
            return [*self._inputs, self._control["weights"]]
        masks = self._masks.values() if variant in ("update_masked", "energies") else ()
        return [*self._inputs, *self._control.values(), *masks]

    def _writes(self, variant: str) -> list[MirroredBuffer]:
        """What the variant writes and the host reads."""
        return [*self._outputs, *(chain(*self._energies) if variant == "energies" else ())]

    def calls(self, variant: str) -> list[Call]:
        """What a variant runs: its bound steps, or the uncut UNet where there is one and it computes the same."""
        component = self._uncut_component(variant)
        if component is None:
            return self._steps(variant)
        if variant not in self._uncut:
            controls = self._control if variant == "update" else ()
            with self._device.ready():
                self._uncut[variant] = self._bind([self._uncut_operands(self._open(component), controls)])
        return self._uncut[variant]

    def _uncut_component(self, variant: str) -> str | None:
        if variant == "attention" and self.sizes["contexts"] == 1:
            return self._unet.full_unet
        return self._whole if variant == "update" else None

    def _steps(self, variant: str) -> list[Call]:
        """One bound call per step of the plan; what replays a variant and what looks between its steps share them."""
        if variant not in self._bound:
            with self._device.ready():
                self._bound[variant] = self._bind([self._operands(step, variant) for step in self._unet.steps])
        return self._bound[variant]

    def _bind(self, steps: Sequence[_Operands]) -> list[Call]:
        """Bound calls that run one after the other, and so may use the same scratch memory."""
        need = max((runner.workspace_bytes(inputs, outputs) for runner, inputs, outputs in steps), default=0)
        workspace = 0
        if need:
            # Lives as long as the calls.
            self._workspaces.append(self._allocate(need))
            workspace = address(self._workspaces[-1].view(0, (need,), np.uint8))
        return [runner.bind(inputs, outputs, workspace) for runner, inputs, outputs in steps]

    def evaluate(self, index: int, variant: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one step of the plan by itself on given tensors, named as in the plan. Returns its outputs."""
        step, call = self._unet.steps[index], self._steps(variant)[index]
        given = {name: self._device.share(self._tensors[name]) for name in step.inputs}
        made = {name: self._device.share(self._tensors[name]) for name in self._written(step, variant)}
        for name, shared in given.items():
            shared.host[...] = inputs[name]
        self._device.upload([*self._reads(variant), *given.values()])
        self._device.run(call)
        self._device.download(list(made.values()))
        return {name: np.array(shared.host) for name, shared in made.items()}

    def clock(self, variant: str) -> Callable[[], dict[str, float]]:
        """A function that runs a variant and gives the seconds of each step by itself: a segment under its name, the op
        of layer 7 as "attention_07"."""
        steps = self._steps(variant)
        timed = self._device.clock(steps)
        names = [step.segment or f"attention_{step.layer:02}" for step in self._unet.steps]

        def run() -> dict[str, float]:
            self._device.upload(self._reads(variant))
            seconds = timed()
            self._device.download(self._writes(variant))
            return dict(zip(names, seconds, strict=True))

        return run

    def record_whole(self, runner: Runner) -> Call:
        """Record an uncut UNet on this executor's inputs and outputs; it takes no control."""
        with self._device.ready():
            calls = self._bind([self._uncut_operands(runner)])
        return self._device.record(calls, self._inputs, self._outputs)

    def _uncut_operands(self, runner: Runner, controls: Iterable[str] = ()) -> _Operands:
        names = self._unet.inputs, self._unet.outputs
        inputs, outputs = ({name: self._tensors[name] for name in some} for some in names)
        return runner, inputs | {name: self._control[name].array for name in controls}, outputs

    def upload(self) -> None:
        """Bring inputs, control and masks to the device; `run` does so by itself."""
        self._device.upload(self._reads("energies"))

    def download(self) -> None:
        """Wait, and let the host see the outputs; `run` does so by itself."""
        self._device.download(self._outputs)

    @property
    def arrays(self) -> dict[str, Any]:
        """The device's arrays: inputs, outputs, and the control of every step."""
        names = (*self._unet.inputs, *self._unet.outputs)
        return {n: self._tensors[n] for n in names} | {n: shared.array for n, shared in self._control.items()}

    def _stepwise(
        self, variant: str, names: Callable[[Step], Sequence[str]]
    ) -> Iterator[tuple[Step, list[np.ndarray]]]:
        """Run step by step; after each, the tensors `names` gives for it as the host sees them."""
        device = self._device
        device.upload(self._reads(variant))
        for step, call in zip(self._unet.steps, self._steps(variant), strict=True):
            device.run(call)
            seen = [device.share(self._tensors[name]) for name in names(step)]
            device.download(seen)
            yield step, [shared.host for shared in seen]
        device.download(self._writes(variant))

    def _probed(self, variant: str, probe: Probe) -> None:
        for step, seen in self._stepwise(variant, lambda step: () if step.layer is None else step.inputs[:2]):
            if step.layer is not None:
                probe(step.layer, *seen)

    def first_nonfinite(self, variant: str) -> str | None:
        """Run again step by step; what first writes a value that is not finite, in words."""
        segment = ""
        for step, written in self._stepwise(variant, lambda step: self._written(step, variant)):
            segment = step.segment or segment
            if all(np.isfinite(array).all() for array in written):
                continue
            if step.layer is None:
                return segment
            return f"the attention of layer {step.layer} ({self._unet.layers[step.layer].name}) after {segment}"
        return None

    def _written(self, step: Step, variant: str) -> tuple[str, ...]:
        return step.outputs[:1] if step.layer is not None and variant == "attention" else step.outputs

    def _operands(self, step: Step, variant: str) -> _Operands:
        """What runs a step, its inputs and its outputs."""
        if step.segment is not None:
            return self._segment_operands(step, variant)
        assert step.layer is not None and variant in VARIANTS
        layer = self._unet.layers[step.layer]
        names = signature(variant, layer.heads, layer.head_dim)
        arrays = {name: shared.array for name, shared in self._control.items()}
        arrays |= dict(zip(("q", "k", "v"), (self._tensors[n] for n in step.inputs), strict=True))
        arrays |= dict(zip(("out", "g"), (self._tensors[n] for n in step.outputs), strict=True))
        arrays["mask"] = self._masks[self._layer_sizes[step.layer]].array
        arrays["energy_attn"], arrays["energy_norm"] = (term.array for term in self._energies[step.layer])
        kernel = self._device.operator(variant, layer, np.dtype(arrays["q"].dtype))
        runner = kernel or self._open(self._unet.ops[layer.op][variant])
        return runner, {n: arrays[n] for n in names.inputs}, {n: arrays[n] for n in names.outputs}

    def _segment_operands(self, step: Step, variant: str) -> _Operands:
        assert step.segment is not None
        inputs = {name: self._tensors[name] for name in step.inputs}
        if variant == "attention":
            for op in self._unet.steps:
                if op.layer is not None and (g := op.outputs[1]) in inputs:
                    inputs[g] = self._zero_g.view(0, inputs[g].shape, np.float32)
        return self._open(step.segment), inputs, {name: self._tensors[name] for name in step.outputs}
