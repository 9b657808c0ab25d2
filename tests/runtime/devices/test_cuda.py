"""The CUDA device with a driver that needs no GPU: counts of driver calls, and results equal to the CPU's."""

import gc
import logging
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from helpers.driver import HostDriver, host_device, host_engine
from helpers.tiny import call_inputs

import ebca
from ebca.engines.backends.protocol import Call
from ebca.runtime.devices import registry as devices
from ebca.runtime.devices.cpu import CpuDevice
from ebca.runtime.devices.device import Device
from ebca.runtime.execution.control import ControlArrays, resolve
from ebca.runtime.execution.executor import Executor
from ebca.runtime.execution.inspection import clock, first_nonfinite, run_probed, step_name

SIZES = {"batch": 2, "contexts": 2, "tokens": 77, "height": 8, "width": 8}


@pytest.fixture(scope="module")
def engine(tiny_unet_dir: Path) -> ebca.Engine:
    return ebca.load(tiny_unet_dir, backend="onnxruntime")


def executor(engine: ebca.Engine, device: Device) -> Executor:
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
def test_an_evaluation_equals_the_cpu(engine: ebca.Engine, variant: str) -> None:
    cpu, cuda = executor(engine, CpuDevice()), executor(engine, host_device()[0])
    arrays = control(engine, **VALUES[variant])
    for one in (cpu, cuda):
        one.set_control(arrays)
        one.run(variant)
    assert cpu.noise.any() and np.array_equal(cpu.noise, cuda.noise)
    assert np.array_equal(cpu.contexts_out, cuda.contexts_out)
    assert np.array_equal(cpu.energies, cuda.energies) and cuda.energies.any() == (variant == "energies")


def test_an_evaluation_is_one_launch_for_any_control(engine: ebca.Engine) -> None:
    device, driver = host_device()
    made, twin = executor(engine, device), executor(engine, CpuDevice())
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
    # One wait per evaluation, for the result; no allocation, copy or recording outside the graph.
    assert done == {"launch": len(steps), "synchronize": len(steps)}


def test_each_variant_is_recorded_once(engine: ebca.Engine) -> None:
    device, driver = host_device()
    made = executor(engine, device)
    for variant in ("attention", "update", "attention", "update"):
        made.run(variant)
    assert driver.count["capture"] == 2 and driver.count["launch"] == 4


def test_if_capture_fails_calls_are_enqueued_individually_with_a_warning(
    engine: ebca.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    device, driver = host_device(refuse_capture=True)
    made, cpu = executor(engine, device), executor(engine, CpuDevice())
    with caplog.at_level(logging.WARNING):
        made.run("attention")
    expected = "capturing a CUDA graph failed, so calls are enqueued individually: operation not permitted"
    assert expected in caplog.text
    cpu.run("attention")
    assert driver.count["launch"] == 0 and np.array_equal(made.noise, cpu.noise)


def test_a_reason_why_captures_fail_is_logged_once_per_device(
    engine: ebca.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    device, driver = host_device(refuse_capture=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            made = executor(engine, device)
            made.run("attention")
            made.run("update")
        assert driver.count["capture"] == 4 and len(caplog.messages) == 1
        # Another device may have another reason, and another owner who reads.
        executor(engine, host_device(refuse_capture=True)[0]).run("attention")
    assert len(caplog.messages) == 2


def test_a_probe_gets_the_devices_arrays(engine: ebca.Engine) -> None:
    seen: list[tuple[int, float]] = []
    for device in (CpuDevice(), host_device()[0]):
        run_probed(executor(engine, device), "update", lambda layer, q, k: seen.append((layer, float(np.abs(q).sum()))))
    half = len(seen) // 2
    assert half == len(engine.manifest.unet.layers) and seen[:half] == seen[half:] and all(total for _, total in seen)


def test_the_first_segment_with_non_finite_outputs_is_found(engine: ebca.Engine) -> None:
    made = executor(engine, host_device()[0])
    made.timestep[0] = np.nan
    assert first_nonfinite(made, "attention") == engine.manifest.unet.segments[0]


def test_all_device_memory_is_freed(engine: ebca.Engine) -> None:
    device, driver = host_device()
    made = executor(engine, device)
    made.run("update")
    assert driver.memory
    del made
    gc.collect()
    assert not driver.memory and driver.count["free"] == driver.count["allocate"]


@pytest.fixture(scope="module")
def on_host(tiny_engine_dir: Path) -> tuple[ebca.Engine, HostDriver]:
    return host_engine(tiny_engine_dir)


EDITS = [ebca.Edit("monet painting", alpha=0.7, gamma_attn=0.01, gamma_norm=0.02)]
TASKS = {
    "plain": {"prompt": "a cat", "gamma_attn": 0.05, "gamma_norm": 0.4},
    "no guidance": {"prompt": "a cat", "guidance_scale": 1.0, "gamma_attn": 0.05},
    "schedule": {"prompt": "a cat", "gamma_attn": ebca.Schedule.step(0.05, 0.5), "scheduler": "euler"},
    "edits": {"prompt": "a cat", "edits": EDITS, "gamma_attn": 0.02, "scheduler": "dpmpp_2m"},
    "edits reset": {"prompt": "a cat", "edits": EDITS, "reset_edits": True, "scheduler": "ddim"},
    "energies": {"prompt": "a cat", "energies": True, "gamma_attn": 0.05, "scheduler": "ddim"},
    "repaint": {
        "prompt": "a cat",
        "image": np.full((32, 32, 3), 0.4, np.float32),
        "mask": np.pad(np.ones((16, 16), np.float32), 8),
        "repaint": ebca.RePaint(1, 1),
        "gamma_attn": 0.05,
    },
    "image": {"prompt": "a cat", "image": np.full((32, 32, 3), 0.4, np.float32), "strength": 0.6, "gamma_attn": 0.05},
}


@pytest.mark.parametrize("name", TASKS)
def test_sampling_on_the_device_equals_the_cpu(
    on_host: tuple[ebca.Engine, HostDriver], tiny_engine_dir: Path, name: str
) -> None:
    settings = {"steps": 4, "seed": 3, "output": "latents", **TASKS[name]}
    with ebca.load(tiny_engine_dir, backend="onnxruntime") as engine, engine.session(height=32, width=32) as session:
        expected = session.generate(**settings)  # type: ignore[arg-type]
    with on_host[0].session(height=32, width=32) as session:
        seen: list[ebca.StepInfo] = []
        in_one_launch = session.generate(**settings)  # type: ignore[arg-type]
        one_by_one = session.generate(**settings, on_step=lambda info: seen.append(info))  # type: ignore[arg-type, func-returns-value]
    # The same float32 values, but the terms of the scheduler may be summed in another order.
    for made in (in_one_launch, one_by_one):
        np.testing.assert_allclose(made.latents, expected.latents, rtol=0, atol=2e-6 * np.abs(expected.latents).max())
        assert made.timesteps == expected.timesteps and len(made.timings["unet_steps"]) == len(made.timesteps)
    assert [info.timestep for info in seen] == list(expected.timesteps)


def test_inversion_on_the_device_equals_the_cpu(on_host: tuple[ebca.Engine, HostDriver], tiny_engine_dir: Path) -> None:
    image = np.full((32, 32, 3), 0.4, np.float32)
    with ebca.load(tiny_engine_dir, backend="onnxruntime") as engine, engine.session(height=32, width=32) as session:
        expected = session.invert(image, "a cat", steps=3).latents
    with on_host[0].session(height=32, width=32) as session:
        assert np.array_equal(session.invert(image, "a cat", steps=3).latents, expected)


def test_a_run_is_one_launch_and_no_parameter_needs_a_new_recording(on_host: tuple[ebca.Engine, HostDriver]) -> None:
    engine, driver = on_host
    with engine.session(height=32, width=32) as session:
        settings = {"scheduler": "ddim", "output": "latents"}
        session.generate("a cat", steps=4, gamma_attn=0.05, token_weights={"cat": 2.0}, **settings)  # type: ignore[arg-type]
        parameters = {"gamma_attn": 0.01, "gamma_norm": 0.3, "guidance_scale": 3.0, "negative_prompt": "a dog"}
        for steps, chains in ((4, 0), (7, 1), (7, 0)):
            before = driver.count.copy()
            session.generate("a dog", steps=steps, seed=2, **parameters, **settings)  # type: ignore[arg-type]
            assert driver.count["launch"] - before["launch"] == 1
            assert driver.count["capture"] == before["capture"]
            # Another number of steps needs a new chain of the same recordings.
            assert driver.count["chain"] - before["chain"] == chains
            # For the embeddings of prompt and negative prompt, and for the final latents.
            assert driver.count["synchronize"] - before["synchronize"] <= 3
        before = driver.count.copy()
        session.generate("a cat", steps=4, **parameters, **settings, on_step=lambda info: None)  # type: ignore[arg-type, func-returns-value]
        assert driver.count["launch"] - before["launch"] == 4
        assert driver.count["capture"] == before["capture"]


def test_graphs_that_cannot_be_joined_are_launched_one_after_the_other(
    tiny_engine_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine, driver = host_engine(tiny_engine_dir, refuse_chain=True)
    settings = {"steps": 3, "scheduler": "ddim", "seed": 1, "gamma_attn": 0.05, "output": "latents"}
    with engine.session(height=32, width=32) as session, caplog.at_level(logging.INFO):
        made = session.generate("a cat", **settings).latents  # type: ignore[arg-type]
        assert driver.count["launch"] == 3
        observed = session.generate("a cat", **settings, on_step=lambda info: None)  # type: ignore[arg-type, func-returns-value]
    assert np.array_equal(made, observed.latents)
    assert "launched one by one, because graphs cannot be joined: out of memory" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_device_times_every_step(engine: ebca.Engine) -> None:
    device, driver = host_device()
    made, twin = executor(engine, device), executor(engine, CpuDevice())
    names = [step_name(step) for step in engine.manifest.unet.steps]
    for one in (made, twin):
        one.set_control(control(engine, **VALUES["update"]))
        timed = clock(one, "update")
        before = driver.count.copy()
        seconds = timed()
        assert list(seconds) == names and all(value > 0 for value in seconds.values())
    assert driver.count["launch"] - before["launch"] == 0
    before = driver.count.copy()
    clock(made, "update")()
    assert driver.count["launch"] - before["launch"] == len(names)
    twin.run("update")
    assert np.array_equal(made.noise, twin.noise)


def test_memory_is_reported_by_purpose(engine: ebca.Engine) -> None:
    device, _ = host_device()
    assert device.used_bytes() == 0
    made = executor(engine, device)
    made.run("update")
    split = made.buffers.memory
    assert set(split) == {"arena", "scratch", "control"} and split["arena"] > split["control"] > 0
    # The driver of these tests allocates only for us, plus padding for alignment.
    assert 0 <= device.used_bytes() - sum(split.values()) < 64 * 1000


def test_more_evaluations_than_the_buffers_hold(on_host: tuple[ebca.Engine, HostDriver], tiny_engine_dir: Path) -> None:
    settings = {"seed": 1, "scheduler": "ddim", "output": "latents", "gamma_attn": 0.05}
    with ebca.load(tiny_engine_dir, backend="onnxruntime") as engine, engine.session(height=32, width=32) as session:
        expected = session.generate("a cat", steps=70, **settings).latents  # type: ignore[arg-type]
    with on_host[0].session(height=32, width=32) as session:
        session.generate("a cat", steps=3, **settings)  # type: ignore[arg-type]
        made = session.generate("a cat", steps=70, **settings).latents  # type: ignore[arg-type]
    np.testing.assert_allclose(made, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_a_closed_session_frees_its_memory(on_host: tuple[ebca.Engine, HostDriver]) -> None:
    engine, driver = on_host
    gc.collect()
    before = len(driver.memory)
    session = engine.session(height=32, width=32)
    session.generate("a cat", steps=2, output="latents")
    assert len(driver.memory) > before
    session.close()
    gc.collect()
    assert len(driver.memory) == before


def test_a_recording_keeps_its_calls_alive(engine: ebca.Engine) -> None:
    made, twin = executor(engine, host_device()[0]), executor(engine, CpuDevice())

    class FullUNet:
        """A runner of a full UNet that nothing else references."""

        def workspace_bytes(self, inputs: object, outputs: object) -> int:
            return 64

        def bind(
            self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], workspace: int = 0, once: bool = False
        ) -> Call:
            return lambda: np.copyto(outputs["noise"], 2 * inputs["sample"])

    replay = made.record_full_unet(FullUNet())
    gc.collect()
    replay()
    assert np.array_equal(made.noise, 2 * twin.sample)


def test_evaluations_allocate_nothing(on_host: tuple[ebca.Engine, HostDriver]) -> None:
    engine, driver = on_host
    with engine.session(height=32, width=32) as session:
        allocated: list[int] = []
        session.generate(
            "a cat",
            steps=4,
            seed=1,
            gamma_attn=0.05,
            output="latents",
            on_step=lambda info: allocated.append(driver.count["allocate"] + driver.count["allocate_host"]),  # type: ignore[func-returns-value]
        )
    assert len(allocated) > 3 and len(set(allocated)) == 1


def test_a_session_stays_usable_after_cancelling(on_host: tuple[ebca.Engine, HostDriver]) -> None:
    with on_host[0].session(height=32, width=32) as session:
        settings = {"steps": 4, "seed": 1, "gamma_attn": 0.05, "output": "latents"}
        complete = session.generate("a cat", **settings)  # type: ignore[arg-type]
        with pytest.raises(ebca.CancelledError, match="after 2 of"):
            session.generate("a cat", **settings, on_step=lambda info: info.index < 1)  # type: ignore[arg-type]
        assert np.array_equal(session.generate("a cat", **settings).latents, complete.latents)  # type: ignore[arg-type]


def test_the_error_about_non_finite_results_names_the_timestep(on_host: tuple[ebca.Engine, HostDriver]) -> None:
    with on_host[0].session(height=32, width=32) as session:
        with pytest.raises(ebca.NumericalError, match="at timestep 667 is not finite; lower gamma_attn"):
            session.generate(
                "a cat", steps=3, scheduler="ddim", seed=1, gamma_attn=1e38, gamma_norm=1e38, output="latents"
            )
        assert np.isfinite(session.generate("a cat", steps=2, seed=1, output="latents").latents).all()


def test_a_missing_gpu_gives_one_line() -> None:
    # No machine has a GPU 99; a machine may also lack the driver, cuda-bindings, or every GPU.
    with pytest.raises(ebca.BackendError) as error:
        devices.create("cuda:99")
    assert "\n" not in str(error.value)
    known = ("there is no NVIDIA driver", "finds no GPU", "there is no GPU 'cuda:99'", 'pip install "ebca[gpu]"')
    assert any(words in str(error.value) for words in known)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:1", ""])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(ebca.ParameterError, match="is unknown; choose auto, cpu, cuda, cuda:1 and so on"):
        devices.create(name)
