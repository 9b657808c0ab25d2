"""`manifest.json`: everything a host in any language must know to run an engine directory.

Version 2. Paths are relative to the directory, with `/`. Tensor shapes: see `ebca.engines.contract.dims`.

    format, version      "ebca-engine", 2
    digest               SHA-256 of this file, see `ebca.engines.contract.digest`
    created_by           versions of the software that wrote it
    model                name, kind ("text-to-image", "inpainting", "instruct-pix2pix", "unet"), source,
                         guidance_scale (the default), force_zeros_for_empty_prompt (false if missing)
    precision            "fp32", or "fp16" (weights stored as float16)
    compute              "fp32" (the default; stored float16 is widened during preparation), or "fp16"
    components           name -> graph, lowered graphs per backend, weights file, inputs, outputs
    unet                 channels, sizes, inputs, outputs, tensors, layers, steps ("plan"), subject_layers. For Stable
                         Diffusion XL, text_embeds and time_ids are among the inputs
    text_encoder, vae, tokenizer    null in a UNet-only directory. layers and layers_component of text_encoder, for clip
                         skip, are missing in older ones. With its pooled_size, there are two text encoders,
                         the first of which makes first_hidden_size of hidden_size, and the tokenizer has pad_token_2
                         and pad_token_id_2
    schedulers           coefficient tables, see `ebca.runtime.sampling.tables`
    parity               errors measured against PyTorch at export
    controlnets          per name: components that add to what the UNet's segments read; only if there are any
    plans                per library: TensorRT plans built ahead of time, see `ebca.engines.contract.plans`
    weights              the file that says where each weight lies, see `ebca.engines.contract.weights`; may be missing
    derived              of which engine it was made, and what was merged into that; null for an export
    files                path -> size, sha256
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebca.engines.contract import consistency, digest, files, reading, strict_json
from ebca.engines.contract.checked import Entry, spelled
from ebca.engines.contract.entries import (
    FORMAT,
    GUIDANCE_SCALE,
    VERSION,
    Adapter,
    Component,
    ControlNetSpec,
    Derived,
    FileRecord,
    LayerSpec,
    Manifest,
    Step,
    SubjectLayers,
    TextEncoderSpec,
    TokenizerSpec,
    UNetSpec,
    VaeSpec,
)
from ebca.engines.contract.reading import COMPUTES
from ebca.engines.contract.tensors import DTYPES, TensorSpec
from ebca.errors import EngineError

__all__ = [
    "COMPUTES",
    "DTYPES",
    "FILE_NAME",
    "FORMAT",
    "GUIDANCE_SCALE",
    "VERSION",
    "Adapter",
    "Component",
    "ControlNetSpec",
    "Derived",
    "FileRecord",
    "LayerSpec",
    "Manifest",
    "Step",
    "SubjectLayers",
    "TensorSpec",
    "TextEncoderSpec",
    "TokenizerSpec",
    "UNetSpec",
    "VaeSpec",
    "component_from_json",
    "parse",
    "read",
]

FILE_NAME = "manifest.json"


def read(directory: Path) -> Manifest:
    """Read and check `directory/manifest.json`.

    Raises:
        EngineError: not an engine directory, another version, a manifest that was changed after the export, a broken or
            inconsistent one, or a path that leaves the directory.
    """
    if not os.path.isdir(directory):  # noqa: PTH112 - Path.is_dir raises an exception for a name that is too long
        raise EngineError(f"engine directory '{directory}' does not exist", "make one with `ebca-export --output-dir`")
    path = directory / FILE_NAME
    if not os.path.lexists(path) and os.access(directory, os.X_OK):
        raise EngineError(
            f"'{directory}' has no {FILE_NAME}: not an engine directory, or its export did not finish",
            "run `ebca-export` again to finish it",
        )
    return parse(files.read(path), f"'{path}'")


def parse(contents: bytes, what: str = FILE_NAME) -> Manifest:
    """A manifest from the contents of its file, checked. Raises EngineError as `read`; it calls the file `what`."""
    try:
        document = Entry(strict_json.parse(contents.decode("utf-8")), "")
    except (UnicodeDecodeError, EngineError) as error:
        raise EngineError(f"{what} cannot be read: {error}", "copy or export the engine again") from None
    if not isinstance(document.value, dict) or document.value.get("format") != FORMAT:
        raise EngineError(f"{what} is not an ebca manifest (no format '{FORMAT}')", "name an engine directory")
    version = document.value.get("version")
    if type(version) is not int or version != VERSION:
        newer = type(version) is int and version > VERSION
        upgrade = "upgrade ebca (`pip install -U ebca`) or " if newer else ""
        raise EngineError(
            f"{what} has manifest version {spelled(version)}, this ebca reads {VERSION}",
            f"{upgrade}export the engine again",
        )
    if not digest.matches(contents, document.value.get("digest")):
        raise EngineError(
            f"{what} was changed or damaged after the export: its digest is another one",
            "copy the engine directory again or export it again",
        )
    try:
        manifest = reading.manifest(document)
        consistency.check(manifest)
    except EngineError as error:
        raise EngineError(f"{what} is broken: {error.problem}", error.remedy or "export the engine again") from None
    return manifest


def component_from_json(data: Mapping[str, Any]) -> Component:
    """A component from its entry in `manifest.json`. Raises EngineError for a wrong type or range."""
    return reading.component(Entry(data, "component"))
