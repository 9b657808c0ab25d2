"""From prompts to images: equality with diffusers' pipeline, and the effect of every parameter."""

import functools
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers.pipelines import runner, tiny_pipeline  # noqa: E402
from helpers.tiny import changed_copy  # noqa: E402
from PIL import Image  # noqa: E402

import ebca  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.export.scheduler_tables import DENSE  # noqa: E402
from ebca.runtime.noise import randn  # noqa: E402

PROMPT = "a lion with a crown"
FORWARD = [name for name in DENSE if name != "ddim_inverse"]

# Both loops run in float32 on different libraries. One evaluation differs by up to 3e-6, and five steps with guidance
# add up such errors. A wrong timestep, scale or embedding gives 1e-2 or more.
LIMIT = 2e-5


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def any_engine(request: pytest.FixtureRequest, tiny_engine_dir: Path) -> Iterator[ebca.Engine]:
    pytest.importorskip(request.param)
    with ebca.load(tiny_engine_dir, backend=request.param) as engine:
        yield engine


@pytest.fixture(scope="module")
def unet_session(tiny_unet_dir: Path) -> Iterator[ebca.Session]:
    with ebca.load(tiny_unet_dir, backend="onnxruntime") as engine, engine.session(height=64, width=64) as session:
        yield session


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., np.ndarray]:
    from diffusers import StableDiffusionPipeline

    run = runner(tiny_pipeline(StableDiffusionPipeline, tmp_path_factory.mktemp("tiny-diffusers")))
    return functools.partial(run, height=64, width=64)


def latents(session: ebca.Session, prompt: Any = PROMPT, **kwargs: Any) -> np.ndarray:
    return session.generate(prompt, **{"steps": 3, "seed": 1, "output": "latents"} | kwargs).latents


# --- against diffusers


@pytest.mark.parametrize("scheduler", FORWARD)
def test_latents_equal_the_diffusers_pipeline(
    any_engine: ebca.Engine, pipeline: Callable[..., np.ndarray], scheduler: str
) -> None:
    with any_engine.session(64, 64) as session:
        made = latents(session, steps=5, scheduler=scheduler, negative_prompt="blurry, low quality")
    expected = pipeline(PROMPT, scheduler=scheduler, negative_prompt="blurry, low quality")
    assert relative_l2(made, expected) <= LIMIT


def test_latents_without_guidance_equal_the_diffusers_pipeline(
    session: ebca.Session, pipeline: Callable[..., np.ndarray]
) -> None:
    for scale in (1.0, 0.0):
        made = latents(session, steps=5, guidance_scale=scale)
        assert relative_l2(made, pipeline(PROMPT, guidance_scale=scale)) <= LIMIT


@pytest.mark.parametrize(("height", "width"), [(72, 136), (8, 40), (128, 64)])
def test_sizes_in_multiples_of_eight_equal_the_diffusers_pipeline(
    engine: ebca.Engine, pipeline: Callable[..., np.ndarray], height: int, width: int
) -> None:
    with engine.session(height, width) as session:
        result = session.generate(PROMPT, steps=5, seed=1, output="np")
    expected = pipeline(PROMPT, height=height, width=width)
    assert relative_l2(result.latents, expected) <= LIMIT
    assert result.images.shape == (1, height, width, 3)


def test_images_equal_the_diffusers_pipeline(session: ebca.Session, pipeline: Callable[..., np.ndarray]) -> None:
    result = session.generate(PROMPT, steps=5, seed=1, output="np")
    assert relative_l2(result.images, pipeline(PROMPT, output_type="np")) <= LIMIT


def test_several_images_equal_the_diffusers_pipeline(engine: ebca.Engine, pipeline: Callable[..., np.ndarray]) -> None:
    prompts = ["a lion with a crown", "a red car in the snow"]
    with engine.session(64, 64, batch=2) as session:
        one_seed = latents(session, prompts, steps=5, seed=3)
        one_each = latents(session, prompts, steps=5, seed=[3, 2**40 + 5])
    assert relative_l2(one_seed, pipeline(prompts, seed=3)) <= LIMIT
    assert relative_l2(one_each, pipeline(prompts, seed=[3, 2**40 + 5])) <= LIMIT


# --- parameters of a call


def test_defaults(engine: ebca.Engine) -> None:
    seen: list[ebca.StepInfo] = []
    with engine.session() as session:
        result = session.generate(PROMPT, on_step=seen.append)  # type: ignore[arg-type]
    assert [image.size for image in result.images] == [(128, 128)]
    assert isinstance(result.images[0], Image.Image)
    assert result.latents.shape == (1, 4, 16, 16)
    assert result.energies is None
    assert [(s.index, s.total) for s in seen] == [(i, 51) for i in range(51)]
    expected = {"prompt": PROMPT, "steps": 50, "guidance_scale": 7.5, "scheduler": "pndm", "gamma_attn": 0.0}
    assert {key: result.parameters[key] for key in expected} == expected
    assert isinstance(result.parameters["seed"], int)
    assert len(result.timings["unet_steps"]) == 51
    assert {"text_encoder", "open", "scheduler", "vae"} <= result.timings.keys()


def test_a_random_seed_is_reported_and_makes_the_same_image(session: ebca.Session) -> None:
    first = session.generate(PROMPT, steps=2, output="latents")
    other = session.generate(PROMPT, steps=2, output="latents")
    again = session.generate(PROMPT, steps=2, output="latents", seed=first.parameters["seed"])
    assert np.array_equal(first.latents, again.latents)
    assert not np.array_equal(first.latents, other.latents)


def test_one_prompt_serves_all_images_and_seeds_are_independent(engine: ebca.Engine, session: ebca.Session) -> None:
    with engine.session(64, 64, batch=3) as batch:
        together = latents(batch, seed=[5, 6, 7], gamma_attn=0.05, gamma_norm=0.4)
    for index, seed in enumerate([5, 6, 7]):
        alone = latents(session, seed=seed, gamma_attn=0.05, gamma_norm=0.4)
        # The number of rows of a matrix product changes the order of its sums.
        assert relative_l2(together[index], alone[0]) <= 5e-6


@pytest.mark.parametrize("seed", [np.int64(7), np.uint32(7), [7], (np.int32(7),), np.array([7])], ids=repr)
def test_numpy_seeds_are_accepted(session: ebca.Session, seed: Any) -> None:
    result = session.generate(PROMPT, steps=1, seed=seed, output="latents")
    assert np.array_equal(result.latents, latents(session, steps=1, seed=7))
    assert json.loads(json.dumps(result.parameters))["seed"] in (7, [7])


def test_a_negative_prompt_of_none_is_empty_and_arrays_of_texts_are_lists(session: ebca.Session) -> None:
    result = session.generate(np.array([PROMPT]), negative_prompt=None, steps=1, seed=1, output="latents")  # type: ignore[arg-type]
    assert np.array_equal(result.latents, latents(session, steps=1))
    assert json.loads(json.dumps(result.parameters))["prompt"] == [PROMPT]


def test_latents_replace_the_seed(session: ebca.Session) -> None:
    start = randn((1, 4, 8, 8), 9)
    before = start.copy()
    for scheduler in ("pndm", "euler"):
        given = session.generate(PROMPT, steps=2, latents=start, output="latents", scheduler=scheduler)
        assert np.array_equal(given.latents, latents(session, steps=2, seed=9, scheduler=scheduler))
        assert given.parameters["seed"] is None
        assert session.generate(PROMPT, steps=2, latents=start, seed=1).parameters["seed"] is None
    assert np.array_equal(start, before)


def test_outputs(session: ebca.Session) -> None:
    results = {kind: session.generate(PROMPT, steps=1, seed=1, output=kind) for kind in ("pil", "np", "latents")}
    assert results["latents"].images is None
    array = results["np"].images
    assert array.shape == (1, 64, 64, 3) and array.dtype == np.float32
    assert array.min() >= 0 and array.max() <= 1
    assert np.array_equal(np.asarray(results["pil"].images[0]), np.round(array[0] * 255).astype(np.uint8))
    assert all(np.array_equal(r.latents, results["np"].latents) for r in results.values())


def test_a_result_survives_the_next_call(session: ebca.Session) -> None:
    first = session.generate(PROMPT, steps=2, seed=1, energies=True, output="latents")
    kept = first.latents.copy(), np.array(first.energies)
    session.generate("a cat", steps=2, seed=2, energies=True, output="latents")
    assert np.array_equal(first.latents, kept[0])
    assert np.array_equal(np.array(first.energies), kept[1])


def test_embeddings_replace_texts(engine: ebca.Engine, session: ebca.Session) -> None:
    tokens = engine.tokenizer.encode([PROMPT, "blurry"])
    positive, negative = engine.encode(tokens.ids).contexts[:, None]
    expected = latents(session, negative_prompt="blurry")
    assert np.array_equal(latents(session, None, prompt_embeds=positive, negative_prompt_embeds=negative), expected)
    assert np.array_equal(latents(session, None, prompt_embeds=positive, negative_prompt="blurry"), expected)
    longer = np.concatenate([positive, positive], axis=1)
    assert np.isfinite(latents(session, None, prompt_embeds=longer, negative_prompt_embeds=longer)).all()


def test_energies_on_request(engine: ebca.Engine) -> None:
    with engine.session(64, 72, batch=2) as session:
        plain = latents(session, steps=4, gamma_attn=0.05, gamma_norm=0.4)
        result = session.generate(
            PROMPT, steps=4, seed=1, gamma_attn=0.05, gamma_norm=0.4, energies=True, output="latents"
        )
        free = session.generate(PROMPT, steps=4, seed=1, guidance_scale=1, energies=True, output="latents")
    assert result.energies is not None and free.energies is not None
    assert result.energies.shape == (5, 7, 2, 4, 1)
    assert free.energies.shape == (5, 7, 2, 2, 1)
    assert np.isfinite(result.energies).all() and np.isfinite(free.energies).all()
    assert relative_l2(result.latents, plain) <= 5e-6


def test_the_update_lowers_the_norm_energy(session: ebca.Session) -> None:
    still = session.generate(PROMPT, steps=1, seed=1, energies=True, output="latents", scheduler="ddim")
    moved = session.generate(PROMPT, steps=1, seed=1, energies=True, output="latents", scheduler="ddim", gamma_norm=0.4)
    assert still.energies is not None and moved.energies is not None
    # Layer 0 gets the prompt's embeddings; later layers get updated contexts.
    assert np.allclose(still.energies[0, 0], moved.energies[0, 0])
    assert (moved.energies[0, 1:, 1] < still.energies[0, 1:, 1]).all()


# --- gammas and token weights


def test_gammas_change_the_image_and_zero_gammas_do_not(session: ebca.Session) -> None:
    plain = latents(session)
    assert np.array_equal(latents(session, gamma_attn=[0.0] * 4, gamma_norm=ebca.Schedule.constant(0)), plain)
    for gammas in ({"gamma_attn": 0.05}, {"gamma_norm": 0.4}):
        assert relative_l2(latents(session, **gammas), plain) > 1e-3


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (ebca.Schedule.constant(0.05), [0.05] * 5),
        (ebca.Schedule.reverse_step(0.05, 0.5), [0.05, 0.05, 0, 0, 0]),
        (ebca.Schedule.step(0.05, 0.5), [0, 0, 0.05, 0.05, 0.05]),
        (ebca.Schedule.linear(0.01, 0.01), [0.01, 0.02, 0.03, 0.04, 0.05]),
        (ebca.Schedule.exponential(0.04, 0.5), [0.04, 0.02, 0.01, 0.005, 0.0025]),
    ],
    ids=lambda v: v.kind if isinstance(v, ebca.Schedule) else "",
)
def test_a_schedule_equals_its_values(session: ebca.Session, schedule: ebca.Schedule, values: list[float]) -> None:
    made = session.generate(PROMPT, steps=4, seed=1, gamma_attn=schedule, output="latents")
    listed = latents(session, steps=4, gamma_attn=values)
    assert relative_l2(made.latents, listed) <= 1e-6
    recorded = made.parameters["gamma_attn"]
    assert ebca.Schedule(recorded["schedule"], recorded["value"], recorded["parameter"]) == schedule


@pytest.mark.parametrize("gamma", [np.float32(0.05), np.array(0.05), np.float64(0.05), np.full(4, 0.05)], ids=repr)
def test_numpy_gammas_are_accepted(session: ebca.Session, gamma: Any) -> None:
    result = session.generate(PROMPT, steps=3, seed=1, gamma_norm=gamma, output="latents")
    assert np.array_equal(result.latents, latents(session, gamma_norm=0.05))
    json.dumps(result.parameters)


def test_token_weights_by_word_and_position_equal_an_explicit_gamma(session: ebca.Session) -> None:
    # In PROMPT, "crown" is token 5 and "lion" token 2; token 0 is the start token.
    weighted = latents(session, gamma_attn=0.05, gamma_norm=0.4, token_weights={"crown": 3.0, 2: -1.0})
    same = latents(session, gamma_attn=0.05, gamma_norm=0.4, token_weights={np.int64(5): 3.0, "lion": np.float32(-1.0)})
    assert np.array_equal(weighted, same)

    gamma = np.full((2, 1, 77), 0.05, np.float32)
    gamma[1, 0, 5] *= 3
    gamma[1, 0, 2] *= -1
    denoiser = ebca.Denoiser(session.engine)
    embeds = session.engine.encode(session.engine.tokenizer.encode(["", PROMPT]).ids).contexts[:, None]
    seen: list[tuple[float, np.ndarray]] = []
    session.generate(
        PROMPT, steps=1, seed=1, gamma_attn=0.05, gamma_norm=0.4, token_weights={"crown": 3.0, 2: -1.0},
        scheduler="ddim", output="latents", on_step=lambda s: seen.append((s.timestep, s.contexts.copy())),
    )  # fmt: skip
    ((timestep, contexts),) = seen
    start = np.repeat(randn((1, 4, 8, 8), 1), 2, axis=0)
    expected = denoiser(start, timestep, embeds, ebca.EnergyControl(gamma, 0.4)).contexts
    assert relative_l2(contexts, expected) <= 1e-6
    assert np.array_equal(contexts[0], denoiser(start, timestep, embeds, ebca.EnergyControl(0.05, 0.4)).contexts[0])


def test_token_weights_of_a_word_that_occurs_twice(session: ebca.Session) -> None:
    prompt = "a cat and a cat"
    by_word = latents(session, prompt, gamma_attn=0.05, token_weights={"cat": 2.0})
    assert np.array_equal(by_word, latents(session, prompt, gamma_attn=0.05, token_weights={2: 2.0, 5: 2.0}))


def test_parameters_distinguish_token_positions_from_words(session: ebca.Session) -> None:
    result = session.generate(
        "number 5", steps=1, seed=1, gamma_attn=0.05, token_weights={"5": 2.0, 5: 3.0}, output="latents"
    )
    stored = json.loads(json.dumps(result.parameters))["token_weights"]
    assert dict(map(tuple, stored)) == {"5": 2.0, 5: 3.0}


def test_a_prompt_over_the_limit_warns_with_the_dropped_text(session: ebca.Session) -> None:
    long = "a cat " * 38
    with pytest.warns(UserWarning, match=r"longer than 75 tokens; dropped: 'cat"):
        made = latents(session, long + "wearing a golden hat", long_prompts=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = latents(session, "a cat " * 37 + "a")
    assert np.array_equal(made, exact)


def test_the_parameters_of_a_result_reproduce_it(session: ebca.Session) -> None:
    result = session.generate(
        PROMPT, steps=3, seed=[11], gamma_attn=0.05, gamma_norm=[0.1, 0.2, 0.3, 0.4], token_weights={"lion": 2.0},
        guidance_scale=5, scheduler="PNDM", negative_prompt="blurry", norm_factor=0.5, output="latents",
    )  # fmt: skip
    stored = json.loads(json.dumps(result.parameters))
    names = ("prompt", "negative_prompt", "steps", "guidance_scale", "scheduler", "seed", "gamma_attn", "gamma_norm",
             "norm_factor")  # fmt: skip
    again = session.generate(
        **{n: stored[n] for n in names}, token_weights=dict(map(tuple, stored["token_weights"])), output="latents"
    )
    assert np.array_equal(again.latents, result.latents)
    assert (stored["backend"], stored["precision"], stored["weights"]) == ("onnxruntime", "fp32", "fp32")


# --- callbacks and closing


def test_a_session_stays_usable_after_cancelling(session: ebca.Session) -> None:
    expected = latents(session, steps=4, gamma_attn=0.05)
    calls: list[int] = []

    def stop(info: ebca.StepInfo) -> bool:
        calls.append(info.index)
        return info.index < 1

    with pytest.raises(ebca.CancelledError, match="cancelled after 2 of 5 evaluations"):
        latents(session, steps=4, gamma_attn=0.05, on_step=stop)
    assert calls == [0, 1]
    assert np.array_equal(latents(session, steps=4, gamma_attn=0.05), expected)


def test_an_exception_in_the_callback_reaches_the_caller(session: ebca.Session) -> None:
    def fail(info: ebca.StepInfo) -> None:
        raise LookupError("of the caller")

    with pytest.raises(LookupError, match="of the caller"):
        latents(session, on_step=fail)
    assert np.isfinite(latents(session)).all()


def test_the_callback_gets_the_latents_of_each_evaluation(session: ebca.Session) -> None:
    seen: list[np.ndarray] = []
    made = latents(session, on_step=lambda info: seen.append(info.latents.copy()))
    assert np.array_equal(seen[-1], made)
    assert len({a.tobytes() for a in seen}) == 4


def test_a_closed_session_is_refused(engine: ebca.Engine) -> None:
    with engine.session(64, 64) as session:
        latents(session)
    session.close()
    with pytest.raises(ebca.ParameterError, match=r"session is closed; open another with engine.session\(\)"):
        latents(session)


def test_an_engine_serves_several_sessions(tiny_engine_dir: Path) -> None:
    with ebca.load(tiny_engine_dir, backend="onnxruntime") as engine:
        made = []
        for _ in range(2):
            with engine.session(64, 64) as session:
                made.append(latents(session))
    assert np.array_equal(*made)


# --- engines


def test_a_unet_only_directory_takes_embeddings_and_returns_latents(
    unet_session: ebca.Session, session: ebca.Session
) -> None:
    embeds = session.engine.encode(session.engine.tokenizer.encode([PROMPT, ""]).ids).contexts
    made = unet_session.generate(
        prompt_embeds=embeds[:1], negative_prompt_embeds=embeds[1:], steps=3, seed=1, output="latents", gamma_attn=0.05
    )
    assert np.array_equal(made.latents, latents(session, gamma_attn=0.05))


def test_bfloat16_stays_close_to_float32(tiny_engine_dir: Path) -> None:
    pytest.importorskip("openvino")
    try:
        engine = ebca.load(tiny_engine_dir, backend="openvino", precision="bf16")
    except ebca.BackendError as error:
        pytest.skip(str(error))
    with engine, engine.session(64, 64) as session:
        half = session.generate(PROMPT, steps=5, seed=1, gamma_attn=0.05, gamma_norm=0.4, output="latents")
    with ebca.load(tiny_engine_dir, backend="openvino") as engine, engine.session(64, 64) as session:
        full = latents(session, steps=5, gamma_attn=0.05, gamma_norm=0.4)
    # Eight bits of mantissa give an error of 4e-3 per value; five guided steps amplify it about tenfold.
    assert relative_l2(half.latents, full) <= 5e-2
    assert half.parameters["precision"] == "bf16"


def test_the_default_guidance_scale_is_the_engines(tiny_engine_dir: Path, tmp_path: Path) -> None:
    copy = changed_copy(tiny_engine_dir, tmp_path / "engine", lambda data: data["model"].update(guidance_scale=3))
    with ebca.load(copy, backend="onnxruntime") as engine, engine.session(height=64, width=64) as session:
        ask = {"prompt": PROMPT, "steps": 2, "seed": 1, "output": "latents"}
        default, three, five = (
            session.generate(**ask, **g) for g in ({}, {"guidance_scale": 3}, {"guidance_scale": 5})
        )
    assert (default.parameters["guidance_scale"], five.parameters["guidance_scale"]) == (3, 5)
    np.testing.assert_array_equal(default.latents, three.latents)
    assert relative_l2(five.latents, three.latents) > 1e-3
