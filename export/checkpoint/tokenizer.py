"""A CLIP tokenizer folder as one JSON file of `tokenizers`, which the runtime reads without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import CLIPTokenizerFast

from ebca.errors import ModelError

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CLIP_MAX_LENGTH = 77


def tokenizer_json(folder: str | Path) -> tuple[str, dict[str, Any]]:
    """The JSON text, and its length limit and special tokens, from a diffusers tokenizer folder.

    Takes a folder with tokenizer.json or with vocab.json and merges.txt, or the path of a JSON file itself.
    transformers builds the tokenizer, so the ids are its ids.
    """
    folder = Path(folder)
    if folder.is_file():
        return _from_json_file(folder)
    _check_files(folder)
    try:
        tokenizer = CLIPTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        text = _without_limits(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ModelError(f"cannot read the CLIP tokenizer in {folder}: {error}", "download it again") from error
    info: dict[str, Any] = {"model_max_length": _length_limit(folder, tokenizer.model_max_length)}
    for name in ("bos_token", "eos_token", "pad_token"):
        token, number = getattr(tokenizer, name), getattr(tokenizer, f"{name}_id")
        if token is None or number is None:
            raise ModelError(
                f"the tokenizer in {folder} has no {name}: {name} = {token!r}",
                f"name a token of its vocabulary as {name} in tokenizer_config.json; Stable Diffusion 1.x has {EOS} "
                "at the end and as padding",
            )
        info[name], info[f"{name}_id"] = str(token), int(number)
    return text, info


def with_second_padding(text: str, info: Mapping[str, Any], pad_token: str) -> dict[str, Any]:
    """The facts with what fills prompts up for the second text encoder.

    Args:
        text, info: as `tokenizer_json` returns them.
        pad_token: of the second tokenizer, whose vocabulary is the same.

    Raises:
        ModelError: it is not in the vocabulary.
    """
    number = Tokenizer.from_str(text).token_to_id(pad_token)
    if number is None:
        raise ModelError(f"the second tokenizer fills prompts up with {pad_token!r}, which is not in the vocabulary")
    return {**info, "pad_token_2": pad_token, "pad_token_id_2": number}


def both_tokenizers(text: str, info: Mapping[str, Any], second: Path) -> dict[str, Any]:
    """The facts of two tokenizers that differ in their padding only.

    Args:
        text, info: of the first, as `tokenizer_json` returns them.
        second: folder of the second.

    Raises:
        ModelError: the second cannot be read, or has another vocabulary.
    """
    its_text, its_info = tokenizer_json(second)
    ours, its = json.loads(text)["model"], json.loads(its_text)["model"]
    same = all(ours.get(name) == its.get(name) for name in ("vocab", "merges"))
    if not same or any(info[name] != its_info[name] for name in ("bos_token_id", "eos_token_id")):
        raise ModelError(
            f"the tokenizer in {second} has another vocabulary than the first one",
            "only models whose tokenizers differ in nothing but their padding are supported",
        )
    both = with_second_padding(text, info, its_info["pad_token"])
    both["model_max_length"] = min(info["model_max_length"], its_info["model_max_length"])
    return both


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelError(f"there is no tokenizer folder {folder}", "give a folder with vocab.json and merges.txt")
    has_pair = all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    if not has_pair and not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} is no CLIP tokenizer: it has neither tokenizer.json nor vocab.json with merges.txt")


def _from_json_file(path: Path) -> tuple[str, dict[str, Any]]:
    """A JSON file says nothing about padding, so the files beside it decide, else Stable Diffusion 1.x."""
    if path.name in ("tokenizer.json", "vocab.json") and (path.parent / "tokenizer_config.json").is_file():
        return tokenizer_json(path.parent)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise ModelError(f"{path} is not `tokenizers` JSON: {error}") from error
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    if bos is None or eos is None:
        raise ModelError(f"{path} is no CLIP tokenizer: {BOS} or {EOS} is not in its vocabulary")
    info = {"model_max_length": CLIP_MAX_LENGTH, "bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
    ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos}
    return _without_limits(tokenizer), {**info, **ids}


def _without_limits(tokenizer: Tokenizer) -> str:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))


def _length_limit(folder: Path, value: Any) -> int:
    if value is None:
        return CLIP_MAX_LENGTH
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 2:
        raise ModelError(
            f"the tokenizer in {folder} has model_max_length = {value!r}",
            f"give a whole number in tokenizer_config.json; Stable Diffusion has {CLIP_MAX_LENGTH}",
        )
    # transformers uses a number around 1e30 if the folder states no limit.
    return int(value) if value <= 10_000 else CLIP_MAX_LENGTH
