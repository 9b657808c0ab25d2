"""DDIM inversion: against the authors' loop, back to the image, and regularisation against PyTorch's gradients."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers.pipelines import diffusers_scheduler, sample_image  # noqa: E402
from helpers.tiny import TOKENS, WIDTH  # noqa: E402

import ebca  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.export.checkpoint.tiny import build_tiny  # noqa: E402
from ebca.runtime.noise import randn  # noqa: E402

# Float32 against the authors' float32. An error in the clean latents grows at most twofold over these steps.
LOOP_LIMIT = 2e-5
# The same sums in another order, because a matrix product has more rows.
SAME = 5e-6

PROMPT = "a lion with a crown"
GOLDEN = Path(__file__).parents[2] / "golden" / "tiny" / "loop_invert_ddim10.npz"


def clean(seed: int = 0, size: tuple[int, int] = (8, 8), images: int = 1) -> np.ndarray:
    return randn((images, 4, *size), seed)


# --- the loop


def test_the_loop_equals_the_authors_at_every_step(engine: ebca.Engine) -> None:
    with np.load(GOLDEN, allow_pickle=False) as data:
        z = dict(data)
    seen: list[tuple[float, np.ndarray, np.ndarray]] = []
    with engine.session() as session:
        found = session.invert(
            z["latents_init"],
            prompt_embeds=z["prompt_embeds"],
            steps=10,
            on_step=lambda i: seen.append((i.timestep, i.latents.copy(), i.contexts.copy())),
        )
    assert [t for t, _, _ in seen] == z["timesteps"].tolist()
    for step, (_, latents, contexts) in enumerate(seen):
        assert relative_l2(latents, z["latents"][step]) <= LOOP_LIMIT, step
        assert relative_l2(contexts[:, 0], z["context_final"][step]) <= LOOP_LIMIT, step
    assert np.array_equal(found.latents, seen[-1][1])


def test_an_image_is_inverted_from_the_mean_of_its_latents(engine: ebca.Engine, session: ebca.Session) -> None:
    image = sample_image(1)
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    vae = build_tiny().vae
    assert vae is not None
    with torch.no_grad():
        mean = (vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor).numpy()
    from_image = session.invert(image, PROMPT, steps=5)
    assert relative_l2(from_image.latents, session.invert(mean, PROMPT, steps=5).latents) <= LOOP_LIMIT
    assert {"vae_encoder", "text_encoder", "unet_steps"} <= from_image.timings.keys()
    assert len(from_image.timings["unet_steps"]) == 4
    for same in (np.asarray(image), np.asarray(image)[None], [image]):
        assert np.array_equal(session.invert(same, PROMPT, steps=5).latents, from_image.latents)


def test_inputs_and_earlier_results_are_not_changed(session: ebca.Session) -> None:
    start = clean()
    before = start.copy()
    found = session.invert(start, PROMPT, steps=3, regularize=True)
    assert np.array_equal(start, before)
    kept = found.latents.copy()
    session.invert(clean(1), PROMPT, steps=3)
    assert np.array_equal(found.latents, kept)


def test_ddim_reproduces_the_latents_of_a_trained_model() -> None:
    """Without guidance, DDIM from the inverted latents returns to the clean latents, closer with more steps."""
    prompt = "a red circle and a blue square"
    errors = []
    with ebca.load("shapes", backend="onnxruntime") as engine, engine.session(batch=8) as session:
        start = session.generate(prompt, seed=range(1, 9), steps=20, scheduler="ddim", output="latents").latents
        for steps in (20, 40, 80):
            found = session.invert(start, prompt, steps=steps)
            back = session.generate(
                prompt, latents=found.latents, scheduler="ddim", steps=steps, guidance_scale=1, output="latents"
            )
            errors.append(float(np.median([relative_l2(a, b) for a, b in zip(back.latents, start, strict=True)])))
    # Measured 0.13, 0.065 and 0.034: the inversion uses each noise prediction one step early, a first-order error.
    # The median of eight, because two of these images, made with guidance, cannot be reproduced without it. A
    # prediction with the wrong sign or timestep gives more than 0.5.
    assert all(error <= limit for error, limit in zip(errors, (0.35, 0.16, 0.07), strict=True)), errors
    assert errors[2] < errors[1] / 1.5 < errors[0] / 1.5**2, errors


# --- regularisation


def draw_shifts(count: int, height: int, width: int, seed: int = 0) -> list[int]:
    """The shifts that `count` rounds over 4 channels need, in the order in which the authors' code draws them."""
    sizes = []
    while True:
        sizes.append(height)
        if height <= 8 or width == 1:
            break
        height, width = height // 2, width // 2
    rng = np.random.default_rng(seed)
    return [int(rng.integers(max(size // 2, 1))) for _ in range(count * 4) for size in sizes]


def auto_correlation_loss(noise: Any, shifts: Iterator[int]) -> Any:
    """The regulariser of zero-shot image-to-image translation: sum over channels and pyramid levels, one shift each."""
    loss = 0.0
    for channel in range(noise.shape[1]):
        plane = noise[:, channel : channel + 1]
        while True:
            shift = next(shifts)
            for dims in (2, 3):
                loss = loss + (plane * torch.roll(plane, shifts=shift, dims=dims)).mean() ** 2
            if plane.shape[2] <= 8 or plane.shape[3] == 1:
                break
            plane = torch.nn.functional.avg_pool2d(plane, 2)
    return loss


def kl_loss(noise: Any) -> Any:
    return noise.var() + noise.mean() ** 2 - 1 - torch.log(noise.var() + 1e-7)


def gradient(loss: Callable[[Any], Any], noise: Any) -> Any:
    noise = noise.detach().clone().requires_grad_(True)
    loss(noise).backward()
    return noise.grad


def regularized(noise: Any, shifts: Iterator[int]) -> Any:
    """Five rounds of five auto-correlation steps of weight 20 / 5 and one divergence step of weight 20."""
    for _ in range(5):
        for _ in range(5):
            noise = noise - 20 * gradient(lambda x: auto_correlation_loss(x, shifts), noise) / 5
        noise = noise - 20 * gradient(kl_loss, noise)
    return noise


def adjusted(regularization: ebca.NoiseRegularization, noise: np.ndarray) -> np.ndarray:
    result = noise.copy()
    regularization.start(len(noise))(result)
    return result


SIZES = [(8, 8), (16, 16), (24, 16), (16, 24), (17, 13), (32, 32), (16, 1)]

# Both in float64; only the order of the sums differs.
EXACT = 1e-12


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_auto_correlation_step_is_the_gradient_of_the_loss(size: tuple[int, int]) -> None:
    noise = 0.3 + np.random.default_rng(1).standard_normal((1, 4, *size))
    shifts = draw_shifts(1, *size)
    one = ebca.NoiseRegularization(rounds=1, rolls=1, auto_correlation=7.0, kl=0.0, shifts=tuple(shifts))
    step = adjusted(one, noise) - noise
    used = iter(shifts)
    expected = -7 * gradient(lambda x: auto_correlation_loss(x, used), torch.from_numpy(noise)).numpy()
    assert relative_l2(step, expected) <= EXACT
    # Both used all shifts.
    assert next(used, None) is None
    fewer = ebca.NoiseRegularization(rounds=1, rolls=1, kl=0.0, shifts=tuple(shifts[:-1]))
    with pytest.raises(ebca.ParameterError, match="too few"):
        adjusted(fewer, noise)


@pytest.mark.parametrize("size", SIZES[:5], ids=str)
def test_one_divergence_step_is_the_gradient_of_the_loss(size: tuple[int, int]) -> None:
    noise = 0.3 + 2 * np.random.default_rng(2).standard_normal((1, 4, *size))
    step = adjusted(ebca.NoiseRegularization(rounds=1, auto_correlation=0.0, kl=3.0), noise) - noise
    expected = -3 * gradient(kl_loss, torch.from_numpy(noise)).numpy()
    assert relative_l2(step, expected) <= EXACT


@pytest.mark.parametrize("size", [(8, 8), (16, 24)], ids=str)
def test_the_defaults_are_the_authors_five_rounds(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(3).standard_normal((1, 4, *size))
    shifts = draw_shifts(25, *size)
    expected = regularized(torch.from_numpy(noise), iter(shifts)).numpy()
    assert relative_l2(adjusted(ebca.NoiseRegularization(shifts=tuple(shifts)), noise), expected) <= EXACT
    # The change is far above rounding.
    assert relative_l2(expected, noise) > 1e-3


def test_each_term_brings_noise_closer_to_independent_standard_normal_values() -> None:
    blocks = np.repeat(np.repeat(clean(4).astype(np.float64), 2, 2), 2, 3)
    noise = 0.2 + 1.3 * blocks

    def neighbours(x: np.ndarray) -> float:
        return float(np.abs((x * np.roll(x, 1, 3)).mean((2, 3))).mean())

    apart = adjusted(ebca.NoiseRegularization(rounds=50, kl=0.0), noise)
    assert neighbours(apart) < 0.5 * neighbours(noise)
    normal = adjusted(ebca.NoiseRegularization(rounds=50, auto_correlation=0.0), noise)
    assert abs(normal.mean()) < 0.2 * abs(noise.mean()) and abs(normal.std() - 1) < 0.2 * abs(noise.std() - 1)


def test_the_regularised_loop_equals_a_reference_in_pytorch(engine: ebca.Engine) -> None:
    """Three evaluations at 16 x 16 latents in float64, with given shifts."""
    steps, size = 4, (16, 16)
    embeds = np.random.default_rng(5).standard_normal((1, TOKENS, WIDTH), np.float32)
    start = clean(6, size)
    shifts = draw_shifts(25 * (steps - 1), *size)
    seen: list[np.ndarray] = []
    with engine.session() as session:
        session.invert(
            start,
            prompt_embeds=embeds,
            steps=steps,
            regularize=ebca.NoiseRegularization(shifts=tuple(shifts)),
            on_step=lambda info: seen.append(info.latents.copy()),
        )

    unet = build_tiny().unet.double()
    alphas = diffusers_scheduler("ddim").alphas_cumprod.double()
    latents, used = torch.from_numpy(start).double(), iter(shifts)
    for step, timestep in enumerate((1, 251, 501)):
        with torch.no_grad():
            noise = unet(latents, timestep, torch.from_numpy(embeds).double()).sample
        noise = regularized(noise, used)
        here, there = alphas[timestep], alphas[timestep + 250]
        image = (latents - (1 - here).sqrt() * noise) / here.sqrt()
        latents = there.sqrt() * image + (1 - there).sqrt() * noise
        assert relative_l2(seen[step], latents.numpy()) <= LOOP_LIMIT, step
    assert len(seen) == 3
    assert next(used, None) is None


def test_equal_seeds_agree_and_others_differ(session: ebca.Session) -> None:
    def invert(regularize: Any) -> np.ndarray:
        return session.invert(clean(), PROMPT, steps=3, regularize=regularize).latents

    default = invert(True)
    assert np.array_equal(default, invert(True))
    assert np.array_equal(default, invert(ebca.NoiseRegularization(seed=0)))
    assert relative_l2(invert(ebca.NoiseRegularization(seed=1)), default) > 1e-6
    plain = invert(False)
    assert relative_l2(default, plain) > 1e-3
    assert np.array_equal(plain, invert(ebca.NoiseRegularization(rounds=0)))
    assert np.array_equal(plain, invert(ebca.NoiseRegularization(auto_correlation=0.0, kl=0.0)))


@pytest.mark.parametrize("shifts", [None, tuple(draw_shifts(50, 8, 8))], ids=["seed", "shifts"])
def test_images_of_a_batch_are_independent(
    engine: ebca.Engine, session: ebca.Session, shifts: Sequence[int] | None
) -> None:
    regularization = ebca.NoiseRegularization(shifts=None if shifts is None else tuple(shifts))
    start = clean(7, images=2)
    start[1] *= 3
    prompts = [PROMPT, "a red car in the snow"]
    for regularize in (False, regularization):
        with engine.session(64, 64, batch=2) as batch:
            together = batch.invert(start, prompts, steps=3, regularize=regularize).latents
        for index, prompt in enumerate(prompts):
            alone = session.invert(start[index : index + 1], prompt, steps=3, regularize=regularize).latents
            assert relative_l2(together[index], alone[0]) <= SAME


def test_a_single_image_serves_the_whole_batch(engine: ebca.Engine, session: ebca.Session) -> None:
    with engine.session(64, 64, batch=2) as batch:
        found = batch.invert(sample_image(), [PROMPT, "a cat"], steps=3).latents
        with pytest.raises(ebca.ParameterError, match="3 images were given for a batch of 2; give one, or one each"):
            batch.invert([sample_image()] * 3, PROMPT, steps=3)
    assert relative_l2(found[0], session.invert(sample_image(), PROMPT, steps=3).latents[0]) <= SAME
    assert relative_l2(found[1], session.invert(sample_image(), "a cat", steps=3).latents[0]) <= SAME


# --- cancelling and errors


def test_cancelled_inversions_leave_the_session_usable(session: ebca.Session) -> None:
    expected = session.invert(clean(), PROMPT, steps=4, regularize=True).latents
    with pytest.raises(ebca.CancelledError, match="cancelled after 2 of 3 evaluations"):
        session.invert(clean(), PROMPT, steps=4, regularize=True, on_step=lambda info: info.index < 1)
    assert np.array_equal(session.invert(clean(), PROMPT, steps=4, regularize=True).latents, expected)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"image": np.zeros((1, 4, 16, 16))}, "latents have shape [1, 4, 16, 16], this session needs [1, 4, 8, 8]"),
        ({"image": np.zeros((2, 4, 8, 8))}, "latents have shape [2, 4, 8, 8], this session needs [1, 4, 8, 8]"),
        ({"image": np.full((1, 4, 8, 8), np.nan)}, "latents have values that are not finite"),
        ({"image": np.zeros((4, 8, 8))}, "image is an array of shape [4, 8, 8]; give pixels [height, width, 3]"),
        ({"image": "missing.png"}, "image 'missing.png' does not exist"),
        ({"image": None}, "image is of type NoneType"),
        ({"prompt": None}, "give either a prompt or prompt_embeds"),
        ({"prompt": ["a cat", "a dog"]}, "prompt has 2 texts for a batch of 1"),
        ({"steps": 1}, "ddim_inverse needs at least 2"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 73}, "ddim_inverse with 73 steps is not in this engine"),
        (
            {"regularize": ebca.NoiseRegularization(shifts=(1, 2, 3))},
            "NoiseRegularization has 3 shifts, which are too few; give a seed",
        ),
    ],
)
def test_refusals_leave_the_session_usable(session: ebca.Session, kwargs: dict[str, Any], named: str) -> None:
    given: dict[str, Any] = {"image": clean(), "prompt": PROMPT, "steps": 3} | kwargs
    with pytest.raises(ebca.ParameterError) as caught:
        session.invert(**given)
    assert named in str(caught.value)
    assert np.isfinite(session.invert(clean(), PROMPT, steps=2).latents).all()


def test_an_inpainting_model_is_refused(tiny_inpainting_dir: Path) -> None:
    with (
        ebca.load(tiny_inpainting_dir, backend="onnxruntime") as engine,
        engine.session(64, 64) as session,
        pytest.raises(
            ebca.EngineError,
            match="another that sees an image; inversion needs one that takes the latents alone",
        ),
    ):
        session.invert(clean(), PROMPT, steps=3)


def test_a_unet_only_directory_inverts_latents_but_not_images(tiny_unet_dir: Path, session: ebca.Session) -> None:
    embeds = session.engine.encode(session.engine.tokenizer.encode([PROMPT]).ids).contexts
    with ebca.load(tiny_unet_dir, backend="onnxruntime") as engine, engine.session(64, 64) as alone:
        found = alone.invert(clean(), prompt_embeds=embeds, steps=3)
        with pytest.raises(ebca.EngineError, match="no VAE; pass latents instead of an image"):
            alone.invert(sample_image(), prompt_embeds=embeds, steps=3)
    assert np.array_equal(found.latents, session.invert(clean(), PROMPT, steps=3).latents)
