"""The checkpoint's own scheduler is the engine's default, and every name means what it means in diffusers."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffusers  # noqa: E402
from helpers import scheduling  # noqa: E402
from helpers.checkpoints import edit_json  # noqa: E402
from helpers.pipelines import generators, sample_image  # noqa: E402

import ebca  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.errors import ParameterError  # noqa: E402
from ebca.export.checkpoint.defaults import SCHEDULER_CONFIG  # noqa: E402
from ebca.export.checkpoint.folder import load_folder  # noqa: E402
from ebca.export.checkpoint.tiny import save_tiny  # noqa: E402
from ebca.export.scheduler_choice import SCHEDULERS, find_spec_of  # noqa: E402
from ebca.export.scheduler_tables import DENSE, build_tables  # noqa: E402
from ebca.export.stages import schedulers  # noqa: E402

PROMPT = "a lion with a crown"
STEPS = 6
# Both loops run in float32 on different libraries: rounding, amplified by six guided steps, and by first noise levels
# of up to 4096 (zero terminal SNR). Another scheduler or a lost option gives 5e-3 or more.
LIMIT = 5e-5
OPTIONS: dict[str, Any] = {
    "all_steps": [2, STEPS], "common_steps": [2, STEPS], "scheduler_steps": (), "scheduler_config": {}, "spacings": (),
    "default_steps": None,
}  # fmt: skip
MORE = ("heun_exponential",)

BETAS = {key: SCHEDULER_CONFIG[key] for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")}
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}

# Class, options beside the beta schedule, and the name of the default.
CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "sd15": ("PNDMScheduler", SCHEDULER_CONFIG, "pndm"),
    "pndm-runge-kutta": ("PNDMScheduler", {}, "pndm"),
    "euler": ("EulerDiscreteScheduler", {}, "euler"),
    "euler-leading": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, "euler"),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "steps_offset": 1}, "euler"),
    "euler-zero-snr": ("EulerDiscreteScheduler", ZERO_SNR, "euler"),
    "ddim-no-offset": ("DDIMScheduler", {"clip_sample": True}, "ddim"),
    "ddim-trailing": ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}, "ddim"),
    "ddim-zero-snr": ("DDIMScheduler", {**ZERO_SNR, "clip_sample": False, "set_alpha_to_one": False}, "ddim"),
    "dpmpp-karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True, "timestep_spacing": "leading"},
        "dpmpp_2m",
    ),
    "dpmpp-sigma-min": ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, "dpmpp_2m"),
    "dpmpp-third-order": ("DPMSolverMultistepScheduler", {"solver_order": 3}, "dpmpp_3m"),
    "dpmpp-heun": ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, "dpmpp_2m_heun"),
    "dpm": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        "dpm_2m",
    ),
    "euler-ancestral": (
        "EulerAncestralDiscreteScheduler",
        {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        "euler_ancestral",
    ),
    "dpmpp-sde": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True, "solver_order": 3},
        "dpmpp_3m_sde",
    ),
    "lcm": ("LCMScheduler", {"original_inference_steps": 50, "clip_sample": False}, "lcm"),
    "unipc-third-order": ("UniPCMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}, "unipc"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("plain"))


def with_scheduler(plain: Path, folder: Path, class_name: str, config: dict[str, Any]) -> Path:
    """A copy of a pipeline folder with another scheduler."""
    shutil.copytree(plain, folder)
    text = json.dumps({"_class_name": class_name, **config})
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    edit_json(folder / "model_index.json", scheduler=["diffusers", class_name])
    return folder


def tabulated(checkpoint: Path, engine: Path, folder: Path, more: tuple[str, ...] = ()) -> tuple[Path, list[str]]:
    """A copy of an engine directory with the scheduler tables of a checkpoint folder, and the notices."""
    folder.mkdir()
    loaded = load_folder(checkpoint, name="x", source={})
    context: Any = SimpleNamespace(
        checkpoint=loaded,
        options=SimpleNamespace(**OPTIONS, schedulers=more),
        folder=folder,
        report=lambda text: None,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        section = schedulers.export(context).sections["schedulers"]
    scheduling.with_tables(engine, folder, section)
    return folder, [str(warning.message) for warning in caught if warning.category is UserWarning]


@pytest.fixture(scope="module")
def made(
    plain: Path, tiny_engine_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path, list[str]]]:
    """By key of `CONFIGS`: the checkpoint folder, an engine directory with its tables, and the notices."""
    known: dict[str, tuple[Path, Path, list[str]]] = {}

    def make(key: str) -> tuple[Path, Path, list[str]]:
        if key not in known:
            class_name, options, _ = CONFIGS[key]
            place = tmp_path_factory.mktemp(key)
            checkpoint = with_scheduler(plain, place / "checkpoint", class_name, {**BETAS, **options})
            known[key] = (
                checkpoint,
                *tabulated(checkpoint, tiny_engine_dir, place / "engine", MORE if key == "euler-leading" else ()),
            )
        return known[key]

    return make


def pipeline(checkpoint: Path, kind: Any = diffusers.StableDiffusionPipeline) -> Any:
    loaded = kind.from_pretrained(checkpoint, safety_checker=None, requires_safety_checker=False)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def of_diffusers(pipe: Any, **kwargs: Any) -> np.ndarray:
    given = {"num_inference_steps": STEPS, "output_type": "latent", "generator": generators(1)} | kwargs
    return pipe(PROMPT, **given).images.numpy()


def of_engine(engine: Path, **kwargs: Any) -> ebca.Result:
    with ebca.load(engine, backend="onnxruntime") as opened, opened.session(64, 64) as session:
        return session.generate(PROMPT, **{"steps": STEPS, "seed": 1, "output": "latents"} | kwargs)


@pytest.mark.parametrize("key", CONFIGS)
def test_the_default_image_is_that_of_the_diffusers_pipeline(
    made: Callable[[str], tuple[Path, Path, list[str]]], key: str
) -> None:
    checkpoint, engine, notices = made(key)
    result = of_engine(engine)
    assert result.parameters["scheduler"] == CONFIGS[key][2]
    assert relative_l2(result.latents, of_diffusers(pipeline(checkpoint), height=64, width=64)) <= LIMIT
    assert bool(notices) == (key == "pndm-runge-kutta")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        *[(key, name) for key in ("euler-leading", "dpmpp-third-order") for name in DENSE if name != "ddim_inverse"],
        *[("euler-leading", name) for name in ("ddpm", "heun_exponential")],
    ],
)
def test_a_name_is_that_class_made_from_the_pipelines_scheduler(
    made: Callable[[str], tuple[Path, Path, list[str]]], key: str, name: str
) -> None:
    checkpoint, engine, _ = made(key)
    pipe, spec = pipeline(checkpoint), find_spec_of(name, SCHEDULERS)
    assert spec is not None
    if CONFIGS[key][2] != name:
        pipe.scheduler = spec.diffusers_class.from_config(pipe.scheduler.config, **spec.overrides)
    result = of_engine(engine, scheduler=name)
    assert relative_l2(result.latents, of_diffusers(pipe, height=64, width=64)) <= LIMIT


def test_tcd_has_the_noise_of_its_own_default(made: Callable[[str], tuple[Path, Path, list[str]]]) -> None:
    """diffusers' pipelines pass eta, 0 by default, where TCD's own default is 0.3."""
    checkpoint, engine, _ = made("sd15")
    pipe = pipeline(checkpoint)
    pipe.scheduler = diffusers.TCDScheduler.from_config(pipe.scheduler.config)
    result = of_engine(engine, scheduler="tcd")
    assert relative_l2(result.latents, of_diffusers(pipe, height=64, width=64, eta=0.3)) <= LIMIT
    assert relative_l2(result.latents, of_diffusers(pipe, height=64, width=64)) > 1e-2


def test_several_images_draw_from_one_stream_or_from_one_each(
    made: Callable[[str], tuple[Path, Path, list[str]]],
) -> None:
    checkpoint, engine, _ = made("euler-ancestral")
    pipe = pipeline(checkpoint)
    with ebca.load(engine, backend="onnxruntime") as opened, opened.session(64, 64, batch=2) as session:
        for seeds in (7, [7, 8]):
            given: Any = torch.Generator().manual_seed(7)
            if isinstance(seeds, list):
                given = [given, torch.Generator().manual_seed(8)]
            theirs = of_diffusers(pipe, height=64, width=64, num_images_per_prompt=2, generator=given)
            ours = session.generate(PROMPT, steps=STEPS, seed=seeds, output="latents").latents
            assert relative_l2(ours, theirs) <= LIMIT


@pytest.mark.parametrize("name", ["euler_ancestral", "heun"])
def test_image_to_image_draws_on_after_the_noise_of_its_start(
    made: Callable[[str], tuple[Path, Path, list[str]]], name: str
) -> None:
    checkpoint, engine, _ = made("euler-leading")
    pipe, spec = pipeline(checkpoint, diffusers.StableDiffusionImg2ImgPipeline), SCHEDULERS[name]
    pipe.scheduler = spec.diffusers_class.from_config(pipe.scheduler.config, **spec.overrides)
    result = of_engine(engine, image=sample_image(), strength=0.6, scheduler=name)
    assert relative_l2(result.latents, of_diffusers(pipe, image=sample_image(), strength=0.6)) <= LIMIT


def test_a_multistep_scheduler_refuses_to_start_within(made: Callable[[str], tuple[Path, Path, list[str]]]) -> None:
    name = "dpmpp_2m_sde"
    with pytest.raises(ParameterError, match=f"scheduler {name} looks back over several steps"):
        of_engine(made("sd15")[1], image=sample_image(), strength=0.6, scheduler=name)


def test_given_latents_leave_the_stream_to_the_steps(made: Callable[[str], tuple[Path, Path, list[str]]]) -> None:
    """As in diffusers, where nothing is drawn for the start; the seed is in the parameters, since it matters."""
    checkpoint, engine, _ = made("euler-ancestral")
    latents = np.random.default_rng(3).standard_normal((1, 4, 8, 8)).astype(np.float32)
    result = of_engine(engine, latents=latents)
    assert result.parameters["seed"] == 1
    theirs = of_diffusers(pipeline(checkpoint), height=64, width=64, latents=torch.from_numpy(latents))
    assert relative_l2(result.latents, theirs) <= LIMIT


@pytest.mark.parametrize("key", ["euler-karras", "dpmpp-karras"])
def test_image_to_image_starts_with_the_default_if_it_can_and_with_ddim_otherwise(
    made: Callable[[str], tuple[Path, Path, list[str]]], key: str
) -> None:
    checkpoint, engine, _ = made(key)
    pipe = pipeline(checkpoint, diffusers.StableDiffusionImg2ImgPipeline)
    if CONFIGS[key][2] != "euler":
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    result = of_engine(engine, image=sample_image(), strength=0.6)
    assert result.parameters["scheduler"] == ("euler" if key == "euler-karras" else "ddim")
    assert relative_l2(result.latents, of_diffusers(pipe, image=sample_image(), strength=0.6)) <= LIMIT


def test_an_inpainting_model_starts_without_runge_kutta_steps_as_in_diffusers() -> None:
    parts: dict[str, Any] = dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor")
    )
    given = diffusers.PNDMScheduler.from_config(BETAS)
    scheduler = diffusers.StableDiffusionInpaintPipeline(
        **parts, scheduler=given, requires_safety_checker=False
    ).scheduler
    scheduler.set_timesteps(STEPS)
    table = build_tables(BETAS, [STEPS], ["pndm"], inpainting=True).records["pndm"][STEPS]
    assert table.timesteps.tolist() == scheduler.timesteps.tolist() and table.evaluations == STEPS + 1


def test_too_few_steps_for_runge_kutta_are_refused_with_the_minimum(
    made: Callable[[str], tuple[Path, Path, list[str]]],
) -> None:
    with pytest.raises(ParameterError, match="steps is 2; pndm needs at least 4"):
        of_engine(made("pndm-runge-kutta")[1], steps=2)


def test_the_class_in_model_index_json_decides(plain: Path, tmp_path: Path) -> None:
    folder = with_scheduler(plain, tmp_path / "both", "PNDMScheduler", SCHEDULER_CONFIG)
    edit_json(folder / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"])
    assert type(pipeline(folder).scheduler).__name__ == "EulerDiscreteScheduler"
    config = load_folder(folder, name="x", source={}).scheduler_config
    assert config == {**SCHEDULER_CONFIG, "_class_name": "EulerDiscreteScheduler"}


def test_a_pipeline_without_scheduler_config_is_exported_with_a_notice(
    plain: Path, tiny_engine_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(plain, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "scheduler" / "scheduler_config.json").unlink()
    _, notices = tabulated(tmp_path / "checkpoint", tiny_engine_dir, tmp_path / "engine")
    assert notices == ["the checkpoint has no scheduler_config.json; pndm as in Stable Diffusion 1.5 is the default"]
