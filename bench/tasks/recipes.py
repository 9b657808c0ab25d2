"""How the tasks are done: forms and numbers of edits, settings of inpainting, context updates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ebca.bench.tasks.cases import EDIT_COLOR, EDIT_SHAPE, INPAINT, REAL_COLOR, REAL_SHAPE, Wish, task_of
from ebca.errors import ParameterError
from ebca.runtime.conditioning.edits import Edit
from ebca.runtime.conditioning.schedules import Gamma, Schedule, to_json

CAPTION, THING, SWAP, CAPTIONS = FORMS = ("caption", "thing", "swap", "captions")
"""What the editing prompts say; the main prompt is the caption of the original image. The new caption; the new thing;
the new thing minus the old one; the new caption minus the old one."""

BASE, EBCU = "base", "ebcu"

RECIPES_SWEEP, UPDATES_SWEEP = SWEEPS = ("recipes", "updates")
"""What a sweep can try."""


@dataclass(frozen=True)
class Update:
    """Step sizes of the context update, for the main prompt and for every editing prompt.

    reset_edits: start every step from the embeddings of the editing prompts; otherwise their updates accumulate.
    """

    gamma_attn: Gamma = 0.0
    gamma_norm: Gamma = 0.0
    edit_gamma_attn: Gamma = 0.0
    edit_gamma_norm: Gamma = 0.0
    reset_edits: bool = False

    def describe(self) -> dict[str, object]:
        """The update as JSON values."""
        gammas = {name: to_json(value) for name, value in self.__dict__.items() if name != "reset_edits"}
        return gammas | {"reset_edits": self.reset_edits}


@dataclass(frozen=True)
class Editing:
    """One way to edit.

    form: one of FORMS.
    alpha: weight of the editing prompts, from the share `tau` of the steps on.
    regularize: regularize the predicted noise during inversion.
    """

    form: str = CAPTION
    alpha: float = 50.0
    tau: float = 0.3
    steps: int = 25
    guidance_scale: float = 4.0
    regularize: bool = False

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ParameterError(f"form is '{self.form}'", f"choose from {', '.join(FORMS)}")

    def edits(self, wishes: Sequence[Wish], update: Update) -> tuple[Edit, ...]:
        """The editing prompts for these images."""
        new, old = [str(wish.new) for wish in wishes], [str(wish.old) for wish in wishes]
        after, before = [wish.target.caption() for wish in wishes], [wish.source.caption() for wish in wishes]
        texts = {CAPTION: (after,), THING: (new,), SWAP: (new, old), CAPTIONS: (after, before)}[self.form]
        return tuple(
            Edit(
                text,
                direction,
                Schedule.step(self.alpha, self.tau),
                gamma_attn=update.edit_gamma_attn,
                gamma_norm=update.edit_gamma_norm,
            )
            for text, direction in zip(texts, (1, 0), strict=False)
        )


@dataclass(frozen=True)
class Inpainting:
    """Settings of RePaint."""

    steps: int = 25
    guidance_scale: float = 4.0
    jump_length: int = 10
    jump_count: int = 5


Recipe = Editing | Inpainting


@dataclass(frozen=True)
class Variant:
    """What differs between images that are compared."""

    name: str
    recipe: Recipe
    update: Update = Update()


RECIPES: dict[str, Recipe] = {
    EDIT_SHAPE: Editing(),
    EDIT_COLOR: Editing(),
    INPAINT: Inpainting(),
    REAL_SHAPE: Editing(steps=50, guidance_scale=2.0, regularize=True),
    REAL_COLOR: Editing(steps=50, guidance_scale=1.5, regularize=True),
}
"""The best recipes found on development cases."""

UPDATES: dict[str, Update] = {
    EDIT_SHAPE: Update(gamma_norm=0.0003, edit_gamma_norm=0.0003),
    EDIT_COLOR: Update(gamma_norm=0.0003, edit_gamma_norm=0.0003),
    INPAINT: Update(gamma_attn=0.003),
    REAL_SHAPE: Update(gamma_norm=0.0003, edit_gamma_norm=0.0003),
    REAL_COLOR: Update(gamma_norm=0.0003, edit_gamma_norm=0.0003),
}
"""The context updates that help most, or harm least, on development cases."""

_OF_EDITS = (
    Update(gamma_norm=0.003),
    Update(gamma_norm=0.0003, edit_gamma_norm=0.0003),
    Update(edit_gamma_norm=0.001),
    Update(edit_gamma_attn=0.0001),
    Update(edit_gamma_attn=0.0003),
    Update(gamma_norm=0.003, edit_gamma_norm=0.003, reset_edits=True),
    Update(edit_gamma_attn=0.003, reset_edits=True),
)
_OF_INPAINTING = (
    Update(gamma_norm=0.003),
    Update(gamma_norm=0.01),
    Update(gamma_attn=0.001),
    Update(gamma_attn=0.003),
    Update(gamma_attn=0.01),
)


def candidates(kind: str, chosen: Recipe, what: Sequence[str] = SWEEPS) -> tuple[Variant, ...]:
    """The variants of a sweep on development cases: the recipe in use first, then changes to it.

    Edits of generated images share steps and guidance, which determine the image before the edit.
    """
    changes: list[dict[str, Any]]
    updates: Sequence[Update]
    if isinstance(chosen, Inpainting):
        jumps = ((5, 1), (5, 3), (5, 5), (10, 3), (10, 5), (10, 10), (2, 3))
        changes = [{"jump_length": length, "jump_count": count} for length, count in jumps]
        updates = _OF_INPAINTING
    else:
        changes = [{"tau": tau} for tau in (0.0, 0.2, 0.3, 0.4, 0.5)]
        changes += [{"alpha": alpha} for alpha in (3.0, 10.0)]
        changes += [{"form": form, "alpha": alpha} for form, alpha in ((THING, 1.0), (SWAP, 1.0), (CAPTIONS, 2.0))]
        if task_of(kind) == "real":
            changes += [{"guidance_scale": scale} for scale in (1.5, 2.0, 3.0, 4.0)]
            changes += [{"steps": steps} for steps in (25, 50, 100)]
            changes += [{"regularize": not chosen.regularize}]
        updates = _OF_EDITS
    # By name, so that the recipe in use keeps its place if it occurs again.
    variants = {BASE: Variant(BASE, chosen)}
    for change in changes if RECIPES_SWEEP in what else ():
        recipe = replace(chosen, **change)
        if recipe != chosen:
            name = ", ".join(f"{field.replace('_', ' ')} {value}" for field, value in change.items())
            variants[name] = Variant(name, recipe)
    for update in updates if UPDATES_SWEEP in what else ():
        gammas = {name.replace("_", " "): value for name, value in update.__dict__.items() if value}
        name = ", ".join(f"{name} {value:g}" if value is not True else name for name, value in gammas.items())
        variants[name] = Variant(name, chosen, update)
    return tuple(variants.values())


def describe_recipe(recipe: Recipe) -> str:
    """Such as "form caption, alpha 50, tau 0.3, steps 25, guidance scale 4"."""
    given = {name.replace("_", " "): value for name, value in recipe.__dict__.items() if value is not False}
    return ", ".join(name if value is True else f"{name} {value}" for name, value in given.items())
