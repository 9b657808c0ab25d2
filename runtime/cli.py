"""ebca-run: pictures from an engine directory."""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ebca.errors import ParameterError
from ebca.runtime import console, images, options
from ebca.runtime.engine import load
from ebca.runtime.sampling import StepInfo

PROGRAM = "ebca-run"

_EXAMPLES = """examples:
  ebca-run --engine engine-sd15 --prompt "a lion with a crown" --seed 1
  ebca-run --engine engine-sd15 --prompt "a lion with a crown" --gamma-attn 0.01 --gamma-norm 0.02 \\
           --token-words crown --token-upweight 2 --output lion.png
  ebca-run --engine engine-sd15 --prompt "a cat" --gamma-attn 0.01 --gamma-tau 0.5 --seed 1 2 3 4
  ebca-run --engine engine-sd15 --prompt "a cat" --steps 20 --scheduler dpmpp_2m --width 768
"""


def parser() -> argparse.ArgumentParser:
    """The command line, also for documentation."""
    p = argparse.ArgumentParser(
        PROGRAM,
        description="Make pictures with Energy-Based Cross Attention. With gammas of 0 this is plain\n"
        "Stable Diffusion. Every picture carries its parameters in its PNG text.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # argparse by itself takes -1e-3 for an option.
    p._negative_number_matcher = re.compile(r"-\d*\.?\d+(e[-+]?\d+)?$", re.IGNORECASE)
    p.add_argument(
        "--engine", required=True, metavar="DIR", help="engine directory made by ebca-export, or a bundled name"
    )
    p.add_argument("--prompt", required=True, help="what the picture shows")
    p.add_argument("--negative-prompt", "--negative_prompt", default="", help="what it should not show")
    p.add_argument(
        "--output", "--result-file-name", type=Path, default=Path("ebca.png"), metavar="FILE.png",
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
    p.add_argument("--height", type=int, help="pixels, a multiple of 8 (default: the model's)")
    p.add_argument("--width", type=int, help="pixels, a multiple of 8 (default: the model's)")

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

    machine = options.add_machine(p)
    machine.add_argument("--json", action="store_true", help="print files, parameters and timings as JSON")
    machine.add_argument("--quiet", action="store_true", help="no progress")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    with console.CtrlC() as ctrl_c:
        return console.run(PROGRAM, lambda: _run(args, ctrl_c), interrupted="interrupted; no picture was written")


def _run(args: argparse.Namespace, ctrl_c: console.CtrlC) -> int:
    seeds: list[int] | None = args.seed
    count = (len(seeds) if seeds else 1) if args.num_images is None else args.num_images
    if count < 1:
        raise ParameterError(f"--num-images is {count}; give 1 or more")
    if seeds and len(seeds) not in (1, count):
        raise ParameterError(f"--seed has {len(seeds)} values for {count} pictures; give one, or one each")
    files = _outputs(args.output, count)
    _check_output(args.output, files)
    weights = _token_weights(args.token_indices, args.token_words, args.token_upweight)
    gamma_attn, gamma_norm = options.gammas(args)
    with console.PrepareProgress() as prepare:
        engine = load(
            args.engine,
            args.device,
            args.backend,
            precision=args.precision,
            threads=args.threads,
            on_prepare=None if args.quiet else prepare,
        )
    with engine, engine.session(args.height, args.width, count) as session, _Steps(args.quiet, ctrl_c) as steps:
        result = session.generate(
            args.prompt,
            negative_prompt=args.negative_prompt,
            steps=args.steps,
            guidance_scale=args.guidance_scale,
            scheduler=args.scheduler,
            seed=None if seeds is None else (seeds[0] if len(seeds) == 1 else seeds),
            gamma_attn=gamma_attn,
            gamma_norm=gamma_norm,
            token_weights=weights,
            norm_factor=args.norm_factor,
            on_step=steps,
        )
    for index, (image, file) in enumerate(zip(result.images, files, strict=True)):
        images.save_png(image, file, {**result.parameters, "image": index})
    if args.json:
        report = {"files": [str(f) for f in files], "parameters": result.parameters, "timings": result.timings}
        print(json.dumps(report))
    else:
        for file in files:
            print(f"wrote {_printable(file)}")
    return 0


class _Steps:
    """Progress over the evaluations, on a terminal only; and the place where a Ctrl-C that got lost is found."""

    def __init__(self, quiet: bool, ctrl_c: console.CtrlC) -> None:
        self._ctrl_c = ctrl_c
        columns = (TextColumn("denoising"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        out = Console(stderr=True)
        self._progress = Progress(*columns, console=out, transient=True, disable=quiet or not out.is_terminal)
        self._task = self._progress.add_task("denoising", total=None)

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
            f"--token-upweight has {len(factors)} values for {len(keys)} tokens; give one, or one each"
        )
    weights: dict[str | int, float] = {}
    for key, factor in zip(keys, factors * len(keys) if len(factors) == 1 else factors, strict=True):
        # The authors' code multiplies once per mention.
        weights[key] = weights.get(key, 1.0) * factor
    return weights


def _check_output(path: Path, files: list[Path]) -> None:
    if path.suffix.lower() != ".png":
        raise ParameterError(f"--output is '{path}'; name a .png file (its text holds the parameters)")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ParameterError(f"--output folder '{folder}' does not exist; make it first")
    try:
        for file in files:
            if file.is_dir():
                raise ParameterError(f"--output '{file}' is a folder; name another file")
            # The longest name that saving will use.
            probe = file.with_name(f".{file.name}.{os.getpid()}.tmp")
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise ParameterError(f"--output '{path}' cannot be written: {error.strerror or error}") from None


def _printable(path: Path) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    return str(path).encode(encoding, "backslashreplace").decode(encoding)


def _outputs(path: Path, count: int) -> list[Path]:
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{index}") for index in range(count)]


if __name__ == "__main__":
    sys.exit(main())
