"""Where the time of a step goes, and what the memory of a GPU is used for."""

from collections.abc import Iterator
from contextlib import contextmanager

from ebca.bench.latency.subject import Subject
from ebca.bench.timing import Contender, Samples, interleave
from ebca.runtime.devices.device import GraphDevice
from ebca.runtime.execution.inspection import clock

_VARIANT = "update"


def part_samples(subject: Subject, *, warmup: int, repeats: int) -> dict[str, Samples]:
    """Seconds of each segment, and of the op after it, in an EBCU step; measured by the device."""
    run = clock(subject.executor, _VARIANT)
    for _ in range(warmup):
        run()
    rounds = [run() for _ in range(repeats)]
    return {name: Samples(tuple(taken[name] for taken in rounds)) for name in rounds[0]}


def launch_samples(subject: Subject, device: GraphDevice, *, warmup: int, repeats: int) -> Samples:
    """Seconds that the host needs to launch a recorded step, without waiting for it."""
    calls = subject.executor.calls(_VARIANT)
    recording = device.graph(calls, warm=calls)

    @contextmanager
    def waited() -> Iterator[None]:
        yield
        device.download(())

    return interleave([Contender("", recording, waited)], warmup=warmup, repeats=repeats)[""]


def device_memory(subject: Subject, device: GraphDevice) -> dict[str, int]:
    """Bytes by purpose: the executor's buffers by name, and "engines": weights and whatever libraries allocated."""
    ours = subject.executor.buffers.memory
    return {"engines": device.used_bytes() - sum(ours.values()), **ours}
