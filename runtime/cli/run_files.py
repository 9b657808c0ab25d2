"""The files that ebca-run writes: named and checked first, written last."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ebca import console
from ebca.errors import EbcaError, ParameterError
from ebca.runtime.cli import names
from ebca.runtime.components import Components
from ebca.runtime.images.files import check_suffix, save_image
from ebca.runtime.results import Result
from ebca.runtime.telemetry.attention_maps import draw_attention
from ebca.runtime.telemetry.energies import Energies, require_plotting
from ebca.runtime.text.chunks import Reading
from ebca.runtime.validation import texts_for_images

_PER_IMAGE = ("--output", "--attention-maps")
_DEFAULT_OUTPUT = Path("ebca.png")


@dataclass(frozen=True)
class ResultFiles:
    """The result files of one run.

    Attributes:
        images: one per image.
        energies, energy_plot: None if they are not asked for.
        attention_maps: one per image, or none.
    """

    images: tuple[Path, ...]
    energies: Path | None = None
    energy_plot: Path | None = None
    attention_maps: tuple[Path, ...] = ()

    def named(self) -> list[tuple[str, Path]]:
        """Every file after its option."""
        named = [("--output", file) for file in self.images]
        named += [("--energies", self.energies)] if self.energies is not None else []
        named += [("--energy-plot", self.energy_plot)] if self.energy_plot is not None else []
        return named + [("--attention-maps", file) for file in self.attention_maps]


def templates(args: argparse.Namespace) -> list[tuple[str, Path | None]]:
    """Every option that names result files, and the name; None if there are no such files.

    Without `--output`, images are named for being many if there is a folder or a file of prompts.
    """
    output = args.output
    if output is None:
        output = _DEFAULT_OUTPUT if args.output_dir is None and args.prompts_file is None else names.DEFAULT
    return [
        ("--output", output),
        ("--energies", args.energies),
        ("--energy-plot", args.energy_plot),
        ("--attention-maps", args.attention_maps),
    ]


def result_files(args: argparse.Namespace, count: int, number: int = 1) -> ResultFiles:
    """The files of one run, with placeholders filled in.

    Args:
        args: the options. Seeds must be given if a name has the placeholder {seed}.
        count: number of images.
        number: of the run, from 1.

    Raises:
        ParameterError: a placeholder that does not exist.
    """
    prompt = args.prompt if args.prompt is not None else args.source_prompt
    prompts = texts_for_images("prompt", prompt or "", count)
    seeds = args.seed or [""]
    seeds = seeds * count if len(seeds) == 1 else seeds
    values = [
        {"number": number, "slug": names.slug(text), "seed": seed, "index": index}
        for index, (text, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    once = [{name: value for name, value in values[0].items() if name in names.PER_RUN}]

    files: dict[str, list[Path]] = {}
    for flag, template in templates(args):
        each = values if flag in _PER_IMAGE else once
        files[flag] = [] if template is None else names.expand(flag, template, each)
    if args.output_dir is not None:
        files = {flag: [args.output_dir / file for file in named] for flag, named in files.items()}
    return ResultFiles(
        images=tuple(files["--output"]),
        energies=next(iter(files["--energies"]), None),
        energy_plot=next(iter(files["--energy-plot"]), None),
        attention_maps=tuple(files["--attention-maps"]),
    )


def preview_file(args: argparse.Namespace) -> list[tuple[str, Path]]:
    """The file of previews after its option; none if it is not asked for."""
    if args.preview is None:
        return []
    return [("--preview", args.preview if args.output_dir is None else args.output_dir / args.preview)]


def input_files(args: argparse.Namespace) -> list[tuple[str, Path]]:
    """The files that a run reads, each after its option."""
    given = [("--image", file) for file in args.image or ()] + [("--mask", file) for file in args.mask or ()]
    if args.from_image is not None:
        given.append(("--from-image", args.from_image))
    if args.prompts_file is not None and args.prompts_file != Path("-"):
        given.append(("--prompts-file", args.prompts_file))
    return given


def check_files(results: Sequence[tuple[str, Path]], inputs: Sequence[tuple[str, Path]], engine: str) -> None:
    """Check that every result file can be written, and that none is another one, an input, or a part of the engine.

    Args:
        results: after the option that names it. Options may have something before them, such as a line.
        inputs: files that are read, likewise.
        engine: its directory or name.

    Raises:
        ParameterError: one of these is not so.
    """
    for flag, file in results:
        if flag.endswith("--energies"):
            _check_outside(flag, file, Path(engine))
        else:
            check_suffix(file, flag)
    if any(flag.endswith("--energy-plot") for flag, _ in results):
        require_plotting()
    console.check_results(results, inputs)


def write_files(
    files: ResultFiles, engine: Components, result: Result, parameters: Mapping[str, Any], prompt: str | list[str]
) -> Iterator[Path]:
    """Write images and telemetry; yields each file when it is complete. A file that cannot be written does not keep the
    others from being written.

    Raises:
        ParameterError: a file cannot be written; the first such error, in the end.
    """
    tasks: list[tuple[Path, Callable[[], object]]] = [
        (file, partial(save_image, image, file, {**parameters, "image_index": index}))
        for index, (image, file) in enumerate(zip(result.images, files.images, strict=True))
    ]
    tasks += _telemetry_tasks(files, engine, result, prompt)
    failed: EbcaError | None = None
    for file, write in tasks:
        try:
            write()
        except EbcaError as error:
            failed = failed or error
        else:
            yield file
    if failed is not None:
        raise failed


def _telemetry_tasks(
    files: ResultFiles, engine: Components, result: Result, prompt: str | list[str]
) -> Iterator[tuple[Path, Callable[[], object]]]:
    if result.energies is not None:
        layers = tuple(layer.name for layer in engine.manifest.unet.layers)
        energies = Energies(result.timesteps, layers, result.energies, len(result.latents))
        if files.energies is not None:
            yield files.energies, partial(energies.write_lines, files.energies)
        if files.energy_plot is not None:
            yield files.energy_plot, partial(energies.plot, files.energy_plot)
    if result.attention_maps is not None:
        # Tokens that other prompts are longer by have no names.
        tokens = (
            engine.tokenizer.reading(_reading(result))
            .encode(texts_for_images("prompt", prompt, len(result.images)))
            .tokens
        )
        for image, maps, labels, file in zip(
            result.images, result.attention_maps, tokens, files.attention_maps, strict=True
        ):
            yield file, partial(_write_attention_maps, file, image, maps, labels, result.parameters)


def _reading(result: Result) -> Reading:
    """How the prompts of a result were read."""
    return Reading(result.parameters["prompt_weighting"], result.parameters["long_prompts"])


def _write_attention_maps(
    file: Path, image: Image.Image, maps: np.ndarray, tokens: Sequence[str], parameters: Mapping[str, Any]
) -> None:
    save_image(draw_attention(image, maps, tokens), file, parameters)


def _check_outside(flag: str, file: Path, engine: Path) -> None:
    if engine.is_dir() and engine.resolve() in file.resolve().parents:
        raise ParameterError(f"{flag} '{file}' lies in the engine directory", "name a file in another folder")
