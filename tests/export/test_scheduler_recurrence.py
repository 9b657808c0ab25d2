"""Recurrences found in rows: the shortest one that gives the rows, or none."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from ebca.export import scheduler_tables  # noqa: E402
from ebca.export.checkpoint.defaults import SCHEDULER_CONFIG  # noqa: E402
from ebca.export.scheduler_choice import SCHEDULERS  # noqa: E402
from ebca.export.scheduler_recurrence import TOLERANCE, find  # noqa: E402
from ebca.runtime.sampling.recurrence import Recurrence, expand  # noqa: E402

Memory = tuple[int, int]
BETAS = {key: SCHEDULER_CONFIG[key] for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")}
DPM, UNIPC = (
    {**BETAS, "_class_name": "DPMSolverMultistepScheduler"},
    {**BETAS, "_class_name": "UniPCMultistepScheduler"},
)
ZERO_SNR = {**BETAS, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "skip_prk_steps": True}
USUAL: dict[str, Memory] = {
    "pndm": (1, 5),
    "ddim": (1, 1),
    "ddim_inverse": (1, 1),
    "euler": (1, 1),
    "dpmpp_2m": (2, 2),
    "unipc": (3, 3),
}
MORE: dict[str, Memory] = {
    "ddpm": (1, 1), "euler_ancestral": (1, 1), "heun": (1, 2), "dpmpp_2m_sde": (2, 2), "dpmpp_sde": (1, 2),
    "lcm": (1, 1), "tcd": (1, 1),
}  # fmt: skip

# Config, and how many latents and noise predictions the steps of each scheduler look back at. UniPC with its corrector
# remembers a latent that is not among the window's, so it needs one more of each than its order.
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Memory]]] = {
    "sd15": (SCHEDULER_CONFIG, USUAL),
    "more": (SCHEDULER_CONFIG, MORE),
    "v_prediction": ({**SCHEDULER_CONFIG, "prediction_type": "v_prediction"}, USUAL),
    "trailing": ({**SCHEDULER_CONFIG, "timestep_spacing": "trailing"}, USUAL),
    "karras": ({**SCHEDULER_CONFIG, "use_karras_sigmas": True}, USUAL),
    "zero SNR": ({**ZERO_SNR, "prediction_type": "v_prediction"}, USUAL),
    "zero SNR, epsilon": (ZERO_SNR, {name: USUAL[name] for name in ("euler", "dpmpp_2m", "unipc", "ddim_inverse")}),
    "Runge-Kutta": (BETAS, {"pndm": (1, 13)}),
    "DPM++ of third order": ({**DPM, "solver_order": 3}, {"dpmpp_3m": (3, 3)}),
    "DPM++, heun": ({**DPM, "solver_type": "heun"}, {"dpmpp_2m_heun": (2, 2)}),
    "DPM": ({**DPM, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, {"dpm_2m": (1, 2)}),
    "UniPC of first order": ({**UNIPC, "solver_order": 1}, {"unipc": (2, 2)}),
    "UniPC of third order": ({**UNIPC, "solver_order": 3}, {"unipc": (4, 4)}),
}


def unpacked(packed: np.ndarray) -> np.ndarray:
    m = int((np.sqrt(9 + 8 * packed.size) - 3) / 2)
    rows = np.zeros((m + 1, m + 1))
    rows[0, 0] = 1
    rows[1:][np.tril_indices(m, 1, m + 1)] = packed
    return rows


def row_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float((np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


@pytest.mark.parametrize("config", CONFIGS)
def test_rows_are_those_of_diffusers(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every prediction type, spacing and solver, for few steps and many."""
    options, memories = CONFIGS[config]
    seen: list[np.ndarray] = []

    def look(rows: np.ndarray, memory: Memory, fresh: np.ndarray) -> Recurrence | None:
        seen.append(rows)
        return find(rows, memory, fresh)

    monkeypatch.setattr(scheduler_tables, "find", look)
    tables = scheduler_tables.build_tables(options, [*range(1, 8), 15, 40], list(memories))
    assert {name: tables.memory(name) for name in tables.records} == memories and not tables.left_out
    of_diffusers = iter(seen)
    for by_steps in tables.records.values():
        for count in sorted(by_steps, reverse=True):
            # Rounding of float64; measured up to 2e-15.
            assert row_error(unpacked(by_steps[count].coefficients), next(of_diffusers)) < 1e-13, count
    assert next(of_diffusers, None) is None


@pytest.mark.parametrize("memory", [(1, 1), (2, 1), (1, 5), (3, 3), (2, 6)])
def test_the_shortest_memory_is_found(memory: Memory) -> None:
    rng, m = np.random.default_rng(1), 30
    of_latents, of_noises = (rng.uniform(0.1, 0.5, (m, width)) for width in memory)
    rows = unpacked(expand(of_latents, of_noises))
    found = find(rows)
    assert found is not None and found.memory == memory
    longer = find(rows, (memory[0] + 1, memory[1] + 2))
    assert longer is not None and longer.memory == (memory[0] + 1, memory[1] + 2)
    for recurrence in (found, longer, found.widened((4, 8))):
        assert row_error(unpacked(expand(recurrence.of_latents, recurrence.of_noises)), rows) < 1e-12
    assert found.widened((4, 8)).memory == (4, 8)


def test_rows_without_a_short_memory_have_none() -> None:
    rows = unpacked(np.random.default_rng(2).standard_normal(60 * 63 // 2))
    assert find(rows) is None


def test_an_error_above_the_tolerance_is_not_kept() -> None:
    """A small difference in one old weight makes a row that this memory cannot give."""
    rows = unpacked(expand(np.full((40, 1), 0.9), np.ones((40, 1))))
    assert find(rows) is not None
    for change in (1e-6, 30 * TOLERANCE):
        changed = rows.copy()
        changed[-1, 3] += change * np.linalg.norm(rows[-1])
        found = find(changed)
        # Longer memories spread over unrelated old weights, so they may or may not catch this one.
        assert found is None or found.memory != (1, 1)
        if found is not None:
            assert row_error(unpacked(expand(found.of_latents, found.of_noises)), changed) <= TOLERANCE


def test_a_row_of_zeros_stays_one() -> None:
    rows = unpacked(expand(np.array([[0.5], [0.0], [0.5]]), np.array([[1.0], [0.0], [2.0]])))
    assert not rows[2].any()
    found = find(rows)
    assert found is not None
    assert np.array_equal(unpacked(expand(found.of_latents, found.of_noises)), rows)


def test_every_scheduler_of_an_engine_directory_is_checked() -> None:
    assert set(USUAL) | set(MORE) == set(SCHEDULERS)
