"""Entry point of ebca-export, and the work that it does."""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from ebca import console
from ebca.engines.adapters.asked import embedding_files, lora_files
from ebca.export import output
from ebca.export.cli import checks
from ebca.export.cli.arguments import PREPARED, PROGRAM, parser
from ebca.export.cli.progress import ExportProgress
from ebca.export.plans.shapes import PIXELS_PER_LATENT, ROWS_PER_IMAGE

if TYPE_CHECKING:
    from ebca.export.checkpoint.model import Checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    interrupted = "interrupted; run the same command again to resume"
    ctrl_c = console.CtrlC()
    return console.run(PROGRAM, lambda: _run(_arguments(argv), ctrl_c), interrupted=interrupted, ctrl_c=ctrl_c)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    p = parser()
    args = p.parse_args(argv)
    if not args.dry_run and args.output_dir is None:
        p.error("--output-dir is needed (or --dry-run)")
    return args


def _run(args: argparse.Namespace, ctrl_c: console.CtrlC) -> int:
    checks.check_packages()
    options = checks.checked_options(args)
    # From here on PyTorch is needed.
    from ebca.export import api
    from ebca.export.graph.trace import native_side

    if not args.dry_run:
        output.check_output(output.output_path(args.output_dir), overwrite=args.overwrite)
    out = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    checkpoint = _merged(args, _load(args, out))
    if args.dry_run:
        _print_split(args, checkpoint)
        return 0
    ctrl_c.check()
    options = checks.with_native_shape(options, args, native_side(checkpoint.unet) * _scale(checkpoint))
    with ExportProgress(out, ctrl_c) as progress:
        path = api.export_checkpoint(
            checkpoint, args.output_dir, options, overwrite=args.overwrite, on_progress=progress
        )
    if args.backend in PREPARED:
        from ebca.runtime.engine import load

        with console.PrepareProgress() as prepare:
            load(path, backend=args.backend, on_prepare=prepare).close()
    print(f"wrote {path}")
    return _verify(path, args.backend) if args.verify else 0


def _load(args: argparse.Namespace, out: Console) -> "Checkpoint":
    from ebca.export.checkpoint import controlnet, load
    from ebca.export.quiet import quiet

    loading = out.status(f"loading {escape(args.model)}") if out.is_terminal else nullcontext()
    with loading, quiet():
        checkpoint = load.load_checkpoint(
            args.model,
            revision=args.revision,
            token=args.token,
            cache_dir=args.cache_dir,
            tokenizer=args.tokenizer,
            vae=args.vae,
            preview_vae=args.preview_vae,
            variant=args.variant,
            ema=args.ema,
            prediction_type=args.prediction_type,
        )
        if not args.controlnet:
            return checkpoint
        return controlnet.load_controlnets(checkpoint, args.controlnet, token=args.token, cache_dir=args.cache_dir)


def _merged(args: argparse.Namespace, checkpoint: "Checkpoint") -> "Checkpoint":
    """The checkpoint with LoRAs and embeddings, if any are given."""
    from ebca.export.merging import merged

    loras, embeddings = lora_files(args.lora), embedding_files(args.embedding)
    return merged(checkpoint, loras, embeddings) if loras or embeddings else checkpoint


def _scale(checkpoint: "Checkpoint") -> int:
    """Pixels per latent, along each side."""
    from ebca.export.graph.modules import downscale

    return PIXELS_PER_LATENT if checkpoint.vae is None else downscale(checkpoint.vae)


def _print_split(args: argparse.Namespace, checkpoint: "Checkpoint") -> None:
    from ebca.export.cli.split_table import print_split
    from ebca.export.graph.split import split_unet
    from ebca.export.graph.traced_unet import TracedUNet

    split, sizes = split_unet(TracedUNet.of(checkpoint.unet, controlled=bool(checkpoint.controlnets)))
    for name in ("height", "width"):
        if getattr(args, name) is not None:
            sizes[name] = getattr(args, name) // _scale(checkpoint)
    sizes["batch"] = ROWS_PER_IMAGE * args.batch_size
    print_split(split, sizes, _scale(checkpoint), checkpoint.name)


def _verify(path: Path, backend: str) -> int:
    from ebca.runtime.diagnostics.directory import check_verified

    problems = 0
    for finding in check_verified(path, backend):
        print(f"{finding.level}: {finding.text}" + (f"; {finding.remedy}" if finding.remedy else ""))
        problems += finding.level == "problem"
    return 1 if problems else 0
