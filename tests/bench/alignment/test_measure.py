"""The complete benchmark on the bundled model: images, comparison, output and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebca.bench import cli
from ebca.bench.alignment.detector import OUTCOMES
from ebca.bench.alignment.effects import effects
from ebca.bench.alignment.measure import Method, Settings, measure
from ebca.errors import CancelledError, ParameterError
from ebca.runtime.engine import Engine

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
    assert cli.main([*argv, "--json", str(tmp_path / "a.json"), "--grid", str(tmp_path / "a.png")]) == 0
    out = capsys.readouterr().out
    assert "relation holds" in out and "contexts moved" in out
    data = json.loads((tmp_path / "a.json").read_text())
    assert set(data["kinds"]) == {"one", "relation"} == set(data["effects"])
    relation = data["kinds"]["relation"]
    assert len(relation["pictures"]) == 3
    for image in relation["pictures"]:
        assert all(outcome in OUTCOMES for name in ("base", "ebcu") for outcome in image[name]["outcomes"])
    paired = relation["compared"]["ebcu"]["all"]
    assert paired["n"] == 3 and paired["low"] <= paired["difference"] <= paired["high"]
    assert Image.open(tmp_path / "a.png").size[0] >= 2 * 128


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
    assert cli.main(["alignment", "--engine", "shapez"]) == 1
    assert "bundled one: shapes" in capsys.readouterr().err
