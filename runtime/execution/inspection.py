"""Inspection of an evaluation, step by step: probes, timings, and the search for values that are not finite."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ebca.engines.contract.manifest import Step
from ebca.engines.contract.tensors import TO_CHANNELS_FIRST, TO_CHANNELS_LAST
from ebca.plugins.energy_attention import plain
from ebca.runtime.execution.executor import Executor
from ebca.runtime.schema import parameters as rules

Probe = Callable[[int, np.ndarray, np.ndarray], None]
"""Called with layer index, q [B,N,C] and k [B,S,T,C] after the op of each layer; later steps overwrite the arrays."""


def step_name(step: Step) -> str:
    """A segment's name, or "attention_07" for the op of layer 7."""
    return step.segment or f"attention_{step.layer:02}"


def run_probed(executor: Executor, variant: str, probe: Probe) -> None:
    """Run one evaluation step by step, and call `probe` after every layer."""
    for step, seen in _stepwise(executor, variant, lambda step: () if step.layer is None else step.inputs[:2]):
        if step.layer is not None:
            probe(step.layer, *seen)


def evaluate(executor: Executor, index: int, variant: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a single step on given tensors, named as in the manifest. Returns copies of its outputs."""
    step, call = executor.unet.steps[index], executor.steps(variant)[index]
    device, tensors = executor.device, executor.buffers.tensors
    # What ControlNets write stays zero.
    given = {name: device.share(tensors[name]) for name in step.inputs if name not in executor.unet.controls}
    made = {name: device.share(tensors[name]) for name in _written(step, variant)}
    for name, buffer in given.items():
        buffer.host[...] = _moved(executor, name, inputs[name], TO_CHANNELS_LAST)
    device.upload([*executor.buffers.reads(variant), *given.values()])
    device.run(call)
    device.download(list(made.values()))
    return {name: np.array(_moved(executor, name, buffer.host, TO_CHANNELS_FIRST)) for name, buffer in made.items()}


def _moved(executor: Executor, name: str, array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """A tensor between the manifest's layout and the one in memory."""
    return array.transpose(axes) if name in executor.buffers.channels_last else array


def clock(executor: Executor, variant: str) -> Callable[[], dict[str, float]]:
    """A function that runs a variant and returns the seconds per step, keyed by `step_name`."""
    timed = executor.device.clock(executor.steps(variant))
    names = [step_name(step) for step in executor.unet.steps]

    def run() -> dict[str, float]:
        executor.device.upload(executor.buffers.reads(variant))
        seconds = timed()
        executor.device.download(executor.buffers.writes(variant))
        return dict(zip(names, seconds, strict=True))

    return run


def first_nonfinite(executor: Executor, variant: str) -> str | None:
    """Rerun step by step. Returns a description of the first step whose output is not finite; None if all are."""
    segment = ""
    for step, written in _stepwise(executor, variant, lambda step: _written(step, variant)):
        segment = step.segment or segment
        if all(np.isfinite(array).all() for array in written):
            continue
        if step.layer is None:
            return segment
        return f"the attention of layer {step.layer} ({executor.unet.layers[step.layer].name}) after {segment}"
    return None


def check_finite(executor: Executor, variant: str, timestep: float) -> None:
    """Raise NumericalError, naming the first bad segment, if noise prediction or contexts are not finite."""
    if np.isfinite(executor.noise).all() and np.isfinite(executor.contexts_out).all():
        return
    culprit = first_nonfinite(executor, variant) or "the last segment"
    bad_inputs = [name for name in ("sample", "contexts") if not np.isfinite(getattr(executor, name)).all()]
    if bad_inputs:
        raise rules.RESULT_OF_BAD_INPUT.error(timestep=timestep, culprit=culprit, what=" and the ".join(bad_inputs))
    raise rules.RESULT_NOT_FINITE.error(timestep=timestep, culprit=culprit)


def _stepwise(
    executor: Executor, variant: str, names: Callable[[Step], Sequence[str]]
) -> Iterator[tuple[Step, list[np.ndarray]]]:
    """Run step by step. After each step, yield the tensors that `names` selects for it, on the host."""
    device, tensors = executor.device, executor.buffers.tensors
    device.upload(executor.buffers.reads(variant))
    for control in executor.residuals.calls():
        device.run(control)
    for step, call in zip(executor.unet.steps, executor.steps(variant), strict=True):
        device.run(call)
        seen = [device.share(tensors[name]) for name in names(step)]
        device.download(seen)
        yield step, [buffer.host for buffer in seen]
    device.download(executor.buffers.writes(variant))


def _written(step: Step, variant: str) -> tuple[str, ...]:
    return step.outputs[:1] if step.layer is not None and plain(variant) == "attention" else step.outputs
