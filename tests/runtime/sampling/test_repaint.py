"""RePaint: levels, steps and jumps equal those of diffusers' scheduler, generations those of its pipeline's loop."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from diffusers import RePaintScheduler  # noqa: E402
from helpers.pipelines import mask_image, sample_image  # noqa: E402

import ebca  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.export.checkpoint.tiny import build_tiny  # noqa: E402
from ebca.runtime.images.inputs import latent_mask, load_images, load_masks  # noqa: E402
from ebca.runtime.noise import NormalStream, randn  # noqa: E402
from ebca.runtime.sampling.repaint import RePaintSchedule, RePaintStepper  # noqa: E402

# Both loops run in float32, and the noise agrees within 1e-6. A wrong level or draw gives 1e-2 or more.
LIMIT = 2e-5
# The same sums in another order, because a matrix product has more rows; jumps amplify the difference.
SAME = 1e-5

PROMPT = "a lion with a crown"


def scheduler(eta: float = 0.0) -> Any:
    return RePaintScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        eta=eta,
        clip_sample=False,
    )


ALPHAS = scheduler().alphas_cumprod.numpy().astype(np.float64)


def schedule(steps: int, jump_length: int, jump_count: int) -> RePaintSchedule:
    return RePaintSchedule(steps, jump_length, jump_count, ALPHAS)


# --- levels


@pytest.mark.parametrize(
    ("steps", "jump_length", "jump_count"),
    [(10, 2, 2), (10, 3, 3), (50, 10, 10), (20, 5, 4), (7, 7, 3), (7, 6, 3), (5, 10, 10), (1, 1, 1), (2, 1, 5),
     (250, 10, 10), (100, 10, 10), (333, 7, 2), (1000, 300, 2)],
)  # fmt: skip
def test_levels_equal_those_of_diffusers(steps: int, jump_length: int, jump_count: int) -> None:
    reference = scheduler()
    reference.set_timesteps(steps, jump_length, jump_count)
    ours = schedule(steps, jump_length, jump_count)
    assert [level * ours.stride for level in ours.levels()] == reference.timesteps.tolist()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 5))
def test_levels_equal_those_of_diffusers_for_any_setting(steps: int, jump_length: int, jump_count: int) -> None:
    test_levels_equal_those_of_diffusers(steps, jump_length, jump_count)
    ours = schedule(steps, jump_length, jump_count)
    moves = list(ours.moves())
    assert [level for level, _ in moves] == list(ours.levels())
    assert ours.evaluations() == sum(denoise for _, denoise in moves)
    assert moves[0] == (steps - 1, True) and moves[-1] == (0, True)
    # One level at a time, up or down.
    assert all(abs(a - b) == 1 for (a, _), (b, _) in pairwise(moves))


def test_one_visit_of_each_stretch_has_no_jumps() -> None:
    assert list(schedule(10, 3, 1).moves()) == [(level, True) for level in range(9, -1, -1)]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(ebca.ParameterError, match=f"steps is {steps}; RePaint takes 1 to 1000"):
        schedule(steps, 10, 10)


# --- the stepper


def noise_of(latents: np.ndarray, timestep: float) -> np.ndarray:
    """Replaces the UNet: a noise prediction that depends on latents and timestep."""
    return np.tanh(np.float32(0.4) * latents) + np.float32(0.2) * np.sin(np.float32(timestep))


def walk(stepper: RePaintStepper, start: np.ndarray) -> tuple[list[np.ndarray], list[tuple[float, int]]]:
    """The latents after every evaluation; the timestep and the control of every evaluation."""
    stepper.start(start)
    latents, seen = [], []
    for index in range(stepper.total):
        evaluation = stepper.evaluation(index)
        seen.append((evaluation.timestep, evaluation.control))
        latents.append(stepper.step(index, noise_of(evaluation.model_input, evaluation.timestep)))
    return latents, seen


def diffusers_loop(
    predict: Any, steps: tuple[int, int, int], start: Any, known: Any, hole: Any, generator: Any, eta: float
) -> list[np.ndarray]:
    """The loop of diffusers' RePaintPipeline; the latents after every evaluation."""
    reference = scheduler(eta)
    reference.set_timesteps(*steps)
    latents, before = start, int(reference.timesteps[0]) + 1
    history = []
    for t in reference.timesteps.tolist():
        if t < before:
            noise = predict(latents, t)
            latents = reference.step(noise, t, latents, known, 1 - hole, generator).prev_sample
            history.append(latents.numpy())
        else:
            latents = reference.undo_step(latents, before, generator)
        before = t
    return history


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("steps", [(10, 3, 3), (20, 5, 2), (4, 2, 1), (1, 1, 1)], ids=str)
def test_steps_and_jumps_equal_those_of_diffusers(steps: tuple[int, int, int], eta: float) -> None:
    shape = (1, 4, 8, 6)
    start, known = randn(shape, 1), randn(shape, 2)
    hole = (np.random.default_rng(3).random((1, 1, 8, 6)) < 0.5).astype(np.float32)
    before = start.copy(), known.copy(), hole.copy()
    stepper = RePaintStepper(schedule(*steps), known, hole, [NormalStream(4)], eta)
    latents, seen = walk(stepper, start)

    expected = diffusers_loop(
        lambda x, t: torch.from_numpy(noise_of(x.numpy(), t)),
        steps,
        torch.from_numpy(start),
        torch.from_numpy(known),
        torch.from_numpy(hole),
        torch.Generator("cpu").manual_seed(4),
        eta,
    )
    assert len(latents) == len(expected)
    for index, (ours, theirs) in enumerate(zip(latents, expected, strict=True)):
        assert relative_l2(ours, theirs) <= LIMIT, index
    made = latents[-1]
    # At the end, the part outside the hole equals the image.
    assert np.array_equal(np.where(hole > 0, 0, made), np.where(hole > 0, 0, known))
    assert stepper.total == len(expected)
    # Controls belong to levels, from the noisiest on; repeated visits use the same control.
    stride = 1000 // steps[0]
    assert seen == [(t, steps[0] - 1 - round(t / stride)) for t, _ in seen]
    assert all(np.array_equal(a, b) for a, b in zip((start, known, hole), before, strict=True))


def test_images_with_separate_streams_are_independent() -> None:
    shape = (1, 4, 8, 6)
    starts, knowns = ([randn(shape, seed) for seed in seeds] for seeds in ((1, 2), (3, 4)))
    holes = [(np.random.default_rng(s).random((1, 1, 8, 6)) < 0.5).astype(np.float32) for s in (5, 6)]

    def run(start: np.ndarray, known: np.ndarray, hole: np.ndarray, seeds: list[int]) -> np.ndarray:
        streams = [NormalStream(seed) for seed in seeds]
        return walk(RePaintStepper(schedule(6, 2, 2), known, hole, streams, eta=1.0), start)[0][-1]

    together = run(np.concatenate(starts), np.concatenate(knowns), np.concatenate(holes), [7, 8])
    for i in range(2):
        assert np.array_equal(together[i], run(starts[i], knowns[i], holes[i], [7 + i])[0])


# --- in a session


ASK: dict[str, Any] = {"steps": 6, "seed": 1, "output": "latents", "repaint": ebca.RePaint(2, 2)}


def painted(session: ebca.Session, prompt: Any = PROMPT, **kwargs: Any) -> np.ndarray:
    given: dict[str, Any] = {"image": sample_image(), "mask": mask_image()} | ASK | kwargs
    return session.generate(prompt, **given).latents


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_generation_equals_the_loop_of_diffusers(session: ebca.Session, eta: float) -> None:
    """Initial latents, the image's latents and the noise of every step come from one generator, in this order."""
    steps, guidance = (6, 2, 2), 3.0
    made: list[np.ndarray] = []
    result = session.generate(
        PROMPT, image=sample_image(), mask=mask_image(), steps=6, seed=1, guidance_scale=guidance,
        repaint=ebca.RePaint(2, 2, eta), output="latents", on_step=lambda info: made.append(info.latents.copy()),
    )  # fmt: skip

    tiny = build_tiny()
    assert tiny.vae is not None
    generator = torch.Generator("cpu").manual_seed(1)
    pixels = torch.from_numpy(np.asarray(sample_image(), np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    mask = (torch.from_numpy(np.asarray(mask_image(), np.float32) / 255) >= 0.5).float()[None, None]
    hole = torch.nn.functional.interpolate(mask, (8, 8))
    texts = torch.from_numpy(session.engine.encode(session.engine.tokenizer.encode(["", PROMPT]).ids).contexts)

    def noise_of(latents: Any, t: int) -> Any:
        unconditional, conditional = tiny.unet(torch.cat([latents] * 2), t, texts).sample.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    with torch.no_grad():
        start = torch.randn((1, 4, 8, 8), generator=generator)
        # The hole is filled with the mean colour of the rest, because grey would tint the rest through the VAE.
        kept = mask < 0.5
        fill = (pixels * kept).sum((2, 3), keepdim=True) / kept.sum()
        filled = torch.where(kept, pixels, fill)
        known = tiny.vae.encode(filled).latent_dist.sample(generator) * tiny.vae.config.scaling_factor
        expected = diffusers_loop(noise_of, steps, start, known, hole, generator, eta)
    assert result.parameters["task"] == "repaint" and result.parameters["scheduler"] == "RePaint"
    assert len(made) == len(expected) == len(result.timesteps)
    for index, (ours, theirs) in enumerate(zip(made, expected, strict=True)):
        assert relative_l2(ours, theirs) <= LIMIT, index


def test_repaint_needs_no_scheduler_table(session: ebca.Session) -> None:
    """The paper uses 250 steps, more than any table has."""
    seen: list[float] = []

    def stop(info: ebca.StepInfo) -> bool:
        seen.append(info.timestep)
        return info.index < 2

    with pytest.raises(ebca.CancelledError, match="cancelled after 3 of 2410 evaluations"):
        painted(session, steps=250, repaint=None, on_step=stop)
    assert seen == [996, 992, 988]


def test_the_update_is_computed_inside_or_outside_the_hole(session: ebca.Session) -> None:
    """The contexts after the first evaluation show the mask of the update or its inverse."""
    hole = latent_mask(load_masks(mask_image(), 64, 64), 8)
    texts = session.engine.encode(session.engine.tokenizer.encode(["", PROMPT]).ids).contexts[:, None]
    start = np.repeat(randn((1, 4, 8, 8), 1), 2, 0)
    contexts = {}
    for known in (False, True):
        seen: list[np.ndarray] = []
        painted(
            session, steps=3, gamma_attn=0.05, gamma_norm=0.2, repaint=ebca.RePaint(update_known=known),
            on_step=lambda info, seen=seen: seen.append(info.contexts.copy()),
        )  # fmt: skip
        control = ebca.EnergyControl(0.05, 0.2, mask=1 - hole if known else hole)
        expected = ebca.Denoiser(session.engine)(start, 666, texts, control).contexts
        assert relative_l2(seen[0], expected) <= 1e-6
        contexts[known] = seen[0]
    assert relative_l2(contexts[True], contexts[False]) > 1e-3


def test_gammas_belong_to_levels(session: ebca.Session) -> None:
    seen: list[tuple[float, bool]] = []
    texts = session.engine.encode(session.engine.tokenizer.encode(["", PROMPT]).ids).contexts[:, None]
    painted(
        session,
        gamma_norm=[0, 0, 0, 0.3, 0, 0],
        on_step=lambda info: seen.append((info.timestep, not np.array_equal(info.contexts, texts))),
    )
    stride = 1000 // 6
    # The fourth of levels 5 to 0, which is visited twice.
    assert [t for t, changed in seen if changed] == [2 * stride, 2 * stride]
    assert len(seen) == 10
    with pytest.raises(ebca.ParameterError, match="gamma_norm has 10 values, but RePaint with 6 steps makes 6"):
        painted(session, gamma_norm=[0.1] * 10)
    half = ebca.Schedule.reverse_step(0.3, 0.5)
    assert np.array_equal(painted(session, gamma_norm=half), painted(session, gamma_norm=[0.3] * 3 + [0] * 3))


def test_images_with_seeds_equal_single_runs(engine: ebca.Engine, session: ebca.Session) -> None:
    prompts, seeds = [PROMPT, "a red car in the snow"], [5, 6]
    images, masks = [sample_image(1), sample_image(2)], [mask_image(), mask_image((0, 0, 30, 64))]
    ask: dict[str, Any] = {"repaint": ebca.RePaint(2, 2, 1.0), "gamma_attn": 0.02, "gamma_norm": 0.1}
    edits = [ebca.Edit("oil painting", alpha=0.5)]
    with engine.session(64, 64, batch=2) as batch:
        together = painted(batch, prompts, image=images, mask=masks, seed=seeds, edits=edits, **ask)
        one_for_all = painted(batch, PROMPT, image=images[0], mask=masks[1], seed=seeds, **ask)
    for i in range(2):
        alone = painted(session, prompts[i], image=images[i], mask=masks[i], seed=seeds[i], edits=edits, **ask)
        assert relative_l2(together[i], alone[0]) <= SAME
        alone = painted(session, image=images[0], mask=masks[1], seed=seeds[i], **ask)
        assert relative_l2(one_for_all[i], alone[0]) <= SAME


@pytest.mark.parametrize("output", ["pil", "np"])
def test_pixels_outside_the_mask_are_kept(session: ebca.Session, output: str) -> None:
    given: dict[str, Any] = {"image": sample_image(), "mask": mask_image(), **ASK, "output": output}
    hole = np.asarray(mask_image()) > 0
    source = np.asarray(sample_image()) if output == "pil" else load_images(sample_image(), 64, 64)[0]
    pasted = np.asarray(session.generate(PROMPT, **given).images[0])
    decoded = np.asarray(session.generate(PROMPT, **given, composite=False).images[0])
    assert np.array_equal(pasted[~hole], source[~hole])
    assert np.array_equal(pasted[hole], decoded[hole])
    assert not np.array_equal(decoded[~hole], source[~hole])


def test_the_parameters_hold_the_settings(session: ebca.Session) -> None:
    given: dict[str, Any] = {"image": sample_image(), "mask": mask_image(), "steps": 2, "seed": 1, "output": "latents"}
    default = session.generate(PROMPT, **given)
    expected = {"jump_length": 10, "jump_count": 10, "eta": 0.0, "update_known": False}
    assert default.parameters["repaint"] == expected
    again = session.generate(PROMPT, **given, repaint=ebca.RePaint(**default.parameters["repaint"]))
    assert np.array_equal(again.latents, default.latents)


# --- refusals


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"jump_length": 0}, "jump_length is 0; give 1 or more"),
        ({"jump_length": 2.5}, "jump_length is 2.5; give a whole number"),
        ({"jump_count": -3}, "jump_count is -3; give 1 or more"),
        ({"jump_count": None}, "jump_count is None; give a whole number"),
        ({"eta": -0.1}, "eta is -0.1; give a number from 0 to 1"),
        ({"eta": 1.5}, "eta is 1.5; give a number from 0 to 1"),
        ({"eta": float("nan")}, "eta is nan; give a finite number"),
        ({"eta": "much"}, "eta is much; give a finite number"),
    ],
)
def test_wrong_settings_are_refused(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(ebca.ParameterError) as caught:
        ebca.RePaint(**kwargs)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"scheduler": "ddim"}, "scheduler 'ddim' does not apply: RePaint has steps of its own; leave it out"),
        ({"mask": None}, "repaint was given without mask; leave repaint out, or give mask"),
        ({"mask": None, "image": None}, "repaint was given without mask; leave repaint out, or give mask"),
        ({"repaint": True}, "repaint is True; give ebca.RePaint("),
        ({"repaint": {"jump_length": 2}}, "repaint is {'jump_length': 2}; give ebca.RePaint("),
        ({"steps": 0}, "steps is 0; RePaint takes 1 to 1000"),
        ({"steps": 1001}, "steps is 1001; RePaint takes 1 to 1000"),
        ({"steps": 2.5}, "steps is 2.5; give a whole number"),
    ],
)
def test_refusals_leave_the_session_usable(session: ebca.Session, kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(ebca.ParameterError) as caught:
        painted(session, **kwargs)
    assert named in str(caught.value)
    assert np.isfinite(painted(session, steps=1)).all()


def test_a_model_trained_for_inpainting_refuses_repaint(tiny_inpainting_dir: Path) -> None:
    with (
        ebca.load(tiny_inpainting_dir, backend="onnxruntime") as engine,
        engine.session(64, 64) as session,
        pytest.raises(
            ebca.ParameterError, match="repaint was given, but this model was trained for inpainting; leave repaint out"
        ),
    ):
        painted(session)
