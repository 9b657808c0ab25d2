"""The study with one image of each cell: it writes every part, continues, and stops in time."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
import torch

from ebca.bench.alignment.journal import Journal
from ebca.bench.alignment.rivals import cli as rivals
from ebca.bench.alignment.rivals.cells import Cell, petaflop
from ebca.bench.alignment.rivals.model import Model
from ebca.bench.alignment.rivals.readers import Readers
from ebca.bench.alignment.rivals.runner import Runner
from ebca.bench.alignment.rivals.sampler import Sampling
from ebca.bench.alignment.rivals.search import best, search_cells
from ebca.bench.alignment.study import cli as study
from ebca.bench.alignment.study.parts import Study
from ebca.bench.alignment.study.plan import PARTS, Plan
from ebca.errors import ParameterError

QUICK = Sampling("ddim", 2)
PLAN = Plan(
    search_count=1,
    search_kinds=("two", "relation"),
    search=QUICK,
    held_out_count=1,
    held_out_kinds=("one", "three"),
    held_out=(QUICK, Sampling("pndm", 2, 7.5)),
    rival_search_count=1,
    rival_kinds=("three",),
    timed_images=(1,),
    rounds=1,
    grids={
        "exclusive": ({}, {"away": 2.0}),
        "attend-and-excite": ({"refinements": 1},),
        "attention-regulation": ({"iterations": 2},),
        "oracle": ({}, {"territory": False}),
    },
)


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    with Readers(1) as made:
        yield made


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Model()
    torch.set_num_threads(threads)


def test_every_part_is_written_and_the_second_run_computes_nothing(
    model: Model, readers: Readers, tmp_path: Path
) -> None:
    done: list[Cell] = []
    file = tmp_path / "progress.jsonl"

    def run() -> dict[str, dict]:
        runner = Runner(model, readers, Journal(file), on_cell=lambda cell, *_: done.append(cell))
        assert Study(runner, PLAN, tmp_path).run()
        return {part: json.loads((tmp_path / f"{part}.json").read_text()) for part in PARTS}

    first = run()
    made = len(done)
    assert all(part["complete"] for part in first.values())
    assert made == len({cell["kind"] + str(cell) for part in first.values() for cell in part["cells"]})
    held_out = first["held-out"]["cells"]
    assert len(held_out) == 2 * 2 * 4 and {cell["seed"] for cell in held_out} == {20_000}
    exclusive = next(cell for cell in held_out if cell["method"] == "exclusive")
    assert exclusive["compared"]["all"]["n"] == 1 and exclusive["settings"] == first["held-out"]["exclusive"]
    # A single thing has no other subject.
    assert exclusive["kind"] == "one" and exclusive["compared"]["exact"]["difference"] == 0
    assert set(first["rivals"]["seconds_per_image"]["1"]) == {
        "base", "exclusive", "attend-and-excite", "attention-regulation"
    }  # fmt: skip
    second = run()
    assert len(done) == made
    assert second["development"] == first["development"] and second["ceiling"] == first["ceiling"]


def test_no_cell_is_begun_after_the_limit(model: Model, readers: Readers, tmp_path: Path) -> None:
    runner = Runner(model, readers, Journal(None), until=0.0)
    assert not Study(runner, PLAN, tmp_path).run(["development", "rivals"])
    report = json.loads((tmp_path / "development.json").read_text())
    assert report["cells"] == [] and not report["complete"] and report["exclusive"] == {}


def test_the_best_setting_has_most_correct_images() -> None:
    from ebca.bench.alignment.detector import Reading
    from ebca.bench.alignment.journal import key

    cells = search_cells("exclusive", ["two"], 2, QUICK, [{"away": 1.0}, {"away": 2.0}, {"away": 3.0}])
    right, extra = Reading(("present", "present"), 2), Reading(("present", "present"), 3)
    found = {key(cell.facts()): [right, extra] for cell in cells[:2]}
    assert best(cells, found, "exclusive") == {"away": 1.0}
    found[key(cells[2].facts())] = [right, right]
    # The third setting is not finished.
    assert best(cells, found, "exclusive") == {"away": 2.0}
    assert best(cells, {}, "exclusive") is None


def test_the_estimate_counts_rows() -> None:
    cell = Cell("base", "two", "development", 1000, sampling=Sampling("pndm", 50))
    assert petaflop([cell]) == pytest.approx(1000 * 2 * 51 * 0.403e-6)


def test_the_command_compares_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--methods", "exclusive", "oracle", "--kinds", "two", "--count", "1", "--steps", "2", "--workers", "1"]
    assert rivals.main([*argv, "--json", str(tmp_path / "a.json")]) == 0
    assert "gained / lost" in capsys.readouterr().out
    methods = [cell["method"] for cell in json.loads((tmp_path / "a.json").read_text())["cells"]]
    assert methods == ["base", "exclusive", "oracle"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--settings", "grid"], "grid of settings is tried on held-out"),
        (["--settings", "{"], "--settings is not JSON"),
        (["--settings", '{"exclusive": {"lambda": 1}}'], "wrong settings of exclusive"),
        (["--count", "0"], "--count is 0"),
        (["--steps", "0"], "steps is 0"),
    ],
)
def test_wrong_commands_are_refused(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rivals.main(argv) == 1
    assert message in capsys.readouterr().err


def test_the_study_says_how_much_there_is_to_compute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main(["--output", str(tmp_path), "--estimate"]) == 0
    assert "PFLOP" in capsys.readouterr().out and list(tmp_path.iterdir()) == []
    assert study.plan_of(8).held_out_count == 8
    with pytest.raises(ParameterError, match="--count is 0"):
        study.plan_of(0)
    assert replace(PLAN, seed=1).held_out_cells({})[0].seeds == [1]
