"""The files that ebca-run writes: checked first, written last."""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebca.errors import ParameterError
from ebca.runtime.components import Components
from ebca.runtime.images.outputs import save_png
from ebca.runtime.results import Result
from ebca.runtime.telemetry.attention_maps import draw_attention
from ebca.runtime.telemetry.energies import Energies, require_plotting


def check_files(args: argparse.Namespace, count: int) -> None:
    """Raise ParameterError if a file cannot be written."""
    _check_output("--output", args.output, _numbered(args.output, count))
    if args.energy_plot is not None:
        require_plotting()
        _check_output("--energy-plot", args.energy_plot, [args.energy_plot])
    if args.attention_maps is not None:
        _check_output("--attention-maps", args.attention_maps, _numbered(args.attention_maps, count))
    if args.energies is not None:
        _check_output("--energies", args.energies, [args.energies], suffix="")


def write_files(
    args: argparse.Namespace, engine: Components, result: Result, parameters: Mapping[str, Any]
) -> list[Path]:
    """Write images and telemetry. Returns the files."""
    files = _numbered(args.output, len(result.images))
    for index, (image, file) in enumerate(zip(result.images, files, strict=True)):
        save_png(image, file, {**parameters, "image_index": index})
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
    tokens = engine.tokenizer.encode([prompt]).tokens[0]
    files = _numbered(args.attention_maps, len(result.images))
    for image, maps, file in zip(result.images, result.attention_maps, files, strict=True):
        save_png(draw_attention(image, maps, tokens), file, result.parameters)
    return files


def _check_output(flag: str, path: Path, files: list[Path], suffix: str = ".png") -> None:
    if suffix and path.suffix.lower() != suffix:
        raise ParameterError(f"{flag} is '{path}'", f"name a {suffix} file")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ParameterError(f"{flag} folder '{folder}' does not exist", "create it first")
    try:
        for file in files:
            if file.is_dir():
                raise ParameterError(f"{flag} '{file}' is a folder", "name another file")
            # The longest name that `save_png` will use.
            probe = file.with_name(f".{file.name}.{os.getpid()}.tmp")
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise ParameterError(
            f"{flag} '{path}' cannot be written: {error.strerror or error}", "name a file in a writable folder"
        ) from None


def _numbered(path: Path, count: int) -> list[Path]:
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{index}") for index in range(count)]
