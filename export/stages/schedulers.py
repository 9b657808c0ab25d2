"""The scheduler tables, computed by `ebca.export.scheduler_tables`.

File layout
-----------
`schedulers/<name>.f64` is raw little-endian float64: one record per step count, one after the other, in the order of
the step counts. With m evaluations, in a scheduler whose steps look back at K latents and L noise predictions, it holds

    init_noise_sigma      1
    timesteps             m
    input_scale           m
    rows                  m (K + L)      row i: weights of x_{i-1}, x_{i-2}, .. and of e_i, e_{i-1}, ..

`ebca.runtime.sampling.recurrence` has the formula. K and L are the same in all records of a file. The manifest has
them, and m of each step count, so a host can compute where a record lies. Other kinds of columns (noise that a
scheduler draws) would be further entries of `memory`, other kinds of records (timesteps of a user) entries beside
`steps`.

`schedulers/alphas_cumprod.f64` is the cumulative product of (1 - beta), one value per training timestep;
image-to-image and inpainting add noise to the clean latents with it.
"""

import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ebca.errors import ExportError, ParameterError
from ebca.export.checkpoint.defaults import SCHEDULER_CONFIG, XL_SCHEDULER_CONFIG
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.distilled import is_distilled
from ebca.export.options import DISTILLED_STEPS, TRAINING_STEPS, ExportOptions
from ebca.export.scheduler_choice import checkpoint_schedulers, known_options
from ebca.export.scheduler_tables import SchedulerTables, build_tables
from ebca.export.stages.context import Context, StageResult

ALPHAS_CUMPROD_FILE = "schedulers/alphas_cumprod.f64"


def check(checkpoint: Checkpoint, options: ExportOptions) -> None:
    """Check what is asked of the schedulers, before anything is exported.

    Raises:
        ParameterError: an option that no scheduler has, which diffusers would ignore, or an unknown scheduler.
    """
    known = known_options()
    for key in options.scheduler_config:
        if key not in known:
            near = get_close_matches(key, known, 1)
            remedy = f"did you mean {near[0]}?" if near else "give an option of a diffusers scheduler"
            raise ParameterError(f"no scheduler has the option {key!r}", remedy)
    choice = checkpoint_schedulers({**_config(checkpoint), **options.scheduler_config})
    for name in (*options.schedulers, *(name for name, _ in options.spacings)):
        choice.spec(name)


def _config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    if checkpoint.scheduler_config is not None:
        return checkpoint.scheduler_config
    return XL_SCHEDULER_CONFIG if checkpoint.is_xl else SCHEDULER_CONFIG


def export(context: Context) -> StageResult:
    """Compute and write the tables; they take less than half a minute, so an interrupted export computes them again.

    Each thing that differs from the checkpoint's own configuration is a Python warning of one line.
    """
    checkpoint = context.checkpoint
    config = {**_config(checkpoint), **context.options.scheduler_config}
    asked = context.options.schedulers
    tables = build_tables(
        config,
        _steps(context, config, context.options.all_steps),
        more=asked,
        common_steps=_steps(context, config, context.options.common_steps),
        spacings=context.options.spacings,
        inpainting=checkpoint.unet.config.in_channels == 9,
        xl=checkpoint.is_xl,
        on_scheduler=lambda name: context.report(f"scheduler tables: {name}"),
    )
    for name in asked:
        if name in tables.left_out:
            raise ExportError(f"scheduler {name!r} cannot be tabulated: {tables.left_out[name]}", "leave it out")
    notices = list(tables.notices)
    # A UNet alone never has one.
    if checkpoint.scheduler_config is None and checkpoint.text_encoder is not None:
        default = "euler as in Stable Diffusion XL" if checkpoint.is_xl else "pndm as in Stable Diffusion 1.5"
        notices.append(f"the checkpoint has no scheduler_config.json; {default} is the default")
    for notice in notices:
        warnings.warn(notice, stacklevel=2)
    section = write_tables(tables, context.folder)
    default_steps = context.options.default_steps
    if default_steps is None and is_distilled(checkpoint.scheduler_config):
        default_steps = DISTILLED_STEPS
    if default_steps is not None:
        section["default_steps"] = default_steps
    files = (section["alphas_cumprod"], *(table["file"] for table in section["tables"].values()))
    return StageResult(files=files, sections={"schedulers": section})


def _steps(context: Context, config: Mapping[str, Any], counts: Sequence[int]) -> list[int]:
    """The step counts that the checkpoint's training timesteps allow, and all that were asked for."""
    limit = int(config.get("num_train_timesteps", TRAINING_STEPS))
    asked = set(context.options.scheduler_steps)
    return [count for count in counts if count <= limit or count in asked]


def write_tables(tables: SchedulerTables, folder: Path) -> dict[str, Any]:
    """Write `schedulers/*.f64` below `folder`; return the manifest's scheduler section (JSON-serialisable).

    Raises ExportError when a file cannot be written.
    """
    section: dict[str, Any] = {
        "default": tables.default,
        "config": dict(tables.config),
        "alphas_cumprod": ALPHAS_CUMPROD_FILE,
        "tables": {},
        "left_out": dict(tables.left_out),
    }
    if tables.image_to_image is not None:
        section["image_to_image"] = tables.image_to_image
    try:
        (folder / "schedulers").mkdir(parents=True, exist_ok=True)
        (folder / ALPHAS_CUMPROD_FILE).write_bytes(tables.alphas_cumprod.astype("<f8").tobytes())
        for name, by_steps in tables.records.items():
            file = f"schedulers/{name}.f64"
            with (folder / file).open("wb") as stream:
                for count in sorted(by_steps):
                    stream.write(by_steps[count].packed().tobytes())
            section["tables"][name] = {
                "file": file,
                "minimum_steps": tables.minimum_steps[name],
                "memory": _memory(tables, name),
                **({"order": tables.order(name)} if tables.order(name) > 1 else {}),
                "steps": {str(count): by_steps[count].evaluations for count in sorted(by_steps)},
            }
    except OSError as error:
        raise ExportError(f"cannot write the scheduler tables below {folder}: {error}") from error
    return section


def _memory(tables: SchedulerTables, name: str) -> dict[str, int]:
    memory = dict(zip(("latents", "noises"), tables.memory(name), strict=True))
    return {**memory, "fresh_noises": tables.fresh(name)} if tables.fresh(name) else memory
