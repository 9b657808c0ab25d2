"""ebca-run --from-image: an image file repeats its generation, and options replace single fields."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ebca
from ebca.runtime.cli import run as cli
from ebca.runtime.images.files import save_image

BACKEND = ("--backend", "onnxruntime")
COMMON = ("--engine", "shapes", *BACKEND, "--steps", "3", "--seed", "7")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    image = Image.new("RGB", (64, 64), (190, 190, 190))
    image.paste((255, 0, 0), (40, 4, 60, 24))
    image.save("drawn.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 24, 40, 64))
    mask.save("hole.png")
    return tmp_path


def pixels(file: str) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image).copy()


def run(*argv: str) -> None:
    assert cli.main([*argv, "--quiet"]) == 0


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    assert cli.main([*argv, "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return err.removeprefix("ebca-run: error: ").strip()


TASKS = {
    "text": "--prompt|a (red) circle|--gamma-attn|0.005|--gamma-norm|0.003|--gamma-tau|0.5|--token-words|red|"
    "--token-upweight|1.5",
    "lists": "--prompt|a circle|--gamma-attn|0.001|0.002|0.003|--scheduler|ddim|--width|32|--num-images|2",
    "edits": "--prompt|a circle|--editing-prompt|a star|a heart|--alpha|0.5|0.25|--alpha-tau|0.4|--reset-edits",
    "image": "--prompt|a circle|--image|drawn.png|--strength|0.7|--seed|1|2",
    "repaint": "--prompt|a circle|--image|drawn.png|--mask|hole.png|--jump-n-sample|2|--jump-length|1|--no-composite",
    "real": "--source-prompt|a circle|--image|drawn.png|--regularize|--editing-prompt|a star|--alpha|5",
}


@pytest.mark.parametrize(("task", "suffix"), [*((t, ".png") for t in TASKS), ("real", ".jpg"), ("image", ".webp")])
def test_an_image_file_repeats_its_generation(
    here: Path, capsys: pytest.CaptureFixture[str], task: str, suffix: str
) -> None:
    run(*COMMON, *TASKS[task].split("|"), "--output", f"first{suffix}")
    files = sorted(here.glob("first*"))
    capsys.readouterr()
    run("--from-image", files[-1].name, "--output", f"second{suffix}")
    assert capsys.readouterr().err == ""
    for file in files:
        again = file.name.replace("first", "second")
        assert np.array_equal(pixels(file.name), pixels(again))
        assert ebca.read_parameters(again) == ebca.read_parameters(file)
    assert len(files) == (2 if task in ("lists", "image") else 1)


@pytest.mark.parametrize(
    ("made", "changed", "same"),
    [
        ("text", "--seed|3", "--seed|3"),
        ("text", "--prompt|a red star|--steps|4", "--prompt|a red star|--steps|4"),
        ("text", "--gamma-attn|0.002", "--gamma-attn|constant:0.002"),
        ("text", "--token-indices|1|--token-upweight|2", "--token-words|a|--token-upweight|2"),
        ("edits", "--editing-prompt|a blue star|--alpha|2", "--editing-prompt|a blue star|--alpha|2|--alpha-tau|0"),
        ("image", "--seed|3|4", "--seed|3|4"),
        ("image", "--image|other.png", "--image|other.png"),
        ("repaint", "--jump-length|2", "--jump-length|2"),
        ("repaint", "--composite", "--composite"),
        ("real", "--guidance-scale|2", "--guidance-scale|2"),
        (
            *("real", "--source-prompt|a red star"),
            "--source-prompt|a red star|--prompt|a circle|--negative-prompt|a circle",
        ),
    ],
)
def test_options_replace_single_fields(here: Path, made: str, changed: str, same: str) -> None:
    Image.open("drawn.png").rotate(90).save("other.png")
    run(*COMMON, *TASKS[made].split("|"), "--output", "first.png")
    source = sorted(here.glob("first*"))[0].name
    run("--from-image", source, *changed.split("|"), "--output", "changed.png")
    # argparse takes the last value of an option, so these replace those of the first command.
    run(*COMMON, *TASKS[made].split("|"), *same.split("|"), "--output", "same.png")
    files = sorted(here.glob("changed*"))
    assert len(files) == len(sorted(here.glob("same*")))
    for file in files:
        assert np.array_equal(pixels(file.name), pixels(file.name.replace("changed", "same")))
    assert not np.array_equal(pixels(files[0].name), pixels(source))


def test_an_image_of_the_python_api_is_repeated(here: Path) -> None:
    edits = [ebca.Edit(["a star", "a heart"], alpha=0.5, gamma_attn=[0.001, 0.0])]
    with ebca.load("shapes", backend="onnxruntime") as engine:
        made = engine.generate(
            ["a circle", "a square"], seed=[1, 2], steps=3, scheduler="ddim", gamma_attn=0.002, edits=edits, width=32,
            image="drawn.png", strength=0.7, output="np",
        )  # fmt: skip
    files = made.save("made.webp")
    run("--from-image", "made-0.webp", "--output", "again.webp", "--attention-maps", "maps.png")
    for index, file in enumerate(files):
        assert np.array_equal(pixels(str(file)), pixels(f"again-{index}.webp"))


def test_another_backend_is_tried_with_a_warning(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*COMMON, "--prompt", "a circle")
    stored = ebca.read_parameters("ebca.png")
    save_image(Image.new("RGB", (8, 8)), "other.png", {**stored, "backend": "openvino", "model": "sd-1.5"})
    capsys.readouterr()
    run("--from-image", "other.png", *BACKEND)
    assert capsys.readouterr().err == (
        "ebca-run: warning: 'other.png' was made with another engine (model sd-1.5, here shapes; backend openvino, "
        "here onnxruntime); the image will differ\n"
    )
    assert ebca.read_parameters("ebca.png") == stored


def test_what_cannot_be_repeated_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*COMMON, "--prompt", "a circle", "--image", "drawn.png", "--strength", "0.5")
    stored = ebca.read_parameters("ebca.png")

    def other(name: str, **changes: Any) -> str:
        save_image(Image.new("RGB", (8, 8)), name, {**stored, **changes})
        return name

    again = ("--from-image", "ebca.png", "--output", "x.png")
    for argv, named in (
        (again[:2], "--output 'ebca.png' is the same file as --from-image 'ebca.png'; name another file"),
        (("--from-image", "nowhere.png"), "the image file 'nowhere.png' does not exist; check the path"),
        (("--from-image", "drawn.png"), "'drawn.png' holds no parameters of ebca: another program wrote or changed it"),
        ((*again, "--gamma-tau", "0.5"), "--gamma-tau does not change recorded gammas; give --gamma-attn or"),
        ((*again, "--alpha", "2"), "--alpha needs --editing-prompt"),
        ((*again, "--engine", "nowhere"), "engine directory 'nowhere' does not exist"),
        ((*again, "--num-images", "0"), "--num-images is 0; give 1 or more"),
        (("--from-image", other("a.png", engine=None)), "'a.png' does not say which engine made it; give --engine"),
        (("--from-image", other("b.png", inputs={"image": []})), "'image' was given as an array or an object, which"),
        (("--from-image", other("c.png", inputs={"latents": []})), "'latents' was given as an array or an object"),
        (("--from-image", other("d.png", inputs={"image": 3})), "the recorded files of 'image' cannot be read: 3"),
        (("--from-image", other("e.png", steps="many")), "steps is 'many'; give a whole number"),
    ):
        assert named in refused(capsys, *argv)
    Image.open("drawn.png").rotate(90).save("drawn.png")
    assert refused(capsys, *again) == (
        "image 'drawn.png' is not the file that was used: its contents have changed; "
        "restore it, or give `image` to use another one"
    )
    (here / "drawn.png").unlink()
    assert "image 'drawn.png' cannot be read: No such file or directory" in refused(capsys, *again)


def test_without_a_file_engine_and_prompt_are_required(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, missing in (
        ([], "--engine, --prompt (or --prompts-file)"),
        (["--engine", "x"], "--prompt (or --prompts-file)"),
        (["--prompt", "x"], "--engine"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(argv)
        assert stopped.value.code == 2
        error = f"ebca-run: error: the following arguments are required: {missing}\n"
        assert error in capsys.readouterr().err


def test_json_reports_what_is_stored(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*COMMON, *TASKS["real"].split("|"), "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] | {"image_index": 0} == ebca.read_parameters("ebca.png")
    (source,) = report["parameters"]["source_image"]
    assert source["file"] == "drawn.png" and len(source["sha256"]) == 64
