"""The CUDA device over a driver that needs no GPU: what a step does, counted, and that its results are the CPU's."""

import gc
import logging
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from helpers.driver import HostDriver
from helpers.tiny import call_inputs

import ebca
from ebca.runtime import devices
from ebca.runtime.control import ControlArrays, resolve
from ebca.runtime.cuda import CudaDevice
from ebca.runtime.executor import Executor

SIZES = {"batch": 2, "contexts": 2, "tokens": 77, "height": 8, "width": 8}


@pytest.fixture(scope="module")
def engine(tiny_unet_dir: Path) -> ebca.Engine:
    return ebca.load(tiny_unet_dir, backend="onnxruntime")


def executor(engine: ebca.Engine, device: devices.Device) -> Executor:
    made = Executor(engine.manifest.unet, engine.runner, SIZES, device)
    sample, contexts = call_inputs(contexts=2, size=(8, 8))
    made.sample[...], made.contexts[...], made.timestep[...] = sample, contexts, 300
    return made


def control(engine: ebca.Engine, **values: object) -> ControlArrays:
    return resolve(ebca.EnergyControl(**values), engine.manifest.unet.layers, SIZES)  # type: ignore[arg-type]


MASK = np.zeros((1, 1, 8, 8), np.float32)
MASK[..., 2:5, 1:7] = 1
VALUES = {
    "attention": {"weights": [1.0, 0.5]},
    "update": {"gamma_attn": 0.05, "gamma_norm": 0.4, "weights": [1.0, -0.3]},
    "update_masked": {"gamma_attn": 0.05, "gamma_norm": 0.4, "mask": MASK},
    "energies": {"gamma_attn": 0.02, "gamma_norm": 0.1, "mask": MASK},
}


@pytest.mark.parametrize("variant", VALUES)
def test_a_step_computes_what_the_cpu_computes(engine: ebca.Engine, variant: str) -> None:
    cpu, cuda = executor(engine, devices.CpuDevice()), executor(engine, CudaDevice(HostDriver()))
    arrays = control(engine, **VALUES[variant])
    for one in (cpu, cuda):
        one.set_control(arrays)
        one.run(variant)
    assert cpu.noise.any() and np.array_equal(cpu.noise, cuda.noise)
    assert np.array_equal(cpu.contexts_out, cuda.contexts_out)
    assert np.array_equal(cpu.energies, cuda.energies) and cuda.energies.any() == (variant == "energies")


def test_a_step_is_one_launch_whatever_changes(engine: ebca.Engine) -> None:
    driver = HostDriver()
    made, twin = executor(engine, CudaDevice(driver)), executor(engine, devices.CpuDevice())
    made.run("update_masked")
    before = driver.count.copy()
    steps = [VALUES["update_masked"], VALUES["update"], {"gamma_attn": 0.01, "weights": [1.0, 0.7], "norm_factor": 0.5}]
    for number, values in enumerate(steps):
        sample, contexts = call_inputs(contexts=2, size=(8, 8))
        for one in (made, twin):
            one.sample[...], one.contexts[...], one.timestep[...] = (
                sample + number,
                contexts * (1 + number),
                100 + number,
            )
            one.set_control(control(engine, **values))
            one.run("update_masked")
        assert np.array_equal(made.noise, twin.noise)
    done = driver.count - before
    # One wait at the end of a step, for the host wants its result; nothing allocated, copied or recorded beside it.
    assert done == {"launch": len(steps), "synchronize": len(steps)}


def test_each_variant_is_recorded_once(engine: ebca.Engine) -> None:
    driver = HostDriver()
    made = executor(engine, CudaDevice(driver))
    for variant in ("attention", "update", "attention", "update"):
        made.run(variant)
    assert driver.count["capture"] == 2 and driver.count["launch"] == 4


def test_a_step_that_cannot_be_captured_runs_call_by_call_and_says_so(
    engine: ebca.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    driver, cpu = HostDriver(refuse_capture=True), executor(engine, devices.CpuDevice())
    made = executor(engine, CudaDevice(driver))
    with caplog.at_level(logging.WARNING):
        made.run("attention")
    assert "runs without a CUDA graph, call by call: operation not permitted" in caplog.text
    cpu.run("attention")
    assert driver.count["launch"] == 0 and np.array_equal(made.noise, cpu.noise)


def test_a_probe_sees_the_device(engine: ebca.Engine) -> None:
    seen: list[tuple[int, float]] = []
    for device in (devices.CpuDevice(), CudaDevice(HostDriver())):
        executor(engine, device).run("update", lambda layer, q, k: seen.append((layer, float(np.abs(q).sum()))))
    half = len(seen) // 2
    assert half == len(engine.manifest.unet.layers) and seen[:half] == seen[half:] and all(total for _, total in seen)


def test_what_is_not_finite_is_found_on_the_device(engine: ebca.Engine) -> None:
    made = executor(engine, CudaDevice(HostDriver()))
    made.timestep[0] = np.nan
    assert made.first_nonfinite("attention") == engine.manifest.unet.segments[0]


def test_all_device_memory_is_given_back(engine: ebca.Engine) -> None:
    driver = HostDriver()
    made = executor(engine, CudaDevice(driver))
    made.run("update")
    assert driver.memory
    del made
    gc.collect()
    assert not driver.memory and driver.count["free"] == driver.count["allocate"]


def test_no_gpu_is_one_clear_line() -> None:
    # On a machine with a GPU this one is not there; without cuda-bindings, or without a driver, none is.
    with pytest.raises(ebca.BackendError) as error:
        devices.create("cuda:99")
    assert "\n" not in str(error.value)
    assert any(words in str(error.value) for words in ("device 'cpu'", "there is no GPU 99", 'pip install "ebca[gpu]"'))


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:1", ""])
def test_a_device_that_does_not_exist(name: str) -> None:
    with pytest.raises(ebca.ParameterError, match="is unknown; choose one of cpu, cuda"):
        devices.create(name)
