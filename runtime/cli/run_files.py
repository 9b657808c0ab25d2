"""The files that ebca-run writes: checked first, written last."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebca.runtime.components import Components
from ebca.runtime.images.files import check_image_path, check_path, numbered, save_image
from ebca.runtime.results import Result
from ebca.runtime.telemetry.attention_maps import draw_attention
from ebca.runtime.telemetry.energies import Energies, require_plotting
from ebca.runtime.validation import texts_for_images


def check_files(args: argparse.Namespace, count: int) -> None:
    """Raise ParameterError if a file cannot be written."""
    for flag, path in (("--output", args.output), ("--attention-maps", args.attention_maps)):
        for file in numbered(path, count) if path is not None else ():
            check_image_path(file, flag)
    if args.energy_plot is not None:
        require_plotting()
        check_image_path(args.energy_plot, "--energy-plot")
    if args.energies is not None:
        check_path(args.energies, "--energies")


def write_files(
    args: argparse.Namespace, engine: Components, result: Result, parameters: Mapping[str, Any]
) -> list[Path]:
    """Write images and telemetry. Returns the files."""
    paths = numbered(args.output, len(result.images))
    files = [
        save_image(image, path, {**parameters, "image_index": index})
        for index, (image, path) in enumerate(zip(result.images, paths, strict=True))
    ]
    return [*files, *_write_energies(args, engine, result), *_write_attention_maps(args, engine, result)]


def printable(path: Path) -> str:
    """A path as text that standard output can encode."""
    encoding = sys.stdout.encoding or "utf-8"
    return str(path).encode(encoding, "backslashreplace").decode(encoding)


def _write_energies(args: argparse.Namespace, engine: Components, result: Result) -> list[Path]:
    if result.energies is None:
        return []
    layers = tuple(layer.name for layer in engine.manifest.unet.layers)
    energies = Energies(result.timesteps, layers, result.energies)
    if args.energies is not None:
        energies.write_lines(args.energies)
    if args.energy_plot is not None:
        energies.plot(args.energy_plot)
    return [file for file in (args.energies, args.energy_plot) if file is not None]


def _write_attention_maps(args: argparse.Namespace, engine: Components, result: Result) -> list[Path]:
    if result.attention_maps is None:
        return []
    prompt = args.prompt if args.prompt is not None else args.source_prompt
    tokens = engine.tokenizer.encode(texts_for_images("prompt", prompt, len(result.images))).tokens
    paths = numbered(args.attention_maps, len(result.images))
    return [
        save_image(draw_attention(image, maps, labels), path, result.parameters)
        for image, maps, labels, path in zip(result.images, result.attention_maps, tokens, paths, strict=True)
    ]
