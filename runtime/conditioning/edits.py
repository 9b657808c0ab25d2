"""Editing prompts: composition by conjunction and negation (EBCQ in the paper, CACAO in the authors' code)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ebca.errors import ParameterError
from ebca.plugins.energy_attention import check_weights
from ebca.runtime.conditioning.schedules import Gamma
from ebca.runtime.conditioning.schedules import resolve as resolve_schedule
from ebca.runtime.schema import parameters as rules
from ebca.runtime.shown import Shown


@dataclass(frozen=True, repr=False)
class Edit(Shown):
    """One editing prompt. The attention outputs are combined as (main + sum of +-alpha edit) / (1 + sum of +-alpha).

    Attributes:
        prompt: one text for all images, or one per image.
        direction: 1 adds what the prompt describes (conjunction), 0 takes it away (negation).
        alpha: weight, not negative: a number, a Schedule (the authors use `Schedule.step`), or one value per
            evaluation.
        gamma_attn, gamma_norm: step sizes of the update of this prompt's context; the same forms.
        prompt_embeds: [n,T,D] float32 instead of the prompt.
    """

    prompt: str | Sequence[str] | None = None
    direction: int = rules.EDIT.direction
    alpha: Gamma = rules.EDIT.alpha
    gamma_attn: Gamma = rules.EDIT.gamma_attn
    gamma_norm: Gamma = rules.EDIT.gamma_norm
    prompt_embeds: np.ndarray | None = None


def check(edits: Sequence[Edit], most: int | None) -> tuple[Edit, ...]:
    """Check editing prompts without their schedules. Returns them as a tuple.

    Args:
        edits: a list of edits.
        most: how many contexts, main prompt included, the engine takes; None: any number.

    Raises:
        ParameterError: not a list of edits, too many, or a direction other than 0 and 1.
    """
    if isinstance(edits, Edit):
        raise rules.EDITS_TYPE.error(value="one Edit")
    if not isinstance(edits, Iterable):
        raise rules.EDITS_TYPE.error(value=repr(edits))
    listed = tuple(edits)
    if most is not None and len(listed) > most - 1:
        raise rules.EDITS_TOO_MANY.error(count=len(listed), limit=most - 1)
    for index, edit in enumerate(listed):
        if not isinstance(edit, Edit):
            raise rules.EDIT_TYPE.error(value=repr(edit))
        if np.ndim(edit.direction) or edit.direction not in (0, 1):
            raise rules.EDIT_DIRECTION.error(where=_where(index), value=repr(edit.direction))
    return listed


@dataclass(frozen=True)
class EditValues:
    """Values of E edits at each of m evaluations, float32 [m,E]: signed weights, gamma_attn, gamma_norm."""

    weights: np.ndarray
    gamma_attn: np.ndarray
    gamma_norm: np.ndarray


def resolve(edits: Sequence[Edit], steps: int, evaluations: int, scheduler: str) -> EditValues:
    """Check the edits, and evaluate their schedules.

    Args:
        edits: E editing prompts.
        steps: scheduler steps.
        evaluations: number of UNet evaluations m.
        scheduler: its name, for messages.

    Raises:
        ParameterError: as `check`; a negative alpha, a schedule that does not fit, or alphas that cancel the main
            prompt at some evaluation.
    """
    columns: dict[str, list[np.ndarray]] = {"alpha": [], "gamma_attn": [], "gamma_norm": []}
    for index, edit in enumerate(check(edits, None)):
        for name, column in columns.items():
            label = f"{name} of {_where(index)}"
            column.append(resolve_schedule(getattr(edit, name), steps, evaluations, label, scheduler))
        if (columns["alpha"][-1] < 0).any():
            raise rules.EDIT_ALPHA_NEGATIVE.error(where=_where(index))
    empty = np.zeros((evaluations, 0), np.float32)
    values = {name: np.stack(column, 1) if column else empty for name, column in columns.items()}
    signs = np.array([1 if edit.direction == 1 else -1 for edit in edits], np.float32)
    weights = values["alpha"] * signs
    for index, row in enumerate(weights):
        try:
            check_weights(np.concatenate([[1.0], row])[None])
        except ParameterError:
            terms = " ".join(f"{'+' if w >= 0 else '-'} {abs(w):g}" for w in row)
            raise rules.EDIT_ALPHAS_CANCEL.error(index=index, terms=terms) from None
    return EditValues(weights, values["gamma_attn"], values["gamma_norm"])


def _where(index: int) -> str:
    return f"editing prompt {index + 1}"
