"""Write checkpoints of random weights in the layouts in which Stable Diffusion was published, and export them.

    python layouts.py --list                                   the layouts
    python layouts.py sd-2.1-768 --keys                        names and shapes of its tensors
    python layouts.py sd-1.5-fp16 --output-dir work            a file of the real size, and its engine directory
    python layouts.py all --reduced --output-dir work          every layout, with few channels

Needs `pip install "ebca[export]"`, and no network.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ebca.errors import EbcaError
from ebca.export.api import export_checkpoint
from ebca.export.checkpoint.architectures import KNOWN
from ebca.export.checkpoint.built_in import RANDOM_SD_1_5
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.published import PUBLISHED, Layout, reduced, shapes, write
from ebca.export.checkpoint.single_file import load_single_file
from ebca.export.checkpoint.vae import load_vae


def main() -> int:
    """Entry point; returns the exit code."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("layout", nargs="?", choices=(*PUBLISHED, "all"), help="which one, or all of them")
    p.add_argument("--list", action="store_true", help="print the layouts")
    p.add_argument("--keys", action="store_true", help="print names and shapes instead of writing a file")
    p.add_argument("--reduced", action="store_true", help="with few channels: a few megabytes instead of gigabytes")
    p.add_argument("--output-dir", type=Path, help="folder for the files and the engine directories")
    args = p.parse_args()
    if args.list:
        print("\n".join(PUBLISHED))
        return 0
    if args.layout is None or (args.output_dir is None and not args.keys):
        p.error("give a layout and --output-dir, or --keys, or --list")
    names = list(PUBLISHED) if args.layout == "all" else [args.layout]
    try:
        for name in names:
            layout = PUBLISHED[name]
            layout = layout.of(reduced(layout.architecture)) if args.reduced else layout
            if args.keys:
                _print_keys(layout)
            else:
                _export(name, layout, args.output_dir, args.reduced)
    except EbcaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _print_keys(layout: Layout) -> None:
    for name, shape in shapes(layout).items():
        print(f"{name}  {'x'.join(map(str, shape)) or 'scalar'}")


def _export(name: str, layout: Layout, folder: Path, small: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = write(layout, folder / f"{name}.safetensors")
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")
    if layout.parts == ("vae",):
        load_vae(RANDOM_SD_1_5.build() if not small else _small_model(folder), path)
        print("  read as a VAE")
        return
    checkpoint = load_single_file(path, known=[reduced(one) for one in KNOWN] if small else KNOWN)
    engine = export_checkpoint(
        checkpoint, folder / name, overwrite=True, on_progress=lambda event: print("  ", event.text)
    )
    print(f"  exported to {engine}")


def _small_model(folder: Path) -> Checkpoint:
    layout = PUBLISHED["sd-1.5-fp16"]
    path = write(layout.of(reduced(layout.architecture)), folder / "sd-1.5-fp16.safetensors")
    return load_single_file(path, known=[reduced(one) for one in KNOWN])


if __name__ == "__main__":
    sys.exit(main())
