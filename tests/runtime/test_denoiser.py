"""One UNet evaluation: against diffusers, invariances, and errors."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers.tiny import call_inputs  # noqa: E402

import ebca  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.export.checkpoint.tiny import build_tiny  # noqa: E402
from ebca.export.checkpoint.tiny_xl import TINY_XL  # noqa: E402

# Float32 in different libraries: measured up to 3e-6.
LIMIT = 1e-5
# The same evaluation in another order of summation within one library.
SAME = 5e-6


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def backend(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def engine(backend: str, tiny_unet_dir: Path) -> Iterator[ebca.Engine]:
    with ebca.load(tiny_unet_dir, backend=backend) as engine:
        yield engine


@pytest.fixture(scope="module")
def denoiser(engine: ebca.Engine) -> ebca.Denoiser:
    return ebca.Denoiser(engine)


@pytest.fixture(scope="module")
def plain_unet() -> Callable[..., np.ndarray]:
    unet = build_tiny().unet

    def run(sample: np.ndarray, timestep: Any, contexts: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return unet(
                torch.from_numpy(sample), torch.as_tensor(timestep), torch.from_numpy(contexts[:, 0])
            ).sample.numpy()

    return run


EDITING = ebca.EnergyControl(gamma_attn=0.03, gamma_norm=0.2, weights=[[1.0, 0.7, -0.4]])


@pytest.mark.parametrize("size", [(16, 16), (9, 13), (7, 5), (8, 24), (1, 1), (33, 6)], ids=str)
def test_without_gammas_it_equals_the_plain_unet(
    denoiser: ebca.Denoiser, plain_unet: Callable[..., np.ndarray], size: tuple[int, int]
) -> None:
    sample, contexts = call_inputs(rows=2, size=size)
    result = denoiser(sample, 741, contexts)
    assert relative_l2(result.noise, plain_unet(sample, 741, contexts)) <= LIMIT
    assert np.array_equal(result.contexts, contexts)
    assert result.energies is None


@pytest.mark.parametrize("tokens", [1, 2, 20, 154])
def test_any_number_of_tokens_is_accepted(
    denoiser: ebca.Denoiser, plain_unet: Callable[..., np.ndarray], tokens: int
) -> None:
    sample, _ = call_inputs()
    contexts = np.random.default_rng(1).standard_normal((2, 1, tokens, 32), np.float32)
    assert relative_l2(denoiser(sample, 5, contexts).noise, plain_unet(sample, 5, contexts)) <= LIMIT


def test_each_row_may_have_its_own_timestep(denoiser: ebca.Denoiser, plain_unet: Callable[..., np.ndarray]) -> None:
    sample, contexts = call_inputs(rows=3)
    times = np.array([1.0, 500.0, 999.0], np.float32)
    result = denoiser(sample, times, contexts)
    assert relative_l2(result.noise, plain_unet(sample, times, contexts)) <= LIMIT


def test_a_batch_equals_its_rows_one_by_one(denoiser: ebca.Denoiser) -> None:
    sample, contexts = call_inputs(rows=4, contexts=2)
    control = ebca.EnergyControl(0.05, 0.4, [1.0, 0.5], tie_unconditional=False)
    together = denoiser(sample, 300, contexts, control)
    for row in range(4):
        single = denoiser(sample[row : row + 1], 300, contexts[row : row + 1], control)
        assert relative_l2(single.noise[0], together.noise[row]) <= SAME
        assert relative_l2(single.contexts[0], together.contexts[row]) <= SAME


def test_images_of_a_guided_batch_are_independent(denoiser: ebca.Denoiser) -> None:
    sample, contexts = call_inputs(rows=6, contexts=3)
    together = denoiser(sample, 300, contexts, EDITING)
    for image in range(3):
        rows = [image, 3 + image]
        single = denoiser(sample[rows], 300, contexts[rows], EDITING)
        assert relative_l2(single.noise, together.noise[rows]) <= SAME
        assert relative_l2(single.contexts, together.contexts[rows]) <= SAME


def test_permuting_editing_contexts_permutes_their_results(denoiser: ebca.Denoiser) -> None:
    sample, contexts = call_inputs(rows=2, contexts=4)
    rng = np.random.default_rng(2)
    gamma_attn = rng.uniform(0, 0.05, (2, 4, 77)).astype(np.float32)
    gamma_norm = rng.uniform(0, 0.4, (2, 4)).astype(np.float32)
    weights = np.array([[1.0, 0.6, -0.3, 0.8]] * 2, np.float32)
    order = [0, 3, 1, 2]
    first = denoiser(sample, 300, contexts, ebca.EnergyControl(gamma_attn, gamma_norm, weights))
    permuted = ebca.EnergyControl(gamma_attn[:, order], gamma_norm[:, order], weights[:, order])
    second = denoiser(sample, 300, contexts[:, order], permuted)
    assert relative_l2(second.noise, first.noise) <= SAME
    assert relative_l2(second.contexts, first.contexts[:, order]) <= SAME


def test_a_context_of_weight_zero_does_not_change_the_noise_prediction(denoiser: ebca.Denoiser) -> None:
    sample, contexts = call_inputs(rows=2, contexts=2)
    with_zero = denoiser(sample, 300, contexts, ebca.EnergyControl(0.05, 0.4, [1.0, 0.0]))
    without = denoiser(sample, 300, contexts[:, :1], ebca.EnergyControl(0.05, 0.4))
    assert relative_l2(with_zero.noise, without.noise) <= SAME
    assert relative_l2(with_zero.contexts[:, 0], without.contexts[:, 0]) <= SAME
    assert not np.array_equal(with_zero.contexts[:, 1], contexts[:, 1])


def test_a_mask_of_ones_equals_no_mask_and_a_mask_of_zeros_leaves_the_norm_term(denoiser: ebca.Denoiser) -> None:
    sample, contexts = call_inputs()
    ones, zeros = np.ones((1, 1, 8, 8), np.float32), np.zeros((2, 1, 8, 8), np.float32)
    plain = denoiser(sample, 300, contexts, ebca.EnergyControl(0.05, 0.4))
    masked = denoiser(sample, 300, contexts, ebca.EnergyControl(0.05, 0.4, mask=ones))
    assert relative_l2(masked.contexts, plain.contexts) <= SAME
    norm_only = denoiser(sample, 300, contexts, ebca.EnergyControl(0.0, 0.4))
    hidden = denoiser(sample, 300, contexts, ebca.EnergyControl(0.05, 0.4, mask=zeros))
    assert relative_l2(hidden.contexts, norm_only.contexts) <= SAME


def test_tied_rows_share_one_editing_context(denoiser: ebca.Denoiser) -> None:
    sample, contexts = call_inputs(rows=2, contexts=3)
    contexts[0, 2] = contexts[0, 1]
    tied = denoiser(sample, 300, contexts, EDITING).contexts
    assert np.allclose(tied[0, 1], tied[0, 2], atol=1e-6)
    free = ebca.EnergyControl(0.03, [0.2, 0.2, 0.4], [[1.0, 0.7, -0.4]], tie_unconditional=False)
    loose = denoiser(sample, 300, contexts, free).contexts
    assert not np.allclose(loose[0, 1], loose[0, 2], atol=1e-3)


def test_the_norm_factor_changes_only_the_norm_term(denoiser: ebca.Denoiser) -> None:
    sample, contexts = call_inputs()

    def update(gamma_attn: float, gamma_norm: float, factor: float) -> np.ndarray:
        control = ebca.EnergyControl(gamma_attn, gamma_norm, norm_factor=factor)
        return denoiser(sample, 300, contexts, control).contexts

    assert relative_l2(update(0.05, 0.0, 0.5), update(0.05, 0.0, 1.0)) <= SAME
    assert relative_l2(update(0.0, 0.4, 0.5), update(0.0, 0.4, 1.0)) > 1e-3


def test_computing_energies_does_not_change_the_result(denoiser: ebca.Denoiser) -> None:
    sample, contexts = call_inputs(rows=2, contexts=3)
    plain = denoiser(sample, 300, contexts, EDITING)
    measured = denoiser(sample, 300, contexts, EDITING, energies=True)
    assert measured.energies is not None
    assert measured.energies.shape == (7, 2, 2, 3)
    assert np.isfinite(measured.energies).all()
    assert relative_l2(measured.noise, plain.noise) <= SAME
    assert relative_l2(measured.contexts, plain.contexts) <= SAME


def test_results_are_copies_and_inputs_are_not_changed(denoiser: ebca.Denoiser) -> None:
    sample, contexts = call_inputs()
    before = sample.copy(), contexts.copy()
    first = denoiser(sample, 300, contexts, ebca.EnergyControl(0.05, 0.4), energies=True)
    kept = first.noise.copy(), first.contexts.copy(), np.array(first.energies)
    denoiser(sample * 2, 10, contexts * 2, ebca.EnergyControl(0.01, 0.1), energies=True)
    assert all(np.array_equal(a, b) for a, b in zip((sample, contexts), before, strict=True))
    results = (first.noise, first.contexts, np.array(first.energies))
    assert all(np.array_equal(a, b) for a, b in zip(results, kept, strict=True))


def test_sizes_may_alternate(denoiser: ebca.Denoiser) -> None:
    results: dict[tuple[int, int], np.ndarray] = {}
    for size in [(8, 8), (4, 6), (6, 4), (8, 8), (4, 6)]:
        sample, contexts = call_inputs(size=size)
        noise = denoiser(sample, 300, contexts, ebca.EnergyControl(0.05, 0.4)).noise
        assert np.array_equal(noise, results.setdefault(size, noise))


def test_other_dtypes_and_memory_orders_are_accepted(denoiser: ebca.Denoiser) -> None:
    sample, contexts = call_inputs()
    expected = denoiser(sample, 300, contexts).noise
    strided = np.asfortranarray(sample.astype(np.float64))
    assert np.array_equal(denoiser(strided, 300, contexts.astype(np.float64)[..., ::1]).noise, expected)
    assert np.array_equal(denoiser(sample.tolist(), np.int64(300), contexts.tolist()).noise, expected)  # type: ignore[arg-type]


def test_float16_weights_stay_close_to_float32_ones(
    tiny_engine_fp16_dir: Path, denoiser: ebca.Denoiser, backend: str
) -> None:
    sample, contexts = call_inputs()
    half = ebca.Denoiser(tiny_engine_fp16_dir, backend=backend)(sample, 300, contexts).noise
    # Each weight has an independent error of up to 2^-11; a dozen layers in a row add up to a few times that.
    assert 0 < relative_l2(half, denoiser(sample, 300, contexts).noise) < 5e-3


def refusal(denoiser: ebca.Denoiser, **changes: Any) -> str:
    sample, contexts = call_inputs()
    given: dict[str, Any] = {"sample": sample, "timestep": 300, "contexts": contexts} | changes
    with pytest.raises(ebca.ParameterError) as caught:
        denoiser(**given)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sample": np.zeros((2, 9, 8, 8))}, ["9 channels", "4"]),
        ({"sample": np.zeros((4, 8, 8))}, ["sample", "[4, 8, 8]"]),
        ({"sample": np.zeros((2, 4, 0, 8))}, ["sample", "[2, 4, 0, 8]"]),
        ({"sample": "noise"}, ["sample"]),
        ({"sample": [[1.0], [2.0, 3.0]]}, ["sample"]),
        ({"contexts": np.zeros((2, 1, 77, 768))}, ["contexts", "768", "32"]),
        ({"contexts": np.zeros((2, 77, 32))}, ["contexts", "[2, 77, 32]"]),
        ({"contexts": np.zeros((4, 1, 77, 32))}, ["contexts", "[4, 1, 77, 32]", "[2,"]),
        ({"timestep": float("nan")}, ["timestep", "nan"]),
        ({"timestep": [1, 2, 3]}, ["timestep"]),
        ({"timestep": "late"}, ["timestep"]),
        ({"timestep": None}, ["timestep"]),
    ],
)
def test_wrong_inputs_are_named(denoiser: ebca.Denoiser, changes: dict[str, Any], named: list[str]) -> None:
    message = refusal(denoiser, **changes)
    assert all(part in message for part in named), message


@pytest.mark.parametrize(
    ("control", "named"),
    [
        ({"gamma_attn": float("nan")}, ["gamma_attn", "finite"]),
        ({"gamma_attn": np.inf}, ["gamma_attn", "finite"]),
        ({"gamma_attn": np.zeros(76)}, ["gamma_attn", "76", "[2, 1, 77]"]),
        ({"gamma_attn": "strong"}, ["gamma_attn"]),
        ({"gamma_norm": [0.1, 0.2, 0.3]}, ["gamma_norm", "3", "[2, 1]"]),
        ({"gamma_norm": float("nan")}, ["gamma_norm", "finite"]),
        ({"weights": [[0.0]]}, ["weights", "sum"]),
        ({"weights": float("inf")}, ["weights", "finite"]),
        ({"mask": np.zeros((1, 1, 64, 64))}, ["mask", "[1, 1, 64, 64]", "8, 8"]),
        ({"mask": np.zeros((8, 8))}, ["mask", "[8, 8]"]),
        ({"mask": np.full((1, 1, 8, 8), np.nan)}, ["mask", "finite"]),
        ({"mask": "hole"}, ["mask"]),
        ({"norm_factor": float("nan")}, ["norm_factor"]),
        ({"norm_factor": "half"}, ["norm_factor"]),
    ],
)
def test_wrong_controls_are_named(denoiser: ebca.Denoiser, control: dict[str, Any], named: list[str]) -> None:
    message = refusal(denoiser, control=ebca.EnergyControl(**control))
    assert all(part in message for part in named), message


def test_weights_that_sum_to_zero_are_refused_before_an_executor_is_made(
    engine: ebca.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(sizes: object) -> None:
        raise AssertionError("an executor was made")

    monkeypatch.setattr(engine, "executor", no_work)
    sample, contexts = call_inputs(contexts=2)
    with pytest.raises(ebca.ParameterError, match=r"weights of row 0, \[1.0, -1.0\], sum to 0"):
        ebca.Denoiser(engine)(sample, 300, contexts, ebca.EnergyControl(weights=[1.0, -1.0]))


def test_huge_gammas_name_a_segment(denoiser: ebca.Denoiser) -> None:
    sample, contexts = call_inputs()
    with pytest.raises(
        ebca.NumericalError, match=r"timestep 300 is not finite, first in .*attn2\) after segment_0\d; lower"
    ):
        denoiser(sample, 300, contexts, ebca.EnergyControl(gamma_attn=1e30, gamma_norm=1e30))
    # The next call is not affected.
    assert np.isfinite(denoiser(sample, 300, contexts, ebca.EnergyControl(0.05, 0.4)).contexts).all()


@pytest.mark.parametrize("what", ["sample", "contexts"])
def test_non_finite_inputs_are_distinguished_from_non_finite_results(denoiser: ebca.Denoiser, what: str) -> None:
    sample, contexts = call_inputs()
    given = {"sample": sample, "contexts": contexts}
    given[what].flat[3] = np.inf
    with pytest.raises(ebca.NumericalError, match=rf"segment_0.*the {what} given to it had such values"):
        denoiser(timestep=300, **given)


def test_contexts_that_overflow_in_the_last_layer_are_an_error(denoiser: ebca.Denoiser) -> None:
    # No later layer reads them, so the noise prediction does not show it.
    sample, contexts = call_inputs()
    contexts[...] = np.float32(1e38)
    with pytest.raises(ebca.NumericalError):
        denoiser(sample, 300, contexts, ebca.EnergyControl(gamma_norm=-1e38))


def test_a_denoiser_opens_an_engine_directory(tiny_unet_dir: Path, denoiser: ebca.Denoiser, backend: str) -> None:
    sample, contexts = call_inputs()
    for folder in (tiny_unet_dir, str(tiny_unet_dir)):
        own = ebca.Denoiser(folder, "cpu", backend, threads=1)
        assert relative_l2(own(sample, 300, contexts).noise, denoiser(sample, 300, contexts).noise) <= SAME


def test_an_inpainting_model_takes_nine_channels(tiny_inpainting_dir: Path) -> None:
    unet = build_tiny(in_channels=9).unet
    denoiser = ebca.Denoiser(tiny_inpainting_dir)
    sample, contexts = call_inputs(channels=9)
    with torch.no_grad():
        expected = unet(torch.from_numpy(sample), 300, torch.from_numpy(contexts[:, 0])).sample.numpy()
    result = denoiser(sample, 300, contexts)
    assert result.noise.shape == (2, 4, 8, 8)
    assert relative_l2(result.noise, expected) <= LIMIT
    assert refusal(denoiser) == "sample has 4 channels; give 9, as this UNet takes"


def test_stable_diffusion_xl_takes_pooled_embeddings_and_sizes(xl_engine: ebca.Engine) -> None:
    """Against diffusers' UNet."""
    rng = np.random.default_rng(0)
    sample, contexts = rng.standard_normal((2, 4, 8, 12), np.float32), rng.standard_normal((2, 1, 77, 80), np.float32)
    given = {"text_embeds": rng.standard_normal((2, 40), np.float32), "time_ids": np.array([[9, 8, 0, 1, 64, 96]] * 2)}
    denoise = ebca.Denoiser(xl_engine)
    noise = denoise(sample, 300, contexts, **given).noise
    added = {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in given.items()}
    with torch.no_grad():
        unet = TINY_XL.build().unet
        texts = torch.from_numpy(contexts[:, 0])
        expected = unet(torch.from_numpy(sample), 300, texts, added_cond_kwargs=added, return_dict=False)[0].numpy()
    assert relative_l2(noise, expected) <= LIMIT
    given["time_ids"] = given["time_ids"] * 2
    assert relative_l2(denoise(sample, 300, contexts, **given).noise, noise) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_embeds": None}, r"text_embeds is missing; give \[2, 40\], as this UNet takes"),
        ({"time_ids": None}, r"time_ids is missing; give \[2, 6\]"),
        ({"text_embeds": np.zeros((1, 40))}, r"text_embeds has shape \[1, 40\]; give \[2, 40\]"),
        ({"time_ids": np.zeros((2, 5))}, r"time_ids has shape \[2, 5\]; give \[2, 6\]"),
        ({"time_ids": np.full((2, 6), np.nan)}, "time_ids has values that are not finite"),
        ({"text_embeds": "a"}, "text_embeds is not an array of numbers"),
    ],
)
def test_wrong_conditions_of_stable_diffusion_xl_are_refused(
    xl_engine: ebca.Engine, changes: dict[str, Any], message: str
) -> None:
    sample, contexts = np.zeros((2, 4, 8, 8), np.float32), np.zeros((2, 1, 77, 80), np.float32)
    given = {"text_embeds": np.zeros((2, 40)), "time_ids": np.zeros((2, 6))} | changes
    with pytest.raises(ebca.ParameterError, match=message):
        ebca.Denoiser(xl_engine)(sample, 300, contexts, **given)


def test_other_unets_take_none_of_these(engine: ebca.Engine) -> None:
    sample, contexts = call_inputs()
    with pytest.raises(ebca.ParameterError, match="text_embeds is for models that take pooled embeddings and sizes"):
        ebca.Denoiser(engine)(sample, 300, contexts, text_embeds=np.zeros((2, 40), np.float32))
