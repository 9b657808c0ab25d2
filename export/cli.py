"""ebca-export: a checkpoint becomes an engine directory."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ebca import console
from ebca.engines.backends import registry as backends
from ebca.engines.backends import tensorrt
from ebca.engines.contract.manifest import GUIDANCE_SCALE
from ebca.engines.machine import nvidia
from ebca.errors import BackendError, ExportError, ParameterError

if TYPE_CHECKING:
    from ebca.export.checkpoint import Checkpoint
    from ebca.export.engine import ExportEvent
    from ebca.export.plans import PictureShape
    from ebca.export.split import Split

PROGRAM = "ebca-export"

_NEEDED = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "safetensors", "accelerate")

_PREPARED = ("onnxruntime", "openvino")
_PLANNED = ("tensorrt-rtx", "tensorrt")
_GPU = (*_PLANNED, "onnxruntime-cuda")

# All of Stable Diffusion is trained with as many.
_TRAINING_STEPS = 1000

_EXAMPLES = """examples:
  ebca-export --model tiny --output-dir engine-tiny
  ebca-export --model sd-1.5 --output-dir engine-sd15 --precision fp16
  ebca-export --model ./my-finetune --output-dir engine-mine
  ebca-export --model model.safetensors --tokenizer ./clip-tokenizer --output-dir engine-mine
  ebca-export --model sd-1.5 --output-dir engine-gpu --backend tensorrt-rtx --shape 1x512x768
  ebca-export --model sd-1.5 --output-dir engine-gpu --backend onnxruntime-cuda --verify
  ebca-export --model sd-1.5 --dry-run
"""


def parser() -> argparse.ArgumentParser:
    """The command line, also for documentation."""
    p = argparse.ArgumentParser(
        PROGRAM,
        description="Export a Stable Diffusion checkpoint as an engine directory, its UNet split at each\n"
        "cross-attention layer. An interrupted export goes on where it stopped when the\n"
        "command is repeated.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="sd-1.4, sd-1.5, sd-1.5-inpainting, tiny (random weights, made in seconds), a hub id owner/name, a folder "
        "in diffusers format, or a single .safetensors file",
    )
    p.add_argument("--output-dir", type=Path, metavar="DIR", help="engine directory to make; needed unless --dry-run")
    p.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        help="how weights are stored; fp16 halves the directory and computes in float32 on a CPU (default: fp32, and "
        "fp16 with a backend for GPUs)",
    )
    p.add_argument(
        "--backend",
        choices=(*_PREPARED, *_GPU),
        help="onnxruntime, openvino: also prepare the engine for this backend on this machine now, so that its first "
        "run starts at once; the directory serves both either way. The others make a directory that computes in "
        "float16, for GPUs; tensorrt-rtx and tensorrt also build plans, the first without a GPU",
    )
    p.add_argument("--height", type=int, default=None, help="picture height for --dry-run and for plans")
    p.add_argument("--width", type=int, default=None, help="picture width for --dry-run and for plans")
    p.add_argument("--batch-size", type=int, default=1, help="pictures at once, likewise (default: 1)")
    p.add_argument(
        "--verify",
        action="store_true",
        help="then compare every part on --backend with onnxruntime on the CPU; a backend for GPUs needs one",
    )
    p.add_argument("--overwrite", action="store_true", help="replace an engine that is in --output-dir already")
    p.add_argument("--dry-run", action="store_true", help="print the split as a table and write nothing")
    p.add_argument(
        "--scheduler-steps",
        type=int,
        nargs="+",
        default=(),
        metavar="N",
        help="step counts to tabulate beside 1 to 50 and 60, 70, 75, 80, 90, 100",
    )
    p.add_argument(
        "--guidance-scale",
        type=float,
        default=GUIDANCE_SCALE,
        metavar="G",
        help=f"what this model's pictures are made with unless the caller says otherwise (default: {GUIDANCE_SCALE})",
    )
    gpu = p.add_argument_group("plans (--backend tensorrt-rtx or tensorrt)")
    gpu.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="PxHxW",
        help="pictures x height x width to build for, as 1x512x768; repeat it for more, each as large as the weights "
        "(default: --batch-size, --height, --width, else the native size)",
    )
    gpu.add_argument(
        "--dynamic",
        nargs=3,
        metavar=("MIN", "BEST", "MAX"),
        help="build for every shape between two, best at the middle one: slower than a shape of its own",
    )
    gpu.add_argument(
        "--compute-capability",
        nargs="+",
        default=(),
        metavar="X.Y",
        help="GPUs that tensorrt-rtx builds for (default: 8.6 8.9 12.0)",
    )
    gpu.add_argument(
        "--max-contexts",
        type=int,
        default=None,
        metavar="N",
        help="main and editing prompts together that plans take (default: 4)",
    )
    gpu.add_argument("--vae-fp32", action="store_true", help="let the VAE compute in float32, if it overflows float16")
    p.add_argument(
        "--with-vanilla",
        action="store_true",
        help="hold the uncut UNet too, which runs the steps whose gammas are all zero; twice the UNet's size",
    )
    p.add_argument(
        "--one-piece",
        action="store_true",
        help="build the whole UNet with its updates as one plan too, the attention as a plugin inside; needs --backend "
        "tensorrt; the UNet's size once more",
    )
    hub = p.add_argument_group("hub and tokenizer")
    hub.add_argument("--revision", help="branch, tag or commit on the hub")
    hub.add_argument("--token", help="hub access token; default: HF_TOKEN or the stored login")
    hub.add_argument("--cache-dir", type=Path, help="hub cache; default: HF_HOME")
    hub.add_argument("--tokenizer", type=Path, help="tokenizer folder or JSON for a single-file checkpoint")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    p = parser()
    args = p.parse_args(argv)
    if not args.dry_run and args.output_dir is None:
        p.error("--output-dir is needed (or --dry-run)")
    again = "interrupted; run the same command again to go on where it stopped"
    with console.CtrlC() as ctrl_c:
        return console.run(PROGRAM, lambda: _run(args, ctrl_c), interrupted=again)


def _run(args: argparse.Namespace, ctrl_c: console.CtrlC) -> int:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ExportError(f"exporting needs {', '.join(missing)}", 'run `pip install "ebca[export]"`')
    for name in ("height", "width"):
        value = getattr(args, name)
        if value is not None and (value < 8 or value % 8):
            raise ParameterError(f"--{name} is {value}", "give a multiple of 8")
    if args.batch_size < 1:
        raise ParameterError(f"--batch-size is {args.batch_size}", "give 1 or more")
    for steps in args.scheduler_steps:
        if not 1 <= steps <= _TRAINING_STEPS:
            raise ParameterError(f"--scheduler-steps has {steps}", f"a step count lies between 1 and {_TRAINING_STEPS}")
    if not args.model:
        raise ParameterError("--model is empty", "name a model, a folder or a file")
    _check_gpu_options(args)
    if args.backend in _PREPARED and args.backend not in backends.available():
        raise BackendError(f"backend '{args.backend}' is not installed", f"run `pip install {args.backend}`")
    if args.verify:
        _check_can_verify(args)
    if args.backend in _PLANNED:
        from ebca.export import tensorrt as building

        capabilities = building.check_capabilities(args.backend, args.compute_capability)
        # Found now rather than after the graphs: a library that needs a GPU, on a machine without one.
        building.Builder(args.backend, capabilities, with_op=args.one_piece)
    from ebca.export import engine, workspace
    from ebca.export import plans as planning
    from ebca.export.checkpoint import load_checkpoint
    from ebca.export.quiet import quiet
    from ebca.export.uncut import Uncut

    if not args.dry_run:
        workspace.check_output(args.output_dir, overwrite=args.overwrite)
    out = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    loading = out.status(f"loading {escape(args.model)}") if out.is_terminal else nullcontext()
    with loading, quiet():
        checkpoint = load_checkpoint(
            args.model,
            revision=args.revision,
            token=args.token,
            cache_dir=args.cache_dir,
            tokenizer=args.tokenizer,
        )
    if args.dry_run:
        split, sizes = engine.split_unet(Uncut.of(checkpoint.unet))
        for name in ("height", "width"):
            if getattr(args, name) is not None:
                sizes[name] = getattr(args, name) // 8
        sizes["batch"] = 2 * args.batch_size
        _print_split(split, sizes, checkpoint.name)
        return 0
    ctrl_c.check()
    plans = None
    if args.backend in _PLANNED:
        plans = planning.PlanOptions(
            args.backend, _shapes(args, checkpoint), capabilities, args.max_contexts or planning.MAX_CONTEXTS
        )
    with _ExportProgress(out, ctrl_c) as progress:
        path = engine.export_checkpoint(
            checkpoint,
            args.output_dir,
            precision=args.precision or ("fp16" if args.backend in _GPU else "fp32"),
            compute="fp16" if args.backend in _GPU else "fp32",
            vae_float32=args.vae_fp32,
            with_vanilla=args.with_vanilla,
            one_piece=args.one_piece,
            plans=plans,
            scheduler_steps=args.scheduler_steps,
            guidance_scale=args.guidance_scale,
            overwrite=args.overwrite,
            on_progress=progress,
        )
    if args.backend in _PREPARED:
        from ebca.runtime.engine import load

        with console.PrepareProgress() as prepare:
            load(path, backend=args.backend, on_prepare=prepare).close()
    print(f"wrote {path}")
    return _verify(path, args.backend) if args.verify else 0


def _check_can_verify(args: argparse.Namespace) -> None:
    """Before the work, not after it: raise where nothing could be compared."""
    if args.dry_run:
        raise ParameterError("--dry-run writes nothing that --verify could compare", "leave one of them out")
    if args.backend in (None, "onnxruntime"):
        raise ParameterError(
            "--verify compares another backend with onnxruntime, which the export itself compares with PyTorch",
            "give --backend",
        )
    if args.backend in _GPU and not nvidia.find().gpus:
        raise BackendError(
            "--verify needs an NVIDIA GPU, and the driver finds none",
            f"leave it out, and run `ebca-doctor --engine DIR --backend {args.backend} --verify` where the GPU is",
        )


def _verify(path: Path, backend: str) -> int:
    from ebca.runtime.diagnostics.directory import check_verified

    problems = 0
    for finding in check_verified(path, backend):
        print(f"{finding.level}: {finding.text}" + (f"; {finding.remedy}" if finding.remedy else ""))
        problems += finding.level == "problem"
    return 1 if problems else 0


def _check_gpu_options(args: argparse.Namespace) -> None:
    """Raise ParameterError where options do not go together."""
    given = {
        "--shape": bool(args.shape),
        "--dynamic": args.dynamic is not None,
        "--compute-capability": bool(args.compute_capability),
        "--max-contexts": args.max_contexts is not None,
    }
    for option, is_given in given.items():
        if is_given and args.backend not in _PLANNED:
            raise ParameterError(f"{option} is about plans", "give --backend tensorrt-rtx or tensorrt too")
    if args.one_piece and args.backend == tensorrt.RTX:
        raise ParameterError(
            f"{args.backend} takes no plugins, and --one-piece needs one", "give --backend tensorrt, or leave it out"
        )
    if args.one_piece and args.backend != "tensorrt":
        raise ParameterError("--one-piece is about plans with a plugin inside", "give --backend tensorrt too")
    if args.vae_fp32 and args.backend not in _GPU:
        raise ParameterError("--vae-fp32 is about float16 directories", "give a --backend for GPUs too")
    if args.precision == "fp32" and args.backend in _GPU:
        raise ParameterError(f"--backend {args.backend} stores weights as float16", "leave --precision fp32 out")
    if args.max_contexts is not None and args.max_contexts < 1:
        raise ParameterError(f"--max-contexts is {args.max_contexts}", "give 1 or more")
    if args.shape and args.dynamic:
        raise ParameterError("--shape and --dynamic exclude each other", "give one of them")
    from ebca.export import plans as planning

    for text in args.shape:
        planning.fixed(text)
    if args.dynamic:
        planning.dynamic(args.dynamic)


def _shapes(args: argparse.Namespace, checkpoint: "Checkpoint") -> "tuple[PictureShape, ...]":
    """What plans are built for; options were checked."""
    from ebca.export import plans as planning

    if args.dynamic:
        return (planning.dynamic(args.dynamic),)
    native = 8 * int(checkpoint.unet.config.sample_size)
    texts = args.shape or [f"{args.batch_size}x{args.height or native}x{args.width or native}"]
    return tuple(planning.fixed(text) for text in dict.fromkeys(texts))


class _ExportProgress:
    """A bar with time left on a terminal, a line per event elsewhere."""

    def __init__(self, out: Console, ctrl_c: console.CtrlC) -> None:
        self._out = out
        self._ctrl_c = ctrl_c
        self._progress: Progress | None = None
        self._said = ""
        if out.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[size]}"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=out, transient=True)
            self._task = self._progress.add_task("starting", total=1, size="")

    def __call__(self, event: "ExportEvent") -> None:
        self._ctrl_c.check()
        size = f"{event.done / 1e6:.0f} of {event.total / 1e6:.0f} MB"
        if self._progress is None:
            # A plan reports while it is built: only the bar shows how far.
            if event.text != self._said:
                self._out.print(f"{event.text} ({size})")
            self._said = event.text
        else:
            self._progress.update(
                self._task, description=escape(event.text), completed=event.done, total=max(event.total, 1), size=size
            )

    def __enter__(self) -> "_ExportProgress":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress:
            self._progress.stop()


def _print_split(split: "Split", sizes: dict[str, int], name: str) -> None:
    pictures, height, width = sizes["batch"] // 2, sizes["height"] * 8, sizes["width"] * 8
    table = Table(
        title=f"{escape(name)}: {len(split.segments)} segments at {pictures} x {width}x{height}, with guidance"
    )
    for heading, justify in (("segment", "left"), ("layer after it", "left"), ("nodes", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for heading in ("weights MB", "tensors in", "in MB", "tensors out", "out MB"):
        table.add_column(heading, justify="right")
    totals = [0, 0.0, 0.0]
    for segment in split.segments:
        read, written = (
            sum(split.tensors[n].nbytes(sizes) for n in names) / 1e6 for names in (segment.inputs, segment.outputs)
        )
        totals[0] += segment.nodes
        totals[1] += segment.weight_bytes / 1e6
        totals[2] += written
        table.add_row(
            segment.name,
            ", ".join(f"{op.layer} ({op.heads} heads)" for op in segment.ops) or "-",
            str(segment.nodes),
            f"{segment.weight_bytes / 1e6:.1f}",
            str(len(segment.inputs)),
            f"{read:.1f}",
            str(len(segment.outputs)),
            f"{written:.1f}",
        )
    table.add_section()
    table.add_row("all", "", str(totals[0]), f"{totals[1]:.1f}", "", "", "", f"{totals[2]:.1f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    sys.exit(main())
