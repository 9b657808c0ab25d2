"""The command line of ebca-run."""

import argparse
import re
from pathlib import Path

from ebca.runtime.cli import options

PROGRAM = "ebca-run"

_EXAMPLES = """what it does follows from what it is given:
  --prompt                              text to image
  --prompt --editing-prompt             an image with something added or taken away
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
        description="Make images with Energy-Based Cross Attention. With gammas of 0 this is plain\n"
        "Stable Diffusion. Every image carries its parameters in its PNG text.",
        epilog=_EXAMPLES + options.SCHEDULES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # argparse by itself takes -1e-3 for an option.
    p._negative_number_matcher = re.compile(r"-\d*\.?\d+(e[-+]?\d+)?$", re.IGNORECASE)
    _add_core(p)
    _add_images(p)
    _add_tokens(options.add_energy(p))
    options.add_editing(p)
    _add_telemetry(p)
    machine = options.add_machine(p)
    machine.add_argument("--json", action="store_true", help="print files, parameters and timings as JSON")
    machine.add_argument("--quiet", action="store_true", help="no progress")
    return p


def _add_core(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--engine", required=True, metavar="DIR", help="engine directory made by ebca-export, or a bundled name"
    )
    p.add_argument("--prompt", help="what the image shows (default: --source-prompt)")
    p.add_argument(
        "--negative-prompt", "--negative_prompt", help="what it should not show (default: nothing; --source-prompt)"
    )
    p.add_argument(
        "--output", "--result-file-name", "--result_file_name", "--save_name",
        type=Path, default=Path("ebca.png"), metavar="FILE.png",
        help="where the image goes; several images get -0, -1, ... before the suffix (default: ebca.png)",
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
        help="one image per seed; one seed with --num-images draws all images from it (default: random)",
    )  # fmt: skip
    p.add_argument(
        "--num-images", "--num-images-per-prompt", type=int, default=None, metavar="N", help="images to make"
    )
    p.add_argument(
        "--height", type=int, help="pixels, a multiple of 8 (default: the model's, in the proportions of --image)"
    )
    p.add_argument("--width", type=int, help="the same")


def _add_images(p: argparse.ArgumentParser) -> None:
    given = p.add_argument_group("images to start from")
    given.add_argument(
        "--image", "--img-file", "--img_file", type=Path, nargs="+", metavar="FILE", help="one, or one per image"
    )
    given.add_argument(
        "--mask", "--mask-image", "--mask_file", type=Path, nargs="+", metavar="FILE",
        help="white where the image is made anew",
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


def _add_tokens(energy: argparse._ArgumentGroup) -> None:
    energy.add_argument(
        "--token-indices", "--token_indices", type=int, nargs="+", metavar="I",
        help="token positions (0 is the start token) whose attention step is scaled by --token-upweight",
    )  # fmt: skip
    energy.add_argument("--token-words", nargs="+", metavar="WORD", help="the same by words of the prompt")
    energy.add_argument(
        "--token-upweight", "--token_upweight", type=float, nargs="+", metavar="W",
        help="factors: one per index, then one per word; a single one serves all",
    )  # fmt: skip


def _add_telemetry(p: argparse.ArgumentParser) -> None:
    telemetry = p.add_argument_group("telemetry")
    telemetry.add_argument(
        "--energies", type=Path, metavar="FILE.jsonl", help="write the energies, one line per step and layer"
    )
    telemetry.add_argument("--energy-plot", type=Path, metavar="FILE.png", help="draw them (needs the 'plot' extra)")
    telemetry.add_argument(
        "--attention-maps", type=Path, metavar="FILE.png",
        help="draw where each token of the prompt is attended to; several images get -0, -1, ...",
    )  # fmt: skip
