"""Runs the plan of a split UNet: one arena, everything bound once, each step a replay."""

from collections.abc import Callable, Mapping

import numpy as np

from ebca.engines import dims
from ebca.engines.backend import Call, Runner
from ebca.engines.manifest import Step, UNetSpec
from ebca.plugins.energy_attention import VARIANTS, signature
from ebca.runtime.arena import lay_out, lifetimes
from ebca.runtime.control import ControlArrays
from ebca.runtime.devices import Device

OpenRunner = Callable[[str], Runner]

Probe = Callable[[int, np.ndarray, np.ndarray], None]
"""Called with layer, q [B,N,C], k [B,S,T,C] right after a layer's op has run; they are overwritten later."""


class Executor:
    """One UNet evaluation at fixed sizes. Owns its buffers; use from one thread at a time.

    Args:
        unet: the split UNet of a manifest.
        open_runner: opens a component by name.
        sizes: batch, contexts, tokens, height, width (latent).
        device: where buffers live.

    Attributes:
        sample [B,C,h,w], timestep [B], contexts [B,S,T,D]: inputs, kept from step to step.
        noise [B,C,h,w], contexts_out [B,S,T,D]: outputs, valid until the next run.
        energies [L,2,B,S]: attention and norm term per layer, after a run of the "energies" variant.
    """

    def __init__(self, unet: UNetSpec, open_runner: OpenRunner, sizes: Mapping[str, int], device: Device) -> None:
        self.sizes = dict(sizes)
        self._unet = unet
        self._open = open_runner
        self._device = device
        shapes = {name: dims.shape(spec.shape, sizes) for name, spec in unet.tensors.items()}
        dtypes = {name: np.dtype(spec.dtype) for name, spec in unet.tensors.items()}
        nbytes = {name: dtypes[name].itemsize * int(np.prod(shape, dtype=np.int64)) for name, shape in shapes.items()}
        layout = lay_out(lifetimes(unet.plan, nbytes, (*unet.inputs, *unet.outputs)))
        self._arena = device.arena(layout.nbytes)
        self._tensors = {
            name: self._arena[offset : offset + nbytes[name]].view(dtypes[name]).reshape(shapes[name])
            for name, offset in layout.offsets.items()
        }
        batch, contexts, tokens = (sizes[n] for n in ("batch", "contexts", "tokens"))
        self._layer_sizes = [layer.size(sizes) for layer in unet.layers]
        self._control = {
            "weights": np.ones((batch, contexts), np.float32),
            "gamma_attn": np.zeros((batch, contexts, tokens), np.float32),
            "gamma_norm": np.zeros((batch, contexts), np.float32),
            "norm_factor": np.ones((), np.float32),
            "tie": np.zeros((batch, contexts, contexts), np.float32),
        }
        self._masks = {s: np.ones((batch, contexts, s[0] * s[1]), np.float32) for s in set(self._layer_sizes)}
        # What stands in for g in the variant that computes none.
        widest = max((layer.heads * layer.head_dim for layer in unet.layers), default=0)
        self._zero_g = np.zeros(batch * contexts * tokens * widest, np.float32)
        self.energies = np.zeros((len(unet.layers), 2, batch, contexts), np.float32)
        self._bound: dict[str, list[Call]] = {}
        self._recorded: dict[str, Call] = {}
        self.sample, self.timestep, self.contexts = (self._tensors[n] for n in unet.inputs)
        self.noise, self.contexts_out = (self._tensors[n] for n in unet.outputs)

    @property
    def arena_bytes(self) -> int:
        """Size of the one buffer that holds every tensor between segments."""
        return int(self._arena.nbytes)

    def set_control(self, control: ControlArrays) -> None:
        """Copy a control into the buffers that the recorded steps read."""
        for name in self._control:
            self._control[name][...] = getattr(control, name)
        for size, buffer in self._masks.items():
            buffer[...] = control.masks.get(size, 1.0)

    def run(self, variant: str, probe: Probe | None = None) -> None:
        """One evaluation with a variant of the op (see `ebca.plugins.energy_attention.VARIANTS`).

        probe: looks at every layer on the way; without one nothing is spent on it.
        """
        self.record(variant)() if probe is None else self._probed(variant, probe)

    def record(self, variant: str) -> Call:
        """Bind a variant on first use; calling the result runs it."""
        if variant not in self._recorded:
            self._recorded[variant] = self._device.record(self._calls(variant))
        return self._recorded[variant]

    def _calls(self, variant: str) -> list[Call]:
        """One bound call per step of the plan; what replays a variant and what looks between its steps share them."""
        if variant not in self._bound:
            self._bound[variant] = [self._bind(step, variant) for step in self._unet.plan]
        return self._bound[variant]

    def _probed(self, variant: str, probe: Probe) -> None:
        for step, call in zip(self._unet.plan, self._calls(variant), strict=True):
            call()
            if step.layer is not None:
                q, k, _ = (self._tensors[name] for name in step.inputs)
                probe(step.layer, q, k)

    def first_nonfinite(self, variant: str) -> str | None:
        """Run again step by step; what first writes a value that is not finite, in words."""
        segment = ""
        for step, call in zip(self._unet.plan, self._calls(variant), strict=True):
            call()
            segment = step.segment or segment
            if all(np.isfinite(self._tensors[name]).all() for name in self._written(step, variant)):
                continue
            if step.layer is None:
                return segment
            return f"the attention of layer {step.layer} ({self._unet.layers[step.layer].name}) after {segment}"
        return None

    def _written(self, step: Step, variant: str) -> tuple[str, ...]:
        return step.outputs[:1] if step.layer is not None and variant == "attention" else step.outputs

    def _bind(self, step: Step, variant: str) -> Call:
        if step.segment is not None:
            return self._bind_segment(step, variant)
        assert step.layer is not None and variant in VARIANTS
        layer = self._unet.layers[step.layer]
        names = signature(variant, layer.heads, layer.head_dim)
        arrays = dict(self._control)
        arrays |= dict(zip(("q", "k", "v"), (self._tensors[n] for n in step.inputs), strict=True))
        arrays |= dict(zip(("out", "g"), (self._tensors[n] for n in step.outputs), strict=True))
        arrays["mask"] = self._masks[self._layer_sizes[step.layer]]
        arrays["energy_attn"], arrays["energy_norm"] = self.energies[step.layer]
        runner = self._open(self._unet.ops[layer.op][variant])
        return runner.bind({n: arrays[n] for n in names.inputs}, {n: arrays[n] for n in names.outputs})

    def _bind_segment(self, step: Step, variant: str) -> Call:
        assert step.segment is not None
        inputs = {name: self._tensors[name] for name in step.inputs}
        if variant == "attention":
            for op in self._unet.plan:
                if op.layer is not None and (g := op.outputs[1]) in inputs:
                    shape = inputs[g].shape
                    inputs[g] = self._zero_g[: int(np.prod(shape))].reshape(shape)
        return self._open(step.segment).bind(inputs, {name: self._tensors[name] for name in step.outputs})
