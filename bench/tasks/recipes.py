"""How the tasks are done: formulations of an edit and their numbers, settings of inpainting, context updates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ebca.bench.tasks.cases import EDIT_COLOR, EDIT_SHAPE, INPAINT, REAL_COLOR, REAL_SHAPE, Wish, task_of
from ebca.errors import ParameterError
from ebca.runtime.edits import Edit
from ebca.runtime.schedules import Gamma, Schedule, describe

CAPTION, THING, SWAP, CAPTIONS = FORMS = ("caption", "thing", "swap", "captions")
"""What the editing prompts say beside the main prompt, which is the caption of the picture as it is: the new caption;
the new thing; the new thing, less the old one; the new caption, less the old one."""

BASE, EBCU = "base", "ebcu"


@dataclass(frozen=True)
class Update:
    """Step sizes of the context update: of the main prompt, and of every editing prompt."""

    gamma_attn: Gamma = 0.0
    gamma_norm: Gamma = 0.0
    edit_gamma_attn: Gamma = 0.0
    edit_gamma_norm: Gamma = 0.0

    def describe(self) -> dict[str, object]:
        """The same as numbers, lists and objects of JSON."""
        return {name: describe(value) for name, value in self.__dict__.items()}


@dataclass(frozen=True)
class Editing:
    """One way to edit.

    form: one of FORMS.
    alpha: of the editing prompts, from the share `tau` of the steps on.
    regularize: keep the predicted noise like noise while a picture is inverted.
    """

    form: str = CAPTION
    alpha: float = 50.0
    tau: float = 0.3
    steps: int = 25
    guidance_scale: float = 4.0
    regularize: bool = False

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ParameterError(f"form is '{self.form}'; choose from {', '.join(FORMS)}")

    def edits(self, wishes: Sequence[Wish], update: Update) -> tuple[Edit, ...]:
        """The editing prompts for these pictures."""
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
    jump_length: int = 5
    jump_count: int = 5


Recipe = Editing | Inpainting


@dataclass(frozen=True)
class Variant:
    """What differs between pictures that are compared."""

    name: str
    recipe: Recipe
    update: Update = Update()


RECIPES: dict[str, Recipe] = {
    EDIT_SHAPE: Editing(),
    EDIT_COLOR: Editing(),
    INPAINT: Inpainting(),
    REAL_SHAPE: Editing(steps=50, guidance_scale=2.0),
    REAL_COLOR: Editing(steps=50, guidance_scale=2.0),
}
"""The best that was found on development prompts."""

UPDATE = Update(gamma_norm=0.003, edit_gamma_norm=0.003)
"""The context update that was the best on development prompts."""

_UPDATES = (
    UPDATE,
    Update(edit_gamma_norm=0.01),
    Update(edit_gamma_attn=0.003),
    Update(gamma_attn=0.003, edit_gamma_attn=0.003),
)


def candidates(kind: str, chosen: Recipe) -> tuple[Variant, ...]:
    """What a sweep tries on the development prompts: the recipe in use first, then others, then context updates.

    Recipes of edits of generated pictures share steps and guidance, which decide what the picture is before.
    """
    recipes: list[Recipe]
    if isinstance(chosen, Inpainting):
        recipes = [replace(chosen, jump_length=j, jump_count=r) for j, r in ((5, 1), (5, 3), (5, 5), (10, 5), (2, 3))]
        updates = [Update(gamma_norm=0.003), Update(gamma_norm=0.01), Update(gamma_attn=0.003)]
    else:
        recipes = [replace(chosen, tau=tau) for tau in (0.0, 0.2, 0.3, 0.4, 0.5)]
        recipes += [replace(chosen, alpha=alpha) for alpha in (3.0, 10.0)]
        others = ((THING, 1.0), (SWAP, 1.0), (CAPTIONS, 2.0))
        recipes += [replace(chosen, form=form, alpha=alpha) for form, alpha in others]
        if task_of(kind) == "real":
            recipes += [replace(chosen, guidance_scale=scale) for scale in (1.5, 2.0, 3.0, 4.0)]
            recipes += [replace(chosen, steps=steps) for steps in (25, 50, 100)]
            recipes += [replace(chosen, regularize=not chosen.regularize)]
        updates = list(_UPDATES)
    # The first stays where it is when it comes again.
    variants = [Variant(_name(recipe), recipe) for recipe in dict.fromkeys([chosen, *recipes])]
    return (*variants, *(Variant(_name(chosen, update), chosen, update) for update in updates))


def _name(recipe: Recipe, update: Update | None = None) -> str:
    """Short, such as "caption alpha 3 tau 0.2"."""
    if update is not None:
        return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in update.__dict__.items() if value)
    if isinstance(recipe, Inpainting):
        name = f"jumps of {recipe.jump_length}, {recipe.jump_count} times"
    else:
        name = f"{recipe.form}, alpha {recipe.alpha:g}, tau {recipe.tau:g}"
        name += ", regularized" if recipe.regularize else ""
    return f"{name}, guidance {recipe.guidance_scale:g}, {recipe.steps} steps"
