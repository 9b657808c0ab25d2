"""Inputs of a UNet evaluation that stand for nothing, to see that it runs and what it computes."""

from collections.abc import Mapping

import numpy as np

from ebca.engines.contract.manifest import UNetSpec
from ebca.runtime.schema import parameters as rules


def random_conditions(unet: UNetSpec, sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What an evaluation reads beside sample and timestep, by name, float32.

    Args:
        unet: says what it takes.
        sizes: batch, contexts, tokens.
        rng: of the contexts, and of pooled embeddings; sizes are those that the model was trained at.
    """
    rows = sizes["batch"]
    made = {"contexts": rng.standard_normal((rows, sizes["contexts"], sizes["tokens"], unet.context_dim), np.float32)}
    if unet.pooled_size is not None:
        side = unet.sample_size * rules.DEFAULT_DOWNSCALE
        made["text_embeds"] = rng.standard_normal((rows, unet.pooled_size), np.float32)
        made["time_ids"] = np.array([[side, side, 0, 0, side, side]] * rows, np.float32)
    return made
