"""The tables against the diffusers schedulers they were taken from, and their file layout."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.errors import ExportError, ParameterError  # noqa: E402
from ebca.export import scheduler_tables  # noqa: E402
from ebca.export.checkpoint.defaults import SCHEDULER_CONFIG  # noqa: E402
from ebca.export.scheduler_choice import DEFAULT_NAMES  # noqa: E402
from ebca.export.scheduler_tables import DENSE, SchedulerTables, TableRecord, build_tables  # noqa: E402
from ebca.export.stages.schedulers import write_tables  # noqa: E402

STEPS = [*range(1, 17), 50, 100]
STOCHASTIC = ("ddpm", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde", "lcm", "tcd")


def latents_after(record: TableRecord, i: int, start: np.ndarray, noises: np.ndarray) -> np.ndarray:
    row = record.coefficients[i * (i + 3) // 2 :][: i + 2]
    return row[0] * start.astype(np.float64) + np.tensordot(row[1:], noises[: i + 1].astype(np.float64), axes=1)


@pytest.fixture(scope="module")
def tables() -> SchedulerTables:
    return build_tables(SCHEDULER_CONFIG, STEPS, common_steps=[1, 2, 5, 60])


def test_tables_are_complete(tables: SchedulerTables) -> None:
    assert set(tables.records) == set(DEFAULT_NAMES)
    for name, by_steps in tables.records.items():
        dense = [n for n in STEPS if n > 1 or name != "ddim_inverse"]
        # LCM and TCD have 50 steps to choose from.
        assert list(by_steps) == (dense if name in DENSE else [1, 2, 5] if name in ("lcm", "tcd") else [1, 2, 5, 60])
        for steps, record in by_steps.items():
            m = record.evaluations
            extra = {"pndm": 1 if steps > 1 else 0, "ddim_inverse": -1}.get(name, 0)
            assert m == record.order * steps - (record.order - 1) + extra
            assert record.order == (2 if name.startswith(("heun", "dpmpp_sde")) else 1)
            assert (record.recurrence.fresh > 0) == (name.removesuffix("_karras") in STOCHASTIC)
            assert record.coefficients.shape == (m * (m + 3) // 2,)
            assert record.recurrence.memory == tables.memory(name)
            assert record.input_scale.shape == (m,)


def test_ddim_inverse_is_the_published_formula(tables: SchedulerTables) -> None:
    """At t, r = 1000 // steps: x0 = (x - sqrt(1 - a_t) e) / sqrt(a_t), then to t + r; not the last t."""
    rng = np.random.default_rng(0)
    for steps in (2, 7, 10, 50):
        record = tables.records["ddim_inverse"][steps]
        ratio = 1000 // steps
        assert record.timesteps.tolist() == [1 + ratio * i for i in range(steps - 1)]
        start = rng.standard_normal((4, 8, 8))
        noises = rng.standard_normal((record.evaluations, 4, 8, 8))
        x = start
        for i, t in enumerate(record.timesteps.astype(int)):
            a, a_next = tables.alphas_cumprod[[t, t + ratio]]
            x0 = (x - np.sqrt(1 - a) * noises[i]) / np.sqrt(a)
            x = np.sqrt(a_next) * x0 + np.sqrt(1 - a_next) * noises[i]
            assert relative_l2(latents_after(record, i, start, noises), x) < 1e-12


def test_pndm_repeats_its_second_timestep(tables: SchedulerTables) -> None:
    expected = [901, 801, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert tables.records["pndm"][10].timesteps.tolist() == expected


def test_euler_scales_its_input(tables: SchedulerTables) -> None:
    record = tables.records["euler"][10]
    sigma_max = np.sqrt((1 - tables.alphas_cumprod[-1]) / tables.alphas_cumprod[-1])
    assert record.init_noise_sigma == pytest.approx(sigma_max, rel=1e-6)
    assert record.input_scale[0] == pytest.approx(1 / np.sqrt(sigma_max**2 + 1), rel=1e-6)
    assert (tables.records["ddim"][10].input_scale == 1).all()


def test_pndm_with_runge_kutta_start() -> None:
    tables = build_tables({**SCHEDULER_CONFIG, "skip_prk_steps": False}, steps=[3, 4, 10], names=["pndm"])
    assert list(tables.records["pndm"]) == [4, 10]
    assert tables.minimum_steps["pndm"] == 4
    assert tables.records["pndm"][10].evaluations == 19


def test_clip_sample_is_off_for_latents() -> None:
    on = build_tables({**SCHEDULER_CONFIG, "clip_sample": True}, [5], ["ddim", "ddim_inverse"])
    off = build_tables(SCHEDULER_CONFIG, [5], ["ddim", "ddim_inverse"])
    for name in on.records:
        assert np.array_equal(on.records[name][5].packed(), off.records[name][5].packed())


@pytest.mark.parametrize(
    ("changes", "left_out", "why"),
    [
        ({"thresholding": True}, {"ddim", "ddim_inverse", "dpmpp_2m", "unipc"}, "has thresholding=true"),
        ({"use_dynamic_shifting": True}, {"dpmpp_2m", "unipc"}, "it has use_dynamic_shifting=true"),
        # An epsilon of the last timestep says nothing about an image without signal.
        (
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            {"ddim"},
            "it has coefficients that are not finite",
        ),
    ],
)
def test_a_scheduler_that_cannot_be_tabulated_is_left_out_with_a_notice(
    changes: dict[str, Any], left_out: set[str], why: str
) -> None:
    tables = build_tables({**SCHEDULER_CONFIG, **changes}, [2, 5], [*DENSE])
    assert set(tables.left_out) == left_out and set(tables.records) == set(DENSE) - left_out
    assert (tables.default, tables.image_to_image) == ("pndm", "euler" if "ddim" in left_out else "ddim")
    assert len(tables.notices) == len(left_out)
    for name, line in zip(tables.left_out, tables.notices, strict=True):
        assert line == f"scheduler {name} is left out: {tables.left_out[name]}" and why in line and "\n" not in line


def test_the_checkpoints_own_scheduler_left_out_names_the_default_that_replaces_it() -> None:
    config = {**SCHEDULER_CONFIG, "_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}
    tables = build_tables({**config, "timestep_spacing": "trailing"}, [2, 5], [*DENSE])
    assert tables.default == "euler" and tables.image_to_image == "euler"
    assert tables.notices[0].startswith("scheduler ddim is left out: ")
    assert tables.notices[0].endswith("; euler is the default instead")


@pytest.mark.parametrize(
    ("changes", "default", "why"),
    [
        ({"_class_name": "KDPM2AncestralDiscreteScheduler"}, "euler_ancestral", "DiscreteScheduler cannot be exported"),
        ({"_class_name": "KDPM2DiscreteScheduler"}, "heun", "cannot be exported"),
        ({"_class_name": "MyScheduler"}, "euler", "MyScheduler cannot be exported"),
    ],
)
def test_a_scheduler_without_a_table_is_replaced_with_a_notice(changes: dict[str, Any], default: str, why: str) -> None:
    tables = build_tables({**SCHEDULER_CONFIG, **changes}, [5])
    assert tables.default == default and set(tables.records) == set(DEFAULT_NAMES)
    (line,) = tables.notices
    assert why in line and line.endswith(f"; {default} is the default instead")


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_inversion_and_ddim_run_through_the_same_timesteps(name: str) -> None:
    """In diffusers, a steps_offset that the config lacks becomes 1 for the pipeline's own scheduler alone."""
    config = {key: value for key, value in SCHEDULER_CONFIG.items() if key != "steps_offset"}
    tables = build_tables({**config, "_class_name": name}, [10], ["ddim", "ddim_inverse"])
    ddim, inverse = (tables.records[one][10].timesteps.tolist() for one in ("ddim", "ddim_inverse"))
    assert ddim[-1] == (1 if name == "DDIMScheduler" else 0)
    assert inverse == ddim[:0:-1]


@pytest.mark.parametrize("inpainting", [False, True])
def test_runge_kutta_steps_of_a_config_without_skip_prk_steps(inpainting: bool) -> None:
    """As in diffusers: its inpainting pipeline alone turns them off."""
    config = {key: value for key, value in SCHEDULER_CONFIG.items() if key != "skip_prk_steps"}
    tables = build_tables(config, [2, 50], ["pndm"], inpainting=inpainting)
    assert {count: record.evaluations for count, record in tables.records["pndm"].items()} == (
        {2: 3, 50: 51} if inpainting else {50: 59}
    )
    assert len(tables.notices) == (0 if inpainting else 1)
    if not inpainting:
        assert "9 evaluations more than steps, and at least 4 steps" in tables.notices[0]


def test_config_diffusers_refuses_names_the_scheduler() -> None:
    with pytest.raises(ExportError, match="pndm"):
        build_tables({**SCHEDULER_CONFIG, "beta_schedule": "cubic"}, [5])
    with pytest.raises(ExportError, match="'pndm' cannot do 5 steps"):
        build_tables({**SCHEDULER_CONFIG, "timestep_spacing": "sideways"}, [5])


@pytest.mark.parametrize("steps", [[], [0], [-1, 5], [1001]])
def test_bad_steps_are_refused(steps: list[int]) -> None:
    with pytest.raises(ParameterError, match="step"):
        build_tables(SCHEDULER_CONFIG, steps)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ParameterError, match=r"'huen' is unknown; choose from pndm.*heun.*_karras"):
        build_tables(SCHEDULER_CONFIG, [5], ["huen"])


def test_written_files_follow_the_documented_layout(tmp_path: Path) -> None:
    tables = build_tables(SCHEDULER_CONFIG, [1, 2, 5])
    section = json.loads(json.dumps(write_tables(tables, tmp_path)))
    assert section["default"] == "pndm"
    assert section["config"]["beta_schedule"] == "scaled_linear"
    assert section["config"]["prediction_type"] == "epsilon"
    alphas = np.fromfile(tmp_path / section["alphas_cumprod"], dtype="<f8")
    assert np.array_equal(alphas, tables.alphas_cumprod)
    for name, entry in section["tables"].items():
        values = np.fromfile(tmp_path / entry["file"], dtype="<f8")
        latents, noises = entry["memory"]["latents"], entry["memory"]["noises"]
        width = latents + noises + entry["memory"].get("fresh_noises", 0)
        end = 0
        for steps, m in entry["steps"].items():
            record = tables.records[name][int(steps)]
            at = values[end:]
            assert at[0] == record.init_noise_sigma
            assert np.array_equal(at[1 : 1 + m], record.timesteps)
            assert np.array_equal(at[1 + m : 1 + 2 * m], record.input_scale)
            end += 1 + m * (2 + width)
            weights = values[end - m * width : end].reshape(m, width)
            assert np.array_equal(weights[:, :latents], record.recurrence.of_latents)
            assert np.array_equal(weights[:, latents : latents + noises], record.recurrence.of_noises)
            assert np.array_equal(weights[:, latents + noises :], record.recurrence.of_fresh)
            assert entry.get("order", 1) == record.order
        assert end == values.size


def test_a_scheduler_whose_steps_look_back_too_far_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = scheduler_tables.find
    monkeypatch.setattr(scheduler_tables, "find", lambda rows, *given: None if len(rows) == 7 else found(rows, *given))
    # PNDM makes six evaluations in five steps.
    tables = build_tables(SCHEDULER_CONFIG, [2, 5], ["pndm", "ddim"])
    assert set(tables.records) == {"ddim"} and tables.default == "ddim"
    assert "looks back at more than 8 latents and 16 noise predictions with 5 steps" in tables.left_out["pndm"]
    assert tables.notices == (f"scheduler pndm is left out: {tables.left_out['pndm']}; ddim is the default instead",)


def test_each_scheduler_is_reported_before_it_runs() -> None:
    seen: list[str] = []
    build_tables(SCHEDULER_CONFIG, [2], on_scheduler=seen.append)
    assert seen == list(DEFAULT_NAMES)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(ExportError, match="file"):
        write_tables(build_tables(SCHEDULER_CONFIG, [2], ["ddim"]), blocker)


@pytest.mark.parametrize(
    ("loop", "name"),
    [
        ("loop_text2img_pndm10", "pndm"),
        ("loop_synedit_pndm10", "pndm"),
        ("loop_realedit_ddim10", "ddim"),
        ("loop_invert_ddim10", "ddim_inverse"),
        ("loop_invert_ddim10_reg", "ddim_inverse"),
    ],
)
def test_tables_reproduce_the_original_loops(tables: SchedulerTables, loop: str, name: str) -> None:
    """The authors' latents at every step, from their start and their recorded noise predictions."""
    folder = os.environ.get("EBCA_GOLDEN_DIR")
    if not folder:
        pytest.skip("EBCA_GOLDEN_DIR is not set: no golden data")
    path = Path(folder) / "tiny" / f"{loop}.npz"
    if not path.is_file():
        pytest.skip(f"no {loop}.npz in the golden data")
    golden = np.load(path)
    record = tables.records[name][10]
    assert record.timesteps.tolist() == golden["timesteps"].tolist()
    for i, expected in enumerate(golden["latents"]):
        got = latents_after(record, i, golden["latents_in"][0], golden["noise_guided"])
        # Ten float32 steps of the original against one float64 sum.
        assert relative_l2(got, expected) < 2e-6
