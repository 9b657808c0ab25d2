"""Editing prompts in complete generations: against the authors' loop, a float64 reference, and invariances."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from helpers.pipelines import diffusers_scheduler  # noqa: E402
from helpers.reference_unet import Editing, Image, ReferenceUNet  # noqa: E402
from helpers.tiny import TOKENS, WIDTH, changed_copy  # noqa: E402

import ebca  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.export.checkpoint.tiny import build_tiny  # noqa: E402
from ebca.runtime.noise import randn  # noqa: E402

# Float32 against float32 (golden) or float64 (reference). An error in the initial latents grows up to 28-fold over ten
# steps of real-image editing. The smallest of several deliberate mistakes in the algorithm gives 8.9e-3.
LOOP_LIMIT = 2e-5
# The same sums in another order, amplified over a few guided steps.
SAME = 1e-5

PROMPT = "a lion with a crown"
GOLDEN = Path(__file__).parents[2] / "golden" / "tiny" / "loop_synedit_pndm10.npz"
EDIT = ebca.Edit("oil painting", alpha=0.6, gamma_attn=0.02, gamma_norm=0.1)


def latents(session: ebca.Session, prompt: Any = PROMPT, **kwargs: Any) -> np.ndarray:
    given: dict[str, Any] = {"steps": 3, "seed": 1, "output": "latents", "gamma_attn": 0.03, "gamma_norm": 0.2} | kwargs
    return session.generate(prompt, **given).latents


class Steps:
    """An `on_step` callback that keeps copies of what it gets."""

    def __init__(self) -> None:
        self.latents: list[np.ndarray] = []
        self.contexts: list[np.ndarray] = []
        self.timesteps: list[float] = []

    def __call__(self, info: ebca.StepInfo) -> None:
        self.latents.append(info.latents.copy())
        self.contexts.append(info.contexts.copy())
        self.timesteps.append(info.timestep)


# --- against the authors' loop and a float64 reference


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_loop_with_an_editing_prompt_equals_the_authors_at_every_step(tiny_unet_dir: Path, backend: str) -> None:
    pytest.importorskip(backend)
    with np.load(GOLDEN, allow_pickle=False) as data:
        z = dict(data)
    steps = Steps()
    edit = ebca.Edit(
        prompt_embeds=z["editing_embeds"],
        direction=int(z["editing_direction"][0]),
        alpha=z["alpha_sched"][0],
        gamma_attn=z["gamma_attn_comp_sched"][0],
        gamma_norm=z["gamma_norm_comp_sched"][0],
    )
    with ebca.load(tiny_unet_dir, backend=backend) as engine, engine.session() as session:
        made = session.generate(
            prompt_embeds=z["prompt_embeds"],
            negative_prompt_embeds=z["neg_embeds"],
            latents=z["latents_init"],
            edits=[edit],
            steps=10,
            scheduler="pndm",
            guidance_scale=float(z["guidance_scale"]),
            gamma_attn=z["gamma_attn_sched"],
            gamma_norm=z["gamma_norm_sched"],
            output="latents",
            on_step=steps,
        )
    assert steps.timesteps == z["scheduler_timesteps"].tolist()
    for i, contexts in enumerate(steps.contexts):
        assert relative_l2(steps.latents[i], z["latents"][i]) <= LOOP_LIMIT, i
        assert relative_l2(contexts[:, 0], z["context_final"][i]) <= LOOP_LIMIT, i
        assert relative_l2(contexts[:, 1], z["edit_prompt_embeds_after_step"][i]) <= LOOP_LIMIT, i
    assert np.array_equal(made.latents, steps.latents[-1])


def test_schedules_give_the_values_of_the_authors_loop() -> None:
    with np.load(GOLDEN, allow_pickle=False) as z:
        for name in ("alpha_sched", "gamma_attn_comp_sched", "gamma_norm_comp_sched"):
            assert np.array_equal(ebca.Schedule.step(float(z[name][0, -1]), 0.2).values(10, 11), z[name][0])


@pytest.fixture(scope="module")
def reference_unet() -> Any:
    return build_tiny().unet.double()


def reference_loop(
    unet: Any,
    start: np.ndarray,
    main: np.ndarray,
    edits: np.ndarray,
    *,
    values: Callable[[int], tuple[float, float, list[Editing]]],
    steps: int,
    reset: bool,
) -> Iterator[tuple[np.ndarray, Image]]:
    """DDIM in float64 with the float64 UNet for one image. Yields latents and contexts after every evaluation.

    Args:
        main: [T,D], the context of both rows.
        edits: [n,T,D].
        values: returns the gammas and editings of an evaluation.
    """
    scheduler = diffusers_scheduler("ddim")
    scheduler.set_timesteps(steps)
    both = torch.from_numpy(np.stack([main, main])).double()
    first = torch.cat([both[:1], torch.from_numpy(edits).double()])
    image, latents = Image(both, first), torch.from_numpy(start).double()
    for i, t in enumerate(scheduler.timesteps):
        # Every evaluation starts with the original main context, but with carried editing contexts, as the authors do.
        image = Image(both, first if reset else image.edits)
        gamma_attn, gamma_norm, editings = values(i)
        evaluation = ReferenceUNet(unet, gamma_attn=gamma_attn, gamma_norm=gamma_norm, editings=editings)
        noise = evaluation(torch.cat([latents] * 2).numpy(), float(t), [image])
        guided = torch.from_numpy(noise[:1] + 7.5 * (noise[1:] - noise[:1]))
        latents = scheduler.step(guided, t, latents).prev_sample
        yield latents.numpy(), image


@pytest.mark.parametrize("reset", [False, True])
def test_real_image_editing_equals_a_loop_in_float64(engine: ebca.Engine, reference_unet: Any, reset: bool) -> None:
    """From inverted latents, with the prompt as negative prompt, both directions, and all updates on."""
    steps = 10
    rng = np.random.default_rng(0)
    main = rng.standard_normal((TOKENS, WIDTH), np.float32)
    embeds = rng.standard_normal((2, TOKENS, WIDTH), np.float32)
    # With larger values, the carried contexts amplify rounding a thousandfold, even in float64.
    alphas, gammas_attn, gammas_norm, taus = (0.9, 0.5), (0.01, 0.02), (0.05, 0.04), (0.5, 0.3)
    seen = Steps()
    with engine.session(64, 64) as session:
        start = session.invert(randn((1, 4, 8, 8), 3), prompt_embeds=main[None], steps=steps).latents
        session.generate(
            prompt_embeds=main[None],
            negative_prompt_embeds=main[None],
            latents=start,
            scheduler="ddim",
            steps=steps,
            gamma_attn=0.02,
            gamma_norm=ebca.Schedule.reverse_step(0.2, 0.8),
            reset_edits=reset,
            output="latents",
            on_step=seen,
            edits=[
                ebca.Edit(
                    prompt_embeds=embeds[i : i + 1],
                    direction=1 - i,
                    alpha=ebca.Schedule.step(alphas[i], taus[i]),
                    gamma_attn=ebca.Schedule.step(gammas_attn[i], taus[i]),
                    gamma_norm=ebca.Schedule.step(gammas_norm[i], taus[i]),
                )
                for i in range(2)
            ],
        )

    def values(i: int) -> tuple[float, float, list[Editing]]:
        on = [float(i >= int(steps * tau)) for tau in taus]
        editings = [Editing(on[j] * alphas[j], 1 - j, on[j] * gammas_attn[j], on[j] * gammas_norm[j]) for j in range(2)]
        return 0.02, 0.2 if i < 8 else 0.0, editings

    expected = reference_loop(reference_unet, start, main, embeds, values=values, steps=steps, reset=reset)
    for i, (after, image) in enumerate(expected):
        assert image.edits is not None
        contexts = seen.contexts[i]
        assert relative_l2(seen.latents[i], after) <= LOOP_LIMIT, i
        assert relative_l2(contexts[:, 0], image.main.numpy()) <= LOOP_LIMIT, i
        assert relative_l2(contexts[1, 1:], image.edits[1:].numpy()) <= LOOP_LIMIT, i
        for shared in contexts[0, 1:]:
            assert relative_l2(shared, image.edits[0].numpy()) <= LOOP_LIMIT, i
    assert len(seen.latents) == steps


def test_editing_contexts_are_carried_over_or_reset(session: ebca.Session) -> None:
    carried, reset = Steps(), Steps()
    latents(session, edits=[EDIT], on_step=carried)
    latents(session, edits=[EDIT], on_step=reset, reset_edits=True)
    assert np.array_equal(carried.latents[0], reset.latents[0])
    assert np.array_equal(carried.contexts[0], reset.contexts[0])
    assert relative_l2(carried.contexts[1][:, 1], reset.contexts[1][:, 1]) > 1e-3
    # Without an update, carrying over changes nothing.
    still = ebca.Edit("oil painting", alpha=0.6)
    assert np.array_equal(latents(session, edits=[still]), latents(session, edits=[still], reset_edits=True))


def test_without_guidance_editing_contexts_are_not_tied(session: ebca.Session) -> None:
    """One evaluation of DDIM with the conditional half only."""
    seen = Steps()
    edits = [EDIT, ebca.Edit("snow", direction=0, alpha=0.3, gamma_norm=0.2)]
    made = latents(session, steps=1, scheduler="ddim", guidance_scale=1, edits=edits, on_step=seen)
    texts = session.engine.encode(session.engine.tokenizer.encode([PROMPT, "oil painting", "snow"]).ids).contexts
    control = ebca.EnergyControl(
        gamma_attn=np.array([[[0.03], [0.02], [0.0]]]),
        gamma_norm=[0.2, 0.1, 0.2],
        weights=[1.0, 0.6, -0.3],
        tie_unconditional=False,
    )
    expected = ebca.Denoiser(session.engine)(randn((1, 4, 8, 8), 1), 1, texts[None], control)
    assert relative_l2(seen.contexts[0], expected.contexts) <= 1e-6
    assert relative_l2(made, latents(session, steps=1, scheduler="ddim", guidance_scale=1)) > 1e-4


# --- invariances


@settings(max_examples=4, deadline=None)
@given(st.permutations(range(3)), st.lists(st.floats(0.1, 0.6), min_size=3, max_size=3), st.integers(0, 3))
def test_permuting_edits_permutes_their_contexts_and_leaves_the_image(
    session: ebca.Session, order: list[int], alphas: list[float], directions: int
) -> None:
    texts = ("oil painting", "snow", "a blue hat")
    edits = [
        ebca.Edit(text, 1 - (directions >> i & 1), alphas[i], gamma_attn=0.01 * i, gamma_norm=0.1 + 0.1 * i)
        for i, text in enumerate(texts)
    ]
    first, second = Steps(), Steps()
    latents(session, edits=edits, on_step=first)
    latents(session, edits=[edits[i] for i in order], on_step=second)
    places = [0, *(1 + i for i in order)]
    for i in range(len(first.latents)):
        assert relative_l2(second.latents[i], first.latents[i]) <= SAME
        assert relative_l2(second.contexts[i], first.contexts[i][:, places]) <= SAME


@settings(max_examples=4, deadline=None)
@given(st.sampled_from([0, 1]), st.floats(0, 0.05), st.floats(0, 0.3))
def test_an_edit_with_alpha_zero_changes_nothing(
    session: ebca.Session, direction: int, gamma_attn: float, gamma_norm: float
) -> None:
    plain, edited = Steps(), Steps()
    latents(session, on_step=plain)
    edit = ebca.Edit("oil painting", direction, 0.0, gamma_attn, gamma_norm)
    latents(session, edits=[edit], on_step=edited)
    for i in range(len(plain.latents)):
        assert relative_l2(edited.latents[i], plain.latents[i]) <= SAME
        assert relative_l2(edited.contexts[i][:, :1], plain.contexts[i]) <= SAME


def test_an_edit_changes_nothing_before_its_schedule_starts(session: ebca.Session) -> None:
    plain, late = Steps(), Steps()
    latents(session, steps=4, scheduler="ddim", on_step=plain)
    edit = ebca.Edit("oil painting", alpha=ebca.Schedule.step(0.9, 0.5))
    latents(session, steps=4, scheduler="ddim", edits=[edit], on_step=late)
    errors = [relative_l2(a, b) for a, b in zip(late.latents, plain.latents, strict=True)]
    assert max(errors[:2]) <= SAME and min(errors[2:]) > 1e-3


def test_the_main_prompt_as_an_edit_without_updates_changes_only_rounding(
    session: ebca.Session,
) -> None:
    """(main + alpha main) / (1 + alpha) is main."""
    plain = latents(session, gamma_attn=0.0, gamma_norm=0.0)
    doubled = latents(session, gamma_attn=0.0, gamma_norm=0.0, edits=[ebca.Edit(PROMPT, alpha=1.5)])
    assert relative_l2(doubled, plain) <= SAME


@settings(max_examples=4, deadline=None)
@given(st.floats(-2, 3), st.booleans())
def test_equal_weights_of_all_tokens_scale_gamma_on_the_conditional_rows(
    session: ebca.Session, factor: float, guided: bool
) -> None:
    everywhere = dict.fromkeys(range(TOKENS), factor)
    scale = 4.0 if guided else 1.0
    seen = Steps()
    made = latents(
        session, steps=1, scheduler="ddim", guidance_scale=scale, gamma_attn=0.04, token_weights=everywhere,
        edits=[EDIT], on_step=seen,
    )  # fmt: skip
    texts = session.engine.encode(session.engine.tokenizer.encode(["", PROMPT, "oil painting"]).ids).contexts
    contexts = np.stack([texts[[0, 0]], texts[1:]]) if guided else texts[None, 1:]
    gamma = np.full((len(contexts), 2, 1), 0.04, np.float32)
    gamma[-1, 0] *= factor
    gamma[:, 1] = 0.02
    control = ebca.EnergyControl(gamma, [0.2, 0.1], [1.0, 0.6], tie_unconditional=guided)
    start = np.repeat(randn((1, 4, 8, 8), 1), len(contexts), 0)
    assert relative_l2(seen.contexts[0], ebca.Denoiser(session.engine)(start, 1, contexts, control).contexts) <= 1e-6
    if not guided:
        same = latents(
            session, steps=1, scheduler="ddim", guidance_scale=1, gamma_attn=0.04 * np.float32(factor), edits=[EDIT]
        )
        assert relative_l2(made, same) <= 1e-6


@pytest.mark.parametrize("scale", [7.5, 1.0])
def test_images_with_seeds_equal_single_runs(engine: ebca.Engine, session: ebca.Session, scale: float) -> None:
    prompts, seeds = [PROMPT, "a red car in the snow"], [5, 6]
    texts = ["oil painting", "a blue hat"]
    shared = ebca.Edit("snow", direction=0, alpha=0.3, gamma_norm=0.2)

    def edits(text: Any) -> list[ebca.Edit]:
        return [ebca.Edit(text, alpha=ebca.Schedule.step(0.9, 0.3), gamma_attn=0.02, gamma_norm=0.1), shared]

    together = Steps()
    with engine.session(64, 64, batch=2) as batch:
        latents(batch, prompts, seed=seeds, edits=edits(texts), guidance_scale=scale, on_step=together)
    for i in range(2):
        rows = [i, 2 + i] if scale > 1 else [i]
        alone = Steps()
        latents(session, prompts[i], seed=seeds[i], edits=edits(texts[i]), guidance_scale=scale, on_step=alone)
        for step, contexts in enumerate(alone.contexts):
            assert relative_l2(together.latents[step][i], alone.latents[step][0]) <= SAME
            assert relative_l2(together.contexts[step][rows], contexts) <= SAME


def test_edits_do_not_affect_the_next_call(session: ebca.Session) -> None:
    first = latents(session, edits=[EDIT])
    plain = latents(session)
    with pytest.raises(ebca.CancelledError):
        latents(session, edits=[EDIT], on_step=lambda info: info.index < 1)
    assert np.array_equal(latents(session, edits=[EDIT]), first)
    assert np.array_equal(latents(session), plain)
    assert relative_l2(first, plain) > 1e-3


# --- parameters of a call


def test_embeddings_replace_the_text_of_an_edit(session: ebca.Session) -> None:
    embeds = session.engine.encode(session.engine.tokenizer.encode(["oil painting"]).ids).contexts
    by_text = latents(session, edits=[ebca.Edit("oil painting", alpha=0.6)])
    by_embeds = latents(session, edits=[ebca.Edit(prompt_embeds=embeds, alpha=0.6)])
    # The number of texts in a run of the text encoder changes the order of its sums.
    assert relative_l2(by_embeds, by_text) <= SAME


def test_schedules_equal_their_values(session: ebca.Session) -> None:
    listed = ebca.Edit("snow", alpha=[0, 0, 0.8, 0.8, 0.8], gamma_norm=np.float32([0.1, 0.1, 0, 0, 0]))  # type: ignore[arg-type]
    scheduled = ebca.Edit("snow", alpha=ebca.Schedule.step(0.8, 0.5), gamma_norm=ebca.Schedule.reverse_step(0.1, 0.5))
    assert np.array_equal(latents(session, steps=4, edits=[listed]), latents(session, steps=4, edits=[scheduled]))


def test_the_parameters_of_a_result_reproduce_it(session: ebca.Session) -> None:
    edits = [ebca.Edit("snow", 0, ebca.Schedule.step(0.4, 0.3), np.float32(0.02), [0.1] * 4), EDIT]  # type: ignore[arg-type]
    ask = {"steps": 3, "seed": 1, "output": "latents", "reset_edits": True}
    result = session.generate(PROMPT, edits=edits, **ask)  # type: ignore[arg-type]
    stored = json.loads(json.dumps(result.parameters))
    assert stored["task"] == "text-to-image" and stored["reset_edits"] is True

    def schedule(value: Any) -> Any:
        return ebca.Schedule(value["schedule"], value["value"], value["parameter"]) if type(value) is dict else value

    again = [ebca.Edit(**{name: schedule(value) for name, value in edit.items()}) for edit in stored["edits"]]
    assert np.array_equal(session.generate(PROMPT, edits=again, **ask).latents, result.latents)  # type: ignore[arg-type]


def test_energies_have_a_column_per_edit(session: ebca.Session) -> None:
    result = session.generate(PROMPT, edits=[EDIT, EDIT], steps=2, seed=1, energies=True, output="latents")
    assert result.energies is not None
    assert result.energies.shape == (3, 7, 2, 2, 3)
    assert np.allclose(result.energies[..., 1], result.energies[..., 2])


def test_the_warning_about_a_truncated_edit_points_at_the_caller(session: ebca.Session) -> None:
    long = ebca.Edit("a cat " * 38 + "in the snow")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session.generate(PROMPT, edits=[EDIT, long], long_prompts=False, steps=1, seed=1, output="latents")
    (warning,) = caught
    assert str(warning.message).startswith("the editing prompt 2 is longer than 75 tokens; dropped: 'cat in the snow'")
    assert warning.filename == __file__


# --- refusals


@pytest.mark.parametrize(
    ("edits", "named"),
    [
        (
            [ebca.Edit("snow", direction=0, alpha=1.0)],
            "the alphas cancel at evaluation 0: 1 - 1 is about 0, and the output is divided by it; change an alpha",
        ),
        (
            [ebca.Edit("snow", 1, 0.5), ebca.Edit("hat", 0, ebca.Schedule.step(1.5, 0.5))],
            "the alphas cancel at evaluation 1: 1 + 0.5 - 1.5 is about 0",
        ),
        ([ebca.Edit("snow", alpha=-0.5)], "alpha of editing prompt 1 is negative; give direction=0 with a positive"),
        ([EDIT, ebca.Edit("snow", alpha=[0, 0, -1, 0])], "alpha of editing prompt 2 is negative"),
        (
            [ebca.Edit("snow", direction=2)],
            "editing prompt 1 has direction 2; give 1 (conjunction: add) or 0 (negation",
        ),
        ([EDIT, ebca.Edit("snow", direction="up")], "editing prompt 2 has direction 'up'"),  # type: ignore[arg-type]
        ([ebca.Edit("snow", direction=-1)], "editing prompt 1 has direction -1"),
        ([EDIT, ebca.Edit()], "editing prompt 2 has both texts and embeddings, or neither; give either"),
        (
            [ebca.Edit("snow", prompt_embeds=np.zeros((1, 77, 32)))],
            "editing prompt 1 has both texts and embeddings, or neither; give either a prompt or prompt_embeds",
        ),
        ([ebca.Edit(["snow", "hat"])], "editing prompt 1 has 2 texts for a batch of 1; give one, or one each"),
        ([ebca.Edit(5)], "editing prompt 1 is 5; give a text, or one per image"),  # type: ignore[arg-type]
        (["snow"], "edits holds 'snow'; give ebca.Edit(prompt, direction=1, alpha=...)"),
        ("snow", "edits holds 's'; give ebca.Edit("),
        (EDIT, "edits is one Edit; give a list of ebca.Edit"),
        ([ebca.Edit("snow", alpha=[0.1] * 3)], "alpha of editing prompt 1 has 3 values, but pndm with 3 steps makes 4"),
        ([EDIT, ebca.Edit("snow", gamma_attn="much")], "gamma_attn of editing prompt 2 is 'much'"),  # type: ignore[arg-type]
        ([ebca.Edit("snow", gamma_norm=float("nan"))], "gamma_norm of editing prompt 1: value nan"),
        ([ebca.Edit("snow", alpha=float("inf"))], "alpha of editing prompt 1: value inf"),
        (
            [ebca.Edit(prompt_embeds=np.zeros((1, 77, 768)))],
            "prompt_embeds of editing prompt 1 has shape [1, 77, 768]; give [1, tokens, 32]",
        ),
        (
            [ebca.Edit(prompt_embeds=np.zeros((1, 20, 32)))],
            "prompt_embeds of editing prompt 1 has shape [1, 20, 32], prompt_embeds has [1, 77, 32]; give the same",
        ),
        (
            [ebca.Edit(prompt_embeds=np.full((1, 77, 32), np.nan))],
            "prompt_embeds of editing prompt 1 has values that are not finite",
        ),
    ],
)
def test_refusals_leave_the_session_usable(
    session: ebca.Session, monkeypatch: pytest.MonkeyPatch, edits: Any, named: str
) -> None:
    def no_work(self: object, variant: str) -> None:
        raise AssertionError("the UNet was bound")

    with monkeypatch.context() as patched, pytest.raises(ebca.ParameterError) as caught:
        patched.setattr("ebca.runtime.execution.executor.Executor.record", no_work)
        latents(session, edits=edits)
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert np.isfinite(latents(session, steps=1, edits=[EDIT])).all()


def test_more_edits_than_the_engine_supports_are_refused(tiny_engine_dir: Path, tmp_path: Path) -> None:
    copy = changed_copy(tiny_engine_dir, tmp_path / "engine", lambda data: data["unet"].update(max_contexts=3))
    with ebca.load(copy, backend="onnxruntime") as engine, engine.session(64, 64) as session:
        assert np.isfinite(latents(session, steps=1, edits=[EDIT] * 2)).all()
        with pytest.raises(ebca.ParameterError) as caught:
            latents(session, edits=[EDIT] * 3)
        expected = "3 editing prompts are more than the 2 that this engine was built for; use fewer"
        assert str(caught.value).startswith(expected)
        assert np.isfinite(latents(session, steps=1, edits=[EDIT])).all()
