"""ebca-run with images, masks and editing prompts: the options decide the task."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image

import ebca
from ebca.runtime.cli import run as cli
from ebca.runtime.images.files import read_parameters

COMMON = ("--backend", "onnxruntime", "--steps", "3", "--height", "64", "--width", "64")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save("image.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 8:40] = 255
    Image.fromarray(mask).save("mask.png")
    return tmp_path


def pixels(file: str) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image).copy()


def run(engine: Path, *more: str) -> dict[str, object]:
    """Generate out.png. Returns its parameters."""
    assert cli.main(["--engine", str(engine), *COMMON, "--output", "out.png", *more]) == 0
    return read_parameters(Path("out.png"))


def test_what_is_read_otherwise_than_meant_is_one_line_each(
    engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rgba = np.full((64, 64, 4), 200, np.uint8)
    rgba[:8, :, 3] = 0
    Image.fromarray(rgba).save("rgba.png")
    run(engine_dir, "--image", "rgba.png", "--prompt", "a cat", "--strength", "0.5", "--scheduler", "ddim")
    assert capsys.readouterr().err == (
        "ebca-run: warning: the image has transparent pixels; they are composited on white\n"
    )


def test_how_prompts_are_read_is_an_option_and_recorded(
    engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(engine_dir, "--prompt", "a (red:1.3) cat, " * 20, "--clip-skip", "1")
    names = ("prompt_weighting", "long_prompts", "clip_skip")
    assert [made[name] for name in names] == [True, True, 1]
    off = run(engine_dir, "--prompt", "a (red cat", "--no-prompt-weighting", "--no-long-prompts")
    assert [off[name] for name in names] == [False, False, 0]
    assert capsys.readouterr().err == ""
    assert "'(' at character 3 of a prompt is not closed" in refused(engine_dir, capsys, "--prompt", "a (red cat")


def refused(engine: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    before = sorted(Path().iterdir())
    assert cli.main(["--engine", str(engine), *COMMON, "--output", "out.png", *more]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert sorted(Path().iterdir()) == before
    return err.removeprefix("ebca-run: error: ")


def test_editing_prompts_with_the_flags_of_the_authors_scripts(
    engine_dir: Path, here: Path, session: ebca.Session
) -> None:
    stored = run(
        engine_dir, "--gamma_attn", "0.01", "--gamma_norm", "0.02", "--prompt", "a castle next to a river",
        "--seed", "48", "--editing_prompt", "monet painting, impression", "boat on a river, boat",
        "--editing_direction", "1", "0", "--alpha", "1.3", "0.4", "--alpha_tau", "0.2", "0.4",
        "--gamma_attn_compose", "4e-3", "0", "--gamma_norm_compose", "4e-3", "0", "--gamma_tau", "0.4", "0.",
    )  # fmt: skip
    step = ebca.Schedule.step
    same = session.generate(
        "a castle next to a river",
        steps=3,
        seed=48,
        gamma_attn=0.01,
        gamma_norm=0.02,
        edits=[
            ebca.Edit("monet painting, impression", 1, step(1.3, 0.2), step(4e-3, 0.4), step(4e-3, 0.4)),
            ebca.Edit("boat on a river, boat", 0, step(0.4, 0.4)),
        ],
    )
    assert np.array_equal(pixels("out.png"), np.asarray(same.images[0]))
    assert stored["task"] == "text-to-image"
    assert stored["gamma_attn"] == {"schedule": "constant", "value": 0.01, "parameter": 0.0}
    assert [(e["prompt"], e["direction"]) for e in stored["edits"]] == [  # type: ignore[attr-defined]
        ("monet painting, impression", 1),
        ("boat on a river, boat", 0),
    ]


def test_a_single_value_applies_to_every_editing_prompt(engine_dir: Path, here: Path) -> None:
    common = ("--prompt", "a cat", "--seed", "1", "--editing-prompt", "dog", "boat")
    run(engine_dir, *common, "--alpha", "0.5", "--alpha-tau", "0.4")
    one = pixels("out.png")
    run(engine_dir, *common, "--alpha", "step:0.5:0.4", "step:0.5:0.4")
    assert np.array_equal(pixels("out.png"), one)


def test_a_source_prompt_edits_a_real_image(engine_dir: Path, here: Path, session: ebca.Session) -> None:
    stored = run(
        engine_dir, "--img_file", "image.png", "--source-prompt", "a cat", "--editing_prompt", "dog", "cat",
        "--editing_direction", "1", "0", "--alpha", "0.75", "0.65", "--alpha_tau", "0.5", "0.5", "--seed", "1",
    )  # fmt: skip
    found = session.invert("image.png", "a cat", steps=3)
    step = ebca.Schedule.step
    same = session.generate(
        "a cat",
        negative_prompt="a cat",
        latents=found.latents,
        scheduler="ddim",
        steps=3,
        edits=[ebca.Edit("dog", 1, step(0.75, 0.5)), ebca.Edit("cat", 0, step(0.65, 0.5))],
    )
    assert np.array_equal(pixels("out.png"), np.asarray(same.images[0]))
    assert (stored["task"], stored["source_prompt"]) == ("real-image-editing", "a cat")
    assert [one["file"] for one in stored["source_image"]] == ["image.png"]  # type: ignore[attr-defined]


def test_an_image_without_a_mask_is_image_to_image(engine_dir: Path, here: Path, session: ebca.Session) -> None:
    stored = run(engine_dir, "--image", "image.png", "--prompt", "a cat", "--seed", "1", "--strength", "0.7")
    same = session.generate("a cat", image="image.png", strength=0.7, steps=3, seed=1)
    assert np.array_equal(pixels("out.png"), np.asarray(same.images[0]))
    assert (stored["task"], stored["strength"], stored["scheduler"]) == ("image-to-image", 0.7, "ddim")


def test_an_image_with_a_mask_is_inpainted_by_repaint(engine_dir: Path, here: Path) -> None:
    given = ("--image", "image.png", "--mask_file", "mask.png", "--prompt", "a cat", "--seed", "1")
    stored = run(engine_dir, *given, "--jump-length", "1", "--jump-n-sample", "2")
    assert stored["task"] == "repaint"
    assert stored["repaint"] == {"jump_length": 1, "jump_count": 2, "eta": 0.0, "update_known": False}
    hole = pixels("mask.png") > 127
    assert np.array_equal(pixels("out.png")[~hole], pixels("image.png")[~hole])
    run(engine_dir, *given, "--jump-length", "1", "--jump-n-sample", "2", "--no-composite")
    assert not np.array_equal(pixels("out.png")[~hole], pixels("image.png")[~hole])


def test_a_model_trained_for_inpainting_inpaints_without_repaint(tiny_inpainting_dir: Path, here: Path) -> None:
    given = ("--image", "image.png", "--mask", "mask.png", "--prompt", "teddy bear", "--gamma_attn", "0.025")
    assert run(tiny_inpainting_dir, *given, "--seed", "1")["task"] == "inpainting"


def test_a_number_is_constant_as_in_python_and_gamma_tau_is_the_authors_schedule(
    engine_dir: Path, session: ebca.Session, here: Path
) -> None:
    """With pndm they differ at the last evaluation: the authors' schedule ends with the steps."""
    given = ("--prompt", "a cat", "--seed", "1", "--gamma-attn", "0.05", "--gamma-norm", "0.02")
    for more, kind in (
        ((), float),
        (("--gamma-tau", "1"), lambda value: ebca.Schedule.reverse_step(value, 1)),
        (("--gamma-schedule", "reverse_step"), lambda value: ebca.Schedule.reverse_step(value, 1)),
    ):
        run(engine_dir, *given, *more)
        same = session.generate("a cat", steps=3, seed=1, gamma_attn=kind(0.05), gamma_norm=kind(0.02))
        assert np.array_equal(pixels("out.png"), np.asarray(same.images[0])), more


def test_several_input_images_give_several_images(engine_dir: Path, here: Path) -> None:
    given = ("--image", "image.png", "mask.png", "--prompt", "a cat", "--seed", "1")
    assert cli.main(["--engine", str(engine_dir), *COMMON, *given]) == 0
    assert not np.array_equal(pixels("ebca-0.png"), pixels("ebca-1.png"))


def test_the_default_size_has_the_aspect_ratio_of_the_input_image(engine_dir: Path, here: Path) -> None:
    Image.new("RGB", (200, 100), "red").save("wide.png")
    argv = ["--engine", str(engine_dir), "--backend", "onnxruntime", "--steps", "2", "--image", "wide.png"]
    assert cli.main([*argv, "--prompt", "a cat", "--seed", "1", "--output", "out.png"]) == 0
    height, width = pixels("out.png").shape[:2]
    assert width / height == pytest.approx(2, rel=0.1) and height % 8 == width % 8 == 0
    assert height * width == pytest.approx(128 * 128, rel=0.2)


def test_telemetry_is_written(engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--energies", "new/e.jsonl", "--energy-plot", "e.png", "--attention-maps", "maps.png")
    run(engine_dir, "--prompt", "a cat", "--seed", "1", "--editing-prompt", "dog", *files)
    lines = [json.loads(line) for line in Path("new/e.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * 7
    assert {"evaluation", "timestep", "layer", "attention", "norm", "total"} == set(lines[0])
    assert np.shape(lines[0]["total"]) == (2, 2)
    for file in ("e.png", "maps.png"):
        assert min(pixels(file).shape[:2]) > 100
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {f}" for f in ("out.png", "new/e.jsonl", "e.png", "maps.png")
    ]


def test_telemetry_does_not_change_the_image(engine_dir: Path, here: Path) -> None:
    run(engine_dir, "--prompt", "a cat", "--seed", "1", "--gamma-attn", "0.05")
    plain = pixels("out.png")
    run(engine_dir, "--prompt", "a cat", "--seed", "1", "--gamma-attn", "0.05", "--attention-maps", "m.png")
    assert np.array_equal(pixels("out.png"), plain)


def test_a_plot_without_matplotlib_is_refused_before_any_work(
    engine_dir: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = refused(engine_dir, capsys, "--prompt", "a cat", "--energy-plot", "e.png")
    assert message == "an energy plot needs matplotlib; run `pip install 'ebca[plot]'`\n"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("--prompt x --image nowhere.png", "image 'nowhere.png' does not exist"),
        ("--prompt x --image text.txt", "image 'text.txt' cannot be read as an image"),
        ("--prompt x --mask mask.png", "a mask was given without an image"),
        ("--prompt x --strength 0.5", "strength was given without image"),
        ("--prompt x --image image.png --strength 1.5", "strength is 1.5; give a number above 0"),
        ("--prompt x --image image.png --strength 0", "strength is 0; give a number above 0"),
        ("--prompt x --image image.png --strength 0.2", "strength 0.2 of 3 steps leaves no step to run"),
        ("--prompt x --image image.png --strength 0.5 --mask mask.png", "strength and mask do not go together"),
        ("--prompt x --image image.png --mask black.png", "the mask is empty"),
        (
            "--prompt x --image image.png --editing-prompt y",
            "give --source-prompt, which describes the image, to edit the image itself",
        ),
        ("--prompt x --regularize", "--regularize belongs to the inversion"),
        ("--source-prompt x", "--source-prompt needs --image, which it describes; give --image"),
        ("--source-prompt x --image image.png --strength 0.5", "--source-prompt and --strength do not go together"),
        ("--source-prompt x --image image.png --scheduler pndm", "needs the scheduler ddim, not pndm"),
        ("--prompt x --repaint", "repaint was given without mask; leave repaint out, or give mask"),
        ("--prompt x --image image.png --mask mask.png --jump-length 0", "jump_length is 0; give 1 or more"),
        ("--prompt x --image image.png --scheduler unipc", "scheduler unipc looks back over several steps"),
        ("--prompt x --editing-direction 1", "--editing-direction needs --editing-prompt"),
        ("--prompt x --gamma-norm-compose 0.1", "--gamma-norm-compose needs --editing-prompt"),
        ("--prompt x --editing-prompt a b --alpha 1 2 3", "--alpha has 3 values for 2 editing prompts"),
        ("--prompt x --editing-prompt a --editing-direction 0", "the alphas cancel at evaluation 0: 1 - 1 is about 0"),
        ("--prompt x --editing-prompt a --alpha -1", "alpha of editing prompt 1 is negative"),
        ("--prompt x --editing-prompt a --alpha nan", "--alpha is nan; give a finite number"),
        ("--prompt x --editing-prompt a --gamma-schedule step", "write --gamma-attn step:0:TAU"),
        ("--prompt x --gamma-tau 0.1 0.2", "--gamma-tau has 2 values without --editing-prompt; give one"),
        ("--prompt x --gamma-attn step:1:0.5 0.2", "--gamma-attn has a schedule among several values"),
        ("--prompt x --energies text.txt/e.jsonl", "--energies 'text.txt/e.jsonl' cannot be written: Not a directory"),
        (
            "--prompt x --attention-maps maps.gif",
            "--attention-maps 'maps.gif' has the suffix '.gif'; name a .png, .jpg",
        ),
        ("--prompt x --image image.png --strength 0.5 --output ./image.png", "is the same file as --image 'image.png'"),
        ("--prompt x --image image.png --mask mask.png --energies mask.png", "is the same file as --mask 'mask.png'"),
    ],
    ids=lambda value: value[:60],
)
def test_bad_input_gives_one_line(
    engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str], more: str, named: str
) -> None:
    Path("text.txt").write_text("no image")
    Image.new("L", (64, 64)).save("black.png")
    assert named in refused(engine_dir, capsys, *more.split())


def test_edits_are_refused_before_the_inversion(
    engine_dir: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ebca.Session, "invert", lambda *_, **__: pytest.fail("the inversion was run"))
    more = "--source-prompt x --image image.png --editing-prompt a --editing-direction 0"
    assert "the alphas cancel at evaluation 0" in refused(engine_dir, capsys, *more.split())


def test_a_mask_of_another_size_is_stretched_with_a_warning(
    engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (32, 32), 255).save("small.png")
    run(engine_dir, "--prompt", "x", "--image", "image.png", "--mask", "small.png", "--jump-n-sample", "1")
    err = capsys.readouterr().err
    assert err.endswith("the mask has 32 x 32 pixels, the image 64 x 64; the mask is stretched to fit\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("value", ["step:1", "constant:1:2", "cosine:1:2", "step:a:0.5", "step:1:2"])
def test_an_invalid_schedule_is_a_usage_error(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--engine", "x", "--prompt", "y", "--gamma-attn", value])
    assert stopped.value.code == 2
    assert "argument --gamma-attn" in capsys.readouterr().err
