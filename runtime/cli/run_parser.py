"""The command line of ebca-run."""

import argparse
import re

from ebca import console
from ebca.runtime.cli import options, run_controls, run_sdxl
from ebca.runtime.schema import parameters as rules

PROGRAM = "ebca-run"

_EXAMPLES = """tasks, chosen by the options that are given:
  --prompt                                   text to image
  --prompt --editing-prompt                  an image with something added or taken away
  --image --prompt                           image to image, see --strength
  --image --mask --prompt                    inpainting: white pixels of the mask are regenerated
  --image --prompt                           InstructPix2Pix models: the image as the prompt says
  --image --source-prompt --editing-prompt   editing a real image, by inversion

examples:
  ebca-run --engine shapes --prompt "a red circle and a blue square" --seed 1
  ebca-run --engine engine-sd15 --prompt "a lion with a crown" --seed 1
  ebca-run --engine engine-sd15 --prompt "a lion with a crown" --gamma-attn 0.01 --gamma-norm 0.02 \\
           --token-words crown --token-upweight 2 --output lion.png
  ebca-run --engine engine-sd15 --prompt "a cat" --gamma-attn 0.01 --gamma-tau 0.5 --seed 1 2 3 4
  ebca-run --engine engine-sd15 --prompt "a (red:1.3) cat, [blurry] background" --clip-skip 1
  ebca-run --engine engine-sd15 --prompt "a castle next to a river" \\
           --editing-prompt "monet painting" boat --alpha 1.3 --alpha-tau 0.2 --gamma-attn 0.01
  ebca-run --engine engine-sd15 --prompt "a cat next to a dog" --subjects --region "cat=0,0.2,0.5,1"
  ebca-run --engine engine-sd15 --image cat.jpg --source-prompt "a cat" --editing-prompt dog cat \\
           --editing-direction 1 0 --alpha 0.75 0.65 --alpha-tau 0.5
  ebca-run --engine engine-inpainting --image room.png --mask hole.png --prompt "teddy bear"
  ebca-run --engine engine-canny --prompt "a house" --control edges.png:0.8 --control-end 0.7
  ebca-run --engine engine-pix2pix --image room.png --prompt "at night" --image-guidance-scale 1.8
  ebca-run --engine engine-sdxl --prompt "a lion" --prompt-2 "in oil" --original-size 2048 2048
  ebca-run --engine engine-sdxl --prompt "a lion with a crown" --width 2048 --vae-tiling
  ebca-run --from-image lion.png --seed 2 --output other.png      the same with another seed
  ebca-run --engine engine-gpu --prompt "a lion"                  on the GPU if it is usable
  ebca-run --engine engine-gpu --prompt "a lion" --device cuda    on the GPU, or an error
  ebca-run --engine engine-sd15 --prompt "a lion" --preview now.png
  ebca-run --engine engine-sd15 --prompt "a lion, oil painting" --lora style.safetensors:0.8
  ebca-run --engine engine-sd15 --prompt "a photo of <my-cat>" --embedding cat.safetensors
  ebca-run --engine engine-sd15 --prompts-file prompts.txt --output-dir images
"""

_NAMES = """placeholders in the names of result files:
    {number}   of the prompt, from 1; {number:04} has four digits
    {slug}     the first words of the prompt, such as a-lion-with-a-crown
    {seed}     of the image
    {index}    of the image among those of one prompt, from 0
"""


def parser() -> argparse.ArgumentParser:
    """The command-line parser."""
    p = console.Parser(
        PROGRAM,
        usage="%(prog)s --engine DIR --prompt TEXT [options]",
        description="Generate images with Energy-Based Cross Attention. With gammas of 0, the default, this is\n"
        "plain Stable Diffusion. Every image file holds the parameters that made it.\n\n" + _EXAMPLES,
        epilog=f"{options.SCHEDULES}\n{_NAMES}",
        allow_abbrev=False,
    )
    # By default, argparse parses -1e-3 as an option.
    p._negative_number_matcher = re.compile(r"-\d*\.?\d+(e[-+]?\d+)?$", re.IGNORECASE)
    _add_core(p)
    _add_reading(p)
    run_sdxl.add(p)
    _add_tokens(options.add_energy(p))
    options.add_editing(p)
    options.add_subjects(p)
    _add_images(p)
    run_controls.add(p)
    options.add_adapters(p)
    _add_prompts_file(p)
    _add_telemetry(p)
    machine = options.add_machine(p)
    machine.add_argument(
        "--json",
        action="store_true",
        help="print files, parameters and timings as JSON: one line per prompt, as it finishes",
    )
    machine.add_argument("--quiet", action="store_true", help="show no progress, and not which device is used")
    # What an image file of --from-image records.
    p.set_defaults(recorded=None)
    return p


def _add_core(p: argparse.ArgumentParser) -> None:
    options.add_engine(p, required=False)
    p.add_argument("--prompt", help="what the image shows (default: --source-prompt; required without it)")
    p.add_argument(
        "--from-image", type=console.path, metavar="FILE",
        help="repeat the generation that made this file, with its engine and backend; options that are given replace "
        "what it records, and those of gammas, token weights and editing prompts all of them",
    )  # fmt: skip
    p.add_argument(
        "--negative-prompt", "--negative_prompt",
        help="what the image should not show (default: --source-prompt if given, else empty)",
    )  # fmt: skip
    p.add_argument(
        "--output", "--result-file-name", "--result_file_name", "--save_name",
        type=console.path, metavar="FILE",
        help="file to write: .png, .jpg (quality 95) or .webp (lossless). Several images get -0, -1, ... before the "
        "suffix, or placeholders such as {seed} in the name (default: ebca.png)",
    )  # fmt: skip
    p.add_argument(
        "--output-dir", type=console.path, metavar="DIR",
        help="folder of all result files whose names are relative; it is created. Without --output, images are named "
        "{number:04}-{slug}-{seed}.png there",
    )  # fmt: skip
    p.add_argument(
        "--steps", "--num-inference-steps", "--num_steps", type=int, metavar="N",
        help=f"scheduler steps (default: the engine's, {rules.DEFAULT_STEPS} unless its checkpoint was distilled)",
    )  # fmt: skip
    p.add_argument(
        "--guidance-scale", "--guidance_scale", type=float, default=rules.GENERATE.guidance_scale,
        help="of classifier-free guidance; 1 or less turns it off (default: the engine's, 7.5 for Stable Diffusion)",
    )  # fmt: skip
    p.add_argument(
        "--scheduler",
        help="such as ddim, euler_ancestral, dpmpp_2m_karras, lcm: one of the engine's (docs/schedulers.md); not for "
        "RePaint (default: the checkpoint's own; for image to image "
        "ddim, if that one cannot start at an intermediate timestep)",
    )
    p.add_argument(
        "--seed", type=int, nargs="+", metavar="N",
        help="one image per seed; a single seed with --num-images serves all images (default: random)",
    )  # fmt: skip
    p.add_argument(
        "--num-images", "--num-images-per-prompt", type=int, default=None, metavar="N",
        help="number of images (default: one per seed, --image or --mask)",
    )  # fmt: skip
    p.add_argument(
        "--height", type=int,
        help="in pixels, a multiple of 8 (default: the model's size, with the aspect ratio of --image)",
    )  # fmt: skip
    p.add_argument("--width", type=int, help="likewise")
    p.add_argument(
        "--vae-tiling", "--vae_tiling", action="store_true",
        help="encode and decode images that are larger than the model's size in tiles, which takes less memory",
    )  # fmt: skip


def _add_reading(p: argparse.ArgumentParser) -> None:
    reading = p.add_argument_group("how prompts are read")
    reading.add_argument(
        "--prompt-weighting", action=argparse.BooleanOptionalAction, default=rules.GENERATE.prompt_weighting,
        help="(word:1.3), (word) and [word] weigh words, BREAK begins a new chunk, \\( is a bracket (default: yes); "
        "else all of these are words",
    )  # fmt: skip
    reading.add_argument(
        "--long-prompts", action=argparse.BooleanOptionalAction, default=rules.GENERATE.long_prompts,
        help="encode prompts of more than 75 tokens in chunks (default: yes); else their end is dropped",
    )  # fmt: skip
    reading.add_argument(
        "--clip-skip", "--clip_skip", type=int, default=rules.GENERATE.clip_skip, metavar="N",
        help="leave out the last N layers of the text encoder; 1 is what others call 2 (default: %(default)s)",
    )  # fmt: skip


def _add_images(p: argparse.ArgumentParser) -> None:
    given = p.add_argument_group("images to start from")
    given.add_argument(
        "--image", "--img-file", "--img_file", type=console.path, nargs="+", metavar="FILE",
        help="one for all generated images, or one per image",
    )  # fmt: skip
    given.add_argument(
        "--mask", "--mask-image", "--mask_file", type=console.path, nargs="+", metavar="FILE",
        help="white pixels are regenerated, or transparent ones in a mask with one colour; one for all images, or one "
        "per image",
    )  # fmt: skip
    given.add_argument(
        "--strength", type=float, default=rules.GENERATE.strength,
        help="of image to image, and of inpainting by a model trained for it: the share of the steps to run (default: "
        f"{rules.DEFAULT_STRENGTH:g}; 1 for inpainting)",
    )  # fmt: skip
    given.add_argument(
        "--image-guidance-scale", "--image_guidance_scale", type=float, metavar="G",
        help="of InstructPix2Pix: how much the result follows --image, 1 or more "
        f"(default: {rules.DEFAULT_IMAGE_GUIDANCE_SCALE:g})",
    )  # fmt: skip
    given.add_argument(
        "--source-prompt", "--source_prompt", metavar="TEXT",
        help="what --image shows: the image is inverted with this prompt (DDIM), then regenerated with the editing "
        "prompts",
    )  # fmt: skip
    given.add_argument(
        "--regularize", action="store_true",
        help="keep the noise predictions of the inversion close to standard normal, as the authors' script does "
        "(slower)",
    )  # fmt: skip
    given.add_argument(
        "--composite", action=argparse.BooleanOptionalAction, default=rules.GENERATE.composite,
        help="copy the image's own pixels back outside the mask (default: yes)",
    )  # fmt: skip
    given.add_argument(
        "--repaint", action="store_true",
        help="inpaint with RePaint; it is chosen automatically for models that were not trained for inpainting",
    )  # fmt: skip
    given.add_argument(
        "--jump-length", "--jump_length", type=int,
        help=f"RePaint: steps that a jump goes back (default: {rules.REPAINT.jump_length})",
    )  # fmt: skip
    given.add_argument(
        "--jump-n-sample", "--jump_n_sample", type=int,
        help=f"RePaint: how often each stretch of steps is denoised (default: {rules.REPAINT.jump_count})",
    )  # fmt: skip
    given.add_argument(
        "--eta", type=float,
        help=f"RePaint: from 0, deterministic steps, to 1, random steps (default: {rules.REPAINT.eta:g})",
    )  # fmt: skip
    given.add_argument(
        "--update-known", action="store_true",
        help="RePaint: compute the context update outside the hole instead of inside, as the authors' code does",
    )  # fmt: skip


def _add_tokens(energy: argparse._ArgumentGroup) -> None:
    energy.add_argument(
        "--token-indices", "--token_indices", type=int, nargs="+", metavar="I",
        help="token positions (0 is the start token) whose gamma-attn is multiplied by --token-upweight",
    )  # fmt: skip
    energy.add_argument("--token-words", nargs="+", metavar="WORD", help="likewise, by words of the prompt")
    energy.add_argument(
        "--token-upweight", "--token_upweight", type=float, nargs="+", metavar="W",
        help="one factor for all tokens, or one per index followed by one per word",
    )  # fmt: skip


def _add_prompts_file(p: argparse.ArgumentParser) -> None:
    many = p.add_argument_group("many prompts")
    many.add_argument(
        "--prompts-file", type=console.path, metavar="FILE",
        help="make images of every line of this file (-: standard input): a prompt, or a JSON object with a prompt and "
        "parameters of its own. Empty lines and lines that begin with # are skipped. The other options apply to every "
        "line. Without --seed, prompt N gets the seed N. Images that are there already, made with the same parameters, "
        "are not made again, so the same command continues after an interruption",
    )  # fmt: skip
    many.add_argument(
        "--stop-on-error", action="store_true",
        help="stop at the first prompt that fails; by default the others are still made, and the exit code is 1",
    )  # fmt: skip


def _add_telemetry(p: argparse.ArgumentParser) -> None:
    telemetry = p.add_argument_group("telemetry")
    telemetry.add_argument(
        "--preview", type=console.path, metavar="FILE",
        help="image file that is replaced at every evaluation by what the images look like so far, in rough colours "
        "(.png, .jpg or .webp)",
    )  # fmt: skip
    telemetry.add_argument(
        "--energies",
        type=console.path,
        metavar="FILE.jsonl",
        help="write the energies, one line per evaluation and layer",
    )
    telemetry.add_argument(
        "--energy-plot", type=console.path, metavar="FILE", help="plot the energies (needs the 'plot' extra)"
    )
    telemetry.add_argument(
        "--attention-maps", type=console.path, metavar="FILE",
        help="draw the attention to each token of the prompt; several images get -0, -1, ... before the suffix",
    )  # fmt: skip
