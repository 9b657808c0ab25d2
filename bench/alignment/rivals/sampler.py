"""Guided sampling of a batch of images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ebca.bench.alignment.rivals.attention import Attention, Guide, Run
from ebca.bench.alignment.rivals.model import Model
from ebca.bench.alignment.scenes import Scene
from ebca.errors import ParameterError

SCHEDULERS = ("ddim", "pndm")


@dataclass(frozen=True)
class Sampling:
    """A scheduler of diffusers, its steps, and the guidance scale."""

    scheduler: str = "ddim"
    steps: int = 25
    guidance_scale: float = 4.0

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise ParameterError(f"there is no scheduler '{self.scheduler}' here", f"choose {' or '.join(SCHEDULERS)}")
        if self.steps < 1:
            raise ParameterError(f"steps is {self.steps}", "give 1 or more")

    def __str__(self) -> str:
        return f"{self.scheduler} {self.steps}, guidance {self.guidance_scale:g}"


def sample(
    model: Model,
    guide: Guide,
    scenes: Sequence[Scene],
    seeds: Sequence[int],
    sampling: Sampling,
    places: np.ndarray | None = None,
) -> np.ndarray:
    """Images [n,H,W,3] uint8 of n scenes; `places` as in `Run`."""
    return model.decode(latents_of(model, guide, scenes, seeds, sampling, places))


@torch.no_grad()
def latents_of(
    model: Model,
    guide: Guide,
    scenes: Sequence[Scene],
    seeds: Sequence[int],
    sampling: Sampling,
    places: np.ndarray | None = None,
) -> Tensor:
    """The final latents [n,4,h,w] of n scenes."""
    scheduler = _scheduler(model, sampling)
    captions, count = model.encode(scenes), len(scenes)
    where = None if places is None else torch.from_numpy(np.asarray(places, np.float32)).to(model.device)
    run = Run(model, scenes, captions, len(scheduler.timesteps), where, count)
    contexts = torch.cat([model.unconditional().expand(count, -1, -1), captions.embeddings])
    latents = initial_noise(model, seeds) * scheduler.init_noise_sigma
    guide.begin(run)
    with Attention(run, guide).installed():
        for evaluation, timestep in enumerate(scheduler.timesteps):
            latents = guide.before(run, evaluation, timestep, latents)
            made = model.unet(torch.cat([latents, latents]), timestep, encoder_hidden_states=contexts).sample
            plain, conditional = made.chunk(2)
            noise = plain + sampling.guidance_scale * (conditional - plain)
            latents = scheduler.step(noise, timestep, latents).prev_sample
            guide.after(run, evaluation)
    return latents


def initial_noise(model: Model, seeds: Sequence[int]) -> Tensor:
    """One generator per image on the CPU, as `ebca.runtime.noise`, so that every device and method begins equally."""
    shape = (1, *model.latent_shape)
    drawn = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    return torch.cat(drawn).to(model.device)


def _scheduler(model: Model, sampling: Sampling):  # type: ignore[no-untyped-def]
    from diffusers import DDIMScheduler, PNDMScheduler

    if sampling.scheduler == "ddim":
        # Clipping is meant for pixels; diffusers' pipelines of Stable Diffusion turn it off as well.
        made = DDIMScheduler.from_config(model.scheduler_config, clip_sample=False)
    else:
        made = PNDMScheduler.from_config(model.scheduler_config, skip_prk_steps=True)
    made.set_timesteps(sampling.steps)
    return made
