"""The complete benchmark on the bundled model, with tiny judges."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers.judges import one_thread, write_captioner, write_clip
from PIL import Image

from ebca.bench import cli
from ebca.bench.alignment.methods import Method
from ebca.bench.ane.folder import Folder
from ebca.bench.ane.measure import Settings, measure, missing
from ebca.bench.ane.prompts import Prompt, parse
from ebca.bench.ane.scores import MEASURES, TEMPLATES, Judge, Score
from ebca.bench.judges.captioner import Captioner
from ebca.bench.judges.clip import Clip
from ebca.errors import CancelledError, ParameterError
from ebca.runtime.engine import Engine

WORDS = (
    *("a", "an", "and", "red", "blue", "green", "yellow", "circle", "square", "star", "triangle"),
    *("photo", "image", "of", "drawing", "painting", "good", "bad"),
)
TEXTS = ["a red circle and a blue square", "a green star and a yellow triangle"]
PROMPTS = {"objects": [parse("objects", text) for text in TEXTS]}
METHODS = (Method("base"), Method("exclusive", subjects=True))
QUICK = Settings(seeds=3, steps=2, batch=2)


class Models(NamedTuple):
    """Folders."""

    clip: str
    captioner: str


@pytest.fixture(autouse=True, scope="module")
def few_threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    return Models(str(write_clip(folder / "clip", WORDS)), str(write_captioner(folder / "blip", WORDS)))


@pytest.fixture(scope="module")
def judge(models: Models) -> Judge:
    clip, captioner = Clip.load(models.clip), Captioner.load(models.captioner)
    return Judge(lambda: clip, lambda: captioner.captions)


class Counting(Judge):
    """Scores by pixels, and counts images."""

    def __init__(self) -> None:
        self.count = 0

    def scores(self, prompt: Prompt, images: Sequence[Image.Image]) -> list[Score]:
        self.count += len(images)
        means = [np.asarray(image, float).mean((0, 1)) / 255 for image in images]
        return [Score(*map(float, mean), caption=float(mean.mean()), text=prompt.text) for mean in means]


def test_scores_are_those_of_the_formulas(models: Models, judge: Judge) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(2)]
    clip, captions = Clip.load(models.clip), Captioner.load(models.captioner).captions(images)
    prompt = PROMPTS["objects"][0]
    directions = []
    for text in (prompt.text, "a red circle", "a blue square"):
        mean = np.mean([clip.texts([t.format(text)])[0].astype(np.float64) for t in TEMPLATES], axis=0)
        directions.append(mean / np.linalg.norm(mean))
    for image, caption, score in zip(images, captions, judge.scores(prompt, images), strict=True):
        seen, said = clip.images([image])[0].astype(np.float64), clip.texts([caption])[0].astype(np.float64)
        full, first, second = (float(seen @ direction) for direction in directions)
        # The networks compute in float32, and batches of other sizes round differently.
        assert score.full == pytest.approx(full, abs=1e-5) and score.minimum == pytest.approx(
            min(first, second), abs=1e-5
        )
        assert score.caption == pytest.approx(float(said @ directions[0]), abs=1e-5) and score.text == caption
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 20


def test_a_record_that_is_damaged_is_no_score() -> None:
    record = Score(0.1, 0.2, 0.3, 0.4, "a cat").to_json()
    assert Score.of(record) == Score(0.1, 0.2, 0.3, 0.4, "a cat")
    for wrong in (None, [], {}, record | {"full": "1"}, record | {"first": float("nan")}, record | {"more": 1}):
        assert Score.of(wrong) is None


def test_an_interrupted_run_continues(engine: Engine, tmp_path: Path) -> None:
    """Nothing that is done is done again, and damaged lines are."""
    whole = measure(engine, Counting(), Folder(None), METHODS, PROMPTS, QUICK)
    first = Counting()
    with pytest.raises(CancelledError, match="after 5 of 12"):
        measure(engine, first, Folder(tmp_path), METHODS, PROMPTS, QUICK, lambda done, *_: done < 5)
    assert first.count == 5 and missing(Folder(tmp_path), METHODS, PROMPTS, QUICK) == 7
    second, told = Counting(), []
    again = measure(
        engine, second, Folder(tmp_path), METHODS, PROMPTS, QUICK, lambda done, total, _: told.append((done, total))
    )  # fmt: skip
    assert second.count == 7 and told[-1] == (7, 7)
    for name in ("base", "exclusive"):
        # A pixel may move by one step of 255: batches of another size round differently.
        np.testing.assert_allclose(again.values["objects"][name], whole.values["objects"][name], atol=1 / 255)
    assert abs(whole.values["objects"]["base"] - whole.values["objects"]["exclusive"]).max() > 0

    file = tmp_path / "scores.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"full":', b'"fu\xff":')
    lines[4] = lines[4].replace(b'"full":', b'"ful":')
    file.write_bytes(b"".join(lines)[:-20])
    images = sorted((tmp_path / "images" / "base").rglob("*.png"))
    before = [image.stat().st_mtime_ns for image in images]
    third = Counting()
    repaired = measure(engine, third, Folder(tmp_path), METHODS, PROMPTS, QUICK)
    assert third.count == 3 and [image.stat().st_mtime_ns for image in images] == before
    for name in ("base", "exclusive"):
        np.testing.assert_array_equal(repaired.values["objects"][name], again.values["objects"][name])


def test_a_damaged_image_is_made_again(engine: Engine, tmp_path: Path) -> None:
    settings = Settings(seeds=1, steps=2)
    folder = Folder(tmp_path)
    made = measure(engine, Counting(), folder, METHODS[:1], PROMPTS, settings)
    (file, _) = sorted(tmp_path.rglob("*.png"))
    file.write_bytes(file.read_bytes()[:200])
    (tmp_path / "scores.jsonl").unlink()
    again = measure(engine, Counting(), Folder(tmp_path), METHODS[:1], PROMPTS, settings)
    np.testing.assert_array_equal(made.values["objects"]["base"], again.values["objects"]["base"])
    assert folder.image(METHODS[0], PROMPTS["objects"][1], 0) is not None


def test_settings_are_not_mixed(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.guard({"steps": 2}, {"base": {"gamma": (0, 1)}})
    folder.guard({"steps": 2}, {"base": {"gamma": (0, 1)}, "ebcu": {"gamma": 1}})
    folder.guard({"steps": 2}, {"base": {"gamma": (0, 1)}})
    with pytest.raises(ParameterError, match=r"holds results of steps 2, not 3; give another --output"):
        folder.guard({"steps": 3}, {})
    with pytest.raises(ParameterError, match=r"holds results of ebcu: gamma 1, not 2"):
        folder.guard({"steps": 2}, {"ebcu": {"gamma": 2}})
    folder.add(METHODS[0], PROMPTS["objects"][0], 0, Score(0.1, 0.2, 0.3, 0.4, ""))
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ParameterError, match="does not say how the results beside it were made"):
        Folder(tmp_path).guard({"steps": 2}, {})


def test_prompts_compare_as_single_cases(engine: Engine) -> None:
    scores = measure(engine, Counting(), Folder(None), METHODS, PROMPTS, QUICK)
    paired = scores.compared("objects", "exclusive")["full"]
    base, other = (scores.values["objects"][name][0].mean(1) for name in ("base", "exclusive"))
    assert paired.n == 2 and paired.difference == pytest.approx(float((other - base).mean()))
    # With two cases, a bootstrap mean is one of both differences or their mean.
    assert paired.low == pytest.approx((other - base).min()) and paired.high == pytest.approx((other - base).max())


def command(models: Models, tmp_path: Path) -> list[str]:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"objects": TEXTS}))
    judges = ["--clip", models.clip, "--captioner", models.captioner]
    sizes = ["--seeds", "1", "--steps", "2", "--batch-size", "1"]
    return ["ane", "--engine", "shapes", "--backend", "onnxruntime", "--prompts", str(file), *judges, *sizes]


def test_the_command_writes_everything(models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*command(models, tmp_path), "--methods", "exclusive", "ebcu", "--output", str(tmp_path / "out")]
    argv += ["--json", str(tmp_path / "a.json"), "--grid", str(tmp_path / "a.png"), "--thing-upweight", "2"]
    assert cli.main([*argv, "--gamma-attn", "0.02"]) == 0
    out = capsys.readouterr().out
    assert re.match(r"6 images at [0-9.e-]+ s: about ", out) and "image and worse half" in out
    data = json.loads((tmp_path / "a.json").read_text())
    entry = data["subsets"]["objects"]
    assert list(entry["methods"]) == ["base", "ebcu", "exclusive"] and set(entry["compared"]) == {"ebcu", "exclusive"}
    assert set(entry["methods"]["base"]) == set(MEASURES) and data["settings"]["clip"] == models.clip
    mean = np.mean([prompt["ebcu"]["full"] for prompt in entry["prompts"]])
    assert entry["methods"]["ebcu"]["full"] == pytest.approx(mean) and len(entry["prompts"]) == 2
    assert Image.open(tmp_path / "a.png").size[0] > 3 * 256
    assert (tmp_path / "out" / "images" / "exclusive" / TEXTS[0] / "0.png").exists()
    # The same again makes nothing, and does not even load the judges.
    journal = (tmp_path / "out" / "scores.jsonl").read_text()
    assert cli.main([*argv, "--gamma-attn", "0.02", "--estimate"]) == 0
    assert capsys.readouterr().out == "0 images are left\n"
    assert cli.main([*argv, "--gamma-attn", "0.02"]) == 0 and (tmp_path / "out" / "scores.jsonl").read_text() == journal
    assert cli.main([*argv, "--gamma-attn", "0.03"]) == 1
    assert "holds results of ebcu: gamma_attn" in capsys.readouterr().err


def test_the_estimate(models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["ane", "--engine", "shapes", "--estimate"]
    assert cli.main([*argv, "--seconds-per-image", "0.42"]) == 0
    # 276 prompts, 64 seeds, two methods.
    assert capsys.readouterr().out.startswith("35,328 images at 0.42 s: about 4.1 hours")
    assert cli.main([*argv, "--backend", "onnxruntime", "--limit", "1", "--steps", "1", "--batch-size", "1"]) == 0
    assert re.match(r"384 images at [0-9.]+ s: about [0-9.]+ (seconds|minutes)", capsys.readouterr().out)


def test_wrong_commands_are_one_line(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    argv = command(models, tmp_path)
    for more, text in (
        (["--clip", "nobody/has-this-model"], "cannot load the CLIP model 'nobody/has-this-model'"),
        (["--captioner", models.clip], "is no captioner but of the type 'clip'"),
        (["--judge-device", "cuda:99"], "cannot use the device 'cuda:99'"),
        (["--grid", str(tmp_path / "a.png")], "--grid shows images, which are not kept"),
        (["--seconds-per-image", "0"], "--seconds-per-image is 0; give"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--subset", "animals"], "no subset 'animals'"),
    ):
        assert cli.main([*argv, *more]) == 1
        err = capsys.readouterr().err
        assert text in err and err.startswith("ebca-bench") and err.count("\n") == 1, err
    monkeypatch.setattr("ebca.bench.judges.loading.find_spec", lambda name: None)
    assert cli.main(argv) == 1
    assert 'needs torch, transformers, scipy; run `pip install "ebca[bench]"`' in capsys.readouterr().err
