"""Measure the latency of every stage of an engine: open, text encoder, UNet step, scheduler, VAE.

Results are checked before anything is timed; a wrong result is an error, not a row. The UNet runs on random inputs of a
fixed seed, with the two rows per image that classifier-free guidance needs.
"""

import gc
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ebca
from ebca.bench.latency.compare import ROWS, check_packages, contenders_of
from ebca.bench.latency.memory import peak_rss_bytes, reset_peak
from ebca.bench.latency.parts import device_memory, launch_samples, part_samples
from ebca.bench.latency.stages import MOST_REPEATS_PER_IMAGE, per_image_stages, scheduler_samples, total
from ebca.bench.latency.subject import Subject
from ebca.bench.timing import OnRound, Ratio, Samples, interleave, time_call
from ebca.engines.machine import processor
from ebca.errors import ParameterError
from ebca.runtime.devices.choice import AUTO
from ebca.runtime.engine import Engine, OnDevice, load
from ebca.runtime.runners import OnPrepare
from ebca.runtime.sampling.tables import SchedulerTable, load_table


@dataclass(frozen=True)
class Settings:
    """What to measure.

    engine, device, backend, precision, threads: as in `ebca.load`.
    height, width: pixels; None for the size the model was trained at.
    batch_size: images.
    steps: scheduler steps that the total is extrapolated to.
    warmup, repeats: rounds before measuring, and rounds that are measured.
    gamma_attn, gamma_norm: of the EBCU step.
    segments: also time every segment and op on its own.
    compare: names of `ebca.bench.latency.compare.ROWS`; they need `model`, the checkpoint the engine was made from.
    """

    engine: str | Path
    device: str = AUTO
    backend: str | None = None
    precision: str = "fp32"
    threads: int | None = None
    height: int | None = None
    width: int | None = None
    batch_size: int = 1
    steps: int = 50
    warmup: int = 2
    repeats: int = 10
    gamma_attn: float = 0.01
    gamma_norm: float = 0.02
    segments: bool = False
    compare: Sequence[str] = ()
    model: str | None = None

    def check(self) -> None:
        """Raises ParameterError for a number or a combination that makes no sense."""
        for name, value, low in (
            ("batch-size", self.batch_size, 1), ("warmup", self.warmup, 0), ("repeats", self.repeats, 1),
        ):  # fmt: skip
            if value < low:
                raise ParameterError(f"--{name} is {value}", f"give {low} or more")
        for row in self.compare:
            if row not in ROWS:
                raise ParameterError(f"--compare-with names '{row}'", f"choose from {', '.join(ROWS)}")
        if self.compare and self.model is None:
            raise ParameterError("--compare needs --model: the checkpoint that the engine was exported from")
        if self.compare:
            check_packages()


@dataclass(frozen=True)
class Report:
    """The measurements. Times are in seconds.

    stages: text_encoder, unet_first_step, unet_step, unet_step_vanilla, scheduler (per evaluation) and vae, if the
    engine
        has them. On a GPU graph_launch (the host's time per step) replaces scheduler.
    segments: segment_00, attention_00 and so on of one step, each on its own; empty unless asked for.
    device_memory: bytes of a GPU by purpose; empty on a CPU.
    total: a complete generation, extrapolated from the medians of all stages, and from their 90th percentiles.
    compare: the contenders that took turns with unet_step.
    ratios: "unet_step/one_piece" and so on, from the same rounds.
    errors: relative L2 differences that were checked before timing.
    open_seconds: to load and open the prepared engine; prepare_seconds: the first time here, None if it was prepared.
    peak_rss_comparable: False if `peak_rss_bytes` includes other parts of the process, such as PyTorch.
    device: the hardware.
    """

    settings: Settings
    engine: Engine
    subject: Subject
    table: SchedulerTable
    stages: Mapping[str, Samples]
    segments: Mapping[str, Samples]
    device_memory: Mapping[str, int]
    total: tuple[float, float]
    compare: Mapping[str, Samples]
    ratios: Mapping[str, Ratio]
    errors: Mapping[str, float]
    open_seconds: float
    prepare_seconds: float | None
    peak_rss_bytes: int
    peak_rss_comparable: bool
    versions: Mapping[str, str]
    device: str


@dataclass
class _Opening:
    """Opens an engine, times that, and records whether anything had to be prepared."""

    settings: Settings
    on_prepare: OnPrepare | None
    on_device: OnDevice | None = None
    prepared: bool = False
    seconds: float = field(default=0.0)

    def __call__(self) -> Engine:
        began = time.perf_counter()
        settings = self.settings
        # Told once, also if the engine is opened again.
        on_device, self.on_device = self.on_device, None
        engine = load(
            settings.engine,
            backend=settings.backend,
            precision=settings.precision,
            threads=settings.threads,
            device=settings.device,
            on_prepare=self._note,
            on_device=on_device,
        )
        engine.open_all()
        # On a GPU, the op runs as one of our kernels.
        for op in engine.manifest.unet.ops.values() if engine.device.name == "cpu" else ():
            for variant in ("attention", "update"):
                engine.runner(op[variant], {})
        self.seconds = time.perf_counter() - began
        return engine

    def _note(self, done: int, total: int, name: str) -> None:
        self.prepared = True
        if self.on_prepare:
            self.on_prepare(done, total, name)


def measure(
    settings: Settings,
    *,
    on_prepare: OnPrepare | None = None,
    on_device: OnDevice | None = None,
    on_round: OnRound | None = None,
) -> Report:
    """Run the benchmark.

    Args:
        settings: what to measure.
        on_prepare, on_device: as in `ebca.load`.
        on_round: called with (done, total) while UNet steps are timed.

    Raises:
        ParameterError, EngineError, BackendError, ModelError: see `ebca.errors`.
        NumericalError: a result is wrong, and nothing was timed.
    """
    settings.check()
    # PyTorch in this process would count as memory of the engine.
    comparable = "torch" not in sys.modules
    opening = _Opening(settings, on_prepare, on_device)
    engine = opening()
    prepare_seconds = None
    if opening.prepared:
        prepare_seconds = opening.seconds
        engine.close()
        del engine
        gc.collect()
        comparable &= reset_peak()
        engine = opening()
    with engine:
        subject = _subject(engine, settings)
        engine.verify_tables()
        schedulers = engine.manifest.schedulers
        table = load_table(engine.directory.path, schedulers, str(schedulers["default"]), settings.steps)
        alone = _measure_alone(subject, table, settings)
        peak = peak_rss_bytes()
        _release_encoders(engine)
        own = [contender.name for contender in subject.contenders()]
        with contenders_of(subject, settings.model, settings.compare) as (others, errors):
            samples = interleave(
                [*subject.contenders(), *others], warmup=settings.warmup, repeats=settings.repeats, on_round=on_round
            )
        stages = {**alone.stages, **{name: samples[name] for name in own}}
        return Report(
            settings=settings,
            engine=engine,
            subject=subject,
            table=table,
            stages=stages,
            segments=alone.segments,
            device_memory=alone.device_memory,
            total=total(stages, table.evaluations),
            compare={name: taken for name, taken in samples.items() if name not in own},
            ratios=_ratios(samples, own),
            errors={**alone.errors, **errors},
            open_seconds=opening.seconds,
            prepare_seconds=prepare_seconds,
            peak_rss_bytes=peak,
            peak_rss_comparable=comparable,
            versions=_versions(engine, bool(settings.compare)),
            device=engine.device.description(),
        )


def _subject(engine: Engine, settings: Settings) -> Subject:
    return Subject(
        engine,
        height=settings.height,
        width=settings.width,
        batch_size=settings.batch_size,
        gamma_attn=settings.gamma_attn,
        gamma_norm=settings.gamma_norm,
        precision=engine.precision,
        threads=settings.threads or processor.physical_cores(),
    )


@dataclass(frozen=True)
class _Alone:
    """What is measured without contenders; see `Report`."""

    stages: Mapping[str, Samples]
    segments: Mapping[str, Samples]
    device_memory: Mapping[str, int]
    errors: Mapping[str, float]


def _measure_alone(subject: Subject, table: SchedulerTable, settings: Settings) -> _Alone:
    stages = {"unet_first_step": time_call(subject.step, warmup=0, repeats=1)}
    errors = subject.check()
    rounds = {"warmup": min(settings.warmup, 1), "repeats": min(settings.repeats, MOST_REPEATS_PER_IMAGE)}
    memory: dict[str, int] = {}
    if (graphs := subject.engine.device.graphs) is not None:
        memory = device_memory(subject, graphs)
        stages["graph_launch"] = launch_samples(subject, graphs, **rounds)
    else:
        # On a GPU the scheduler is part of the recorded step, and too short to measure.
        stages["scheduler"] = scheduler_samples(table, subject, settings.repeats)
    segments = part_samples(subject, **rounds) if settings.segments else {}
    stages |= per_image_stages(subject, **rounds)
    return _Alone(stages, segments, memory, errors)


def _release_encoders(engine: Engine) -> None:
    """Close the components that are not needed while UNet steps are compared."""
    if engine.manifest.text_encoder:
        engine.release(engine.manifest.text_encoder.component)
    if engine.manifest.vae:
        engine.release(engine.manifest.vae.decoder)


def _ratios(samples: Mapping[str, Samples], own: Sequence[str]) -> dict[str, Ratio]:
    step, plain = own
    ratios = {f"{step}/{plain}": Ratio.of(samples[step], samples[plain])}
    for name in (n for n in samples if n not in own):
        for mine in own:
            ratios[f"{mine}/{name}"] = Ratio.of(samples[mine], samples[name])
    return ratios


def _versions(engine: Engine, compared: bool) -> dict[str, str]:
    versions = {"ebca": ebca.__version__, "python": ".".join(map(str, sys.version_info[:3]))}
    versions |= {k: v for k, v in engine.backend.identity().items() if k != "processor"}
    for package in ("numpy", *(("torch", "diffusers", "onnx") if compared else ())):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
