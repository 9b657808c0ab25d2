"""The stages of a generation other than the UNet step: text encoder, VAE, scheduler."""

import time
from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from ebca.bench.latency.subject import Subject
from ebca.bench.timing import Samples, time_call
from ebca.errors import NumericalError
from ebca.plugins.sampling.guidance import guide
from ebca.runtime.sampling.table_stepper import TableStepper
from ebca.runtime.sampling.tables import SchedulerTable

MOST_REPEATS_PER_IMAGE = 5
"""The VAE and the text encoder run once per image, and a VAE takes as long as several steps."""


def per_image_stages(subject: Subject, *, warmup: int, repeats: int) -> dict[str, Samples]:
    """Text encoder (prompt and negative prompt, one after the other as in a session) and VAE decoder.

    Raises:
        NumericalError: a result is not finite.
    """
    engine, manifest = subject.engine, subject.engine.manifest
    rng = np.random.default_rng(1)
    stages: dict[str, Samples] = {}
    if text := manifest.text_encoder:
        # Every vocabulary starts with 512 symbols for single bytes.
        ids = rng.integers(0, 512, (2, text.max_length))

        def encode() -> None:
            for row in ids:
                made = engine.encode(row[None], None if text.pooled_size is None else row[None])
                if not np.isfinite(made.contexts).all():
                    raise NumericalError("the text encoder's result is not finite", "nothing was timed")

        stages["text_encoder"] = time_call(encode, warmup=warmup, repeats=repeats)
    if manifest.vae:
        sizes = subject.sizes
        shape = (sizes["batch"] // 2, manifest.vae.latent_channels, sizes["height"], sizes["width"])
        latents = rng.standard_normal(shape, np.float32) * np.float32(manifest.vae.scaling_factor)

        def decode() -> None:
            if not np.isfinite(engine.decode(latents)).all():
                raise NumericalError("the VAE's result is not finite", "nothing was timed")

        stages["vae"] = time_call(decode, warmup=warmup, repeats=repeats)
    return stages


def scheduler_samples(table: SchedulerTable, subject: Subject, repeats: int) -> Samples:
    """Seconds per evaluation for scaling the input, guidance and the new latents, over complete generations."""
    noise = subject.executor.noise.reshape(2, -1, *subject.executor.noise.shape[1:])
    stepper = TableStepper(table, noise.shape[1:])
    latents = np.random.default_rng(2).standard_normal(stepper.shape, np.float32)
    seconds: list[float] = []
    for _ in range(min(repeats, MOST_REPEATS_PER_IMAGE)):
        stepper.start(latents)
        marks = [time.perf_counter()]
        for i in range(table.evaluations):
            stepper.evaluation(i)
            stepper.step(i, guide(noise, 7.5))
            marks.append(time.perf_counter())
        seconds += [after - before for before, after in pairwise(marks)]
    return Samples(tuple(seconds))


def total(stages: Mapping[str, Samples], evaluations: int) -> tuple[float, float]:
    """Seconds of a generation, extrapolated from the medians of all stages and from their 90th percentiles."""
    counts = {"text_encoder": 1, "unet_step": evaluations, "scheduler": evaluations, "vae": 1}
    used = [(stages[name], count) for name, count in counts.items() if name in stages]
    return sum(s.p50 * n for s, n in used), sum(s.p90 * n for s, n in used)
