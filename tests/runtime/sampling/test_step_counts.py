"""Any number of steps from 1 to 200 with the tables of the bundled engine, against the loops of diffusers.

EBCA_SLOW_TESTS=1 takes every number of steps (minutes); otherwise some of each kind.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.export.scheduler_choice import DEFAULT_NAMES, SCHEDULERS, checkpoint_schedulers  # noqa: E402
from ebca.export.scheduler_tables import DENSE  # noqa: E402
from ebca.runtime.sampling.table_stepper import TableStepper  # noqa: E402
from ebca.runtime.sampling.tables import load_alphas_cumprod, load_table  # noqa: E402

# Few, around the numbers that solvers treat in their own way (15), around those of older engines, and many.
COUNTS = (
    range(1, 201) if os.environ.get("EBCA_SLOW_TESTS") else [1, 2, 3, 4, 5, 6, 13, 14, 15, 16, 33, 51, 99, 137, 200]
)
CONFIG = Path(__file__).parents[3] / "examples" / "shapes" / "shapes" / "scheduler" / "scheduler_config.json"
SHAPE = (1, 1, 4, 8)
MIXING = np.random.default_rng(0).standard_normal((32, 32), dtype=np.float32) / np.float32(8)

# diffusers computes each step in float32: rounding, amplified by up to 200 steps through the noise predictions.
LIMIT = 2e-5


def prediction(latents: np.ndarray, timestep: float) -> np.ndarray:
    """Noise that depends on all of the latents and on the time, and not linearly."""
    mixed = np.tanh(MIXING @ latents.reshape(-1)) + np.float32(0.1 * np.sin(timestep))
    return mixed.reshape(SHAPE).astype(np.float32)


def of_diffusers(scheduler: Any, steps: int, noise: np.ndarray, begin: int | None = None) -> np.ndarray:
    """From an evaluation on, if it is given: then from latents of its noise level."""
    scheduler.set_timesteps(steps)
    latents = torch.from_numpy(noise) * (scheduler.init_noise_sigma if begin is None else 1)
    for t in scheduler.timesteps[begin or 0 :]:
        found = prediction(scheduler.scale_model_input(latents, t).numpy(), float(t))
        latents = scheduler.step(torch.from_numpy(found), t, latents).prev_sample
    return latents.numpy()


def of_table(table: Any, noise: np.ndarray) -> np.ndarray:
    stepper = TableStepper(table, SHAPE)
    stepper.start(noise)
    latents = noise
    for i in range(table.evaluations):
        evaluation = stepper.evaluation(i)
        latents = stepper.step(i, prediction(evaluation.model_input, evaluation.timestep))
    return latents


@pytest.fixture(scope="module")
def section(shapes_dir: Path) -> dict[str, Any]:
    return dict(json.loads((shapes_dir / "manifest.json").read_text())["schedulers"])


def test_the_bundled_engine_has_every_number_of_steps(section: dict[str, Any]) -> None:
    assert set(section["tables"]) == set(DEFAULT_NAMES)
    for name in DENSE:
        counts = [int(count) for count in section["tables"][name]["steps"]]
        assert counts == list(range(SCHEDULERS[name].minimum_steps, 201)), name


@pytest.mark.parametrize("name", [name for name in DENSE if name != "ddim_inverse"])
def test_latents_are_those_of_the_diffusers_loop(name: str, shapes_dir: Path, section: dict[str, Any]) -> None:
    scheduler = checkpoint_schedulers(json.loads(CONFIG.read_text())).make(name)
    for steps in COUNTS:
        noise = np.random.default_rng(steps).standard_normal(SHAPE, dtype=np.float32)
        got = of_table(load_table(shapes_dir, section, name, steps), noise)
        error = relative_l2(got, of_diffusers(scheduler, steps, noise))
        assert error < LIMIT, f"{steps} steps: {error:.1e}"


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_image_to_image_is_the_rest_of_the_diffusers_loop(name: str, shapes_dir: Path, section: dict[str, Any]) -> None:
    scheduler = checkpoint_schedulers(json.loads(CONFIG.read_text())).make(name)
    for steps in COUNTS[1:]:
        begin = steps // 3
        table = load_table(shapes_dir, section, name, steps).after(begin)
        start = 3 * np.random.default_rng(steps).standard_normal(SHAPE, dtype=np.float32)
        assert table.evaluations == steps - begin
        error = relative_l2(of_table(table, start), of_diffusers(scheduler, steps, start, begin))
        assert error < LIMIT, f"{steps} steps from {begin}: {error:.1e}"


def test_inversion_is_the_published_formula(shapes_dir: Path, section: dict[str, Any]) -> None:
    """At t, r = 1000 // steps: x0 = (x - sqrt(1 - a_t) e) / sqrt(a_t), then to t + r; not the last t."""
    alphas = load_alphas_cumprod(shapes_dir, section)
    for steps in COUNTS[1:]:
        table = load_table(shapes_dir, section, "ddim_inverse", steps)
        ratio = 1000 // steps
        assert table.timesteps.tolist() == [1 + ratio * i for i in range(steps - 1)]
        rng = np.random.default_rng(steps)
        latents = start = rng.standard_normal(16)
        noises = rng.standard_normal((steps - 1, 16))
        for i, t in enumerate(table.timesteps.astype(int)):
            here, there = alphas[[t, t + ratio]]
            clean = (latents - np.sqrt(1 - here) * noises[i]) / np.sqrt(here)
            latents = np.sqrt(there) * clean + np.sqrt(1 - there) * noises[i]
            row = table.row(i)
            # Both are float64; up to 200 steps of rounding.
            assert relative_l2(row[0] * start + row[1:] @ noises[: i + 1], latents) < 1e-12
