"""What the samplers need to give every subject of a prompt a place of its own."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SubjectInputs:
    token_groups: np.ndarray      # int32 [n,T]: group of each token of an image's prompt, -1 for none
    counts: np.ndarray            # int32 [n]: subjects of each image; groups 0..counts[i]-1
    strengths: np.ndarray         # float32 [m,2]: lambda and mu of each evaluation (RePaint: of each step)
    window: float
    regions: np.ndarray           # float32 [n,G,h,w] in [0,1] at the map's size: 1 where the subject belongs; ignored where not fixed
    fixed: np.ndarray             # bool [n,G]: the subject has a region
