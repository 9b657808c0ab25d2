"""Train the model `shapes`: first a VAE, then a UNet together with its text model, then both on relations.

    python examples/shapes/train.py --output-dir run

Every batch comes from a generator seeded with its step, so an interrupted run continues from its last checkpoint with
the same numbers as an uninterrupted one. On a GPU, products are computed in TF32 and noise is drawn on the device, so
the numbers are others than on a CPU. A second model takes minutes there:

    python examples/shapes/train.py --output-dir run1 --seed 1 --vae-from examples/shapes/shapes --batch 128 \
        --images 40000 --unet-steps 4000 --relation-images 20000 --relation-steps 1800 --checkpoint-every 2000
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor2_0
from draw import Drawing, draw, mixed_scene
from model import SCHEDULER, Networks, build, sampler, save, write_json
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from sides import Sides
from torch import Tensor, nn
from torch.nn import functional as F

from ebca.bench.alignment.detector import read
from ebca.bench.alignment.scenes import SIZE, Scene
from ebca.runtime.images.outputs import to_bytes

_READ_EVERY = 50
GRID_PROMPTS = (
    "a red circle",
    "a blue star",
    "a green cross and a pink heart",
    "a yellow square and a purple triangle",
    "a red heart left of a cyan circle",
    "an orange star above a blue square",
    "a red square, a green triangle and a blue circle",
    "a yellow star, a purple cross and a cyan heart",
)


@dataclass(frozen=True)
class Recipe:
    """The parameters of a training run. Lengths are in steps, not minutes, so that the seed determines everything.

    vae_from: a pipeline folder whose VAE is used instead of a new one; "" to train one.
    """

    seed: int = 0
    vae_from: str = ""
    batch: int = 32
    vae_batch: int = 16
    vae_steps: int = 4400
    vae_lr: float = 1.5e-3
    kl_weight: float = 1e-6
    images: int = 60_000
    unet_steps: int = 11_000
    unet_lr: float = 1e-3
    ema: float = 0.999
    caption_dropout: float = 0.1
    snr_gamma: float = 5.0
    relation_images: int = 30_000
    relation_steps: int = 4500
    relation_lr: float = 5e-4
    snr_floor: float = 0.2
    mark_weight: float = 0.01
    checkpoint_every: int = 500


@dataclass(frozen=True)
class Course:
    """One stage of training for the UNet and the text model.

    Attributes:
        seeds: seeds of its batches and of its images.
        shares: shares of images with one, two and three things at a progress in [0, 1].
        related: share of the images with two things whose caption has a relation.
        noisy: share of the timesteps that are drawn from the noisier part only, which decides the layout of an image.
        snr_floor: least weight of a timestep's squared error of the clean image; noise prediction gives almost none to
            the noisiest timesteps.
        mark_weight: weight of the marks in the loss, see `Sides`; 0 for no marks.
    """

    name: str
    seeds: tuple[int, int]
    images: int
    steps: int
    lr: float
    shares: Callable[[float], np.ndarray]
    related: float = 0.5
    noisy: float = 0.0
    snr_floor: float = 0.0
    mark_weight: float = 0.0


def courses(recipe: Recipe) -> tuple[Course, Course]:
    """First all kinds of scenes, then mostly relations."""
    return (
        Course("unet", (3, 4), recipe.images, recipe.unet_steps, recipe.unet_lr, _shares),
        Course(
            "relations",
            (5, 6),
            recipe.relation_images,
            recipe.relation_steps,
            recipe.relation_lr,
            lambda progress: np.array([0.12, 0.55, 0.33]),
            related=0.8,
            noisy=0.5,
            snr_floor=recipe.snr_floor,
            mark_weight=recipe.mark_weight,
        ),
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for model, curves, grids, checkpoints")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, help="processes that draw images; default: 0, on a GPU one per core")
    for name, value in Recipe().__dict__.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default: {value}")
    args = vars(parser.parse_args(argv))
    threads, device, folder = args.pop("threads"), torch.device(args.pop("device")), args.pop("output_dir")
    workers = args.pop("workers")
    if workers is None:
        workers = (os.cpu_count() or 1) if device.type == "cuda" else 0
    if threads:
        torch.set_num_threads(threads)
    if not find_spec("matplotlib"):
        print("matplotlib is not installed: losses are written as CSV only", flush=True)
    train(Recipe(**args), folder, device, workers)
    return 0


def train(recipe: Recipe, folder: Path, device: torch.device, workers: int = 0) -> Networks:
    """Train, or continue training, and write the pipeline folder `folder/shapes`."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    written = folder / "recipe.json"
    # A recipe that was written before a parameter existed has its default.
    if written.exists() and {**Recipe().__dict__, **json.loads(written.read_text())} != recipe.__dict__:
        raise SystemExit(f"{folder} holds a run with another recipe (recipe.json); choose another --output-dir")
    write_json(written, recipe.__dict__)
    # Before anything uses the GPU: processes are forked from this one.
    with Drawing(workers) as drawing:
        networks = build(folder / "tokenizer", recipe.seed)
        for module in (networks.vae, networks.text_encoder, networks.unet):
            module.to(device)
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            networks.unet.set_attn_processor(AttnProcessor2_0())
        if recipe.vae_from:
            take_vae(recipe, networks)
        else:
            train_vae(recipe, networks, folder, device)
        for course in courses(recipe):
            train_unet(recipe, course, networks, folder, device, drawing)
    save(networks, folder / "shapes")
    return networks


def take_vae(recipe: Recipe, networks: Networks) -> None:
    """Use the VAE of another model, with its scale of the latents."""
    vae = AutoencoderKL.from_pretrained(Path(recipe.vae_from) / "vae", torch_dtype=torch.float32)
    networks.vae.load_state_dict(vae.state_dict())
    networks.vae.register_to_config(scaling_factor=vae.config["scaling_factor"])
    networks.vae.eval().requires_grad_(False)


def train_vae(recipe: Recipe, networks: Networks, folder: Path, device: torch.device) -> None:
    """Train on reconstruction (absolute and squared error) with a small KL term; then set the scale of the latents."""
    vae = networks.vae.train()

    def loss_of(step: int) -> Tensor:
        rng = _generator(recipe.seed, 1, step)
        images = [draw(rng, mixed_scene(rng, _shares(1.0)))[0] for _ in range(recipe.vae_batch)]
        pixels = torch.stack([_pixels(image) for image in images]).to(device)
        posterior = vae.encode(pixels).latent_dist
        noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, np.float32)).to(device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        return F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels) + recipe.kl_weight * posterior.kl().mean()

    _loop(_Stage("vae", recipe.vae_steps, recipe.vae_lr, {"vae": vae}), recipe, folder, loss_of, device)
    vae.eval().requires_grad_(False)
    rng = _generator(recipe.seed, 2, 0)
    scenes = [mixed_scene(rng, _shares(1.0)) for _ in range(200)]
    images = np.stack([draw(rng, scene)[0] for scene in scenes])
    with torch.inference_mode():
        pixels = torch.stack([_pixels(image) for image in images]).to(device)
        latents = vae.encode(pixels).latent_dist.mean
        decoded = vae.decode(latents).sample.cpu()
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    mse = F.mse_loss(decoded.clamp(-1, 1), pixels.cpu()).item()
    restored = _images(decoded)
    exact = np.mean([read(image, scene).exact for image, scene in zip(restored, scenes, strict=True)])
    print(f"vae: PSNR {10 * math.log10(4 / mse):.1f} dB, {exact:.1%} of reconstructions read back exactly")
    both = [image for pair in zip(images[:16], restored[:16], strict=True) for image in pair]
    _save_grid(folder / "vae.png", both, columns=8)


def train_unet(
    recipe: Recipe, course: Course, networks: Networks, folder: Path, device: torch.device, drawing: Drawing
) -> None:
    """Train noise prediction with min-SNR weights, together with the text model. Ends with the averaged weights."""
    (empty,) = _tokenised(networks, [""]).to(device)
    noises = DDPMScheduler(**{k: v for k, v in SCHEDULER.items() if k not in ("steps_offset", "set_alpha_to_one")})
    alphas = noises.alphas_cumprod.to(device)
    snr = alphas / (1 - alphas)
    weights = snr.clamp(course.snr_floor, recipe.snr_gamma) / snr
    unet, text = (module.train().requires_grad_(True) for module in (networks.unet, networks.text_encoder))

    # Made on first use: a finished stage needs no images.
    @cache
    def material() -> tuple[Tensor, Tensor, list[np.ndarray], Sides]:
        latents, scenes, counts = _encoded(recipe, course, networks, device, drawing)
        ids = _tokenised(networks, [scene.caption() for scene in scenes]).to(device)
        sides = Sides(scenes, ids.shape[1], text.config.hidden_size, recipe.seed, device)
        return latents, ids, [np.flatnonzero(counts == n) for n in (1, 2, 3)], sides

    def loss_of(step: int) -> Tensor:
        latents, ids, by_count, sides = material()
        rng = _generator(recipe.seed, course.seeds[0], step)
        share = course.shares(step / course.steps)
        index = np.array([rng.choice(by_count[n]) for n in rng.choice(3, recipe.batch, p=share)])
        chosen = torch.from_numpy(index).to(device)
        clean, tokens = latents[chosen], ids[chosen]
        dropped = torch.from_numpy(rng.random(recipe.batch) < recipe.caption_dropout).to(device)
        tokens = torch.where(dropped[:, None], empty, tokens)
        noise = _noise(rng, clean)
        drawn = rng.integers(0, len(alphas), recipe.batch)
        if course.noisy:
            noisier = rng.integers(len(alphas) * 6 // 10, len(alphas), recipe.batch)
            drawn = np.where(rng.random(recipe.batch) < course.noisy, noisier, drawn)
        timesteps = torch.from_numpy(drawn).to(device)
        hidden, missed = text(tokens).last_hidden_state, torch.zeros((), device=device)
        if course.mark_weight:
            hidden, missed = sides.mark(hidden, chosen, ~dropped, step / course.steps)
        predicted = unet(noises.add_noise(clean, noise, timesteps), timesteps, hidden).sample
        loss = (weights[timesteps] * (predicted - noise).square().mean((1, 2, 3))).mean()
        return loss + course.mark_weight * missed

    def look(step: int) -> None:
        _sample_grid(networks, folder / f"samples_{course.name}_{step:05d}.png")

    stage = _Stage(course.name, course.steps, course.lr, {"unet": unet, "text_encoder": text})
    _loop(stage, recipe, folder, loss_of, device, look)
    unet.eval().requires_grad_(False)
    text.eval().requires_grad_(False)


@dataclass(frozen=True)
class _Stage:
    """What a training loop optimises, for how many steps, and at which rate."""

    name: str
    steps: int
    lr: float
    modules: dict[str, nn.Module]


def _loop(
    stage: _Stage,
    recipe: Recipe,
    folder: Path,
    loss_of: Callable[[int], Tensor],
    device: torch.device,
    look: Callable[[int], None] | None = None,
) -> None:
    """AdamW with warm-up and cosine decay; the modules end with the running average of their weights."""
    name, steps, lr = stage.name, stage.steps, stage.lr
    parameters = [p for module in stage.modules.values() for p in module.parameters()]
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=on_gpu)
    average = [p.detach().clone() for p in parameters]
    losses: list[float] = []
    file = folder / "checkpoints" / f"{name}.pt"
    if file.exists():
        state = torch.load(file, map_location=device, weights_only=True)
        losses = state["losses"]
        optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for target, value in zip([*parameters, *average], [*state["parameters"], *state["average"]], strict=True):
                target.copy_(value)
    began = time.monotonic()
    # Losses stay on a GPU for a while: reading one waits for all work before it.
    recent: list[Tensor] = []
    for step in _progress(name, len(losses), steps, losses):
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 100, 0.525 + 0.475 * math.cos(math.pi * step / steps))
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        recent.append(loss.detach())
        if not on_gpu or len(recent) == _READ_EVERY or (step + 1) % recipe.checkpoint_every == 0 or step + 1 == steps:
            losses += torch.stack(recent).tolist()
            recent.clear()
        keep = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - keep)
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == steps:
            state = {"losses": losses, "optimizer": optimizer.state_dict()}
            torch.save({**state, "parameters": parameters, "average": average}, file.with_suffix(".tmp"))
            file.with_suffix(".tmp").replace(file)
            _save_curve(folder, name, losses)
            seconds = time.monotonic() - began
            print(f"{name}: step {step + 1}, loss {np.mean(losses[-200:]):.5f}, {seconds:.0f} s", flush=True)
            if look:
                with _Swapped(parameters, average):
                    look(step + 1)
    with torch.no_grad():
        for target, value in zip(parameters, average, strict=True):
            target.copy_(value)


def _noise(rng: np.random.Generator, like: Tensor) -> Tensor:
    """Standard normal values, from this generator on a CPU, else from one on the device that it seeds."""
    if like.device.type == "cpu":
        return torch.from_numpy(rng.standard_normal(like.shape, np.float32))
    generator = torch.Generator(like.device).manual_seed(int(rng.integers(2**62)))
    return torch.randn(like.shape, generator=generator, device=like.device)


class _Swapped:
    """A block in which the averaged weights replace the trained ones."""

    def __init__(self, parameters: list[nn.Parameter], average: list[Tensor]) -> None:
        self._pairs = list(zip(parameters, average, strict=True))

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *exception: object) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in self._pairs:
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)


def _encoded(
    recipe: Recipe, course: Course, networks: Networks, device: torch.device, drawing: Drawing
) -> tuple[Tensor, list[Scene], np.ndarray]:
    """Latents [n,4,16,16] of new images on the device, their scenes, and the number of things in each."""
    latents, scenes = [], []
    scale = networks.vae.config["scaling_factor"]
    starts = range(0, course.images, 64)
    jobs = [
        ((recipe.seed, course.seeds[1], start), min(64, course.images - start), course.shares(1.0), course.related)
        for start in starts
    ]
    for _, (images, batch) in zip(_progress("latents", 0, course.images, None, 64), drawing.batches(jobs), strict=True):
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
        with torch.inference_mode():
            latents.append(networks.vae.encode(pixels).latent_dist.mean * scale)
        scenes += batch
    return torch.cat(latents).clone(), scenes, np.array([len(scene.things) for scene in scenes])


def _shares(progress: float) -> np.ndarray:
    """Shares of images with one, two and three things: simple scenes first, the final shares from the middle on."""
    early, late = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.42, 0.38])
    return early + min(2 * progress, 1.0) * (late - early)


def _tokenised(networks: Networks, captions: list[str]) -> Tensor:
    return networks.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def _generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _pixels(image: np.ndarray) -> Tensor:
    """[H,W,3] uint8 to [3,H,W] in [-1, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1


def _images(pixels: Tensor) -> np.ndarray:
    return ((pixels.permute(0, 2, 3, 1).numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def _sample_grid(networks: Networks, file: Path) -> None:
    start = torch.randn(len(GRID_PROMPTS), 4, 16, 16, generator=torch.Generator().manual_seed(7))
    made = sampler(networks)(
        list(GRID_PROMPTS),
        height=SIZE,
        width=SIZE,
        num_inference_steps=25,
        guidance_scale=5.0,
        latents=start,
        output_type="np",
    )
    _save_grid(file, to_bytes(made.images), columns=4)


def _save_grid(file: Path, images: Any, columns: int) -> None:
    rows = math.ceil(len(images) / columns)
    grid = Image.new("RGB", (columns * 68, rows * 68), "white")
    for i, image in enumerate(images):
        grid.paste(Image.fromarray(image), (i % columns * 68 + 2, i // columns * 68 + 2))
    grid.resize((grid.width * 2, grid.height * 2), Image.Resampling.NEAREST).save(file)


def _save_curve(folder: Path, name: str, losses: list[float]) -> None:
    np.savetxt(folder / f"loss_{name}.csv", losses, fmt="%.7g", header="loss per step")
    if not find_spec("matplotlib"):
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    window = max(len(losses) // 200, 1)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.semilogy(np.arange(len(smooth)) + window, smooth)
    axes.set(xlabel="step", ylabel="loss", title=f"{name}: mean of {window} steps")
    figure.savefig(folder / f"loss_{name}.png", dpi=110)
    pyplot.close(figure)


def _progress(name: str, start: int, total: int, losses: list[float] | None, stride: int = 1) -> Iterator[int]:
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(name, total=total, completed=start)
        for step in range(start, total, stride):
            yield step
            progress.update(task, completed=step + stride)
            if losses:
                progress.update(task, description=f"{name} loss {np.mean(losses[-100:]):.4f}")


if __name__ == "__main__":
    sys.exit(main())
