"""The executor: buffers, binding, and replay."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from helpers.tiny import call_inputs

import ebca
from ebca.engines.contract import dims
from ebca.engines.contract.accuracy import relative_l2
from ebca.plugins.energy_attention import VARIANTS
from ebca.runtime.execution.control import ControlArrays, resolve
from ebca.runtime.execution.executor import Executor
from ebca.runtime.execution.inspection import first_nonfinite

SIZES = {"batch": 2, "contexts": 2, "tokens": 77, "height": 8, "width": 10}


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest, tiny_unet_dir: Path) -> Iterator[ebca.Engine]:
    pytest.importorskip(request.param)
    with ebca.load(tiny_unet_dir, backend=request.param) as engine:
        yield engine


@pytest.fixture
def executor(engine: ebca.Engine) -> Executor:
    executor = engine.executor(SIZES)
    sample, contexts = call_inputs(contexts=2, size=(8, 10))
    executor.sample[...], executor.contexts[...], executor.timestep[...] = sample, contexts, 300
    return executor


def control(engine: ebca.Engine, **values: object) -> ControlArrays:
    return resolve(ebca.EnergyControl(**values), engine.manifest.unet.layers, SIZES)  # type: ignore[arg-type]


def run(executor: Executor, arrays: ControlArrays, variant: str) -> tuple[np.ndarray, np.ndarray]:
    executor.set_control(arrays)
    executor.run(variant)
    return executor.noise.copy(), executor.contexts_out.copy()


def test_the_arena_is_smaller_than_the_sum_of_its_tensors(engine: ebca.Engine, executor: Executor) -> None:
    tensors = engine.manifest.unet.tensors.values()
    total = sum(4 * int(np.prod(dims.shape(t.shape, SIZES))) for t in tensors)
    assert 0 < executor.buffers.memory["arena"] < 0.8 * total


def test_inputs_and_outputs_never_share_memory(executor: Executor) -> None:
    kept = (executor.sample, executor.timestep, executor.contexts, executor.noise, executor.contexts_out)
    for i, a in enumerate(kept):
        assert a.flags.c_contiguous
        assert not any(np.shares_memory(a, b) for b in kept[i + 1 :])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_replay_gives_the_same_bits(engine: ebca.Engine, executor: Executor, variant: str) -> None:
    arrays = control(engine, gamma_attn=0.05, gamma_norm=0.4, weights=[1.0, 0.5])
    first = run(executor, arrays, variant)
    other = control(engine, gamma_attn=0.01, weights=[1.0, -0.2])
    run(executor, other, "update")
    again = run(executor, arrays, variant)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_two_executors_give_the_same_bits(engine: ebca.Engine, executor: Executor) -> None:
    twin = engine.executor(SIZES)
    twin.sample[...], twin.contexts[...], twin.timestep[...] = executor.sample, executor.contexts, executor.timestep
    arrays = control(engine, gamma_attn=0.05, gamma_norm=0.4)
    both = run(executor, arrays, "update"), run(twin, arrays, "update")
    assert all(np.array_equal(a, b) for a, b in zip(*both, strict=True))


def test_a_variant_is_recorded_once(executor: Executor) -> None:
    assert executor.record("update") is executor.record("update")
    assert executor.record("update") is not executor.record("attention")


def test_variants_agree_on_equal_inputs(engine: ebca.Engine, executor: Executor) -> None:
    # The same formulas in different graphs, so only float32 rounding differs.
    still = control(engine, weights=[1.0, 0.5])
    plain = run(executor, still, "attention")
    assert np.array_equal(plain[1], executor.contexts)
    for variant in ("update", "update_masked", "energies"):
        noise, contexts = run(executor, still, variant)
        assert relative_l2(noise, plain[0]) <= 2e-6
        assert np.array_equal(contexts, executor.contexts)
    moving = control(engine, gamma_attn=0.05, gamma_norm=0.4, weights=[1.0, 0.5])
    update = run(executor, moving, "update")
    for variant in ("update_masked", "energies"):
        noise, contexts = run(executor, moving, variant)
        assert relative_l2(noise, update[0]) <= 2e-6
        assert relative_l2(contexts, update[1]) <= 2e-6


def test_an_update_does_not_affect_later_plain_attention(engine: ebca.Engine, executor: Executor) -> None:
    still = control(engine)
    before = run(executor, still, "attention")
    run(executor, control(engine, gamma_attn=0.05, gamma_norm=0.4), "update")
    after = run(executor, still, "attention")
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_mask_does_not_outlast_its_control(engine: ebca.Engine, executor: Executor) -> None:
    moving = {"gamma_attn": 0.05, "gamma_norm": 0.4}
    unmasked = run(executor, control(engine, **moving), "update_masked")
    mask = np.zeros((1, 1, 8, 10), np.float32)
    masked = run(executor, control(engine, **moving, mask=mask), "update_masked")
    assert relative_l2(masked[1], unmasked[1]) > 1e-3
    again = run(executor, control(engine, **moving), "update_masked")
    assert all(np.array_equal(a, b) for a, b in zip(unmasked, again, strict=True))


def test_the_cheapest_sufficient_variant_is_chosen(engine: ebca.Engine) -> None:
    mask = np.ones((1, 1, 8, 10), np.float32)
    assert control(engine).variant == "attention"
    assert control(engine, mask=mask).variant == "attention"
    assert control(engine, gamma_norm=[0.0, 0.1]).variant == "update"
    assert control(engine, gamma_attn=1e-9).variant == "update"
    assert control(engine, gamma_attn=0.1, mask=mask).variant == "update_masked"


def test_the_first_segment_with_non_finite_outputs_is_found(engine: ebca.Engine, executor: Executor) -> None:
    executor.set_control(control(engine))
    assert first_nonfinite(executor, "attention") is None
    executor.timestep[0] = np.nan
    assert first_nonfinite(executor, "attention") == engine.manifest.unet.segments[0]


def test_running_out_of_memory_is_a_parameter_error(engine: ebca.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(nbytes: int) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(engine.device, "allocate", none_left)
    with pytest.raises(ebca.ParameterError, match="no memory for 2 rows of 8 x 10 latents"):
        engine.executor(SIZES)
