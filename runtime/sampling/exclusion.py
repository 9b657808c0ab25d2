"""Exclusive attention between the evaluations of a run: its state, on the host or on a device."""

from typing import Any

import numpy as np

from ebca.engines.backends.protocol import Call
from ebca.engines.machine.memory import nbytes
from ebca.plugins.exclusive_attention import TENSORS, tables, windows
from ebca.runtime.devices.device import GraphDevice, MirroredBuffer
from ebca.runtime.execution.guided import GuidedTensors
from ebca.runtime.sampling.subjects import SubjectInputs

# What a device needs beside the executor's and the sampler's tensors.
_OWN = ("subjects", "strengths", "fixed", "beyond", "near", "outside", "averages")


def exclusion_state(guided: GuidedTensors, inputs: SubjectInputs, evaluations: int) -> dict[str, np.ndarray]:
    """The tensors of `ebca.plugins.exclusive_attention` at the start of a run, by name, but for "step" and "maps".

    Args:
        guided: of the executor. Its first half of the rows is unconditional if it has two per image.
        inputs: the subjects.
        evaluations: rows of the table of strengths. Row i has those that the bias of evaluation i + 1 is made with;
            where `inputs` does not say them, they are zero.

    Side effect: the host's side of `guided` gets the tokens' groups, and the bias of the first evaluation.
    """
    rows, _, groups, positions = guided.bias.host.shape
    images = len(inputs.counts)
    near, outside = tables(*guided.grid, window=inputs.window)
    state = {
        "subjects": np.zeros(rows, np.int32),
        "strengths": np.zeros((evaluations, 2), np.float32),
        "fixed": np.zeros((rows, groups), np.int32),
        "beyond": np.ones((rows, groups, positions), np.float32),
        "near": near,
        "outside": outside,
        "averages": np.zeros((rows, groups, positions), np.float32),
        "bias": guided.bias.host,
    }
    conditional = slice(rows - images, rows)
    known = inputs.fixed.shape[1]
    state["subjects"][conditional] = inputs.counts
    state["fixed"][conditional, :known] = inputs.fixed
    state["beyond"][conditional, :known] = 1 - inputs.regions.reshape(images, known, positions)
    later = inputs.strengths[1:][:evaluations]
    state["strengths"][: len(later)] = later
    guided.token_groups.host[...] = -1
    guided.token_groups.host[conditional, 0] = inputs.token_groups
    windows.begin(state, inputs.strengths[0, 0])
    return state


class HostExclusion:
    """Keeps subjects apart in a run whose host works between evaluations.

    Args:
        guided: of the executor.
        inputs: the subjects.
    """

    def __init__(self, guided: GuidedTensors, inputs: SubjectInputs) -> None:
        self._guided = guided
        self._strengths = inputs.strengths
        # The step says only whether averages begin, and which strengths count.
        self._state = exclusion_state(guided, inputs, 2) | {"step": np.zeros(1, np.int32)}
        self._begun = False

    def apply(self, control: int) -> None:
        """Make the bias of an evaluation from the maps of the one before; the first has its bias already.

        Args:
            control: index of its strengths.
        """
        if self._begun:
            state = {**self._state, "maps": self._guided.maps()}
            state["strengths"][...] = self._strengths[control]
            windows.exclude(state)
            state["step"][0] = 1
        self._begun = True


class DeviceExclusion:
    """Keeps subjects apart in runs that a device makes without the host.

    Args:
        guided: of the executor.
        device: where the run is.
        step: the sampler's counter of evaluations, int32 [1] on the device.
        evaluations: of the longest run.

    Attributes:
        call: the kernel, to be enqueued after an evaluation and before the counter is advanced.
    """

    def __init__(self, guided: GuidedTensors, device: GraphDevice, step: Any, evaluations: int) -> None:
        self._guided = guided
        self._device = device
        self._evaluations = evaluations
        rows, _, groups, positions = guided.bias.host.shape
        height, width = guided.grid
        sizes = {"m": evaluations, "R": rows, "G": groups, "N": positions, "h": height, "w": width}
        self._own: dict[str, MirroredBuffer] = {}
        for name in _OWN:
            dtype, axes = TENSORS[name]
            shape = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in axes)
            self._own[name] = device.share(device.allocate(nbytes(shape, dtype)).view(0, shape, np.dtype(dtype)))
        arrays = {name: buffer.array for name, buffer in self._own.items()}
        arrays |= {"step": step, "maps": guided.source_maps, "bias": guided.bias.array}
        self.call: Call = device.exclude(arrays, guided.layer_stride)

    def begin(self, inputs: SubjectInputs) -> None:
        """Write and upload what a run starts from. The executor uploads the bias."""
        state = exclusion_state(self._guided, inputs, self._evaluations)
        for name, buffer in self._own.items():
            buffer.host[...] = state[name]
        self._device.upload(list(self._own.values()))
