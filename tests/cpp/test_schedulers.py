"""Stochastic schedulers, and those with two evaluations per step: the library makes what Python makes, bit by bit."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

from helpers import building, scheduling

import ebca
from ebca.export.checkpoint.defaults import SCHEDULER_CONFIG
from ebca.export.scheduler_tables import build_tables
from ebca.export.stages.schedulers import write_tables
from ebca.runtime import native
from ebca.runtime.sampling.tables import load_table

NAMES = ["ddpm", "euler_ancestral", "heun", "dpmpp_2m_sde", "dpmpp_sde_karras", "lcm", "tcd"]
SOURCES = [*building.DIRECTORY, "contract/utf8", "execution/arena", "sampling/schedulers"]
STEPS = (1, 4, 5)


@pytest.fixture(scope="module")
def directory(shapes_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled engine with tables of more schedulers."""
    folder = tmp_path_factory.mktemp("schedulers")
    tables = build_tables(SCHEDULER_CONFIG, STEPS, ["ddim", *NAMES])
    section = {**write_tables(tables, folder), "default_steps": 4}
    return scheduling.with_tables(shapes_dir, folder, section)


@pytest.fixture(scope="module")
def engines(library: native.Library, directory: Path) -> Iterator[tuple[native.Engine, ebca.Engine]]:
    engine = library.open(directory)
    with ebca.load(directory, backend="onnxruntime") as python:
        yield engine, python
    engine.close()


def compare(engines: tuple[native.Engine, ebca.Engine], batch: int = 1, **given: Any) -> native.Result:
    given = {"steps": 4, "seed": 3, "output": "latents", **given}
    session = engines[0].session(batch=batch)
    with engines[1].session(batch=batch) as python:
        expected = python.generate(["a red circle"] * batch, **given)
    made = session.generate(["a red circle"] * batch, **given)
    session.close()
    assert made.timesteps == list(expected.timesteps)
    assert made.scheduler == expected.parameters["scheduler"]
    assert np.array_equal(made.latents, expected.latents)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_latents_have_the_bits_of_python_s(engines: tuple[native.Engine, ebca.Engine], name: str) -> None:
    compare(engines, scheduler=name, gamma_attn=ebca.Schedule.step(0.01, 0.5))


@pytest.mark.parametrize("seed", [[5, 6], 5])
def test_several_images(engines: tuple[native.Engine, ebca.Engine], seed: Any) -> None:
    compare(engines, batch=2, seed=seed, scheduler="euler_ancestral")


@pytest.mark.parametrize("name", ["euler_ancestral", "heun", "dpmpp_sde_karras"])
def test_image_to_image(engines: tuple[native.Engine, ebca.Engine], name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    compare(engines, image=image, strength=0.6, steps=5, scheduler=name)


def test_a_multistep_scheduler_refuses_image_to_image(engines: tuple[native.Engine, ebca.Engine]) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    session = engines[0].session()
    with pytest.raises(ebca.EbcaError, match="dpmpp_2m_sde looks back over several steps"):
        session.generate("a red circle", image=image, strength=0.5, steps=5, scheduler="dpmpp_2m_sde")
    session.close()


def test_the_seed_of_a_stochastic_run_from_given_latents_is_reported(
    engines: tuple[native.Engine, ebca.Engine],
) -> None:
    latents = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)
    assert list(compare(engines, latents=latents, scheduler="lcm").seeds) == [3]
    assert not compare(engines, latents=latents, scheduler="heun").seeds


def test_steps_are_those_of_the_engine_by_default(engines: tuple[native.Engine, ebca.Engine]) -> None:
    session = engines[0].session()
    made = session.generate("a red circle", scheduler="lcm", seed=3, output="latents")
    assert len(made.timesteps) == 4
    assert np.array_equal(made.latents, compare(engines, scheduler="lcm").latents)
    with pytest.raises(ebca.EbcaError, match="steps is 0"):
        session.generate("a red circle", scheduler="lcm", steps=0)
    session.close()


@pytest.fixture(scope="module")
def probe(cmake_build: Path, header_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("probe") / "table_probe"
    building.link(program, [Path(__file__).with_name("table_probe.cpp")], SOURCES, cmake_build, header_options)
    return program


@pytest.mark.parametrize(("name", "begin"), [*((name, 0) for name in NAMES), ("ddpm", 1), ("heun", 2), ("lcm", 1)])
def test_tables_have_the_bits_of_python_s(probe: Path, directory: Path, name: str, begin: int) -> None:
    section: dict[str, Any] = json.loads((directory / "manifest.json").read_text())["schedulers"]
    done = subprocess.run([probe, directory, name, str(begin), "4", "5"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    expected = []
    for table in (load_table(directory, section, name, steps) for steps in (4, 5)):
        rest = table.after(begin) if begin else table
        expected += [np.array([rest.init_noise_sigma]), rest.timesteps, rest.input_scale, rest.coefficients]
    assert done.stdout == np.concatenate(expected).astype("<f8").tobytes()
