"""ebca-run --from-image: the generation that an image file records, with the options that are given."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ebca.errors import ParameterError
from ebca.runtime.images.files import read_parameters
from ebca.runtime.request.fields import GenerateRequest
from ebca.runtime.request.inputs import IMAGES, same_files
from ebca.runtime.request.serialization import from_parameters

# The options of each field that has others than its own.
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "token_weights": ("token_indices", "token_words", "token_upweight"),
    "edits": ("editing_prompt",),
    "regions": ("region",),
    "control": ("control", "control_start", "control_end"),
    "repaint": ("repaint", "jump_length", "jump_n_sample", "eta", "update_known"),
}
_GAMMA_OPTIONS = ("gamma_schedule", "gamma_tau", "gamma_ratio")
_TELEMETRY = ("energies", "attention_maps")
_PLAIN = (
    *("engine", "prompt", "negative_prompt", "steps", "guidance_scale", "scheduler", "strength"),
    "image_guidance_scale",
    *("height", "width", "source_prompt", "regularize"),
)


def filled(p: argparse.ArgumentParser, args: argparse.Namespace, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, with recorded values for those that are not given; `given` has the names of the others.

    Args:
        p: the parser; its defaults are changed.
        args: what it made of the command line.
        argv: the command line.

    Raises:
        ParameterError: a file without parameters, or an input that is not as recorded.
    """
    if args.prompts_file is not None:
        raise ParameterError("--from-image and --prompts-file do not go together", "leave one out")
    recorded = read_parameters(args.from_image)
    defaults = vars(args).copy()
    absent = object()
    p.set_defaults(**dict.fromkeys(defaults, absent))
    given = {name: value for name, value in vars(p.parse_args(argv)).items() if value is not absent}
    _check_gammas(given)
    args = argparse.Namespace(**defaults | _values(recorded, given) | given)
    args.recorded, args.given = recorded, set(given)
    if args.engine is None:
        raise ParameterError(f"'{args.from_image}' does not say which engine made it", "give --engine")
    return args


def repeated(asked: GenerateRequest, args: argparse.Namespace) -> GenerateRequest:
    """The recorded request, with the fields of `asked` whose options are given.

    Raises:
        ParameterError: an input that is not recorded, is missing, or has changed.
    """
    values = asked.values()
    changes = {
        name: value
        for name, value in values.items()
        if name in _TELEMETRY or args.given.intersection(_OPTIONS.get(name, (name,)))
    }
    if args.source_prompt is not None:
        # The image is inverted, and the initial latents follow from it.
        changes |= {"image": None, "strength": None, "latents": None, "scheduler": values["scheduler"]}
    return from_parameters(args.recorded, **changes | {"output": "pil"})


def _values(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded parameters as options, as far as the program itself needs them."""
    found = {name: recorded[name] for name in _PLAIN if recorded.get(name) is not None}
    if isinstance(recorded.get("repaint"), Mapping):
        found |= {**recorded["repaint"], "jump_n_sample": recorded["repaint"].get("jump_count")}
    if not {"lora", "embedding"} & given.keys():
        found |= _adapters(recorded.get("adapters"))
    if recorded.get("task") == "repaint":
        # It has steps of its own, and the recorded name is theirs.
        found.pop("scheduler", None)
    if "source_prompt" in given:
        found = {name: value for name, value in found.items() if name not in ("scheduler", "strength")}
    if recorded.get("seed") is not None:
        found["seed"] = recorded["seed"] if isinstance(recorded["seed"], list) else [recorded["seed"]]
    inputs = dict(recorded.get("inputs") or {})
    if recorded.get("source_prompt") is not None:
        inputs["image"] = recorded.get("source_image")
    for name in IMAGES:
        if inputs.get(name) and name not in given:
            files = same_files(name, inputs[name])
            found[name] = [Path(file) for file in ([files] if isinstance(files, str) else files)]
    if all(len(given.get(name, ())) < 2 for name in ("seed", *IMAGES)):
        found["num_images"] = recorded.get("num_images")
    if not {"device", "backend"} & given.keys():
        found["backend"] = recorded.get("backend")
        if recorded.get("precision") == "bf16":
            found["precision"] = "bf16"
    return found


def _adapters(recorded: Any) -> dict[str, list[str]]:
    """LoRAs and embeddings as options. That the files have not changed is checked when the engine is open."""
    found: dict[str, list[str]] = {}
    for one in recorded if isinstance(recorded, list) else ():
        if isinstance(one, Mapping) and one.get("kind") == "lora":
            found.setdefault("lora", []).append(f"{one.get('file')}:{one.get('scale')}")
        elif isinstance(one, Mapping):
            found.setdefault("embedding", []).append(f"{one.get('file')}={one.get('token')}")
    return found


def _check_gammas(given: Mapping[str, Any]) -> None:
    """A recorded gamma is a schedule, or values per evaluation, which these options would not change."""
    alone = [name for name in _GAMMA_OPTIONS if name in given]
    editing = alone == ["gamma_tau"] and "editing_prompt" in given
    if alone and not editing and not {"gamma_attn", "gamma_norm"} & given.keys():
        raise ParameterError(
            f"--{alone[0].replace('_', '-')} does not change recorded gammas", "give --gamma-attn or --gamma-norm too"
        )
