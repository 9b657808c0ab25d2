"""One engine, several threads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from helpers.tiny import call_inputs

import ebca

THREADS = 4
BUSY = "this session is in another call; use one session per thread, and none from callbacks"
REQUEST = ebca.GenerateRequest.of(prompt="a cat", steps=3, output="latents")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_sessions_in_four_threads_give_the_results_of_one_thread(tiny_engine_dir: Path, backend: str) -> None:
    pytest.importorskip(backend)
    with ebca.load(tiny_engine_dir, backend=backend) as engine:

        def make(seed: int) -> np.ndarray:
            # Different sizes and numbers of steps, so that the threads do not run in lockstep.
            with engine.session(height=64 + 8 * (seed % 3), width=64) as session:
                result = session.generate(
                    "a cat on a table", steps=3 + seed % 2, seed=seed, gamma_attn=0.05, gamma_norm=0.4
                )
                return result.latents

        alone = [make(seed) for seed in range(2 * THREADS)]
        start = Barrier(THREADS)

        def work(first: int) -> list[np.ndarray]:
            start.wait()
            return [make(seed) for seed in range(first, 2 * THREADS, THREADS)]

        with ThreadPoolExecutor(THREADS) as pool:
            together = list(pool.map(work, range(THREADS)))
    for seed, latents in enumerate(alone):
        assert np.array_equal(together[seed % THREADS][seed // THREADS], latents), seed


def test_one_session_makes_one_call_at_a_time(engine: ebca.Engine) -> None:
    """A second call would write into the buffers of the first, and change the images of both."""
    image = np.full((64, 64, 3), 0.5)
    with engine.session(64, 64) as session, engine.session(64, 64) as other:

        def make(used: ebca.Session, on_step: Any = None) -> np.ndarray:
            return used.generate("a cat", steps=3, seed=1, output="latents", on_step=on_step).latents

        alone = make(session)
        calls = (lambda: make(session), lambda: session.invert(image, "a cat", steps=3), lambda: session.run(REQUEST))
        refused: list[str] = []

        def call_again(step: ebca.StepInfo) -> None:
            for call in calls:
                with pytest.raises(ebca.ParameterError) as caught:
                    call()
                refused.append(str(caught.value))

        def call_from_another_thread(step: ebca.StepInfo) -> None:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(call_again, step).result()

        for on_step in (call_again, call_from_another_thread):
            refused.clear()
            assert np.array_equal(make(session, on_step), alone)
            # PNDM makes one evaluation more than steps.
            assert refused == [BUSY] * 4 * len(calls)
        session.invert(image, "a cat", steps=2, on_step=call_again)
        # Another session may be used there.
        assert np.array_equal(make(session, lambda step: make(other).any()), alone)
        with pytest.raises(ebca.CancelledError):
            make(session, lambda step: False)
        assert np.array_equal(make(session), alone)


def test_a_denoiser_can_be_shared_between_threads(tiny_unet_dir: Path) -> None:
    denoiser = ebca.Denoiser(tiny_unet_dir)
    control = ebca.EnergyControl(0.05, 0.4)
    calls = [call_inputs(size=(8, 8 + 2 * (i % 3)), seed=i) for i in range(12)]

    def run(call: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return denoiser(call[0], 300, call[1], control).noise

    alone = [run(call) for call in calls]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(run, calls))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_threads_can_open_an_unprepared_directory_at_once(
    tiny_unet_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EBCA_CACHE_DIR", str(tmp_path))
    start = Barrier(THREADS)
    sample, contexts = call_inputs()

    def work(_: int) -> np.ndarray:
        start.wait()
        return ebca.Denoiser(tiny_unet_dir, backend="onnxruntime")(sample, 300, contexts).noise

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(work, range(THREADS)))
    assert all(np.array_equal(results[0], r) for r in results)
