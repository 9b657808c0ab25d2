"""ebca-run: pictures from an engine directory."""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ebca import console
from ebca.errors import ParameterError
from ebca.runtime.cli import options
from ebca.runtime.conditioning import edits as editing
from ebca.runtime.conditioning.edits import Edit
from ebca.runtime.engine import Engine
from ebca.runtime.images import inputs
from ebca.runtime.images import outputs as images
from ebca.runtime.images.latents import RePaint
from ebca.runtime.sampling.host import StepInfo
from ebca.runtime.session import Result, Session
from ebca.runtime.telemetry.attention_maps import draw_attention
from ebca.runtime.telemetry.energies import Energies, require_plotting

PROGRAM = "ebca-run"

_EXAMPLES = """what it does follows from what it is given:
  --prompt                              text to image
  --prompt --editing-prompt             a picture with something added or taken away
  --image --prompt                      image to image (--strength)
  --image --mask --prompt               inpainting: white parts of the mask are made anew
  --image --source-prompt --editing-prompt   editing of a real image, by inversion

examples:
  ebca-run --engine engine-sd15 --prompt "a lion with a crown" --seed 1
  ebca-run --engine engine-sd15 --prompt "a lion with a crown" --gamma-attn 0.01 --gamma-norm 0.02 \\
           --token-words crown --token-upweight 2 --output lion.png
  ebca-run --engine engine-sd15 --prompt "a cat" --gamma-attn 0.01 --gamma-tau 0.5 --seed 1 2 3 4
  ebca-run --engine engine-sd15 --prompt "a castle next to a river" \\
           --editing-prompt "monet painting" boat --alpha 1.3 --alpha-tau 0.2 --gamma-attn 0.01
  ebca-run --engine engine-sd15 --image cat.jpg --source-prompt "a cat" --editing-prompt dog cat \\
           --editing-direction 1 0 --alpha 0.75 0.65 --alpha-tau 0.5
  ebca-run --engine engine-inpainting --image room.png --mask hole.png --prompt "teddy bear"

"""


def parser() -> argparse.ArgumentParser:
    """The command line, also for documentation."""
    p = argparse.ArgumentParser(
        PROGRAM,
        description="Make pictures with Energy-Based Cross Attention. With gammas of 0 this is plain\n"
        "Stable Diffusion. Every picture carries its parameters in its PNG text.",
        epilog=_EXAMPLES + options.SCHEDULES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # argparse by itself takes -1e-3 for an option.
    p._negative_number_matcher = re.compile(r"-\d*\.?\d+(e[-+]?\d+)?$", re.IGNORECASE)
    p.add_argument(
        "--engine", required=True, metavar="DIR", help="engine directory made by ebca-export, or a bundled name"
    )
    p.add_argument("--prompt", help="what the picture shows (default: --source-prompt)")
    p.add_argument(
        "--negative-prompt", "--negative_prompt", help="what it should not show (default: nothing; --source-prompt)"
    )
    p.add_argument(
        "--output", "--result-file-name", "--result_file_name", "--save_name",
        type=Path, default=Path("ebca.png"), metavar="FILE.png",
        help="where the picture goes; several pictures get -0, -1, ... before the suffix (default: ebca.png)",
    )  # fmt: skip
    p.add_argument(
        "--steps", "--num-inference-steps", "--num_steps", type=int, default=50, help="scheduler steps (default: 50)"
    )
    p.add_argument(
        "--guidance-scale", "--guidance_scale", type=float,
        help="classifier-free guidance; 1 or less turns it off (default: the engine's, 7.5 for Stable Diffusion)",
    )  # fmt: skip
    p.add_argument("--scheduler", help="pndm, ddim, euler, dpmpp_2m or unipc (default: the engine's, pndm)")
    p.add_argument(
        "--seed", type=int, nargs="+", metavar="N",
        help="one picture per seed; one seed with --num-images draws all pictures from it (default: random)",
    )  # fmt: skip
    p.add_argument(
        "--num-images", "--num-images-per-prompt", type=int, default=None, metavar="N", help="pictures to make"
    )
    p.add_argument(
        "--height", type=int, help="pixels, a multiple of 8 (default: the model's, in the proportions of --image)"
    )
    p.add_argument("--width", type=int, help="the same")

    given = p.add_argument_group("pictures to start from")
    given.add_argument(
        "--image", "--img-file", "--img_file", type=Path, nargs="+", metavar="FILE", help="one, or one per picture"
    )
    given.add_argument(
        "--mask", "--mask-image", "--mask_file", type=Path, nargs="+", metavar="FILE",
        help="white where the picture is made anew",
    )  # fmt: skip
    given.add_argument(
        "--strength", type=float, help="of image to image: the share of the steps that is run (default: 0.8)"
    )
    given.add_argument(
        "--source-prompt", "--source_prompt", metavar="TEXT",
        help="what --image shows: the image is inverted with it (DDIM), then made again with the editing prompts",
    )  # fmt: skip
    given.add_argument(
        "--regularize", action="store_true",
        help="keep the noise of the inversion like noise, as the authors' script does; slower steps",
    )  # fmt: skip
    given.add_argument(
        "--composite", action=argparse.BooleanOptionalAction, default=True,
        help="put the image's own pixels back outside the mask (default: yes)",
    )  # fmt: skip
    given.add_argument(
        "--repaint", action="store_true", help="inpaint with RePaint (by itself where the model needs it)"
    )
    given.add_argument(
        "--jump-length", "--jump_length", type=int, help="RePaint: steps that a jump goes back (default: 10)"
    )
    given.add_argument(
        "--jump-n-sample", "--jump_n_sample", type=int, help="RePaint: how often each stretch is denoised (default: 10)"
    )
    given.add_argument("--eta", type=float, help="RePaint: 0 without random steps, 1 with (default: 0)")
    given.add_argument(
        "--update-known", action="store_true",
        help="RePaint: the context update looks at the known part, not the hole, as in the authors' code",
    )  # fmt: skip

    energy = options.add_energy(p)
    energy.add_argument(
        "--token-indices", "--token_indices", type=int, nargs="+", metavar="I",
        help="token positions (0 is the start token) whose attention step is scaled by --token-upweight",
    )  # fmt: skip
    energy.add_argument("--token-words", nargs="+", metavar="WORD", help="the same by words of the prompt")
    energy.add_argument(
        "--token-upweight", "--token_upweight", type=float, nargs="+", metavar="W",
        help="factors: one per index, then one per word; a single one serves all",
    )  # fmt: skip

    options.add_editing(p)

    telemetry = p.add_argument_group("telemetry")
    telemetry.add_argument(
        "--energies", type=Path, metavar="FILE.jsonl", help="write the energies, one line per step and layer"
    )
    telemetry.add_argument("--energy-plot", type=Path, metavar="FILE.png", help="draw them (needs the 'plot' extra)")
    telemetry.add_argument(
        "--attention-maps", type=Path, metavar="FILE.png",
        help="draw where each token of the prompt is attended to; several pictures get -0, -1, ...",
    )  # fmt: skip

    machine = options.add_machine(p)
    machine.add_argument("--json", action="store_true", help="print files, parameters and timings as JSON")
    machine.add_argument("--quiet", action="store_true", help="no progress")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    p = parser()
    args = p.parse_args(argv)
    if args.prompt is None and args.source_prompt is None:
        p.error("the following arguments are required: --prompt")
    with console.CtrlC() as ctrl_c:
        return console.run(PROGRAM, lambda: _run(args, ctrl_c), interrupted="interrupted; no picture was written")


def _run(args: argparse.Namespace, ctrl_c: console.CtrlC) -> int:
    seeds: list[int] | None = args.seed
    given = max(len(seeds or ()), len(args.image or ()), len(args.mask or ()), 1)
    count = given if args.num_images is None else args.num_images
    if count < 1:
        raise ParameterError(f"--num-images is {count}", "give 1 or more")
    if seeds and len(seeds) not in (1, count):
        raise ParameterError(f"--seed has {len(seeds)} values for {count} pictures", "give one, or one each")
    files = _outputs(args.output, count)
    _check_output("--output", args.output, files)
    _check_telemetry(args, count)
    _check_task(args)
    weights = _token_weights(args.token_indices, args.token_words, args.token_upweight)
    gamma_attn, gamma_norm = options.gammas(args)
    edits = options.edits(args)
    repaint = _repaint(args)
    if args.image:
        size = inputs.picture_size(args.image)
    with console.PrepareProgress() as prepare:
        engine = options.open_engine(args, None if args.quiet else prepare)
    height, width = args.height, args.width
    if args.image and height is None and width is None and engine.manifest.vae is not None:
        downscale = engine.manifest.vae.downscale
        height, width = inputs.fitted_size(size, engine.manifest.unet.sample_size * downscale, downscale)
    with engine, engine.session(height, width, count) as session, _Steps(args.quiet, ctrl_c) as steps:
        start = _invert(session, args, edits, steps)
        source = args.source_prompt
        negative = args.negative_prompt
        steps.phase("denoising")
        result = session.generate(
            args.prompt if args.prompt is not None else source,
            negative_prompt=(source or "") if negative is None else negative,
            steps=args.steps,
            guidance_scale=args.guidance_scale,
            # What was inverted with DDIM comes back with DDIM.
            scheduler=args.scheduler if source is None else "ddim",
            seed=None if seeds is None else (seeds[0] if len(seeds) == 1 else seeds),
            gamma_attn=gamma_attn,
            gamma_norm=gamma_norm,
            token_weights=weights,
            norm_factor=args.norm_factor,
            edits=edits,
            reset_edits=args.reset_edits,
            image=args.image if source is None else None,
            mask=args.mask,
            strength=args.strength,
            repaint=repaint,
            composite=args.composite,
            latents=start,
            energies=bool(args.energies or args.energy_plot),
            attention_maps=args.attention_maps is not None,
            on_step=steps,
        )
    parameters = {**result.parameters, **_given(args)}
    for index, (image, file) in enumerate(zip(result.images, files, strict=True)):
        images.save_png(image, file, {**parameters, "image": index})
    more = _write_telemetry(args, engine, result)
    if args.json:
        report = {"files": [str(f) for f in (*files, *more)], "parameters": parameters, "timings": result.timings}
        print(json.dumps(report))
    else:
        for file in (*files, *more):
            print(f"wrote {_printable(file)}")
    return 0


def _check_task(args: argparse.Namespace) -> None:
    """Refuse what the options alone show not to fit together; the rest is the session's."""
    if args.source_prompt is None:
        if args.regularize:
            raise ParameterError(
                "--regularize belongs to the inversion of an image", "give --source-prompt and --image"
            )
        if args.image and args.editing_prompt and not args.mask and args.strength is None:
            raise ParameterError(
                "--image with --editing-prompt: give --source-prompt to edit the image itself (what does it show?), "
                "or --strength for image to image"
            )
        return
    if not args.image:
        raise ParameterError("--source-prompt says what --image shows", "give the image")
    for flag, value in (("--mask", args.mask), ("--strength", args.strength)):
        if value is not None:
            raise ParameterError(f"--source-prompt and {flag} do not go together", "leave one out")
    if args.scheduler not in (None, "ddim"):
        raise ParameterError(f"--source-prompt works with --scheduler ddim, not {args.scheduler}", "leave it out")


def _repaint(args: argparse.Namespace) -> RePaint | None:
    chosen = {
        "jump_length": args.jump_length,
        "jump_count": args.jump_n_sample,
        "eta": args.eta,
        "update_known": args.update_known or None,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return RePaint(**chosen) if chosen or args.repaint else None


def _invert(session: Session, args: argparse.Namespace, edits: Sequence[Edit], steps: "_Steps") -> np.ndarray | None:
    """The start latents of real-image editing; None for other tasks."""
    if args.source_prompt is None:
        return None
    # What sampling would refuse, it would refuse after the work of the inversion.
    editing.resolve(edits, args.steps, args.steps, "ddim")
    steps.phase("inverting")
    found = session.invert(args.image, args.source_prompt, steps=args.steps, regularize=args.regularize, on_step=steps)
    return found.latents


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """What the picture was made from, for its PNG text."""
    found: dict[str, Any] = {}
    if args.image:
        found["image_files"] = [str(file) for file in args.image]
    if args.mask:
        found["mask_files"] = [str(file) for file in args.mask]
    if args.source_prompt is not None:
        found |= {"task": "real-image-editing", "source_prompt": args.source_prompt, "regularize": args.regularize}
    return found


def _check_telemetry(args: argparse.Namespace, count: int) -> None:
    if args.energy_plot is not None:
        require_plotting()
        _check_output("--energy-plot", args.energy_plot, [args.energy_plot])
    if args.attention_maps is not None:
        _check_output("--attention-maps", args.attention_maps, _outputs(args.attention_maps, count))
    if args.energies is not None:
        _check_output("--energies", args.energies, [args.energies], suffix="")


def _write_telemetry(args: argparse.Namespace, engine: Engine, result: Result) -> list[Path]:
    """Returns the files."""
    written: list[Path] = []
    if result.energies is not None:
        layers = tuple(layer.name for layer in engine.manifest.unet.layers)
        energies = Energies(result.timesteps, layers, result.energies)
        if args.energies is not None:
            energies.write_lines(args.energies)
            written.append(args.energies)
        if args.energy_plot is not None:
            energies.plot(args.energy_plot)
            written.append(args.energy_plot)
    if result.attention_maps is not None:
        prompt = args.prompt if args.prompt is not None else args.source_prompt
        tokens = engine.tokenizer.encode([prompt]).tokens[0]
        files = _outputs(args.attention_maps, len(result.images))
        for image, maps, file in zip(result.images, result.attention_maps, files, strict=True):
            images.save_png(draw_attention(image, maps, tokens), file, result.parameters)
        written += files
    return written


class _Steps:
    """Progress over the evaluations, on a terminal only; and the place where a Ctrl-C that got lost is found."""

    def __init__(self, quiet: bool, ctrl_c: console.CtrlC) -> None:
        self._ctrl_c = ctrl_c
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        out = Console(stderr=True)
        self._progress = Progress(*columns, console=out, transient=True, disable=quiet or not out.is_terminal)
        self._task = self._progress.add_task("denoising", total=None)

    def phase(self, name: str) -> None:
        """Start counting anew under another name."""
        self._progress.reset(self._task, description=name)

    def __call__(self, info: StepInfo) -> bool:
        self._ctrl_c.check()
        self._progress.update(self._task, completed=info.index + 1, total=info.total)
        return True

    def __enter__(self) -> "_Steps":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()


def _token_weights(
    indices: list[int] | None, words: list[str] | None, factors: list[float] | None
) -> dict[str | int, float]:
    keys: list[str | int] = [*(indices or []), *(words or [])]
    if not keys and factors:
        raise ParameterError("--token-upweight needs --token-indices or --token-words")
    if keys and not factors:
        raise ParameterError("--token-indices and --token-words need --token-upweight")
    if not keys or not factors:
        return {}
    if len(factors) not in (1, len(keys)):
        raise ParameterError(
            f"--token-upweight has {len(factors)} values for {len(keys)} tokens", "give one, or one each"
        )
    weights: dict[str | int, float] = {}
    for key, factor in zip(keys, factors * len(keys) if len(factors) == 1 else factors, strict=True):
        # The authors' code multiplies once per mention.
        weights[key] = weights.get(key, 1.0) * factor
    return weights


def _check_output(flag: str, path: Path, files: list[Path], suffix: str = ".png") -> None:
    if suffix and path.suffix.lower() != suffix:
        raise ParameterError(f"{flag} is '{path}'", f"name a {suffix} file (its text holds the parameters)")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ParameterError(f"{flag} folder '{folder}' does not exist", "make it first")
    try:
        for file in files:
            if file.is_dir():
                raise ParameterError(f"{flag} '{file}' is a folder", "name another file")
            # The longest name that saving will use.
            probe = file.with_name(f".{file.name}.{os.getpid()}.tmp")
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise ParameterError(f"{flag} '{path}' cannot be written: {error.strerror or error}") from None


def _printable(path: Path) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    return str(path).encode(encoding, "backslashreplace").decode(encoding)


def _outputs(path: Path, count: int) -> list[Path]:
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{index}") for index in range(count)]


if __name__ == "__main__":
    sys.exit(main())
