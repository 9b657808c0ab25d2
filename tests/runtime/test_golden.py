"""The runtime against results of the authors' unchanged code, and against their formulas for further cases."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers.reference_unet import Editing, Image, ReferenceUNet  # noqa: E402
from helpers.tiny import TOKENS, WIDTH  # noqa: E402

import ebca  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.export.checkpoint.tiny import build_tiny  # noqa: E402

# Both sides compute in float32 with different inference libraries, and differ by a few 1e-6. The smallest visible
# change of the noise prediction by a mistake in the algorithm is 3.1e-3.
NOISE_LIMIT = 1e-5
CONTEXT_LIMIT = 1e-5
# An error in the initial latents grows up to fifteenfold over these ten steps. A schedule shifted by one gives 8.9e-3.
LOOP_LIMIT = 2e-5

TINY = Path(__file__).parents[1] / "golden" / "tiny"
CASES = sorted(p.stem for p in TINY.glob("*.npz") if not p.name.startswith("loop_"))

Golden = dict[str, np.ndarray]


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
def nine_channel_denoiser(backend: str, tiny_inpainting_dir: Path) -> ebca.Denoiser:
    return ebca.Denoiser(tiny_inpainting_dir, backend=backend)


def golden(name: str) -> Golden:
    with np.load(TINY / f"{name}.npz", allow_pickle=False) as data:
        return dict(data)


def test_the_golden_cases_exist() -> None:
    assert len(CASES) >= 9
    assert {"a_vanilla", "b_bcu", "d_mask", "f_edit2_comp", "h_batch2", "i_noguidance"} <= set(CASES)


@pytest.mark.parametrize("in_channels", [4, 9])
def test_the_built_in_unet_has_the_configuration_of_the_golden_one(in_channels: int) -> None:
    file = "config.json" if in_channels == 4 else "config_inpaint9.json"
    expected = json.loads((TINY / file).read_text(encoding="utf-8"))
    config = build_tiny(in_channels=in_channels).unet.config
    shared = {key for key in expected if not key.startswith("_") and key in config}
    assert len(shared) >= 15
    assert {key: _plain(config[key]) for key in shared} == {key: expected[key] for key in shared}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def arrays_of(z: Golden) -> tuple[np.ndarray, ebca.EnergyControl]:
    """Contexts [B,S,T,D] and control of one golden evaluation."""
    main = z["encoder_hidden_states"]
    rows, tokens = main.shape[:2]
    edits = z.get("edit_prompt_embeds_before")
    contexts = 1 if edits is None else len(edits)
    stacked = np.repeat(main[:, None], contexts, axis=1)
    gamma_attn = np.zeros((rows, contexts, tokens), np.float32)
    gamma_norm = np.zeros((rows, contexts), np.float32)
    weights = np.ones((rows, contexts), np.float32)
    gamma_attn[:, 0], gamma_norm[:, 0] = z["gamma_attn"], z["gamma_norm"]
    first_conditional = int(z["num_images"])
    for token, factor in zip(z.get("token_indices", []), z.get("token_upweight", []), strict=True):
        gamma_attn[first_conditional:, 0, int(token)] *= factor
    if edits is not None:
        stacked[0, 1:], stacked[1, 1:] = edits[0], edits[1:]
        weights[:, 1:] = np.where(z["editing_direction"] == 1, z["alpha"], -z["alpha"])
        gamma_attn[:, 1:], gamma_norm[:, 1:] = z["gamma_attn_comp"][:, None], z["gamma_norm_comp"]
    return stacked, ebca.EnergyControl(gamma_attn, gamma_norm, weights, z.get("mask_latent"))


@pytest.mark.parametrize("case", CASES)
def test_one_evaluation_equals_the_authors(case: str, denoiser: ebca.Denoiser, request: pytest.FixtureRequest) -> None:
    z = golden(case)
    if z["sample"].shape[1] == 9:
        denoiser = request.getfixturevalue("nine_channel_denoiser")
    contexts, control = arrays_of(z)
    result = denoiser(z["sample"], float(z["timestep"]), contexts, control)
    assert relative_l2(result.noise, z["noise_pred"]) <= NOISE_LIMIT
    assert relative_l2(result.contexts[:, 0], z["context_final"]) <= CONTEXT_LIMIT
    if "edit_prompt_embeds_after" in z:
        edits = np.concatenate([result.contexts[:1, 1], result.contexts[1, 1:]])
        assert relative_l2(edits, z["edit_prompt_embeds_after"]) <= CONTEXT_LIMIT


def test_text_to_image_loop_equals_the_authors_at_every_step(engine: ebca.Engine) -> None:
    z = golden("loop_text2img_pndm10")
    seen: list[tuple[float, np.ndarray, np.ndarray]] = []

    def keep(info: ebca.StepInfo) -> None:
        seen.append((info.timestep, info.latents.copy(), info.contexts[:, 0].copy()))

    with engine.session() as session:
        result = session.generate(
            prompt_embeds=z["prompt_embeds"],
            negative_prompt_embeds=z["neg_embeds"],
            latents=z["latents_init"],
            steps=10,
            scheduler="pndm",
            guidance_scale=float(z["guidance_scale"]),
            gamma_attn=z["gamma_attn_sched"],
            gamma_norm=z["gamma_norm_sched"],
            output="latents",
            on_step=keep,
        )
    assert [t for t, _, _ in seen] == z["scheduler_timesteps"].tolist()
    for index, (_, latents, contexts) in enumerate(seen):
        assert relative_l2(latents, z["latents"][index]) <= LOOP_LIMIT, index
        assert relative_l2(contexts, z["context_final"][index]) <= LOOP_LIMIT, index
    assert np.array_equal(result.latents, seen[-1][1])


def test_schedule_gives_the_gammas_of_the_authors_loop() -> None:
    z = golden("loop_text2img_pndm10")
    for name in ("gamma_attn_sched", "gamma_norm_sched"):
        schedule = ebca.Schedule.reverse_step(float(z[name][0]), tau=0.5)
        assert np.array_equal(schedule.values(10, 11), z[name])


def test_editing_contexts_carry_over_from_step_to_step(denoiser: ebca.Denoiser) -> None:
    z = golden("loop_synedit_pndm10")
    edits = z["edit_prompt_embeds_init"]
    for step, timestep in enumerate(z["timesteps"]):
        gamma_attn, gamma_norm, edit_attn, edit_norm, alpha = (float(v) for v in z["per_step_params"][step])
        main = z["context_in"][step]
        contexts = np.stack([np.stack([main[0], edits[0]]), np.stack([main[1], edits[1]])])
        control = ebca.EnergyControl(
            gamma_attn=np.array([[[gamma_attn], [edit_attn]]]),
            gamma_norm=[gamma_norm, edit_norm],
            weights=[1.0, alpha if z["editing_direction"][0] == 1 else -alpha],
        )
        sample = np.repeat(z["latents_in"][step], 2, axis=0)
        result = denoiser(sample, float(timestep), contexts, control)
        assert relative_l2(result.noise, z["unet_out"][step]) <= NOISE_LIMIT, step
        assert relative_l2(result.contexts[:, 0], z["context_final"][step]) <= CONTEXT_LIMIT, step
        edits = result.contexts[:, 1]
        assert relative_l2(edits, z["edit_prompt_embeds_after_step"][step]) <= CONTEXT_LIMIT, step


def test_inversion_evaluations_equal_the_authors(denoiser: ebca.Denoiser) -> None:
    z = golden("loop_invert_ddim10")
    for step, timestep in enumerate(z["timesteps"]):
        contexts = z["context_in"][step][:, None]
        result = denoiser(z["latents_in"][step], float(timestep), contexts)
        assert relative_l2(result.noise, z["unet_out"][step]) <= NOISE_LIMIT, step


@dataclass(frozen=True)
class Mixed:
    """A case for the formulas that the stored results do not cover."""

    images: int = 1
    size: tuple[int, int] = (16, 16)
    channels: int = 4
    gamma_attn: float = 0.05
    gamma_norm: float = 0.4
    masked: bool = False
    upweights: tuple[tuple[int, float], ...] = ()
    editings: tuple[Editing, ...] = ()


TWO = (Editing(1.1, 0, 0.04, 0.3), Editing(0.4, 1, 0.02, 0.2))
MIXED = {
    "everything": Mixed(masked=True, upweights=((2, 2.5), (5, 0.5), (40, -1.0)), editings=TWO),
    "nine_channels_and_mask": Mixed(channels=9, masked=True, upweights=((3, 2.0),)),
    "nine_channels_mask_and_edits": Mixed(channels=9, masked=True, editings=TWO),
    "not_square_with_mask": Mixed(size=(8, 24), masked=True, upweights=((1, 3.0),)),
    "odd_size_with_mask": Mixed(size=(9, 13), masked=True, editings=TWO[1:]),
    "three_images_with_edits": Mixed(images=3, upweights=((7, 2.0), (7, 1.5)), editings=TWO),
    "two_images_with_mask": Mixed(images=2, size=(12, 16), masked=True, editings=TWO),
    "three_editing_prompts": Mixed(editings=(*TWO, Editing(0.9, 1, 0.03, 0.1))),
}


@pytest.fixture(scope="module")
def reference_unet() -> Callable[[int], Any]:
    made: dict[int, Any] = {}

    def make(channels: int) -> Any:
        if channels not in made:
            made[channels] = build_tiny(in_channels=channels).unet.double()
        return made[channels]

    return make


@pytest.mark.parametrize("name", MIXED)
def test_one_evaluation_equals_the_formulas(
    name: str,
    denoiser: ebca.Denoiser,
    reference_unet: Callable[[int], Any],
    request: pytest.FixtureRequest,
) -> None:
    case = MIXED[name]
    if case.channels == 9:
        denoiser = request.getfixturevalue("nine_channel_denoiser")
    rng = np.random.default_rng(sum(name.encode()))
    rows, n = 2 * case.images, len(case.editings)
    sample = rng.standard_normal((rows, case.channels, *case.size), np.float32)
    main = rng.standard_normal((rows, TOKENS, WIDTH), np.float32)
    edits = rng.standard_normal((case.images, n, TOKENS, WIDTH), np.float32)
    mask = (rng.random((1, 1, *case.size)) < 0.4).astype(np.float32) if case.masked else None

    contexts = np.repeat(main[:, None], 1 + n, axis=1)
    contexts[case.images :, 1:] = edits
    gamma_attn = np.full((rows, 1 + n, TOKENS), case.gamma_attn, np.float32)
    gamma_norm = np.full((rows, 1 + n), case.gamma_norm, np.float32)
    weights = np.ones((rows, 1 + n), np.float32)
    for token, factor in case.upweights:
        gamma_attn[case.images :, 0, token] *= factor
    for s, edit in enumerate(case.editings, start=1):
        gamma_attn[:, s], gamma_norm[:, s] = edit.gamma_attn, edit.gamma_norm
        weights[:, s] = edit.alpha if edit.direction == 1 else -edit.alpha
    control = ebca.EnergyControl(gamma_attn, gamma_norm, weights, mask)
    result = denoiser(sample, 541, contexts, control)

    reference = ReferenceUNet(
        reference_unet(case.channels),
        gamma_attn=case.gamma_attn,
        gamma_norm=case.gamma_norm,
        upweights=list(case.upweights),
        editings=list(case.editings),
        mask=mask,
    )
    images = []
    for i in range(case.images):
        own = torch.from_numpy(main[[i, case.images + i]]).double()
        listed = torch.cat([own[:1], torch.from_numpy(edits[i]).double()]) if n else None
        images.append(Image(own, listed))
    noise = reference(sample, 541, images)

    assert relative_l2(result.noise, noise) <= NOISE_LIMIT
    for i, image in enumerate(images):
        assert relative_l2(result.contexts[[i, case.images + i], 0], image.main.numpy()) <= CONTEXT_LIMIT
        if image.edits is not None:
            assert relative_l2(result.contexts[case.images + i, 1:], image.edits[1:].numpy()) <= CONTEXT_LIMIT
            for shared in result.contexts[i, 1:]:
                assert relative_l2(shared, image.edits[0].numpy()) <= CONTEXT_LIMIT
