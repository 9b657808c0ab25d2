"""What a run is told about the subjects of its images."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class SubjectInputs:
    """The subjects of n images, and how strongly they are kept apart.

    Letters: m evaluations (RePaint: steps), T tokens, G groups, h x w the grid of the maps.

    Attributes:
        token_groups: int32 [n,T], the group of each token of an image's prompt; -1 for none.
        counts: int32 [n], subjects of each image: its groups 0 to counts[i] - 1.
        strengths: float32 [m,2], lambda and mu of each evaluation.
        window: size of a subject's place, in sides of the smaller side.
        regions: float32 [n,G,h,w] in [0,1], 1 where a subject belongs; read only where `fixed`.
        fixed: bool [n,G], the subject has a region.
    """

    token_groups: np.ndarray
    counts: np.ndarray
    strengths: np.ndarray
    window: float
    regions: np.ndarray
    fixed: np.ndarray

    @property
    def groups(self) -> int:
        """G, the largest number of subjects of an image."""
        return int(self.fixed.shape[1])

    def with_tokens(self, tokens: int) -> "SubjectInputs":
        """The same for contexts of at least as many tokens: other prompts may be longer."""
        more = tokens - self.token_groups.shape[1]
        groups = np.pad(self.token_groups, ((0, 0), (0, more)), constant_values=-1)
        return replace(self, token_groups=groups) if more else self
