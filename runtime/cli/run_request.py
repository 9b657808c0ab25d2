"""From the command line of ebca-run to a request."""

import argparse
from typing import Any

from ebca.errors import ParameterError
from ebca.runtime.cli import options, run_controls, run_sdxl
from ebca.runtime.request.fields import GenerateRequest
from ebca.runtime.request.inputs import files
from ebca.runtime.sampling.repaint import RePaint
from ebca.runtime.schema import parameters as rules

_STRENGTHS = ("subject_exclusion", "subject_balance", "subject_window")


def request(args: argparse.Namespace) -> GenerateRequest:
    """The request. With a source prompt, the caller adds the initial latents, found by inversion.

    Raises:
        ParameterError: options that do not go together, or that do not form a schedule.
    """
    _check_task(args)
    gamma_attn, gamma_norm = options.gammas(args)
    source, seeds = args.source_prompt, args.seed
    return GenerateRequest.of(
        prompt=args.prompt if args.prompt is not None else source,
        negative_prompt=(source or "") if args.negative_prompt is None else args.negative_prompt,
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        # DDIM undoes the DDIM inversion.
        scheduler=args.scheduler if source is None else "ddim",
        seed=seeds[0] if seeds and len(seeds) == 1 else seeds,
        gamma_attn=gamma_attn,
        gamma_norm=gamma_norm,
        token_weights=_token_weights(args.token_indices, args.token_words, args.token_upweight),
        prompt_weighting=args.prompt_weighting,
        long_prompts=args.long_prompts,
        clip_skip=args.clip_skip,
        **run_sdxl.fields(args),
        norm_factor=args.norm_factor,
        edits=tuple(options.edits(args)),
        reset_edits=args.reset_edits,
        **options.subjects(args),
        image=args.image if source is None else None,
        mask=args.mask,
        strength=args.strength,
        image_guidance_scale=args.image_guidance_scale,
        repaint=_repaint(args),
        composite=args.composite,
        control=run_controls.controls(args),
        vae_tiling=args.vae_tiling,
        energies=bool(args.energies or args.energy_plot),
        attention_maps=args.attention_maps is not None,
    )


def image_count(args: argparse.Namespace) -> int:
    """Number of images. Raises ParameterError for a number of seeds that does not fit."""
    given = max(len(args.seed or ()), len(args.image or ()), len(args.mask or ()), 1)
    count = given if args.num_images is None else int(args.num_images)
    if count < 1:
        raise ParameterError(f"--num-images is {count}", "give 1 or more")
    if count > rules.MAX_IMAGES:
        raise rules.BATCH_TOO_LARGE.error(value=count, limit=rules.MAX_IMAGES)
    if args.seed and len(args.seed) not in (1, count):
        raise ParameterError(f"--seed has {len(args.seed)} values for {count} images", "give one, or one each")
    return count


def given_files(args: argparse.Namespace) -> dict[str, Any]:
    """Parameters of what the command line does before the request is run: the inversion of an image."""
    if args.source_prompt is None:
        return {}
    source = {"source_prompt": args.source_prompt, "regularize": args.regularize}
    return {"task": "real-image-editing", **source, "source_image": files("image", args.image)}


def _check_task(args: argparse.Namespace) -> None:
    """Check the rules that only the command line has; `validate` checks the others."""
    strengths = [name for name in _STRENGTHS if getattr(args, name) is not None]
    # With --from-image, subjects may be recorded; lines of a file have fields of their own.
    alone = args.subjects is None and not args.region and args.recorded is None and args.prompts_file is None
    if strengths and alone:
        raise ParameterError(f"--{strengths[0].replace('_', '-')} needs --subjects or --region", "give one of them")
    if args.source_prompt is None:
        if args.regularize:
            raise ParameterError(
                "--regularize belongs to the inversion of an image", "give --source-prompt and --image"
            )
        if args.image and args.editing_prompt and not args.mask and args.strength is None:
            raise ParameterError(
                "--image with --editing-prompt is ambiguous",
                "give --source-prompt, which describes the image, to edit the image itself, "
                "or --strength for image to image",
            )
        return
    if not args.image:
        raise ParameterError("--source-prompt needs --image, which it describes", "give --image")
    for flag, value in (
        ("--mask", args.mask),
        ("--strength", args.strength),
        ("--subjects", args.subjects),
        ("--region", args.region),
    ):
        if value is not None:
            raise ParameterError(f"--source-prompt and {flag} do not go together", "leave one out")
    if args.scheduler not in (None, "ddim"):
        raise ParameterError(f"--source-prompt needs the scheduler ddim, not {args.scheduler}", "leave --scheduler out")


def _repaint(args: argparse.Namespace) -> RePaint | None:
    chosen = {
        "jump_length": args.jump_length,
        "jump_count": args.jump_n_sample,
        "eta": args.eta,
        "update_known": args.update_known or None,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return RePaint(**chosen) if chosen or args.repaint else None


def _token_weights(
    indices: list[int] | None, words: list[str] | None, factors: list[float] | None
) -> dict[str | int, float]:
    keys: list[str | int] = [*(indices or []), *(words or [])]
    if not keys and factors:
        raise ParameterError("--token-upweight needs --token-indices or --token-words", "give one of them")
    if keys and not factors:
        raise ParameterError("--token-indices and --token-words need --token-upweight", "give the factors")
    if not keys or not factors:
        return {}
    if len(factors) not in (1, len(keys)):
        raise ParameterError(
            f"--token-upweight has {len(factors)} values for {len(keys)} tokens", "give one, or one each"
        )
    weights: dict[str | int, float] = {}
    for key, factor in zip(keys, factors * len(keys) if len(factors) == 1 else factors, strict=True):
        # As in the authors' code, repeated tokens multiply.
        weights[key] = weights.get(key, 1.0) * factor
    return weights
