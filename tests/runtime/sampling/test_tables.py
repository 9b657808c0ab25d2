"""Scheduler tables: the weighted sum against the loop of diffusers, and reading tables from a folder."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.errors import EngineError, ParameterError  # noqa: E402
from ebca.export.checkpoint.defaults import SCHEDULER_CONFIG  # noqa: E402
from ebca.export.scheduler_choice import SCHEDULERS  # noqa: E402
from ebca.export.scheduler_tables import DENSE, build_tables  # noqa: E402
from ebca.export.stages.schedulers import write_tables  # noqa: E402
from ebca.runtime.sampling.table_stepper import TableStepper  # noqa: E402
from ebca.runtime.sampling.tables import (  # noqa: E402
    available_schedulers,
    find_scheduler,
    load_alphas_cumprod,
    load_table,
    normalise_name,
)

STEPS = [1, 2, 10, 50]
SHAPE = (2, 4, 16, 16)
# The others are in tests/export/test_scheduler_runs.py.
FORWARD = [name for name in DENSE if name != "ddim_inverse"]

# Both loops run in float32 and differ only by rounding, which fifty steps amplify.
LIMIT = 5e-6

CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": SCHEDULER_CONFIG,
    "v_prediction": {**SCHEDULER_CONFIG, "prediction_type": "v_prediction"},
    "leading": {**SCHEDULER_CONFIG, "timestep_spacing": "leading"},
    "trailing": {**SCHEDULER_CONFIG, "timestep_spacing": "trailing"},
    "karras": {**SCHEDULER_CONFIG, "use_karras_sigmas": True},
    "alpha_one": {**SCHEDULER_CONFIG, "set_alpha_to_one": True, "beta_schedule": "linear"},
}


def noise_model(x: np.ndarray, t: float) -> np.ndarray:
    return np.tanh(np.float32(0.3) * x) + np.float32(0.1) * np.sin(np.float32(t))


def diffusers_loop(name: str, config: dict[str, Any], steps: int, noise: np.ndarray) -> list[np.ndarray]:
    spec = SCHEDULERS[name]
    scheduler = spec.diffusers_class.from_config({**config, **spec.overrides})
    scheduler.set_timesteps(steps)
    latents = torch.from_numpy(noise) * scheduler.init_noise_sigma
    history = []
    for t in scheduler.timesteps:
        prediction = noise_model(scheduler.scale_model_input(latents, t).numpy(), float(t))
        latents = scheduler.step(torch.from_numpy(prediction), t, latents).prev_sample
        history.append(latents.numpy())
    return history


def table_loop(folder: Path, section: dict[str, Any], name: str, steps: int, noise: np.ndarray) -> list[np.ndarray]:
    table = load_table(folder, section, name, steps)
    stepper = TableStepper(table, noise.shape)
    stepper.start(noise)
    history = []
    for i in range(table.evaluations):
        evaluation = stepper.evaluation(i)
        assert evaluation.timestep == table.timesteps[i]
        history.append(stepper.step(i, noise_model(evaluation.model_input, evaluation.timestep)))
    return history


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    made = {}
    for key, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp(key)
        made[key] = (folder, write_tables(build_tables(config, STEPS, DENSE), folder))
    return made


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("config", CONFIGS)
def test_equals_the_diffusers_loop(
    written: dict[str, tuple[Path, dict[str, Any]]], config: str, name: str, steps: int
) -> None:
    noise = np.random.default_rng(steps).standard_normal(SHAPE, dtype=np.float32)
    expected = diffusers_loop(name, CONFIGS[config], steps, noise)
    got = table_loop(*written[config], name, steps, noise)
    assert len(got) == len(expected)
    errors = [relative_l2(a, b) for a, b in zip(got, expected, strict=True)]
    assert max(errors) < LIMIT, f"worst step {int(np.argmax(errors))}: {max(errors):.2e}"


@pytest.mark.parametrize("prediction_type", ["sd15", "v_prediction"])
def test_inversion_is_undone_by_ddim(written: dict[str, tuple[Path, dict[str, Any]]], prediction_type: str) -> None:
    """With predictions that do not depend on the latents, DDIM undoes the inversion exactly."""
    folder, section = written[prediction_type]
    inverse, forward = (load_table(folder, section, name, 10) for name in ("ddim_inverse", "ddim"))
    rng = np.random.default_rng(3)
    start = rng.standard_normal(SHAPE, dtype=np.float32)
    noises = np.zeros((10, *SHAPE), dtype=np.float32)
    if prediction_type == "sd15":
        noises[:9] = rng.standard_normal((9, *SHAPE), dtype=np.float32)
    inverted = TableStepper(inverse, SHAPE).combine(8, start, noises)
    if prediction_type == "v_prediction":
        # v mixes noise and image. For a zero prediction each step is a rotation, so there is a closed form.
        a = load_alphas_cumprod(folder, section)[[1, *inverse.timesteps[1:].astype(int), 901]]
        cosines = np.sqrt(a[:-1] * a[1:]) + np.sqrt((1 - a[:-1]) * (1 - a[1:]))
        assert relative_l2(inverted, start * np.prod(cosines)) < 1e-6
        return
    # DDIM's first step starts at timestep 901, where the inversion ends, with the inversion's last prediction.
    back = TableStepper(forward, SHAPE).combine(8, inverted, noises[8::-1])
    assert relative_l2(back, start) < 1e-5


# --- starting at an intermediate timestep

ONE_STEP = ["ddim", "euler"]


@pytest.mark.parametrize("begin", [0, 1, 4, 9])
@pytest.mark.parametrize("name", ONE_STEP)
@pytest.mark.parametrize("config", CONFIGS)
def test_the_rest_of_a_table_equals_the_rest_of_the_diffusers_loop(
    written: dict[str, tuple[Path, dict[str, Any]]], config: str, name: str, begin: int
) -> None:
    table = load_table(*written[config], name, 10).after(begin)
    assert (table.evaluations, table.remaining, table.steps, table.skipped) == (10 - begin, 10 - begin, 10, begin)
    start = 3 * np.random.default_rng(begin).standard_normal(SHAPE, dtype=np.float32)

    scheduler = SCHEDULERS[name].diffusers_class.from_config({**CONFIGS[config], **SCHEDULERS[name].overrides})
    scheduler.set_timesteps(10)
    expected = torch.from_numpy(start)
    ours = TableStepper(table, SHAPE)
    # These latents already have the noise level of the start.
    assert np.array_equal(ours.scaled(start), start)
    ours.start(start)
    for i, t in enumerate(scheduler.timesteps[begin:]):
        assert table.timesteps[i] == float(t)
        prediction = noise_model(scheduler.scale_model_input(expected, t).numpy(), float(t))
        expected = scheduler.step(torch.from_numpy(prediction), t, expected).prev_sample
        got = ours.step(i, noise_model(ours.evaluation(i).model_input, float(t)))
        assert relative_l2(got, expected.numpy()) < LIMIT, i


@pytest.mark.parametrize("name", sorted(set(FORWARD) - set(ONE_STEP)))
def test_multistep_schedulers_start_only_at_their_first_evaluation(
    written: dict[str, tuple[Path, dict[str, Any]]], name: str
) -> None:
    table = load_table(*written["sd15"], name, 10)
    unscaled = table.after(0)
    assert unscaled.init_noise_sigma == 1 and unscaled.skipped == 0
    assert np.array_equal(unscaled.coefficients, table.coefficients)
    with pytest.raises(ParameterError, match=rf"{name} looks back over several steps .* use ddim or euler"):
        table.after(4)


@pytest.mark.parametrize("begin", [-1, 10, 100])
def test_a_start_outside_the_table_is_refused(written: dict[str, tuple[Path, dict[str, Any]]], begin: int) -> None:
    with pytest.raises(ParameterError, match=f"ddim with 10 steps cannot start at step {begin}"):
        load_table(*written["sd15"], "ddim", 10).after(begin)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("name", "begin"), [(name, 0) for name in FORWARD] + [(name, begin) for name in ONE_STEP for begin in (1, 5, 9)]
)
def test_noise_is_added_as_in_diffusers(
    written: dict[str, tuple[Path, dict[str, Any]]], config: str, name: str, begin: int
) -> None:
    rng = np.random.default_rng(begin)
    clean, noise = rng.standard_normal((2, *SHAPE), dtype=np.float32)
    scheduler = SCHEDULERS[name].diffusers_class.from_config({**CONFIGS[config], **SCHEDULERS[name].overrides})
    scheduler.set_timesteps(10)
    at = scheduler.timesteps[begin : begin + 1].repeat(len(clean))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    expected = scheduler.add_noise(torch.from_numpy(clean), torch.from_numpy(noise), at).numpy()
    got = (
        load_table(*written[config], name, 10)
        .after(begin)
        .add_noise(clean, noise, load_alphas_cumprod(*written[config]))
    )
    # diffusers computes the weighted sum in float32, we in float64.
    assert got.dtype == np.float32
    assert relative_l2(got, expected) < 1e-6


def test_the_sum_is_rounded_once_and_ignores_later_noise(
    written: dict[str, tuple[Path, dict[str, Any]]],
) -> None:
    table = load_table(*written["sd15"], "unipc", 10)
    rng = np.random.default_rng(1)
    start = rng.standard_normal(SHAPE, dtype=np.float32)
    noises = rng.standard_normal((10, *SHAPE), dtype=np.float32)
    noises[8:] = np.nan
    out = TableStepper(table, SHAPE).combine(7, start, noises)
    assert out.dtype == np.float32
    exact = table.row(7)[0] * start.astype(np.float64) + np.tensordot(
        table.row(7)[1:], noises[:8].astype(np.float64), axes=1
    )
    assert relative_l2(out, exact) < 1e-7


def test_combine_refuses_wrong_evaluations_and_shapes(written: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    stepper = TableStepper(load_table(*written["sd15"], "ddim", 2), (1, 4, 8, 8))
    start, noises = np.zeros((1, 4, 8, 8), np.float32), np.zeros((2, 1, 4, 8, 8), np.float32)
    with pytest.raises(ParameterError, match="has no evaluation 2; give 0 to 1"):
        stepper.combine(2, start, noises)
    with pytest.raises(ParameterError, match="do not fit"):
        stepper.combine(0, start[:, :, :4], noises)
    with pytest.raises(ParameterError, match="do not fit"):
        stepper.combine(1, start, noises[:1])


@pytest.mark.parametrize(
    ("written_as", "name"),
    [
        ("PNDM", "pndm"),
        ("plms", "pndm"),
        ("PNDMScheduler", "pndm"),
        ("DDIM", "ddim"),
        ("ddim-inverse", "ddim_inverse"),
        ("DDIMInverseScheduler", "ddim_inverse"),
        ("Euler", "euler"),
        ("EulerDiscreteScheduler", "euler"),
        ("dpm++2m", "dpmpp_2m"),
        ("dpmpp-2m", "dpmpp_2m"),
        ("DPM++ 2M", "dpmpp_2m"),
        ("dpmpp_2m", "dpmpp_2m"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        (" UniPC ", "unipc"),
        ("UniPCMultistepScheduler", "unipc"),
    ],
)
def test_aliases(written: dict[str, tuple[Path, dict[str, Any]]], written_as: str, name: str) -> None:
    assert normalise_name(written_as) == name
    assert load_table(*written["sd15"], written_as, 10).name == name


def test_a_name_with_an_underscore_needs_no_alias() -> None:
    names = ("pndm", "dpmpp_2m", "a_new_one", "dpmpp_2s")
    assert [find_scheduler(name, names) for name in names] == list(names)
    assert find_scheduler("DPM++ 2S", names) == "dpmpp_2s" and find_scheduler("ANewOneScheduler", names) == "a_new_one"
    assert find_scheduler("heun", names) is None


def test_every_table_loads(written: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    folder, section = written["sd15"]
    assert available_schedulers(section) == list(DENSE)
    tables = build_tables(SCHEDULER_CONFIG, STEPS, DENSE)
    for name, by_steps in tables.records.items():
        for steps, record in by_steps.items():
            table = load_table(folder, section, name, steps)
            assert (table.name, table.steps, table.evaluations) == (name, steps, record.evaluations)
            assert table.init_noise_sigma == record.init_noise_sigma
            for attribute in ("timesteps", "input_scale", "coefficients"):
                assert np.array_equal(getattr(table, attribute), getattr(record, attribute))
            assert [len(table.row(i)) for i in range(table.evaluations)] == [i + 2 for i in range(table.evaluations)]
    assert np.array_equal(load_alphas_cumprod(folder, section), tables.alphas_cumprod)


def test_the_error_about_an_unknown_scheduler_lists_the_known_ones(
    written: dict[str, tuple[Path, dict[str, Any]]],
) -> None:
    with pytest.raises(ParameterError, match=r"'heun'.*pndm, ddim, ddim_inverse, euler, dpmpp_2m, unipc"):
        load_table(*written["sd15"], "heun", 10)


def test_the_error_about_steps_that_are_not_stored_names_the_nearest_and_the_remedy(
    written: dict[str, tuple[Path, dict[str, Any]]],
) -> None:
    with pytest.raises(ParameterError, match=r"nearest stored count is 10.*--scheduler-steps 12"):
        load_table(*written["sd15"], "pndm", 12)


def test_the_error_about_more_steps_than_timesteps_offers_no_export(
    written: dict[str, tuple[Path, dict[str, Any]]],
) -> None:
    with pytest.raises(
        ParameterError, match="steps is 1001, and pndm has 1000 timesteps to step through; give 1 to 1000"
    ):
        load_table(*written["sd15"], "pndm", 1001)
    with pytest.raises(ParameterError, match="--scheduler-steps 1000"):
        load_table(*written["sd15"], "pndm", 1000)


def test_the_error_about_too_few_steps_names_the_minimum(written: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    with pytest.raises(ParameterError, match="needs at least 2"):
        load_table(*written["sd15"], "ddim_inverse", 1)


@pytest.mark.parametrize("steps", [0, -3, 2.5, True, "10", None])
def test_other_values_of_steps_are_refused(written: dict[str, tuple[Path, dict[str, Any]]], steps: Any) -> None:
    with pytest.raises(ParameterError, match="whole number"):
        load_table(*written["sd15"], "pndm", steps)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    section = write_tables(build_tables(SCHEDULER_CONFIG, [2, 10], ["ddim"]), tmp_path)
    path = tmp_path / "schedulers/ddim.f64"
    content = path.read_bytes()
    for size in (len(content) - 3, len(content) - 8, len(content) + 8):
        # The place of a record follows from the records before it, so no record of a file of another size is right.
        path.write_bytes((content + bytes(8))[:size])
        for steps in (2, 10):
            with pytest.raises(EngineError, match=f"has {size} bytes instead of {len(content)}"):
                load_table(tmp_path, section, "ddim", steps)
    path.write_bytes(content[:-8] + np.float64(np.nan).tobytes())
    load_table(tmp_path, section, "ddim", 2)
    with pytest.raises(EngineError, match="not finite"):
        load_table(tmp_path, section, "ddim", 10)
    path.write_bytes((np.frombuffer(content) * 1e200).tobytes())
    with pytest.raises(EngineError, match=r"table of ddim with 10 steps in .* has coefficients that are not finite"):
        load_table(tmp_path, section, "ddim", 10)
    path.unlink()
    with pytest.raises(EngineError, match="cannot read"):
        load_table(tmp_path, section, "ddim", 2)
    (tmp_path / "schedulers/alphas_cumprod.f64").write_bytes(b"")
    with pytest.raises(EngineError, match="has 0 bytes instead of 8000"):
        load_alphas_cumprod(tmp_path, section)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("tables",), {}),
        (("tables", "ddim", "file"), "../outside.f64"),
        (("tables", "ddim", "steps"), None),
        (("tables", "ddim", "steps", "2"), {"offset": 0, "evaluations": 2}),
        (("tables", "ddim", "steps", "2"), 0),
        (("tables", "ddim", "steps", "2"), 1),
        (("tables", "ddim", "steps", "2"), 2.5),
        (("tables", "ddim", "steps", "2"), True),
        (("tables", "ddim", "steps", "2"), 10**9),
        (("tables", "ddim", "steps", "10000"), 4097),
        (("tables", "ddim", "steps", "two"), 2),
        (("tables", "ddim", "memory"), {}),
        (("tables", "ddim", "memory", "latents"), 0),
        (("tables", "ddim", "memory", "latents"), 2),
        (("tables", "ddim", "memory", "noises"), 17),
        (("config", "num_train_timesteps"), "1000"),
        (("tables", "ddim"), []),
    ],
)
def test_damaged_manifests_are_refused(tmp_path: Path, path: tuple[str, ...], value: Any) -> None:
    section = copy.deepcopy(write_tables(build_tables(SCHEDULER_CONFIG, [2], ["ddim"]), tmp_path))
    (tmp_path.parent / "outside.f64").write_bytes(bytes(8 * 100))
    place = section
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(EngineError) as caught:
        load_table(tmp_path, section, "ddim", 2)
    assert "export the engine again" in str(caught.value)
