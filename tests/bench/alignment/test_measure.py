"""The complete benchmark on the bundled model: images, comparison, output and refusals."""

import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebca.bench import cli
from ebca.bench.alignment.detector import OUTCOMES
from ebca.bench.alignment.effects import effects
from ebca.bench.alignment.journal import Journal
from ebca.bench.alignment.measure import Method, Settings, arguments, measure
from ebca.bench.alignment.scenes import parse
from ebca.errors import CancelledError, ParameterError
from ebca.runtime.engine import Engine
from ebca.runtime.session import Session

QUICK = Settings(kinds=("two",), count=4, steps=4, batch=3)


def test_equal_methods_make_equal_images(engine: Engine) -> None:
    alignment = measure(engine, (Method("base"), Method("same")), QUICK, keep_images=4)
    base, same = (alignment.results[name]["two"] for name in ("base", "same"))
    assert base.seeds == [0, 1, 2, 3] and base.scenes == same.scenes
    np.testing.assert_array_equal(base.images, same.images)
    for name in alignment.measures("two"):
        paired = alignment.compared("same", "two", name)
        assert (paired.gained, paired.lost, paired.difference, paired.p_value) == (0, 0, 0, 1)


def test_images_do_not_depend_on_the_batch(engine: Engine) -> None:
    one = measure(engine, (Method("base"),), Settings(kinds=("one",), count=3, steps=4, batch=1), keep_images=3)
    all_ = measure(engine, (Method("base"),), Settings(kinds=("one",), count=3, steps=4, batch=3), keep_images=3)
    a, b = (np.array(found.results["base"]["one"].images, int) for found in (one, all_))
    # Sums of other lengths round differently; a pixel may move by one step of 255.
    assert abs(a - b).max() <= 1


def test_gammas_and_word_weights_change_images(engine: Engine) -> None:
    methods = (Method("base"), Method("a", 0.05), Method("b", 0.05, thing_weight=0.5), Method("c", 0.0, 0.05))
    alignment = measure(engine, methods, QUICK, keep_images=4)
    images = [np.array(alignment.results[m.name]["two"].images, int) for m in methods]
    for i in range(4):
        for j in range(i):
            assert abs(images[i] - images[j]).max() > 0


def test_effects_show_how_far_contexts_move(engine: Engine) -> None:
    found = effects(engine, (Method("base"), Method("ebcu", 0.02), Method("strong", 0.04)), QUICK)["two"]
    assert found["base"].context_change == 0
    # The first order of small steps.
    assert found["strong"].context_change == pytest.approx(2 * found["ebcu"].context_change, rel=0.2)
    assert len(found["base"].attention) == len(engine.manifest.unet.layers) == len(found["base"].norm)


def test_the_callback_can_cancel(engine: Engine) -> None:
    with pytest.raises(CancelledError, match="after 3 of 8"):
        measure(engine, (Method("a"), Method("b")), QUICK, on_images=lambda *_: False)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"split": "all"}, "split"), ({"kinds": ("four",)}, "kind 'four'"), ({"count": 0}, "count is 0")],
)
def test_wrong_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Settings(**change)  # type: ignore[arg-type]


def test_the_command_writes_json_and_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["alignment", "--engine", "shapes", "--backend", "onnxruntime", "--kinds", "one", "relation"]
    argv += ["--count", "3", "--steps", "4", "--gamma-attn", "0.02", "--effects", "--grid-rows", "2"]
    argv += ["--methods", "base", "ebcu"]
    assert cli.main([*argv, "--json", str(tmp_path / "a.json"), "--grid", str(tmp_path / "a.png")]) == 0
    out = capsys.readouterr().out
    assert "relation holds" in out and "contexts moved" in out
    (data,) = json.loads((tmp_path / "a.json").read_text())["runs"]
    assert not (tmp_path / "a.json.progress").exists()
    assert set(data["kinds"]) == {"one", "relation"} == set(data["effects"])
    relation = data["kinds"]["relation"]
    assert len(relation["images"]) == 3
    for image in relation["images"]:
        assert all(outcome in OUTCOMES for name in ("base", "ebcu") for outcome in image[name]["outcomes"])
    paired = relation["compared"]["ebcu"]["all"]
    assert paired["n"] == 3 and paired["low"] <= paired["difference"] <= paired["high"]
    assert Image.open(tmp_path / "a.png").size[0] >= 2 * 128
    assert cli.main(["alignment", "--markdown", str(tmp_path / "a.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| prompts | sampling |") and lines[1].startswith("| --- |")
    assert sum("| relation (3) | ddim 4 | relation holds | ebcu |" in line for line in lines) == 1


def test_several_schedulers_and_scales_are_one_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["alignment", "--backend", "onnxruntime", "--kinds", "one", "--count", "1", "--methods", "base", "ebcu"]
    argv += ["--scheduler", "ddim", "pndm", "--steps", "ddim:2", "pndm:3", "--guidance-scale", "4", "7.5"]
    assert cli.main([*argv, "--json", str(tmp_path / "a.json")]) == 0
    runs = json.loads((tmp_path / "a.json").read_text())["runs"]
    sampled = [tuple(run["settings"][name] for name in ("scheduler", "steps", "guidance_scale")) for run in runs]
    assert sampled == [("ddim", 2, 4.0), ("ddim", 2, 7.5), ("pndm", 3, 4.0), ("pndm", 3, 7.5)]
    assert "pndm 3, guidance 7.5" in capsys.readouterr().out


def test_an_interrupted_run_continues(engine: Engine) -> None:
    journal, names = Journal(None), []
    methods = (Method("base"), Method("ebcu", 0.02))

    def stop(done: int, total: int, name: str) -> bool:
        return done < 5

    with pytest.raises(CancelledError):
        measure(engine, methods, QUICK, on_images=stop, journal=journal)
    made = len(journal)
    again = measure(engine, methods, QUICK, on_images=lambda *told: names.append(told[0]), journal=journal)
    assert 0 < made < len(journal) == 4 and names == [3, 6, 7, 8]
    whole = measure(engine, methods, QUICK)
    for name in ("base", "ebcu"):
        assert again.results[name]["two"].readings == whole.results[name]["two"].readings
        assert again.results[name]["two"].digests == whole.results[name]["two"].digests
    assert again.identical("ebcu", "two") == 0 and again.identical("base", "two") == 4
    # Pixels are not in the journal.
    kept = measure(engine, methods, QUICK, keep_images=1, journal=journal)
    assert len(kept.results["base"]["two"].images) == 1


def test_subjects_are_the_things_of_the_prompt(engine: Engine) -> None:
    scenes = [parse("a red circle and a blue star"), parse("a cyan heart left of a pink cross")]
    method = Method("exclusive", subjects=True, subject_window=0.2)
    found = arguments(engine, method, scenes, [0, 1], QUICK)
    assert found["subjects"] == [["red circle", "blue star"], ["cyan heart", "pink cross"]]
    assert found["subject_window"] == 0.2 and "subject_exclusion" not in found
    assert "subjects" not in arguments(engine, Method("base"), scenes, [0, 1], QUICK)


@pytest.mark.skipif(
    "subjects" not in inspect.signature(Session.generate).parameters, reason="this runtime does not take subjects"
)
def test_subjects_change_images_of_two_things_only(engine: Engine) -> None:
    settings = replace(QUICK, kinds=("one", "two"))
    alignment = measure(engine, (Method("base"), Method("exclusive", subjects=True)), settings)
    assert alignment.identical("exclusive", "one") == 4 and alignment.identical("exclusive", "two") < 4


def test_another_model_is_refused(tiny_engine_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["alignment", "--engine", str(tiny_engine_dir), "--count", "1"]) == 1
    assert "makes images of 128 x 128" in capsys.readouterr().err


def test_without_scipy_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plain `pip install ebca` used to end in a traceback here."""
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert cli.main(["alignment"]) == 1
    assert capsys.readouterr().err.startswith("ebca-bench: error: reading images needs scipy")


def test_wrong_commands_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["alignment", "--count", "0"]) == 1
    assert "count is 0" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert cli.main(["alignment", "--json", str(tmp_path / "file" / "a.json")]) == 1
    assert "cannot be written: Not a directory" in capsys.readouterr().err
    assert cli.main(["alignment", "--json", "a.png", "--grid", "./a.png"]) == 1
    assert "--grid 'a.png' is the same file as --json 'a.png'" in capsys.readouterr().err
    for steps in (["x"], ["ddim:5", "pndm:5"], ["5", "6"]):
        assert cli.main(["alignment", "--steps", *steps]) == 1
        assert f"--steps is '{' '.join(steps)}'" in capsys.readouterr().err
    assert cli.main(["alignment", "--markdown", str(tmp_path / "a.json")]) == 1
    assert "cannot read" in capsys.readouterr().err
    (tmp_path / "a.json").write_text("{}")
    assert cli.main(["alignment", "--markdown", str(tmp_path / "a.json")]) == 1
    assert "no report" in capsys.readouterr().err
    assert cli.main(["alignment", "--engine", "shapez"]) == 1
    assert "bundled one: shapes" in capsys.readouterr().err
