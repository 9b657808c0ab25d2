"""The embeddings of all timesteps of a run, from one call."""

from pathlib import Path

import numpy as np
import pytest
from helpers.driver import host_device

import ebca
from ebca.plugins.sampling import reference
from ebca.runtime.devices.cpu import CpuDevice
from ebca.runtime.devices.device import ALIGNMENT, Device
from ebca.runtime.execution.block import Block
from ebca.runtime.execution.executor import Executor
from ebca.runtime.execution.inspection import evaluate
from ebca.runtime.execution.time_table import in_words

SIZES = {"batch": 2, "contexts": 1, "tokens": 77, "height": 8, "width": 8}
TIMESTEPS = np.array([1, 500, 981], np.float32)
# A product of three rows may sum in another order than one of two.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def engine(shapes_dir: Path) -> ebca.Engine:
    return ebca.load(shapes_dir, "cpu", "onnxruntime")


def executor(engine: ebca.Engine, device: Device) -> Executor:
    return Executor(engine.manifest.unet, engine.runner, SIZES, device)


def alone(made: Executor, timestep: float) -> dict[str, np.ndarray]:
    return evaluate(made, 0, "update", {"timestep": np.full(SIZES["batch"], timestep, np.float32)})


def test_a_row_of_the_table_is_what_the_step_computes(engine: ebca.Engine) -> None:
    made = executor(engine, CpuDevice())
    table = made.time_table(TIMESTEPS)
    table.call()
    for row, timestep in enumerate(TIMESTEPS):
        for name, expected in alone(made, timestep).items():
            np.testing.assert_allclose(
                np.broadcast_to(table.rows[name][row], expected.shape), expected, atol=TOLERANCE, rtol=TOLERANCE
            )


def test_the_kernel_copies_a_row_to_every_row_of_the_batch(engine: ebca.Engine) -> None:
    made = executor(engine, host_device()[0])
    assert in_words(made.buffers)
    table = made.time_table(TIMESTEPS)
    table.call()
    base, stride = table.gather()
    for row, timestep in enumerate(TIMESTEPS):
        expected = alone(made, timestep)
        block = made.buffers.time_embeddings
        block.words[...] = -1
        reference.embed(
            {
                "step": np.array([row], np.int32),
                "embeddings": table.words,
                "embedding_base": base,
                "embedding_stride": stride,
                "time_embeddings": block.words,
            }
        )
        for name, array in block.arrays.items():
            np.testing.assert_allclose(array, expected[name], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("shape, whole", [((2, 3, 1, 1), False), ((2, 4, 1, 1), True)])
def test_rows_of_half_a_word_have_no_table(shape: tuple[int, ...], whole: bool) -> None:
    class Buffers:
        time_embeddings = Block({"time_0": (shape, np.dtype(np.float16))}, CpuDevice().allocate)

    assert in_words(Buffers) is whole  # type: ignore[arg-type]


def test_a_block_aligns_its_arrays_and_shares_its_memory() -> None:
    shapes = {"a": ((3,), np.dtype(np.float32)), "b": ((2, 5), np.dtype(np.float16))}
    block = Block(shapes, CpuDevice().allocate)
    assert block.offsets == {"a": 0, "b": ALIGNMENT} and block.words.shape == (2 * ALIGNMENT // 4,)
    block.arrays["b"][...] = 1
    assert block.words[ALIGNMENT // 4] == 0x3C003C00 and block.words[0] == 0
    assert Block({}, CpuDevice().allocate).words is None
