"""Stochastic schedulers on the CPU and as CUDA graphs: the same images, and what a run leaves behind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

from helpers import scheduling
from helpers.driver import host_engine

import ebca
from ebca.engines.contract.accuracy import relative_l2
from ebca.errors import EngineError, ParameterError
from ebca.export.checkpoint.defaults import SCHEDULER_CONFIG
from ebca.export.scheduler_tables import build_tables
from ebca.export.stages.schedulers import write_tables

NAMES = ["euler_ancestral", "heun", "dpmpp_2m_sde", "dpmpp_sde", "lcm"]
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def directory(shapes_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled engine with tables of more schedulers, and 4 default steps."""
    folder = tmp_path_factory.mktemp("schedulers")
    section = write_tables(build_tables(SCHEDULER_CONFIG, [4, 70], ["ddim", *NAMES]), folder)
    return scheduling.with_tables(shapes_dir, folder, {**section, "default_steps": 4})


@pytest.fixture(scope="module")
def on_cpu(directory: Path) -> Iterator[ebca.Session]:
    with ebca.load(directory, backend="onnxruntime") as engine, engine.session() as session:
        yield session


@pytest.fixture(scope="module")
def on_graphs(directory: Path) -> Iterator[ebca.Session]:
    engine, _ = host_engine(directory)
    with engine, engine.session() as session:
        yield session


def latents(session: ebca.Session, **given: Any) -> np.ndarray:
    return session.generate(PROMPT, **{"seed": 1, "output": "latents", **given}).latents


@pytest.mark.parametrize("name", NAMES)
def test_graphs_make_the_latents_of_the_host(on_cpu: ebca.Session, on_graphs: ebca.Session, name: str) -> None:
    expected = latents(on_cpu, scheduler=name)
    # The same operations in the same order; a graph of ONNX Runtime may differ with the layout of its buffers.
    assert relative_l2(latents(on_graphs, scheduler=name), expected) < 1e-6
    assert relative_l2(latents(on_graphs, scheduler=name, on_step=lambda info: None), expected) < 1e-6
    assert relative_l2(latents(on_cpu, scheduler=name, seed=2), expected) > 0.1


def test_a_deterministic_run_between_stochastic_ones(on_cpu: ebca.Session, on_graphs: ebca.Session) -> None:
    """They share the sampler's buffers, which the second one fills in another way."""
    first = latents(on_graphs, scheduler="lcm")
    assert relative_l2(latents(on_graphs, scheduler="ddim"), latents(on_cpu, scheduler="ddim")) < 1e-6
    assert np.array_equal(latents(on_graphs, scheduler="lcm"), first)


def test_more_evaluations_than_the_buffers_had_room_for(on_cpu: ebca.Session, on_graphs: ebca.Session) -> None:
    latents(on_graphs, scheduler="euler_ancestral")
    given: dict[str, Any] = {"scheduler": "euler_ancestral", "steps": 70, "guidance_scale": 1.0}
    assert relative_l2(latents(on_graphs, **given), latents(on_cpu, **given)) < 1e-6


def test_steps_are_those_of_the_engine_by_default(on_cpu: ebca.Session) -> None:
    result = on_cpu.generate(PROMPT, scheduler="ddim", seed=1, output="latents")
    assert len(result.timesteps) == 4 and result.parameters["steps"] == 4
    assert len(on_cpu.generate(PROMPT, scheduler="ddim", steps=70, output="latents").timesteps) == 70


def test_schedules_know_that_heun_has_two_evaluations_per_step(on_cpu: ebca.Session) -> None:
    seen = []
    given: dict[str, Any] = {"scheduler": "heun", "gamma_attn": ebca.Schedule.reverse_step(0.05, 0.5)}
    result = on_cpu.generate(PROMPT, seed=1, output="latents", energies=True, **given)
    seen = [len(result.timesteps), result.energies.shape[0]]
    assert seen == [7, 7]
    # After half of the four steps, that is after four evaluations, the update is off.
    values = [0.05] * 4 + [0.0] * 3
    same = latents(on_cpu, scheduler="heun", gamma_attn=values)
    assert np.array_equal(result.latents, same) or relative_l2(result.latents, same) < 1e-5


def test_repainting_takes_no_scheduler_however_stochastic(on_cpu: ebca.Session) -> None:
    image, mask = np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 255, np.uint8)
    with pytest.raises(ParameterError, match="RePaint has steps of its own"):
        on_cpu.generate(PROMPT, image=image, mask=mask, scheduler="lcm")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda table: table["memory"].update(fresh_noises=17), "fresh_noises is 17 instead of"),
        (lambda table: table["memory"].update(fresh_noises=True), "fresh_noises is true instead of"),
        (lambda table: table["memory"].update(fresh_noises=0), "the tables of lcm have"),
        (lambda table: table.update(order=5), "order is 5 instead of"),
    ],
)
def test_a_damaged_entry_is_refused(directory: Path, tmp_path: Path, change: Any, match: str) -> None:
    from helpers import manifests

    folder = tmp_path / "engine"
    folder.mkdir()
    for file in directory.iterdir():
        (folder / file.name).symlink_to(file)
    with pytest.raises(EngineError, match=match):
        ebca.load(manifests.edit(folder, lambda data: change(data["schedulers"]["tables"]["lcm"])))
