"""The complete benchmark on the bundled model: images, comparison, output and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebca.bench import cli
from ebca.bench.alignment.detector import read
from ebca.bench.tasks.cases import EDIT_SHAPE, INPAINT, KINDS, REAL_COLOR
from ebca.bench.tasks.measure import Settings, measure
from ebca.bench.tasks.recipes import FORMS, RECIPES, Editing, Inpainting, Update, Variant, candidates
from ebca.errors import CancelledError, ParameterError
from ebca.runtime.engine import Engine

QUICK_FILL = Inpainting(steps=6, jump_length=2, jump_count=1)


def test_an_edit_with_weight_zero_changes_nothing(engine: Engine) -> None:
    variants = (Variant("nothing", Editing(alpha=0.0)), Variant("update", Editing(alpha=0.0), Update(gamma_attn=0.02)))
    result = measure(engine, lambda kind: variants, Settings(kinds=(EDIT_SHAPE,), count=2, batch=3), keep_images=2)
    found = result.results[EDIT_SHAPE]
    for case, after, updated in zip(found.cases, *(found.attempts[v.name].images for v in variants), strict=True):
        assert read(case.before, case.wish.source).exact
        # Sums of other lengths round differently; a pixel may move by one step of 255.
        assert abs(after.astype(int) - case.before).max() <= 1
        assert abs(updated.astype(int) - case.before).max() > 1
    assert not found.attempts["nothing"].vector("new").any() and found.attempts["nothing"].vector("kept").all()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_edits_the_same_images(engine: Engine, form: str) -> None:
    quick = Editing(form=form, alpha=0.5, tau=0.0, steps=4, guidance_scale=2.0)
    variants = (Variant("a", quick), Variant("b", Editing(alpha=0.0, steps=4, guidance_scale=2.0)))
    result = measure(engine, lambda kind: variants, Settings(kinds=(REAL_COLOR,), count=2), keep_images=2)
    a, b = (result.results[REAL_COLOR].attempts[name].images for name in "ab")
    assert abs(np.array(a, int) - np.array(b, int)).max() > 1
    assert len(result.results[REAL_COLOR].reconstruction) == 2


def test_inpainting_changes_only_the_hole(engine: Engine) -> None:
    variants = (Variant("a", QUICK_FILL), Variant("b", QUICK_FILL, Update(gamma_attn=0.02)))
    result = measure(engine, lambda kind: variants, Settings(kinds=(INPAINT,), count=3, batch=2), keep_images=3)
    found = result.results[INPAINT]
    for name in "ab":
        assert found.attempts[name].vector("outside").all() and found.attempts[name].vector("kept").all()
    assert abs(np.array(found.attempts["a"].images, int) - np.array(found.attempts["b"].images, int)).max() > 0


def test_a_sweep_begins_with_the_recipe_in_use() -> None:
    for kind in KINDS:
        tried = candidates(kind, RECIPES[kind])
        assert tried[0].recipe == RECIPES[kind]
        assert len({variant.name for variant in tried}) == len(tried) == len({(v.recipe, v.update) for v in tried})
        if kind.startswith("edit"):
            assert len({(v.recipe.steps, v.recipe.guidance_scale) for v in tried}) == 1


def test_a_model_that_draws_nothing_is_refused(engine: Engine) -> None:
    with pytest.raises(ParameterError, match=r"only 0 of .* show their caption"):
        measure(
            engine,
            lambda kind: (Variant("a", Editing(steps=1)),),
            Settings(kinds=(EDIT_SHAPE,), count=1, batch=2),
        )


def test_the_callback_can_cancel(engine: Engine) -> None:
    with pytest.raises(CancelledError, match="after 2 of 2"):
        measure(
            engine,
            lambda kind: (Variant("a", QUICK_FILL),),
            Settings(kinds=(INPAINT,), count=2),
            on_images=lambda *_: False,
        )


def test_two_variants_of_the_same_name_are_refused(engine: Engine) -> None:
    with pytest.raises(ParameterError, match="same name"):
        measure(engine, lambda kind: (Variant("a", QUICK_FILL),) * 2, Settings(kinds=(INPAINT,), count=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "all"}, "split"),
        ({"kinds": ("edit size",)}, "no cases 'edit size'"),
        ({"count": 0}, "count is 0"),
        ({"batch": 0}, "batch 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Settings(**change)  # type: ignore[arg-type]


def test_the_command_writes_json_and_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["tasks", "--engine", "shapes", "--backend", "onnxruntime", "--count", "2", "--grid-rows", "1"]
    argv += ["--steps", "12", "--batch-size", "3", "--jump-count", "1", "--gamma-attn", "0.003"]
    assert cli.main([*argv, "--json", str(tmp_path / "t.json"), "--grid", str(tmp_path / "t.png")]) == 0
    out = capsys.readouterr().out
    assert all(f"{kind}: held-out, 2 cases" in out for kind in KINDS) and out.count("PSNR") == 2
    data = json.loads((tmp_path / "t.json").read_text())
    assert tuple(data["kinds"]) == KINDS
    for kind, entry in data["kinds"].items():
        assert len(entry["cases"]) == 2 <= entry["tried"]
        assert set(entry["variants"]) == {"base", "ebcu"}
        base, ebcu = (entry["variants"][name] for name in ("base", "ebcu"))
        assert base["recipe"] == ebcu["recipe"] and base["recipe"]["steps"] == 12
        assert not any(base["update"].values()) and ebcu["update"]["gamma_attn"] == 0.003
        assert 0 <= base["rates"]["success"] <= 1 and base["seconds_per_picture"] > 0
        assert ebcu["compared"]["n"] == 2
        assert ("reconstruction_psnr" in entry) == kind.startswith("real")
    # Of each of five kinds a row; the widest has before, mask, base and ebcu.
    assert Image.open(tmp_path / "t.png").size[0] >= 2 * 4 * 128


def test_a_sweep_prints_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "tasks",
        "--backend",
        "onnxruntime",
        "--count",
        "1",
        "--task",
        "inpaint",
        "--steps",
        "4",
        "--sweep",
        "recipes",
        "updates",
    ]
    assert cli.main([*argv, "--jump-length", "1", "--jump-count", "1", "--split", "development"]) == 0
    out = capsys.readouterr().out
    assert "jump length 5, jump count 3" in out and "gamma norm 0.01" in out
    assert cli.main(argv) == 1
    assert "--split development" in capsys.readouterr().err


def test_another_model_is_refused(tiny_engine_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", "--engine", str(tiny_engine_dir), "--count", "1"]) == 1
    assert "makes images of 128 x 128" in capsys.readouterr().err


def test_wrong_commands_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--count", "0"], "count is 0"),
        (["--json", "/dev/null/a.json"], "--json '/dev/null/a.json' cannot be written: Not a directory"),
        (["--grid", str(tmp_path / "a.gif")], "a.gif' has the suffix '.gif'; name a .png, .jpg or .webp file"),
        (["--engine", "shapez"], "bundled one: shapes"),
        (["--task", "inpaint", "--hole", "63", "--count", "1"], "hole of 63 pixels does not fit"),
        (["--task", "edit", "--alpha", "-1", "--count", "1"], "alpha of editing prompt 1 is negative"),
        (["--task", "edit", "--tau", "2", "--count", "1"], "tau is 2"),
    ):
        assert cli.main(["tasks", "--backend", "onnxruntime", "--batch-size", "1", *words]) == 1
        assert message in capsys.readouterr().err
