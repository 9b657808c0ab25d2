"""Bounds of what manifest.json says, the same in Python and C++.

Written by `python -m ebca.runtime.schema.generate` from schema.toml; edit that file instead.
"""

MANIFEST_BYTES = 67108864
"""Size of manifest.json, and of a tokenizer."""

DEPTH = 64
"""Objects and lists inside one another."""

NAME_BYTES = 200
"""UTF-8 length of a name: of a model, a component, a tensor."""

PATH_BYTES = 1000
"""UTF-8 length of a file's path."""

FILE_BYTES = 1125899906842624
"""Size of a file."""

DIMENSION = 16777216
"""An integer in the shape of a tensor: channels, width of a context, heads * head_dim."""

HALVINGS = 30
"""K of height_K and width_K."""

CONTEXTS = 1048576
"""unet.max_contexts."""

TOKENS = 10000
"""Tokens of a prompt."""

TOKEN_ID = 2147483647
"""A token id."""

SAMPLE_SIZE = 16384
"""Native height and width of the latents."""

DOWNSCALE = 256
"""Pixels per latent."""

FACTOR = 1000000.0
"""Magnitude of guidance_scale, of scaling_factor and its inverse, and of shift_factor."""

TRAIN_TIMESTEPS = 1048576
"""Training timesteps of a scheduler."""

STEPS = 1048576
"""Steps of a scheduler table."""

TABLE_LATENTS = 8
"""Latents that a step of a scheduler looks back at."""

TABLE_NOISES = 16
"""Noise predictions that a step of a scheduler looks back at."""

TABLE_FRESH_NOISES = 16
"""Draws of noise that a step of a scheduler uses."""

TABLE_ORDER = 4
"""UNet evaluations of a scheduler step."""

TABLE_EVALUATIONS = 4096
"""UNet evaluations of a scheduler table."""
