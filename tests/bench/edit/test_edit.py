"""The complete benchmark on the bundled model, with judges of random weights: results, continuing, refusals."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers.dino import write_dino
from helpers.judges import write_clip
from PIL import Image, ImageDraw

import ebca
from ebca.bench import cli
from ebca.bench.edit import making
from ebca.bench.edit.cases import load_image, load_object, make_case
from ebca.bench.edit.making import texts
from ebca.bench.edit.recipes import METHODS, RECIPES, prompts
from ebca.bench.judges import lpips
from ebca.bench.judges.clip import Clip
from ebca.bench.judges.dino import Dino
from ebca.errors import ParameterError
from ebca.runtime.conditioning.schedules import Schedule

SOURCE, TARGET = "a red circle", "a blue square"
COUNT = 3
FAKE_LPIPS = """
import torch

class LPIPS(torch.nn.Module):
    def __init__(self, net, spatial, verbose):
        super().__init__()

    def forward(self, a, b):
        return abs(a - b).mean(1, keepdim=True)
"""


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("judges")
    return write_clip(folder / "clip", f"{SOURCE} {TARGET}".split()), write_dino(folder / "dino")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red circles, and masks of them; wider than high, so that they are cut."""
    folder = tmp_path_factory.mktemp("drawn")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for i in range(COUNT):
        image, mask = Image.new("RGB", (96, 64), (190, 190, 190)), Image.new("L", (96, 64))
        where = (30 + 2 * i, 20, 55 + 2 * i, 45)
        ImageDraw.Draw(image).ellipse(where, (220, 40, 40))
        ImageDraw.Draw(mask).rectangle(where, 255)
        image.save(folder / "images" / f"{i}.png")
        mask.save(folder / "masks" / f"{i}.png")
    return folder


@pytest.fixture
def words(drawn: Path, judges: tuple[Path, Path], engine: ebca.Engine) -> list[str]:
    """The command line without an output folder. The engine is prepared, so that no line says so."""
    return [
        *("edit", "--engine", "shapes", "--backend", "onnxruntime", "--device", "cpu", "--steps", "3"),
        *("--images", str(drawn / "images"), "--source", SOURCE, "--target", TARGET, "--masks", str(drawn / "masks")),
        *("--clip", str(judges[0]), "--dino", str(judges[1]), "--batch-size", "2", "--guidance-scale", "2"),
    ]


@pytest.fixture
def fake_lpips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "lpips.py").write_text(FAKE_LPIPS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.delitem(sys.modules, "lpips", raising=False)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each batch that is edited."""
    found: list[int] = []
    keep = making.Edits._keep

    def counted(self: making.Edits, *given: Any) -> None:
        found.append(1)
        keep(self, *given)

    monkeypatch.setattr(making.Edits, "_keep", counted)
    return found


def run(words: list[str], folder: Path, *more: str) -> dict[str, Any]:
    assert cli.main([*words, "--output", str(folder / "out"), "--json", str(folder / "e.json"), *more]) == 0
    found: dict[str, Any] = json.loads((folder / "e.json").read_text())["cases"]["images"]
    return found


@pytest.mark.usefixtures("fake_lpips")
def test_the_numbers_are_those_of_the_files(
    words: list[str], drawn: Path, judges: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(words, tmp_path, "--grid", str(tmp_path / "g.png"), "--grid-rows", "2")
    out = " ".join(capsys.readouterr().out.split())
    assert "LPIPS, background" in out and "whole image" not in out and f"'{SOURCE}' to '{TARGET}'" in out
    assert found["lpips_region"] == "background" and set(found["methods"]) == set(METHODS)
    assert (found["add"], found["remove"]) == ("blue square", "red circle")
    clip, dino = Clip.load(str(judges[0])), Dino.load(str(judges[1]))
    target, source = clip.texts([TARGET, SOURCE]).astype(np.float64)
    sizes, accuracy, means = set(), {}, {}
    for method in METHODS:
        hits, backgrounds = [], []
        for i in range(COUNT):
            after = Image.open(tmp_path / "out" / "images" / "images" / method / f"{i}.png")
            before = load_image(drawn / "images" / f"{i}.png", after.size)
            outside = ~load_object(drawn / "masks" / f"{i}.png", after.size)
            values = found["each"][i][method]
            direction = clip.images([after])[0].astype(np.float64)
            # Float32 directions, in batches of other sizes.
            assert values["clip_target"] == pytest.approx(direction @ target, abs=1e-5)
            assert values["clip_source"] == pytest.approx(direction @ source, abs=1e-5)
            assert values["structure"] == pytest.approx(dino.distances([before], [after])[0], rel=1e-5)
            difference = abs(np.asarray(before, np.float64) - np.asarray(after)).mean(-1) / 127.5
            assert values["lpips"] == pytest.approx(difference[outside].mean(), rel=1e-5)
            hits.append(values["clip_target"] > values["clip_source"])
            backgrounds.append(values["lpips"])
            sizes.add(after.size)
        accuracy[method], means[method] = np.mean(hits), np.mean(backgrounds)
        assert found["methods"][method]["clip_accuracy"] == pytest.approx(accuracy[method])
        assert found["methods"][method]["lpips"] == pytest.approx(means[method])
        assert found["methods"][method]["seconds_per_image"] > 0
    for method in METHODS[1:]:
        paired = found["compared"][method]
        assert paired["clip_accuracy"]["difference"] == pytest.approx(accuracy[method] - accuracy["swap"])
        assert (
            paired["lpips"]["difference"] == pytest.approx(means[method] - means["swap"]) and paired["lpips"]["n"] == 3
        )
    assert len(sizes) == 1 and "swap" not in found["compared"]
    # The methods make different images.
    assert len({found["each"][0][method]["structure"] for method in METHODS}) == 3
    assert Image.open(tmp_path / "g.png").size[0] > 4 * 192


def test_an_interrupted_run_continues(
    words: list[str], tmp_path: Path, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [*words, "--methods", "swap", "ebcq"]
    keep = making.Edits._keep

    def interrupted(self: making.Edits, *given: Any) -> None:
        if len(made) == 3:
            raise KeyboardInterrupt
        keep(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(making.Edits, "_keep", interrupted)
        assert cli.main([*few, "--output", str(tmp_path / "out")]) == 130
    assert len(made) == 3
    whole = run(few, tmp_path)
    assert len(made) == 2 * COUNT
    # Nothing is left to do.
    assert run(few, tmp_path)["each"] == whole["each"] and len(made) == 2 * COUNT
    # A damaged image, a lost one, and a line of the journal that was cut off are made again.
    folder, journal = tmp_path / "out" / "images" / "images" / "swap", tmp_path / "out" / "journal.jsonl"
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:-20])
    (folder / "1.png").unlink()
    lines = journal.read_text().splitlines()
    edited = next(i for i, line in enumerate(lines) if "ebcq" in line and "judge" not in line and "2.png" in line)
    journal.write_text("\n".join([*lines[:edited], lines[edited][:40], *lines[edited + 1 :]]) + "\n")
    again = run(few, tmp_path)
    assert len(made) == 2 * COUNT + 3
    for before, after in zip(whole["each"], again["each"], strict=True):
        for method in ("swap", "ebcq"):
            # A batch of another size may round differently.
            assert after[method]["structure"] == pytest.approx(before[method]["structure"], abs=1e-3)


def test_settings_are_not_mixed(
    words: list[str], tmp_path: Path, made: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    one = [*words, "--count", "1", "--methods", "ebcq"]
    run(one, tmp_path)
    # An image or method more is no other setting.
    run([*words, "--count", "2", "--methods", "ebcq-update"], tmp_path)
    assert len(made) == 2 + 1 + 1 + 2 - 1
    for more, what in (
        (["--steps", "4"], "steps"),
        (["--no-regularize"], "regularize"),
        (["--alpha", "0.1"], "case 'images'"),
        (["--target", "a red square"], "case 'images'"),
    ):
        assert cli.main([*one, "--output", str(tmp_path / "out"), *more]) == 1
        assert f"holds results of other settings ({what})" in capsys.readouterr().err


def test_without_lpips_or_masks_it_is_said(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without = [word for word in words if word != "--masks" and not word.endswith("masks")]
    with monkeypatch.context() as patch:
        patch.setattr(lpips, "find_spec", lambda _: None)
        found = run([*without, "--count", "1", "--methods", "swap"], tmp_path)
        shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and 'pip install "ebca[lpips]"' in shown.err and "LPIPS," not in shown.out
    assert "lpips" not in found["methods"]["swap"] and found["lpips_region"] is None
    (tmp_path / "lpips.py").write_text(FAKE_LPIPS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lpips", raising=False)
    # The column comes later, without editing again.
    images = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "images").rglob("*.png")}
    found = run([*without, "--count", "1", "--methods", "swap"], tmp_path)
    out = capsys.readouterr().out
    assert "LPIPS, whole image" in out and "There are no masks" in out and found["lpips_region"] == "whole image"
    assert images == {file: file.stat().st_mtime_ns for file in images} and found["methods"]["swap"]["lpips"] > 0


def test_cases_of_a_file(
    words: list[str], drawn: Path, tmp_path: Path, made: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"name": "a", "images": str(drawn / "images"), "source": SOURCE, "target": TARGET}
    other = {**entry, "name": "b", "recipe": "horse-zebra", "add": "blue", "remove": None}
    file = tmp_path / "cases.json"
    file.write_text(json.dumps([entry, other]), encoding="utf-8")
    start = words.index("--images")
    command = [*words[:start], *words[start + 8 :], "--cases", str(file), "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--estimate"]) == 0 and not (tmp_path / "out").exists()
    # Of each image two inversions of 2 evaluations, and three generations of 3.
    out = capsys.readouterr().out
    assert "6 images, 3 methods: 24 evaluations of one row" in out and "and 54 of two rows" in out
    result = tmp_path / "c.json"
    assert cli.main([*command, "--count", "1", "--methods", "ebcq", "--json", str(result)]) == 0
    data = json.loads(result.read_text())["cases"]
    assert (data["b"]["add"], data["b"]["remove"]) == ("blue", None) and len(made) == 4
    assert data["b"]["recipe"]["alpha"] == [0.6, 0.5] and data["a"]["recipe"]["alpha"] == [0.75, 0.65]
    for entries, message in (
        ([], "is no list of cases"),
        ([{"name": "a"}], "case 1 of .* has no 'images'"),
        ([{**entry, "size": "1"}], "has 'size'"),
        ([{**entry, "target": ""}], "'target' of case 1 .* is ''"),
        ([entry, entry], "the same name"),
        ([{**entry, "name": "../a"}], "cannot be the name of a folder"),
        ([{**entry, "recipe": "cow"}], "no recipe 'cow'"),
    ):
        file.write_text(json.dumps(entries), encoding="utf-8")
        assert cli.main(command) == 1
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1 and re.search(message, shown), shown


def test_wrong_commands_are_one_line(
    words: list[str], drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "white").mkdir()
    (tmp_path / "small").mkdir()
    Image.new("L", (64, 64)).save(tmp_path / "empty" / "9.png")
    for i in range(COUNT):
        Image.new("L", (96, 64), 255).save(tmp_path / "white" / f"{i}.png")
        Image.new("L", (64, 64)).save(tmp_path / "small" / f"{i}.png")
    for more, message in (
        (["--clip", "nobody/clip"], "cannot load the CLIP model 'nobody/clip'"),
        (["--dino", "nobody/dino"], "cannot load the DINO ViT 'nobody/dino'"),
        (["--images", str(tmp_path / "none")], "there is no folder"),
        (["--masks", str(tmp_path / "empty")], "'0.png' has no mask"),
        (["--masks", str(tmp_path / "white")], "leaves no background"),
        (["--masks", str(tmp_path / "small")], "has 64 x 64 pixels and its image 96 x 64"),
        (["--alpha", "1", "2", "3"], "3 values of alpha"),
        (["--steps", "1"], "steps are 1"),
        (["--count", "0"], "--count is 0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--cases", "a.json"], "exclude each other"),
        (["--source", ""], "--source is missing"),
    ):
        assert cli.main([*words, "--output", str(tmp_path / "out"), *more]) == 1
        shown = [line for line in capsys.readouterr().err.splitlines() if "LPIPS is left out" not in line]
        assert len(shown) == 1 and message in shown[0], shown
    assert not (tmp_path / "out").exists()


def test_prompts_and_edits_are_the_authors() -> None:
    assert prompts("a cat", "a dog") == ("dog", "cat") and prompts("a brown horse", "zebra") == ("zebra", "brown horse")
    assert prompts("a cat", "a cat with glasses") == ("cat with glasses", None)
    recipe = RECIPES["cat-dog"]
    add, remove = recipe.edits("dog", "cat", update=True)
    assert (add.prompt, add.direction, add.alpha) == ("dog", 1, Schedule.step(0.75, 0.5))
    assert (remove.prompt, remove.direction, remove.gamma_norm) == ("cat", 0, Schedule.step(5e-4, 0.5))
    assert all(edit.gamma_attn == edit.gamma_norm == 0 for edit in recipe.edits("dog", "cat", update=False))
    assert recipe.replaced(alpha=[0.2], tau=[0.1, 0.3]).alpha == (0.2, 0.2)
    with pytest.raises(ParameterError, match="0 values"):
        recipe.replaced(alpha=[])


def test_swap_has_no_edits_and_ebcq_the_source_on_both_sides(drawn: Path) -> None:
    case = make_case({"name": "a", "images": drawn / "images", "source": SOURCE, "target": TARGET})
    assert texts(case, "swap", 2) == {"prompt": [TARGET] * 2}
    found = texts(case, "ebcq", 1)
    assert found["prompt"] == found["negative_prompt"] == [SOURCE] and len(found["edits"]) == 2


def test_a_swap_is_an_inversion_and_a_generation(
    words: list[str], drawn: Path, tmp_path: Path, engine: ebca.Engine
) -> None:
    run([*words, "--count", "1", "--methods", "swap"], tmp_path)
    after = np.asarray(Image.open(tmp_path / "out" / "images" / "images" / "swap" / "0.png"), int)
    with engine.session() as session:
        before = load_image(drawn / "images" / "0.png", (session.width, session.height))
        found = session.invert(before, SOURCE, steps=3)
        made = session.generate(TARGET, latents=found.latents, steps=3, scheduler="ddim", guidance_scale=2.0)
    # The same call, so the same bits.
    assert (np.asarray(made.images[0], int) == after).all()
