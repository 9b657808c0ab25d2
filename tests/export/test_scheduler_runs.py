"""Every scheduler, many step counts and options: the latents of every evaluation are those of diffusers.

A cheap stand-in for the UNet lets both run from the same seed; the real one is in `stages/test_schedulers.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.errors import ExportError, ParameterError  # noqa: E402
from ebca.export.checkpoint.defaults import SCHEDULER_CONFIG  # noqa: E402
from ebca.export.scheduler_choice import DEFAULT_NAMES, INVERSE, checkpoint_schedulers  # noqa: E402
from ebca.export.scheduler_tables import SchedulerTables, build_tables  # noqa: E402
from ebca.export.spacing import parsed, parsed_config  # noqa: E402
from ebca.export.stages.schedulers import write_tables  # noqa: E402
from ebca.runtime.noise import NormalStream  # noqa: E402
from ebca.runtime.sampling.table_stepper import TableStepper  # noqa: E402
from ebca.runtime.sampling.tables import SchedulerTable, load_table  # noqa: E402

SHAPE, SEED = (1, 4, 4, 4), 11
STEPS = (1, 2, 4, 10, 30, 50)
# diffusers runs in float32 and rounds at every step.
LIMIT = 2e-5
# With zero terminal SNR, Euler starts at a noise level of 4096, of which its float32 keeps 2e-4.
LIMIT_OF_4096 = 5e-4

V_ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {},
    "v_prediction": {"prediction_type": "v_prediction"},
    "trailing": {"timestep_spacing": "trailing"},
    "zero SNR": V_ZERO_SNR,
    "third order": {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3},
}
NAMES = [name for name in DEFAULT_NAMES if name != INVERSE]
MORE = ["euler_karras", "euler_exponential", "euler_beta", "heun_karras", "dpmpp_2m_exponential", "dpmpp_2m_beta"]
CASES = [
    *[("sd15", name) for name in (*NAMES, *MORE, "unipc_karras", "dpmpp_2m_sde_beta", "lcm_trailing")],
    *[(config, name) for config in list(CONFIGS)[1:-1] for name in NAMES if "karras" not in name],
    ("third order", "dpmpp_3m"),
]


def model(scaled: np.ndarray, timestep: float) -> np.ndarray:
    """Smooth, and different for every latent and timestep."""
    turn = np.arange(scaled.size).reshape(scaled.shape)
    return np.asarray(0.8 * np.tanh(scaled) + 0.3 * np.sin(turn + timestep / 100), dtype=np.float32)


def of_diffusers(scheduler: Any, steps: int, eta: float | None) -> Iterator[np.ndarray]:
    generator = torch.Generator().manual_seed(SEED)
    scheduler.set_timesteps(steps)
    latents = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    options = {} if eta is None else {"eta": eta}
    if "generator" in scheduler.step.__code__.co_varnames:
        options["generator"] = generator
    for t in scheduler.timesteps:
        noise = torch.from_numpy(model(scheduler.scale_model_input(latents, t).numpy(), float(t)))
        latents = scheduler.step(noise, t, latents, return_dict=False, **options)[0]
        yield latents.numpy()


class Increments:
    """A sampler of Brownian noise that uses the stream of the seed; the definition is in docs/schedulers.md."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(SEED)
        torch.randn(SHAPE, generator=self.generator)
        self.levels: list[tuple[float, Any]] = []

    def __call__(self, sigma: Any, sigma_next: Any) -> Any:
        begin, end = float(sigma), float(sigma_next)
        if not self.levels or self.levels[0][0] != begin:
            self.levels = [(begin, torch.zeros(SHAPE))]
        level, motion = self.levels[-1]
        motion = motion + (level - end) ** 0.5 * torch.randn(SHAPE, generator=self.generator)
        self.levels.append((end, motion))
        return motion / (begin - end) ** 0.5


def stored(tables: SchedulerTables, folder: Path, name: str, steps: int) -> SchedulerTable:
    return load_table(folder, write_tables(tables, folder), name, steps)


def ours(table: SchedulerTable, streams: list[NormalStream], latents: np.ndarray) -> Iterator[np.ndarray]:
    stepper = TableStepper(table, latents.shape, streams=streams)
    stepper.start(latents)
    for i in range(stepper.total):
        evaluation = stepper.evaluation(i)
        yield stepper.step(i, model(evaluation.model_input, evaluation.timestep))


def counts(name: str, key: str) -> list[int]:
    """Step counts that diffusers can run."""
    # Two rounded timesteps are equal, and diffusers starts at the second one.
    most = 30 if name.endswith("_beta") or key != "sd15" else 50
    return [steps for steps in STEPS if steps <= most]


@pytest.mark.parametrize(("key", "name"), CASES)
def test_latents_of_every_evaluation_are_those_of_diffusers(key: str, name: str, tmp_path: Path) -> None:
    config = {**SCHEDULER_CONFIG, **CONFIGS[key]}
    choice = checkpoint_schedulers(config)
    try:
        tables = build_tables(config, counts(name, key), [name])
    except ExportError as error:
        # An epsilon of the last timestep says nothing about an image without signal.
        assert key == "zero SNR" and "not finite" in error.problem, error
        return
    section = write_tables(tables, tmp_path)
    for steps in counts(name, key):
        stream = NormalStream(SEED)
        table = load_table(tmp_path, section, name, steps)
        scheduler = choice.make(name)
        theirs = of_diffusers(scheduler, steps, choice.eta(name))
        with torch.inference_mode():
            if hasattr(scheduler, "noise_sampler"):
                scheduler.set_timesteps = with_noise(scheduler)
            errors = [
                relative_l2(got, expected)
                for got, expected in zip(ours(table, [stream], stream.randn(SHAPE)), theirs, strict=True)
            ]
        limit = LIMIT_OF_4096 if table.init_noise_sigma > 1000 else LIMIT
        assert len(errors) == table.evaluations and max(errors) <= limit, (steps, max(errors))


def with_noise(scheduler: Any) -> Any:
    """`set_timesteps` that puts `Increments` in the place of a sampler that needs torchsde."""
    plain = scheduler.set_timesteps

    def set_timesteps(steps: int) -> None:
        plain(steps)
        scheduler.noise_sampler = Increments()

    return set_timesteps


def test_ddim_draws_noise_if_the_config_has_an_eta(tmp_path: Path) -> None:
    config = {**SCHEDULER_CONFIG, "eta": 0.7}
    table = stored(build_tables(config, [10], ["ddim"]), tmp_path, "ddim", 10)
    stream, choice = NormalStream(SEED), checkpoint_schedulers(config)
    theirs = of_diffusers(choice.make("ddim"), 10, 0.7)
    for got, expected in zip(ours(table, [stream], stream.randn(SHAPE)), theirs, strict=True):
        assert relative_l2(got, expected) <= LIMIT
    assert table.stochastic


@pytest.mark.parametrize(
    ("flag", "text", "name", "steps"),
    [
        ("--timesteps", "euler=999,850,400,100", "euler_custom", 4),
        ("--timesteps", "dpmpp_2m_sde=999,845,730,587,443", "dpmpp_2m_sde_custom", 5),
        ("--timesteps", "ddpm=999,500,250", "ddpm_custom", 3),
        ("--timesteps", "heun=999,500,250", "heun_custom", 3),
        ("--sigmas", "euler=14.6,6.5,2.1,0.9,0", "euler_custom", 4),
    ],
)
def test_a_users_spacing_is_a_table_of_its_own(flag: str, text: str, name: str, steps: int, tmp_path: Path) -> None:
    spacing = parsed(flag, text)
    tables = build_tables(SCHEDULER_CONFIG, [2], ["ddim"], spacings=[spacing])
    table = stored(tables, tmp_path, name, steps)
    base, given = spacing
    scheduler = checkpoint_schedulers(SCHEDULER_CONFIG).make(base)
    plain = scheduler.set_timesteps
    scheduler.set_timesteps = lambda _: plain(**given.arguments())
    stream = NormalStream(SEED)
    for got, expected in zip(
        ours(table, [stream], stream.randn(SHAPE)), of_diffusers(scheduler, steps, None), strict=True
    ):
        assert relative_l2(got, expected) <= LIMIT


@pytest.mark.parametrize(
    ("flag", "text", "match"),
    [
        ("--timesteps", "euler", "write it as in --timesteps euler=999"),
        ("--timesteps", "euler=999,x", "write it as in"),
        ("--timesteps", "euler=100,999", "whole numbers from 0 that go down"),
        ("--sigmas", "euler=14,1", "the last one is 0"),
        ("--sigmas", "=14,0", "write it as in --sigmas"),
    ],
)
def test_a_spacing_that_makes_no_sense_is_one_line(flag: str, text: str, match: str) -> None:
    with pytest.raises(ParameterError, match=match) as caught:
        parsed(flag, text)
    assert "\n" not in str(caught.value)


def test_a_scheduler_that_takes_no_timesteps_says_so() -> None:
    with pytest.raises(ExportError, match=r"'euler_ancestral' cannot do 3 steps .*no timesteps of a user"):
        build_tables(SCHEDULER_CONFIG, [2], ["ddim"], spacings=[parsed("--timesteps", "euler_ancestral=999,500,2")])


def test_two_spacings_of_the_same_length_are_refused() -> None:
    spacings = [parsed("--timesteps", "euler=999,1"), parsed("--timesteps", "euler=900,1")]
    with pytest.raises(ParameterError, match="two spacings of euler have 2 steps"):
        build_tables(SCHEDULER_CONFIG, [2], ["ddim"], spacings=spacings)


def test_config_entries_are_json_or_texts() -> None:
    given = ["eta=0.5", "rescale_betas_zero_snr=True", "timestep_spacing=trailing", "solver_order=3"]
    assert parsed_config(given) == {
        "eta": 0.5,
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "solver_order": 3,
    }
    with pytest.raises(ParameterError, match="write KEY=VALUE"):
        parsed_config(["eta"])


@pytest.mark.parametrize("name", ["euler_ancestral_karras", "ddim_beta", "sideways", "euler_sideways"])
def test_a_variant_that_diffusers_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(ParameterError, match=f"scheduler '{name}' is unknown"):
        build_tables(SCHEDULER_CONFIG, [2], [name])


@pytest.mark.parametrize(("name", "begin"), [("euler_ancestral", 3), ("heun", 2), ("dpmpp_sde", 2), ("lcm", 1)])
def test_the_rest_of_a_table_from_a_step_on(name: str, begin: int, tmp_path: Path) -> None:
    """It continues a whole run from its latents; streams of both have drawn as much."""
    table = stored(build_tables(SCHEDULER_CONFIG, [6], [name]), tmp_path, name, 6)
    first = begin * table.order
    stream = NormalStream(SEED)
    whole = list(ours(table, [stream], stream.randn(SHAPE)))
    again = NormalStream(SEED)
    for _ in range(1 + (first if table.stochastic else 0)):
        again.randn(SHAPE)
    rest = list(ours(table.after(begin), [again], whole[first - 1]))
    assert len(rest) == table.evaluations - first
    for got, expected in zip(rest, whole[first:], strict=True):
        assert relative_l2(got, expected) < 2e-6  # of float32
    assert table.after(begin).remaining == 6 - begin


def test_heun_does_not_start_within_a_step(tmp_path: Path) -> None:
    table = stored(build_tables(SCHEDULER_CONFIG, [6], ["heun"]), tmp_path, "heun", 6)
    assert table.order == 2 and table.evaluations == 11
    assert [table.recurrence.starts_at(i) for i in range(1, 5)] == [False, True, False, True]
