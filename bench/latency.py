"""Latency of every stage of an engine: open, text encoder, UNet step, scheduler, VAE.

Results are checked before anything is timed; a wrong one is an error, not a row. The UNet runs on random
inputs of a fixed seed, with the rows that classifier-free guidance needs: two per picture.
"""

import gc
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import numpy as np

import ebca
from ebca.bench.compare import ROWS, check_packages, rivals
from ebca.bench.memory import peak_rss_bytes, reset_peak
from ebca.bench.parts import device_memory, launch_samples, part_samples
from ebca.bench.subject import Subject
from ebca.bench.timing import OnRound, Ratio, Samples, interleave, time_call
from ebca.engines.machine import nvidia, processor
from ebca.errors import NumericalError, ParameterError
from ebca.plugins.sampling.guidance import guide
from ebca.runtime.components import OnPrepare
from ebca.runtime.devices.cuda import CudaDevice
from ebca.runtime.engine import Engine, load
from ebca.runtime.sampling.table_stepper import TableStepper
from ebca.runtime.sampling.tables import SchedulerTable, load_table

# The VAE and the text encoder run once per picture and a VAE takes as long as several steps.
_MOST_REPEATS_PER_PICTURE = 5


@dataclass(frozen=True)
class Settings:
    """What to measure.

    engine, device, backend, precision, threads: as in `ebca.load`.
    height, width: pixels; None: the size the model was trained at. batch_size: pictures.
    steps: scheduler steps that the total is extrapolated to.
    warmup, repeats: rounds before and while times are taken.
    gamma_attn, gamma_norm: of the EBCU step.
    segments: time every segment and op by itself too.
    compare: names of `ebca.bench.compare.ROWS`; they need `model`, the checkpoint the engine was made from.
    """

    engine: str | Path
    device: str = "cpu"
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
        """Raises ParameterError for a number or a combination that means nothing."""
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
    """What was measured. Times in seconds.

    stages: text_encoder, unet_first_step, unet_step, unet_step_vanilla, scheduler (per evaluation), vae;
        without what the engine lacks. On a GPU graph_launch (of the host, per step) instead of the scheduler.
    segments: of a step, segment_00, attention_00 and so on, each by itself; empty unless asked for.
    device_memory: of a GPU, in bytes by what it is for; empty on a CPU.
    total: of a whole generation, extrapolated from the medians of all stages, and from their p90.
    compare: the contenders that took turns with unet_step.
    ratios: "unet_step/one_piece" and so on, from the same rounds.
    errors: relative L2 differences that were checked before timing.
    peak_rss_comparable: False where other parts of the process (PyTorch) are in `peak_rss_bytes`.
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
    """Opens an engine and times it; remembers whether anything had to be prepared."""

    settings: Settings
    on_prepare: OnPrepare | None
    prepared: bool = False
    seconds: float = field(default=0.0)

    def __call__(self) -> Engine:
        began = time.perf_counter()
        settings = self.settings
        engine = load(
            settings.engine,
            backend=settings.backend,
            precision=settings.precision,
            threads=settings.threads,
            device=settings.device,
            on_prepare=self._note,
        )
        engine.open_all()
        # A GPU has kernels of its own for the op.
        for op in engine.manifest.unet.ops.values() if engine.device.name == "cpu" else ():
            for variant in ("attention", "update"):
                engine.runner(op[variant])
        self.seconds = time.perf_counter() - began
        return engine

    def _note(self, done: int, total: int, name: str) -> None:
        self.prepared = True
        if self.on_prepare:
            self.on_prepare(done, total, name)


def measure(settings: Settings, *, on_prepare: OnPrepare | None = None, on_round: OnRound | None = None) -> Report:
    """Run the benchmark.

    Args:
        settings: what to measure.
        on_prepare: as in `ebca.load`.
        on_round: called with (done, total) while UNet steps are timed.

    Raises:
        ParameterError, EngineError, BackendError, ModelError: see `ebca.errors`.
        NumericalError: a result is wrong; nothing was timed then.
    """
    settings.check()
    # PyTorch in the process is memory that the engine does not need.
    comparable = "torch" not in sys.modules
    opening = _Opening(settings, on_prepare)
    engine = opening()
    prepare_seconds = None
    if opening.prepared:
        prepare_seconds = opening.seconds
        engine.close()
        del engine
        gc.collect()
        comparable &= reset_peak()
        engine = opening()
    threads = settings.threads or processor.physical_cores()
    with engine:
        manifest = engine.manifest
        table = load_table(
            engine.directory.path, manifest.schedulers, str(manifest.schedulers["default"]), settings.steps
        )
        subject = Subject(
            engine,
            height=settings.height,
            width=settings.width,
            batch_size=settings.batch_size,
            gamma_attn=settings.gamma_attn,
            gamma_norm=settings.gamma_norm,
            precision=engine.precision,
            threads=threads,
        )
        stages = {"unet_first_step": time_call(subject.step, warmup=0, repeats=1)}
        errors = subject.check()
        rounds = {"warmup": min(settings.warmup, 1), "repeats": min(settings.repeats, _MOST_REPEATS_PER_PICTURE)}
        memory: dict[str, int] = {}
        if (graphs := engine.device.graphs) is not None:
            memory = device_memory(subject, graphs)
            stages["graph_launch"] = launch_samples(subject, graphs, **rounds)
        else:
            # On a GPU it is part of the recorded step of a generation, and too short to see.
            stages["scheduler"] = _scheduler_samples(table, subject, settings.repeats)
        segments = part_samples(subject, **rounds) if settings.segments else {}
        stages |= _per_picture_stages(subject, **rounds)
        peak = peak_rss_bytes()
        if manifest.text_encoder:
            engine.release(manifest.text_encoder.component)
        if manifest.vae:
            engine.release(manifest.vae.decoder)
        contenders = subject.contenders()
        own = [contender.name for contender in contenders]
        with rivals(subject, settings.model, settings.compare) as (others, other_errors):
            errors |= other_errors
            samples = interleave(
                [*contenders, *others], warmup=settings.warmup, repeats=settings.repeats, on_round=on_round
            )
        stages |= {name: samples[name] for name in own}
        compare = {name: taken for name, taken in samples.items() if name not in own}
        return Report(
            settings=settings,
            engine=engine,
            subject=subject,
            table=table,
            stages=stages,
            segments=segments,
            device_memory=memory,
            total=_total(stages, table.evaluations),
            compare=compare,
            ratios=_ratios(samples, own),
            errors=errors,
            open_seconds=opening.seconds,
            prepare_seconds=prepare_seconds,
            peak_rss_bytes=peak,
            peak_rss_comparable=comparable,
            versions=_versions(engine, bool(settings.compare)),
            device=processor_name(engine),
        )


def processor_name(engine: Engine) -> str:
    """The GPU or CPU that an engine runs on."""
    device = engine.device
    return nvidia.find().gpus[device.driver.index].name if isinstance(device, CudaDevice) else processor.model_name()


def _per_picture_stages(subject: Subject, *, warmup: int, repeats: int) -> dict[str, Samples]:
    """Text encoder (prompt and negative prompt, one after the other as a session does) and VAE decoder."""
    engine, manifest = subject.engine, subject.engine.manifest
    rng = np.random.default_rng(1)
    stages: dict[str, Samples] = {}
    if manifest.text_encoder:
        # Every vocabulary starts with 512 symbols for bytes.
        ids = rng.integers(0, 512, (2, manifest.text_encoder.max_length))

        def encode() -> None:
            for row in ids:
                if not np.isfinite(engine.encode(row[None])).all():
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


def _scheduler_samples(table: SchedulerTable, subject: Subject, repeats: int) -> Samples:
    """Seconds per evaluation for scaling the input, guidance and the new latents, over whole generations."""
    noise = subject.executor.noise.reshape(2, -1, *subject.executor.noise.shape[1:])
    stepper = TableStepper(table, noise.shape[1:])
    latents = np.random.default_rng(2).standard_normal(stepper.shape, np.float32)
    seconds: list[float] = []
    for _ in range(min(repeats, _MOST_REPEATS_PER_PICTURE)):
        stepper.start(latents)
        marks = [time.perf_counter()]
        for i in range(table.evaluations):
            stepper.evaluation(i)
            stepper.step(i, guide(noise, 7.5))
            marks.append(time.perf_counter())
        seconds += [after - before for before, after in pairwise(marks)]
    return Samples(tuple(seconds))


def _total(stages: Mapping[str, Samples], evaluations: int) -> tuple[float, float]:
    counts = {"text_encoder": 1, "unet_step": evaluations, "scheduler": evaluations, "vae": 1}
    used = [(stages[name], count) for name, count in counts.items() if name in stages]
    return sum(s.p50 * n for s, n in used), sum(s.p90 * n for s, n in used)


def _ratios(samples: Mapping[str, Samples], own: Sequence[str]) -> dict[str, Ratio]:
    step, vanilla = own
    ratios = {f"{step}/{vanilla}": Ratio.of(samples[step], samples[vanilla])}
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
