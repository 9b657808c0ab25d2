"""Options of ebca-run for Stable Diffusion XL."""

import argparse
from typing import Any

_SIZES = {
    "original_size": ("H W", "of the image before it was scaled; small ones look blurred (default: the image's)"),
    "crops_coords_top_left": ("TOP LEFT", "pixels that were cut off; others than 0 0, the default, look cropped"),
    "target_size": ("H W", "of the image that the model thinks it makes (default: the image's)"),
}
_PROMPTS = ("prompt_2", "negative_prompt_2")


def add(p: argparse.ArgumentParser) -> None:
    """Add the options of Stable Diffusion XL; `fields` reads them."""
    given = p.add_argument_group(
        "Stable Diffusion XL",
        "Second texts, and sizes that the model is told; they do not change the size of the image.",
    )
    given.add_argument(
        "--prompt-2", "--prompt_2", metavar="TEXT", help="what the second text encoder reads (default: the prompt)"
    )
    given.add_argument(
        "--negative-prompt-2", "--negative_prompt_2", metavar="TEXT", help="likewise (default: --negative-prompt)"
    )
    for name, (values, meaning) in _SIZES.items():
        _add_pair(given, name, values, meaning)
    for name, (values, _) in _SIZES.items():
        _add_pair(given, f"negative_{name}", values, "likewise, for the negative prompt (default: as for the prompt)")


def fields(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of the request."""
    sizes = [f"{prefix}{name}" for prefix in ("", "negative_") for name in _SIZES]
    return {name: getattr(args, name) for name in (*_PROMPTS, *sizes)}


def _add_pair(group: argparse._ArgumentGroup, name: str, values: str, meaning: str) -> None:
    flag = name.replace("_", "-")
    group.add_argument(f"--{flag}", f"--{name}", type=int, nargs=2, metavar=tuple(values.split()), help=meaning)
