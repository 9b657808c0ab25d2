"""What schedulers are called in Stable Diffusion's web UI."""

from collections.abc import Iterator, Mapping
from typing import Any

from ebca.errors import ParameterError

_NAMES: Mapping[str, str] = {
    "PLMS": "pndm",
    "DDIM": "ddim",
    "DDPM": "ddpm",
    "Euler": "euler",
    "Euler a": "euler_ancestral",
    "Heun": "heun",
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "DPM++ SDE": "dpmpp_sde",
    "UniPC": "unipc",
    "LCM": "lcm",
    "TCD": "tcd",
}
_KARRAS = "_karras"


def scheduler_of(sampler: str | None, noise_levels: str | None, model: Mapping[str, Any]) -> str | None:
    """The scheduler that a sampler and its noise levels are; None: the model's own.

    Args:
        sampler: a name there, also with " Karras" at its end, or a name here.
        noise_levels: "Automatic", "Karras", or None.
        model: see `EngineRunner.describe`.

    Raises:
        ParameterError: the model does not have it.
    """
    levels = (noise_levels or "automatic").lower()
    if not sampler or sampler.lower() == "automatic":
        if levels != "automatic":
            raise ParameterError(f"scheduler is '{str(noise_levels)[:60]}' without a sampler", "give sampler_name")
        return None
    name = sampler.lower()
    karras = name.endswith(" karras") or levels == "karras"
    plain = name.removesuffix(" karras")
    found = {there.lower(): here for there, here in _NAMES.items()}.get(plain, plain) + (_KARRAS if karras else "")
    if levels not in ("automatic", "karras") or found not in model["schedulers"]:
        asked = sampler if levels == "automatic" else f"{sampler} {noise_levels}"
        names = ", ".join(name for name, _ in listed(model))
        raise ParameterError(f"the sampler '{asked[:80]}' is not there", f"there are {names}")
    return found


def listed(model: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Each scheduler of a model as (name there, names here)."""
    for scheduler in model["schedulers"]:
        yield name_of(scheduler), [scheduler]


def name_of(scheduler: str) -> str:
    """The name there of a scheduler; its own if it has none there."""
    plain = scheduler.removesuffix(_KARRAS)
    there = {here: name for name, here in _NAMES.items()}.get(plain)
    if there is None:
        return scheduler
    return there if plain == scheduler else f"{there} Karras"
