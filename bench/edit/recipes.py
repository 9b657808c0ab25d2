"""The methods that are compared, and the settings of edits."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ebca.errors import ParameterError
from ebca.runtime.conditioning.edits import Edit
from ebca.runtime.conditioning.schedules import Schedule

SWAP, EBCQ, EBCQ_UPDATE = METHODS = ("swap", "ebcq", "ebcq-update")
"""DDIM inversion with the source text in all three. swap: generation with the target text. ebcq: generation with the
source text and editing prompts. ebcq-update: the same, and the contexts of the editing prompts are updated."""

_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class Recipe:
    """Settings of the editing prompts: the added one, and the one that is taken away.

    alpha, tau: weight of each, from the share `tau` of the steps on.
    gamma_attn, gamma_norm: step sizes of the update of each, from the share `gamma_tau` of the steps on.
    """

    alpha: tuple[float, float]
    tau: tuple[float, float]
    gamma_attn: tuple[float, float]
    gamma_norm: tuple[float, float]
    gamma_tau: tuple[float, float]

    def edits(self, add: str, remove: str | None, update: bool) -> tuple[Edit, ...]:
        """The editing prompts; `remove` is left out if it is None. Without `update`, gammas are 0."""
        texts = [(add, 1)] + ([] if remove is None else [(remove, 0)])
        return tuple(
            Edit(
                text,
                direction,
                Schedule.step(self.alpha[i], self.tau[i]),
                gamma_attn=Schedule.step(self.gamma_attn[i], self.gamma_tau[i]) if update else 0.0,
                gamma_norm=Schedule.step(self.gamma_norm[i], self.gamma_tau[i]) if update else 0.0,
            )
            for i, (text, direction) in enumerate(texts)
        )

    def replaced(self, **given: Sequence[float] | None) -> "Recipe":
        """The recipe with other values: one number for both prompts, or one for each; None keeps a field.

        Raises:
            ParameterError: another number of values.
        """
        values: dict[str, Any] = asdict(self)
        for name, numbers in given.items():
            if numbers is None:
                continue
            if len(numbers) not in (1, 2):
                raise ParameterError(
                    f"{len(numbers)} values of {name.replace('_', ' ')}", "give one, or one to add and one to remove"
                )
            values[name] = (float(numbers[0]), float(numbers[-1]))
        return Recipe(**values)


RECIPES = {
    "cat-dog": Recipe((0.75, 0.65), (0.5, 0.5), (6e-4, 5e-4), (6e-4, 5e-4), (0.5, 0.5)),
    "horse-zebra": Recipe((0.6, 0.5), (0.3, 0.3), (5e-4, 4e-4), (5e-4, 4e-4), (0.3, 0.3)),
    # The authors publish the settings of another edit with one added prompt: an animal's face to a goat.
    "face": Recipe((0.6, 0.6), (0.35, 0.35), (1e-3, 1e-3), (1e-3, 1e-3), (0.3, 0.3)),
}
"""The authors' settings, by the edits that they published them for."""

DEFAULT_RECIPE = "cat-dog"


@dataclass(frozen=True)
class Settings:
    """What all cases share. guidance_scale: None for the engine's."""

    steps: int = 50
    guidance_scale: float | None = None
    regularize: bool = True

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ParameterError(f"steps are {self.steps}", "give 2 or more")


def prompts(source: str, target: str) -> tuple[str, str | None]:
    """The editing prompts for two texts: the target without its article; the source likewise, to be taken away.

    None is taken away if the target says everything that the source does, as in "a cat" and "a cat with glasses".
    """
    removed = None if set(source.lower().split()) <= set(target.lower().split()) else bare(source)
    return bare(target), removed


def bare(text: str) -> str:
    """A text without its article."""
    first, _, rest = text.strip().partition(" ")
    return rest if rest and first.lower() in _ARTICLES else text.strip()


def evaluations(methods: Sequence[str], steps: int) -> tuple[int, int]:
    """How many evaluations an image takes: those of inversions, of one row, and those of generations, of two."""
    # The plain inversion of swap, and the one that both others start from.
    inversions = len({method == SWAP for method in methods})
    return inversions * (steps - 1), len(methods) * steps
