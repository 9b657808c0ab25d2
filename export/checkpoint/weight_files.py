"""Which weight files of a folder belong together, and whether they are whole. Only headers and indexes are read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ebca.errors import ModelError
from ebca.export.checkpoint.files import check_safetensors, read_json
from ebca.export.checkpoint.places import PICKLE_SUFFIXES

DIFFUSERS_STEM = "diffusion_pytorch_model"
"""How diffusers names the file of a network's weights, before variant and suffix."""


@dataclass(frozen=True)
class WeightFiles:
    """One complete set of safetensors files."""

    variant: str | None  # None for the full-precision ones
    files: tuple[str, ...]
    index: tuple[str, ...] = ()  # the shard index, if the weights are in shards


def weight_files(names: Iterable[str], stem: str, variant: str | None = None) -> WeightFiles | None:
    """Among file names of one folder, those of a variant if they exist, else the full-precision ones, else the fp16
    ones.

    diffusers has spelled shards of a variant in two ways, and reads both.
    """
    names = set(names)
    for each in ((variant,) if variant else ()) + (None, "fp16"):
        part = f".{each}" if each else ""
        single = f"{stem}{part}.safetensors"
        spellings = [f"{stem}.safetensors.index{part}.json"]
        if each and stem != "model":  # transformers knows the first one only
            spellings.append(f"{stem}.safetensors{part}.index.json")
        number, base, tail = r"-\d{5}-of-\d{5}", re.escape(stem), re.escape(part)
        shard = re.compile(rf"{base}({tail}{number}|{number}{tail})\.safetensors")
        shards = tuple(sorted(name for name in names if shard.fullmatch(name)))
        sharded = [WeightFiles(each, shards, (index,)) for index in spellings if index in names]
        whole = [WeightFiles(each, (single,))] if single in names else []
        # The order in which the two libraries look.
        found = [*whole, *sharded] if stem == "model" else [*sharded, *whole]
        if found:
            return found[0]
    return None


def local_weights(folder: Path, stem: str, variant: str | None = None) -> WeightFiles:
    """The weights in a folder, all of them there and none cut short; those of `variant` if it has them.

    Raises:
        ModelError: naming the file that is missing or broken.
    """
    names = {path.name for path in folder.iterdir()}
    found = weight_files(names, stem, variant)
    if found is None:
        pickled = any(name.endswith(PICKLE_SUFFIXES) for name in names)
        others = sorted(name for name in names if name.endswith(".safetensors"))
        why = "; pickled weights (.bin) are there, but they are never loaded" if pickled else ""
        raise ModelError(
            f"{folder} has no {stem}.safetensors{why}",
            f"{others[0]} is there: rename it if it holds these weights" if others else "download it again",
        )
    if found.index:
        found = WeightFiles(found.variant, _shards(folder, found.index[0], names), found.index)
    for name in found.files:
        check_safetensors(folder / name)
    return found


def _shards(folder: Path, index: str, names: set[str]) -> tuple[str, ...]:
    """The files that an index names, whatever else lies beside them."""
    content = read_json(folder / index)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places or not isinstance(content.get("metadata"), dict):
        raise ModelError(f"{folder / index} is no index: it needs weight_map and metadata", "download it again")
    for tensor, file in places.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ModelError(f"{folder / index} places {tensor} in {file!r}, no file beside it", "download it again")
    shards = tuple(sorted(set(places.values())))
    absent = [name for name in shards if name not in names]
    if absent:
        raise ModelError(f"{folder} is incomplete: {index} names {absent[0]}, which is missing", "download it again")
    return shards
