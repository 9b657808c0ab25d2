"""ControlNets: equality with diffusers' pipelines and with formulas in float64; with every other feature; errors."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from diffusers import (  # noqa: E402
    MultiControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
)
from helpers.controlnets import controlnets  # noqa: E402
from helpers.pipelines import diffusers_scheduler, mask_image, runner, sample_image, tiny_pipeline  # noqa: E402
from helpers.reference_unet import Editing, Image, ReferenceUNet  # noqa: E402

import ebca  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.export.checkpoint.tiny import build_tiny  # noqa: E402
from ebca.runtime.noise import randn  # noqa: E402
from ebca.runtime.request.serialization import from_json, to_json  # noqa: E402

# As in test_tasks.py: float32 on two libraries, five guided steps. Without the residuals, latents differ by 0.3.
LIMIT = 2e-5
PROMPT = "a lion with a crown"
CANNY, DEPTH = sample_image(1), sample_image(2)
TOKENS, WIDTH = 77, 32

Pipeline = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def engine(tiny_controlled_dir: Path) -> Iterator[ebca.Engine]:
    with ebca.load(tiny_controlled_dir, backend="onnxruntime") as engine:
        yield engine


@pytest.fixture(scope="module")
def session(engine: ebca.Engine) -> Iterator[ebca.Session]:
    with engine.session(64, 64) as session:
        yield session


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("controlnet")
    return tiny_pipeline(StableDiffusionControlNetPipeline, folder, controlnet=controlnets()["canny"])


def use(pipeline: Any, *names: str) -> Pipeline:
    """A function that calls a pipeline with these ControlNets."""
    nets = controlnets()
    pipeline.controlnet = nets[names[0]] if len(names) == 1 else MultiControlNetModel([nets[name] for name in names])
    return runner(pipeline)


def latents_of_steps(made: Pipeline, **asked: Any) -> list[np.ndarray]:
    """The latents of diffusers after every step."""
    seen: list[np.ndarray] = []

    def keep(_pipeline: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"].numpy().copy())
        return {}

    made(PROMPT, callback_on_step_end=keep, **asked)
    return seen


def drawn(session: ebca.Session, control: Any, **asked: Any) -> np.ndarray:
    given: dict[str, Any] = {"steps": 5, "seed": 1, "scheduler": "ddim", "output": "latents"} | asked
    return session.generate(PROMPT, control=control, **given).latents


def compare_steps(session: ebca.Session, control: Any, expected: list[np.ndarray], **asked: Any) -> None:
    seen: list[np.ndarray] = []
    drawn(session, control, on_step=lambda info: seen.append(info.latents.copy()), **asked)
    assert len(seen) == len(expected)
    for index, (ours, theirs) in enumerate(zip(seen, expected, strict=True)):
        assert relative_l2(ours, theirs) <= LIMIT, index


# --- against diffusers


@pytest.mark.parametrize("scheduler", ["pndm", "ddim", "euler", "dpmpp_2m", "unipc"])
def test_one_controlnet_equals_the_diffusers_pipeline(session: ebca.Session, pipeline: Any, scheduler: str) -> None:
    expected = latents_of_steps(
        use(pipeline, "canny"), image=CANNY, scheduler=scheduler, controlnet_conditioning_scale=0.7
    )
    compare_steps(session, ebca.Control(CANNY, 0.7, name="canny"), expected, scheduler=scheduler)


@pytest.mark.parametrize(
    ("starts", "ends"), [((0.0, 0.0), (1.0, 1.0)), ((0.0, 0.3), (0.5, 1.0)), ((0.5, 0.25), (0.75, 0.6))]
)
def test_two_controlnets_equal_the_diffusers_pipeline(
    session: ebca.Session, pipeline: Any, starts: tuple[float, ...], ends: tuple[float, ...]
) -> None:
    scales = [0.6, -0.4]
    expected = latents_of_steps(
        use(pipeline, "canny", "depth"),
        image=[CANNY, DEPTH],
        scheduler="ddim",
        controlnet_conditioning_scale=scales,
        control_guidance_start=list(starts),
        control_guidance_end=list(ends),
        negative_prompt="blurry",
    )
    control = [
        ebca.Control(image, scale, start, end, name)
        for image, scale, start, end, name in zip((CANNY, DEPTH), scales, starts, ends, ("canny", "depth"), strict=True)
    ]
    compare_steps(session, control, expected, negative_prompt="blurry")


def test_three_controls_without_guidance_and_not_square_equal_the_diffusers_pipeline(
    engine: ebca.Engine, pipeline: Any
) -> None:
    images = [sample_image(seed, (40, 72)) for seed in (3, 4, 5)]
    names = ("depth", "canny", "depth")
    made = use(pipeline, *names)
    expected = made(PROMPT, image=images, scheduler="euler", guidance_scale=1, controlnet_conditioning_scale=[0.5] * 3)
    control = [ebca.Control(image, 0.5, name=name) for image, name in zip(images, names, strict=True)]
    with engine.session(40, 72) as session:
        assert relative_l2(drawn(session, control, scheduler="euler", guidance_scale=1), expected) <= LIMIT


def test_several_images_have_images_of_their_own(engine: ebca.Engine, session: ebca.Session) -> None:
    images = [CANNY, DEPTH]
    with engine.session(64, 64, batch=2) as both:
        made = drawn(both, ebca.Control(images, name="canny"), seed=[1, 2])
    for index, image in enumerate(images):
        one = drawn(session, ebca.Control(image, name="canny"), seed=1 + index)
        assert relative_l2(made[index : index + 1], one) <= 1e-5


def test_image_to_image_equals_the_diffusers_pipeline(
    session: ebca.Session, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("img2img")
    made = runner(tiny_pipeline(StableDiffusionControlNetImg2ImgPipeline, folder, controlnet=controlnets()["canny"]))
    expected = made(
        PROMPT,
        image=sample_image(),
        control_image=CANNY,
        strength=0.6,
        scheduler="ddim",
        control_guidance_end=0.7,
        controlnet_conditioning_scale=1.0,
    )
    control = ebca.Control(CANNY, end=0.7, name="canny")
    assert relative_l2(drawn(session, control, image=sample_image(), strength=0.6), expected) <= LIMIT


# --- with updates of the contexts


@pytest.fixture(scope="module")
def exact() -> tuple[Any, dict[str, Any]]:
    return build_tiny().unet.double(), {name: net.double() for name, net in controlnets().items()}


@pytest.mark.parametrize("masked", [False, True])
def test_updates_and_edits_equal_a_loop_in_float64(
    session: ebca.Session, exact: tuple[Any, dict[str, Any]], masked: bool
) -> None:
    """Every ControlNet sees the original context of the prompt, while the UNet updates its own."""
    unet, nets = exact
    rng = np.random.default_rng(0)
    main, negative = (rng.standard_normal((1, TOKENS, WIDTH), np.float32) for _ in range(2))
    edited = rng.standard_normal((1, TOKENS, WIDTH), np.float32)
    start, steps = randn((1, 4, 8, 8), 3), 4
    control = [ebca.Control(CANNY, 0.7, 0.0, 0.5, "canny"), ebca.Control(DEPTH, 0.4, 0.25, 1.0, "depth")]
    active = [(0,), (0, 1), (1,), (1,)]
    seen: list[np.ndarray] = []
    session.generate(
        prompt_embeds=main,
        negative_prompt_embeds=negative,
        latents=start,
        steps=steps,
        scheduler="ddim",
        gamma_attn=0.02,
        gamma_norm=0.2,
        edits=[ebca.Edit(prompt_embeds=edited, alpha=0.9, gamma_attn=0.01, gamma_norm=0.05)] if masked else (),
        reset_edits=True,
        control=control,
        output="latents",
        on_step=lambda info: seen.append(info.latents.copy()),
    )
    scheduler = diffusers_scheduler("ddim")
    scheduler.set_timesteps(steps)
    rows = torch.from_numpy(np.concatenate([negative, main])).double()
    pixels = [
        torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255).double().repeat(2, 1, 1, 1)
        for image in (CANNY, DEPTH)
    ]
    latents = torch.from_numpy(start).double()
    for index, time in enumerate(scheduler.timesteps):
        both = torch.cat([latents] * 2)
        residuals: list[Any] = []
        for one in active[index]:
            with torch.no_grad():
                down, middle = nets[str(control[one].name)](
                    both, time, rows, pixels[one], control[one].scale, return_dict=False
                )
            made = [*down, middle]
            residuals = [before + more for before, more in zip(residuals, made, strict=True)] if residuals else made
        listed = torch.cat([rows[:1], torch.from_numpy(edited).double()]) if masked else None
        editings = [Editing(0.9, 1, 0.01, 0.05)] if masked else []
        reference = ReferenceUNet(unet, gamma_attn=0.02, gamma_norm=0.2, editings=editings)
        noise = torch.from_numpy(reference(both.numpy(), float(time), [Image(rows, listed)], residuals))
        guided = noise[:1] + 7.5 * (noise[1:] - noise[:1])
        latents = scheduler.step(guided, time, latents).prev_sample
        # Updates amplify what float32 loses in an evaluation.
        assert relative_l2(seen[index], latents.numpy()) <= 5e-5, index


# --- with everything else

FEATURES: dict[str, dict[str, Any]] = {
    "gammas": {"gamma_attn": 0.02, "gamma_norm": 0.2},
    "edits": {"edits": [ebca.Edit("a red car", alpha=0.8, gamma_attn=0.01)]},
    "subjects": {"subjects": ["lion", "crown"]},
    "regions": {"regions": {"lion": (0, 0, 0.5, 1)}, "gamma_attn": 0.02},
    "repaint": {"image": sample_image(), "mask": mask_image(), "repaint": ebca.RePaint(2, 2), "scheduler": None},
    "image-to-image": {"image": sample_image(), "strength": 0.5},
    "energies": {"energies": True, "gamma_norm": 0.2},
    "attention maps": {"attention_maps": True, "subjects": ["lion", "crown"]},
}


@pytest.mark.parametrize("name", FEATURES)
def test_it_works_with(session: ebca.Session, name: str) -> None:
    """A scale of 0 gives what is given without ControlNets, a scale of 1 something else."""
    asked: dict[str, Any] = {"steps": 4, "seed": 1, "scheduler": "ddim", "output": "latents"} | FEATURES[name]
    without = session.generate(PROMPT, **asked)
    zero = session.generate(PROMPT, control=ebca.Control(CANNY, 0, name="canny"), **asked)
    one = session.generate(PROMPT, control=ebca.Control(CANNY, end=0.5, name="canny"), **asked)
    again = session.generate(PROMPT, **asked)
    assert np.array_equal(without.latents, zero.latents) and np.array_equal(without.latents, again.latents)
    assert relative_l2(one.latents, without.latents) > 1e-3
    if name == "energies":
        assert not np.array_equal(one.energies, without.energies)


def test_without_control_it_is_the_engine_without_controlnets(session: ebca.Session, tiny_engine_dir: Path) -> None:
    """Zeros are added exactly. Kernels may sum in another order where an Add stands between two others."""
    with ebca.load(tiny_engine_dir, backend="onnxruntime") as plain, plain.session(64, 64) as other:
        asked: dict[str, Any] = {"gamma_attn": 0.02, "steps": 3}
        assert np.array_equal(drawn(session, (), **asked), drawn(other, (), **asked))


def test_an_engine_without_controlnets_has_no_word_of_them(tiny_engine_dir: Path) -> None:
    manifest = json.loads((tiny_engine_dir / "manifest.json").read_text())
    assert "controlnets" not in manifest and "controls" not in manifest["unet"]
    assert not any("control" in name for name in (*manifest["components"], *manifest["unet"]["tensors"]))


# --- what is given, recorded and repeated


def test_a_file_repeats_with_its_control_images(engine: ebca.Engine, tmp_path: Path) -> None:
    CANNY.save(tmp_path / "edges.png")
    control = [ebca.Control(str(tmp_path / "edges.png"), 0.8, end=0.5, name="canny")]
    result = engine.generate(PROMPT, steps=2, seed=5, control=control)
    assert result.images[0].size == (128, 128)
    result.save(tmp_path / "made.png")
    recorded = ebca.read_parameters(tmp_path / "made.png")
    assert recorded["control"] == [{"scale": 0.8, "start": 0.0, "end": 0.5, "name": "canny"}]
    again = engine.repeat(tmp_path / "made.png", output="np").images
    assert np.array_equal(again, engine.generate(PROMPT, steps=2, seed=5, control=control, output="np").images)
    DEPTH.save(tmp_path / "edges.png")
    with pytest.raises(ebca.ParameterError, match="is not the file that was used"):
        engine.repeat(tmp_path / "made.png")


def test_a_request_goes_through_json() -> None:
    array = np.zeros((8, 8, 3), np.float32)
    request = ebca.GenerateRequest.of(
        prompt=PROMPT, control=[ebca.Control("a.png", 0.5, 0.1, 0.9), ebca.Control(array)]
    )
    data = json.loads(json.dumps(to_json(request)))
    read = from_json(data).controlnets.each
    assert (read[0].image, read[0].scale, read[0].start, read[0].end, read[0].name) == ("a.png", 0.5, 0.1, 0.9, None)
    assert np.array_equal(read[1].image, array) and to_json(from_json(data)) == data


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ("edges.png", r"control is of type str; give ebca.Control\(image, scale=1.0\), or a list of them"),
        ([CANNY], "control is of type Image"),
        (ebca.Control(CANNY), "names none: canny, depth; give its name"),
        (ebca.Control(CANNY, name="pose"), "the engine has no ControlNet 'pose'; it has canny, depth"),
        (ebca.Control(CANNY, float("nan"), name="canny"), "scale of a control"),
        (ebca.Control(CANNY, 1e9, name="canny"), "give a number from -1000 to 1000"),
        (ebca.Control(CANNY, start=0.6, end=0.4, name="canny"), "starts at 0.6 and ends at 0.4"),
        (ebca.Control(CANNY, end=1.5, name="canny"), "0 <= start < end <= 1"),
        ([ebca.Control(CANNY, name="canny")] * 17, "control has 17 entries; give at most 16"),
        (ebca.Control("missing.png", name="canny"), "missing.png"),
        (ebca.Control([CANNY] * 3, name="canny"), "3 control images"),
    ],
)
def test_a_wrong_control_is_one_line(session: ebca.Session, control: Any, message: str) -> None:
    with pytest.raises(ebca.ParameterError, match=message) as caught:
        session.generate(PROMPT, control=control, steps=1)
    assert "\n" not in str(caught.value)


def test_an_engine_without_controlnets_names_the_option(tiny_engine_dir: Path) -> None:
    with (
        ebca.load(tiny_engine_dir, backend="onnxruntime") as plain,
        pytest.raises(
            ebca.EngineError, match="no ControlNet, and `control` is given; export it with `ebca-export --con"
        ),
    ):
        plain.generate(PROMPT, steps=1, control=ebca.Control(CANNY))


def test_a_run_without_control_takes_no_memory_for_residuals(engine: ebca.Engine) -> None:
    with engine.session(64, 64) as session:
        drawn(session, (), steps=1)
        (executor,) = session._executors.values()
        before = executor.buffers.memory["control"]
        drawn(session, ebca.Control(CANNY, name="canny"), steps=1)
        one = executor.buffers.memory["control"]
        assert one > before
        drawn(session, [ebca.Control(CANNY, name="canny")] * 3, steps=1)
        three = executor.buffers.memory["control"]
        drawn(session, ebca.Control(DEPTH, name="depth"), steps=1)
        assert executor.buffers.memory["control"] == three
