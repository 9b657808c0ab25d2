"""The kernels between two evaluations in Triton's interpreter, against numpy: runs of several steps."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.launcher import FakeLauncher

from ebca.errors import ParameterError
from ebca.plugins import sampling
from ebca.plugins.kernels.binaries import KernelSet
from ebca.plugins.kernels.launch import KernelLibrary
from ebca.plugins.sampling import reference
from ebca.plugins.sampling.launches import launch

CASES = {
    "guided": {"n": 2, "halves": 2, "S": 1},
    "not guided": {"n": 3, "halves": 1, "S": 1},
    "edits carried": {"n": 1, "halves": 2, "S": 3, "carry": 1},
    "edits reset": {"n": 1, "halves": 2, "S": 2},
    "inpainting": {"n": 2, "halves": 2, "S": 1, "channels_in": 9},
}


def state(n: int, halves: int, S: int, carry: int = 0, channels_in: int = 4, m: int = 4) -> dict[str, np.ndarray]:
    """Random initial state of a run."""
    rng = np.random.default_rng(0)
    rows, T, D, h, w = n * halves, 5, 6, 3, 7
    sizes = {"m": m, "m+1": m + 1, "n": n, "C": 4, "h": h, "w": w, "R*K": rows * S * (T + 2)}
    arrays = {}
    for name, tensor in sampling.STATE.items():
        shape = tuple(dim if isinstance(dim, int) else sizes[dim] for dim in tensor.shape)
        arrays[name] = rng.standard_normal(shape).astype(tensor.dtype)
    arrays["step"][:] = arrays["bad"][:] = 0
    arrays["carry"][:] = carry
    shapes = [(rows, channels_in, h, w), (rows,), (rows, S, T, D), (rows, 4, h, w), (rows, S, T, D)]
    shapes += [(rows, S), (rows, S, T), (rows, S)]
    for name, shape in zip(sampling.UNET, shapes, strict=True):
        arrays[name] = rng.standard_normal(shape).astype(np.float32)
    return arrays


def steps(arrays: dict[str, np.ndarray], run: object, count: int = 3, broken: int = -1) -> None:
    """A run with a stand-in for the UNet whose outputs depend on all inputs."""
    for i in range(count):
        run("begin", arrays)  # type: ignore[operator]
        rows = len(arrays["noise"])
        control = sum(arrays[name].reshape(rows, -1).sum(1) for name in ("weights", "gamma_attn", "gamma_norm"))
        arrays["noise"][...] = np.tanh(arrays["sample"][:, :4] + (control + arrays["timestep"])[:, None, None, None])
        arrays["contexts_out"][...] = np.cos(arrays["contexts"] * (i + 1))
        if i == broken:
            arrays["noise"][0, 0, 0, 0] = np.nan
        run("end", arrays)  # type: ignore[operator]
        run("advance", arrays)  # type: ignore[operator]


def embeddings(m: int = 4, rows: int = 2) -> dict[str, np.ndarray]:
    """Tables of two time embeddings, 24 and 16 words of every row and evaluation, and 3 words that do not change."""
    rng = np.random.default_rng(1)
    base, stride, first = [], [], 0
    for words in (24, 16):
        # The table holds one row, which all rows of the UNet share.
        base += [first + word for _ in range(rows) for word in range(words)]
        stride += [words] * (rows * words)
        first += m * words
    base += range(first, first + 3)
    stride += [0, 0, 0]
    return {
        "step": np.zeros(1, np.int32),
        "embeddings": rng.integers(-(2**31), 2**31, first + 3).astype(np.int32),
        "embedding_base": np.array(base, np.int32),
        "embedding_stride": np.array(stride, np.int32),
        "time_embeddings": np.zeros(len(base), np.int32),
    }


def embed_all(arrays: dict[str, np.ndarray], run: object, path: Path) -> None:
    """Save the UNet's words of every evaluation, as [m, E]."""
    made = []
    for _ in range(4):
        run("embed", arrays)  # type: ignore[operator]
        made.append(arrays["time_embeddings"].copy())
        run("advance", arrays)  # type: ignore[operator]
    np.save(path, made)


def in_numpy(kernel: str, arrays: dict[str, np.ndarray]) -> None:
    getattr(reference, kernel)(arrays)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of every case in a separate process: the interpreter must be selected before Triton is imported."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("sampling")
    code = "import sys; sys.path[:0] = sys.argv[2:]; from helpers.interpreted_sampling import main; main(sys.argv[1])"
    here = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(here), str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", CASES)
def test_several_steps_equal_numpy(interpreted: Path, name: str) -> None:
    expected = state(**CASES[name])
    steps(expected, in_numpy)
    made = np.load(interpreted / f"{name}.npz")
    for key, value in expected.items():
        # float32 results of float64 sums; guidance may be rounded once less.
        np.testing.assert_allclose(made[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
    assert made["step"] == 3 and made["bad"] == 0


def test_the_first_nonfinite_step_is_recorded(interpreted: Path) -> None:
    assert np.load(interpreted / "broken.npz")["bad"] == 2
    arrays = state(**CASES["guided"])
    steps(arrays, in_numpy, broken=1)
    assert arrays["bad"] == 2


def test_nonfinite_latents_are_detected_with_finite_noise(interpreted: Path) -> None:
    assert np.load(interpreted / "away.npz")["bad"] == 1
    arrays = state(**CASES["guided"])
    arrays["coefficients"][:] = 1e300
    steps(arrays, in_numpy, count=1)
    assert arrays["bad"] == 1 and np.isfinite(arrays["history"][0]).all()


def test_extra_unet_channels_do_not_change(interpreted: Path) -> None:
    before, made = state(**CASES["inpainting"]), np.load(interpreted / "inpainting.npz")
    assert np.array_equal(made["sample"][:, 4:], before["sample"][:, 4:])
    assert not np.array_equal(made["sample"][:, :4], before["sample"][:, :4])


def test_contexts_change_only_if_they_are_carried(interpreted: Path) -> None:
    before, made = state(**CASES["edits reset"]), np.load(interpreted / "edits reset.npz")
    assert np.array_equal(made["contexts"], before["contexts"])
    before, made = state(**CASES["edits carried"]), np.load(interpreted / "edits carried.npz")
    assert np.array_equal(made["contexts"][:, 0], before["contexts"][:, 0])
    assert np.array_equal(made["contexts"][:, 1:], made["contexts_out"][:, 1:])


def test_time_embeddings_of_every_evaluation(interpreted: Path, tmp_path: Path) -> None:
    arrays = embeddings()
    table = arrays["embeddings"]
    first, second, rest = table[:96].reshape(4, 24), table[96:160].reshape(4, 16), table[160:]
    expected = [np.concatenate([first[i], first[i], second[i], second[i], rest]) for i in range(4)]
    np.testing.assert_array_equal(np.load(interpreted / "embeddings.npy"), expected)
    embed_all(arrays, in_numpy, tmp_path / "numpy.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "numpy.npy"), expected)


def test_embedding_tensors_are_those_of_the_launch() -> None:
    shapes = {name: array.shape for name, array in embeddings().items()}
    made = launch("embed", shapes)
    assert made.tensors == tuple(sampling.EMBEDDINGS)
    assert (made.values, made.blocks) == ({"words": 83}, 1)
    assert launch("embed", shapes, block=32).blocks == 3
    assert sampling.EMBED == "embed" and sampling.EMBED not in sampling.KERNELS


@pytest.mark.parametrize("kernel", [*sampling.KERNELS, sampling.EMBED])
def test_compiled_kernels_take_the_tensors_and_sizes_of_the_launch(kernel: str) -> None:
    kernels = KernelSet.load()
    driver = FakeLauncher(kernels)
    shapes = {name: array.shape for name, array in {**state(**CASES["guided"]), **embeddings()}.items()}
    made = launch(kernel, shapes)
    pointers = {name: 0x1000 + 4096 * index for index, name in enumerate(made.tensors)}
    KernelLibrary(driver, kernels).bind_kernel(f"ebca_{kernel}", made.blocks, made.values, pointers)(7)
    (launched,) = driver.launched
    assert launched["grid"] == (made.blocks, 1, 1) and launched["stream"] == 7
    assert {name: launched[f"{name}_ptr"] for name in made.tensors} == pointers
    assert {name: launched[name] for name in made.values} == dict(made.values)


@pytest.mark.parametrize(
    ("kernel", "changed"),
    [
        ("begin", {"latents": (2**17, 4, 64, 64)}),
        ("end", {"contexts": (2**20, 1, 77, 768)}),
        ("end", {"noise": (2**18, 4, 64, 64)}),
        ("embed", {"embeddings": (2**31 - 1,)}),
    ],
)
def test_tensors_that_32_bits_cannot_index_are_refused(kernel: str, changed: dict[str, tuple[int, ...]]) -> None:
    shapes = {
        "latents": (1, 4, 64, 64), "sample": (2, 4, 64, 64), "contexts": (2, 1, 77, 768), "noise": (2, 4, 64, 64),
        "history": (1000, 1, 4, 64, 64), "time_embeddings": (100,), "embeddings": (1000,),
    }  # fmt: skip
    launch(kernel, shapes)
    with pytest.raises(ParameterError, match=r"needs '\w+' with \d+ elements, and its kernels count to 2\^31 - 1"):
        launch(kernel, shapes | changed)
