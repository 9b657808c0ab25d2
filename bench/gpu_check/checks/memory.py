"""What is the memory of the GPU used for?"""

from typing import Any, Final

from ebca.bench.gpu_check.checks.timing import PROMPT, UPDATE
from ebca.bench.gpu_check.results import Found, Skipped, against
from ebca.bench.gpu_check.visit import BACKEND, Visit
from ebca.bench.latency.parts import device_memory
from ebca.bench.latency.subject import Subject
from ebca.engines.machine import processor
from ebca.runtime.engine import load

TARGET_GB: Final = 3.0
"""Without the full UNet, so that a card with 4 GB has room for a desktop."""

_STEPS = 4


def run(visit: Visit, found: Found) -> None:
    engine = visit.engine("model")
    with load(engine, "cuda", BACKEND) as opened:
        graphs = opened.device.graphs
        if graphs is None:
            raise Skipped("the device does not say how much of its memory is used")

        def used() -> float:
            return graphs.used_bytes() / 1e9

        with opened.session() as session:
            session.generate(PROMPT, steps=_STEPS, seed=0, output="np", **UPDATE)
            found["with_updates_gb"] = against(used(), TARGET_GB)
            session.generate(PROMPT, steps=_STEPS, seed=0, output="np")
            found["and_without_gb"] = used()
        found["full_unet"] = opened.manifest.unet.full_unet is not None
        found["weights_gb"] = _weights(opened.manifest) / 1e9
    with load(engine, "cuda", BACKEND) as opened:
        subject = Subject(
            opened, height=None, width=None, batch_size=1, **UPDATE,
            precision=opened.precision, threads=processor.physical_cores(),
        )  # fmt: skip
        subject.step()
        assert opened.device.graphs is not None
        by_purpose = device_memory(subject, opened.device.graphs)
        found["unet_by_purpose_mb"] = {name: size / 1e6 for name, size in by_purpose.items()}


def _weights(manifest: Any) -> int:
    """Bytes of all weights but those of the full UNets."""
    unet = manifest.unet
    full = {unet.full_unet, unet.full_unet_with_updates}
    files = {component.weights for name, component in manifest.components.items() if name not in full}
    return sum(manifest.files[file].size for file in files if file is not None)
