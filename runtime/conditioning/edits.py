"""Editing prompts: composition by conjunction and negation (EBCQ in the paper, CACAO in the authors' code)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebca.errors import ParameterError
from ebca.plugins.energy_attention import check_weights
from ebca.runtime.conditioning.schedules import Gamma, describe
from ebca.runtime.conditioning.schedules import resolve as resolve_schedule


@dataclass(frozen=True)
class Edit:
    """One editing prompt. Its attention output joins the main prompt's as (main + sum of +-alpha edit) / (1 + sum).

    Attributes:
        prompt: one text for all pictures, or one per picture.
        direction: 1 adds what the prompt says (conjunction), 0 takes it away (negation).
        alpha: its weight, not negative; a number, a Schedule (the authors use `Schedule.step`), or one value per
            evaluation.
        gamma_attn, gamma_norm: step sizes of the update of this prompt's own context; the same forms.
        prompt_embeds: [n,T,D] float32 instead of the prompt.
    """

    prompt: str | Sequence[str] | None = None
    direction: int = 1
    alpha: Gamma = 1.0
    gamma_attn: Gamma = 0.0
    gamma_norm: Gamma = 0.0
    prompt_embeds: np.ndarray | None = None

    def describe(self) -> dict[str, Any]:
        """The same as numbers, lists and objects of JSON."""
        prompt = self.prompt if self.prompt is None or isinstance(self.prompt, str) else list(map(str, self.prompt))
        gammas = {name: describe(getattr(self, name)) for name in ("alpha", "gamma_attn", "gamma_norm")}
        return {"prompt": prompt, "direction": int(self.direction), **gammas}


@dataclass(frozen=True)
class EditValues:
    """What E edits say at each of m evaluations, float32 [m,E]: signed weights, gamma_attn, gamma_norm."""

    weights: np.ndarray
    gamma_attn: np.ndarray
    gamma_norm: np.ndarray


def resolve(edits: Sequence[Edit], steps: int, evaluations: int, scheduler: str) -> EditValues:
    """Check the edits and lay their schedules out over the evaluations.

    Raises:
        ParameterError: no edit, a direction other than 0 and 1, a negative alpha, a schedule that does not fit, or
            alphas that cancel the main prompt at some evaluation.
    """
    columns: dict[str, list[np.ndarray]] = {"alpha": [], "gamma_attn": [], "gamma_norm": []}
    for index, edit in enumerate(edits):
        where = f"editing prompt {index + 1}"
        if not isinstance(edit, Edit):
            raise ParameterError(f"edits holds {edit!r}", "give ebca.Edit(prompt, direction=1, alpha=...)")
        if edit.direction not in (0, 1):
            raise ParameterError(
                f"{where} has direction {edit.direction!r}", "give 1 (conjunction: add) or 0 (negation: take away)"
            )
        for name, column in columns.items():
            column.append(resolve_schedule(getattr(edit, name), steps, evaluations, f"{name} of {where}", scheduler))
        if (columns["alpha"][-1] < 0).any():
            raise ParameterError(f"alpha of {where} is negative", "give direction=0 with a positive alpha instead")
    empty = np.zeros((evaluations, 0), np.float32)
    values = {name: np.stack(column, 1) if column else empty for name, column in columns.items()}
    signs = np.array([1 if edit.direction == 1 else -1 for edit in edits], np.float32)
    weights = values["alpha"] * signs
    for index, row in enumerate(weights):
        try:
            check_weights(np.concatenate([[1.0], row])[None])
        except ParameterError:
            terms = " ".join(f"{'+' if w >= 0 else '-'} {abs(w):g}" for w in row)
            raise ParameterError(
                f"the alphas cancel at evaluation {index}: 1 {terms} is about 0, and the output is divided by it",
                "change an alpha",
            ) from None
    return EditValues(weights, values["gamma_attn"], values["gamma_norm"])
