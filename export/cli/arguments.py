"""The command line of ebca-export."""

import argparse

from ebca import console
from ebca.engines.contract.manifest import GUIDANCE_SCALE
from ebca.export.options import DISTILLED_STEPS, EMBEDDED_GUIDANCE, PRECISIONS
from ebca.export.plans.shapes import MAX_CONTEXTS
from ebca.runtime.schema.parameters import DEFAULT_STEPS

PROGRAM = "ebca-export"

PREPARED = ("onnxruntime", "openvino")
"""Backends that can be prepared on this machine right after the export."""
PLANNED = ("tensorrt-rtx", "tensorrt")
"""Backends whose plans can be built ahead of time."""
GPU = (*PLANNED, "onnxruntime-cuda")
"""Backends for which graphs compute in float16."""

FLAGS = {
    "library": "--backend",
    "max_contexts": "--max-contexts",
    "with_full_unet_updates": "--full-unet-plan",
    "scheduler_steps": "--scheduler-steps",
    "guidance_scale": "--guidance-scale",
    "default_steps": "--default-steps",
}
"""Flags of the options that `ExportOptions.validate` names in its errors."""

_EXAMPLES = """examples:
  ebca-export --model tiny --output-dir engine-tiny
  ebca-export --model sd-1.5 --output-dir engine-sd15 --precision fp16
  ebca-export --model ./my-finetune --output-dir engine-mine
  ebca-export --model model.safetensors --output-dir engine-mine
  ebca-export --model model.safetensors --vae vae-ft-mse.safetensors --output-dir engine-mine
  ebca-export --model v2-1_768.safetensors --prediction-type v_prediction --output-dir engine-21
  ebca-export --model sd-1.5 --output-dir engine-gpu --backend tensorrt-rtx --shape 1x512x768
  ebca-export --model sd-1.5 --output-dir engine-gpu --backend onnxruntime-cuda --verify
  ebca-export --model sd-1.5 --output-dir engine-canny --controlnet ./control_v11p_sd15_canny=canny
  ebca-export --model sd-1.5 --output-dir engine-style --lora style.safetensors:0.8
  ebca-export --model sd-1.5 --dry-run
"""


def parser() -> argparse.ArgumentParser:
    """The command line, also for documentation."""
    p = console.Parser(
        PROGRAM,
        libraries=("torch", "diffusers", "transformers", "onnx", "onnxruntime"),
        usage="%(prog)s --model MODEL --output-dir DIR [options]",
        description="Export a Stable Diffusion checkpoint as an engine directory, its UNet split at each\n"
        "cross-attention layer. Repeat the command to resume an interrupted export.\n\n"
        f"{_EXAMPLES}",
    )
    _add_model_and_output(p)
    _add_contents(p)
    _add_plans(p.add_argument_group("plans (--backend tensorrt-rtx or tensorrt)"))
    _add_weights(p.add_argument_group("weights"))
    _add_adapters(p.add_argument_group("merged into the weights"))
    _add_sources(p.add_argument_group("hub and tokenizer"))
    return p


def _add_model_and_output(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--model",
        required=True,
        type=console.name_or_path,
        metavar="MODEL",
        help="sd-1.4, sd-1.5, sd-1.5-inpainting, sdxl, sdxl-turbo, sdxl-inpainting, a hub id owner/name, a folder in "
        "diffusers format, a single .safetensors file, or random weights: tiny, tiny-xl, random-sd-1.5, random-sdxl",
    )
    p.add_argument(
        "--output-dir", type=console.path, metavar="DIR", help="engine directory to make; required unless --dry-run"
    )
    p.add_argument(
        "--backend",
        choices=(*PREPARED, *GPU),
        help="onnxruntime, openvino: also prepare the engine for this backend on this machine now, so that its first "
        "run starts immediately; the directory serves both either way. The others make a directory that computes in "
        "float16, for GPUs; tensorrt-rtx and tensorrt also build plans, the first without a GPU",
    )
    p.add_argument(
        "--verify",
        action="store_true",
        help="after the export, compare every part on --backend with onnxruntime on the CPU; a backend for GPUs needs "
        "a GPU",
    )
    p.add_argument("--overwrite", action="store_true", help="replace an engine that is already in --output-dir")
    p.add_argument("--dry-run", action="store_true", help="print the split as a table and write nothing")


def _add_contents(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="how weights are stored; fp16 halves the directory and computes in float32 on a CPU (default: fp32; "
        "fp16 with a backend for GPUs)",
    )
    p.add_argument("--height", type=int, default=None, help="image height for --dry-run and for plans")
    p.add_argument("--width", type=int, default=None, help="image width for --dry-run and for plans")
    p.add_argument("--batch-size", type=int, default=1, help="images at once for --dry-run and for plans (default: 1)")
    p.add_argument(
        "--scheduler-steps",
        type=int,
        nargs="+",
        default=(),
        metavar="N",
        help="step counts to tabulate beside 1 to 200",
    )
    p.add_argument(
        "--schedulers",
        nargs="+",
        default=(),
        metavar="NAME",
        help="schedulers to tabulate beside the default ones, such as euler_karras or unipc_beta; a name may end in "
        "_karras, _exponential, _beta, _trailing, _leading or _linspace",
    )
    p.add_argument(
        "--scheduler-config",
        nargs="+",
        default=(),
        metavar="KEY=VALUE",
        help="options of diffusers' schedulers that override the checkpoint's, such as timestep_spacing=trailing "
        "prediction_type=v_prediction rescale_betas_zero_snr=true; also eta of ddim and tcd",
    )
    for flag, example in (("--timesteps", "999,749,499,249"), ("--sigmas", "14.6,3.1,0.7,0")):
        p.add_argument(
            flag,
            action="append",
            default=[],
            metavar=f"NAME={example}",
            help=f"tabulate a scheduler with these {flag[2:]} as NAME_custom; repeat it for other step counts",
        )
    p.add_argument(
        "--guidance-scale",
        type=float,
        metavar="G",
        help=f"default guidance scale of this model (default: {GUIDANCE_SCALE}; 1 with an LCM or TCD scheduler). A "
        f"UNet that is told its guidance scale gets it built in (default: {EMBEDDED_GUIDANCE})",
    )
    p.add_argument(
        "--default-steps",
        type=int,
        metavar="N",
        help=f"steps of this model where a request does not say (default: {DEFAULT_STEPS}; {DISTILLED_STEPS} with an "
        "LCM or TCD scheduler)",
    )
    p.add_argument(
        "--subject-side",
        type=int,
        metavar="N",
        help="side of the attention maps that locate subjects, in positions at the native size (default: the largest "
        "one up to 24; 16 for Stable Diffusion at 512x512)",
    )
    p.add_argument(
        "--with-full-unet",
        action="store_true",
        help="also export the full UNet without updates, which runs the steps whose gammas are all zero; doubles the "
        "UNet's size",
    )
    _add_old_spelling(p, "--with-vanilla", "with_full_unet")
    p.add_argument(
        "--controlnet",
        action="append",
        default=[],
        metavar="PLACE[=NAME]",
        help="also export a ControlNet for this model: a folder in diffusers format, a hub id, or a .safetensors file, "
        "and what `--control` calls it (default: its own name); repeat it for more",
    )


def _add_plans(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NxHxW",
        help="images x height x width to build for, such as 1x512x768; repeat it for more, each as large as the "
        "weights (default: --batch-size, --height, --width, else the native size)",
    )
    group.add_argument(
        "--dynamic",
        nargs=3,
        metavar=("MIN", "BEST", "MAX"),
        help="build for every shape from MIN to MAX, best at BEST: slower than a plan for one shape",
    )
    group.add_argument(
        "--compute-capability",
        nargs="+",
        default=(),
        metavar="X.Y",
        help="GPUs that tensorrt-rtx builds for (default: 8.6 8.9 12.0)",
    )
    group.add_argument(
        "--max-contexts",
        type=int,
        default=None,
        metavar="N",
        help=f"main prompt and edits together that plans take (default: {MAX_CONTEXTS})",
    )
    group.add_argument(
        "--vae-fp32", action="store_true", help="let the VAE compute in float32, if it overflows float16"
    )
    group.add_argument(
        "--full-unet-plan",
        action="store_true",
        help="also build the full UNet with its updates as one plan, with energy cross attention as a plugin inside; "
        "needs --backend tensorrt; adds the UNet's size once more",
    )
    _add_old_spelling(group, "--one-piece", "full_unet_plan")


def _add_old_spelling(group: "argparse._ActionsContainer", flag: str, name: str) -> None:
    group.add_argument(flag, dest=name, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _add_weights(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--vae",
        type=console.path,
        metavar="FOLDER|FILE",
        help="VAE to use instead of the model's own: a folder in diffusers format, or a .safetensors file",
    )
    group.add_argument(
        "--preview-vae",
        type=console.path,
        metavar="FOLDER",
        help="a small decoder for `ebca-run --preview`: an AutoencoderTiny in diffusers format, such as taesd; without "
        "it, previews show colours only",
    )
    group.add_argument(
        "--variant",
        metavar="NAME",
        help="weights of a folder to take, such as fp16 or non_ema, for the networks that have them (default: full "
        "precision, else fp16)",
    )
    group.add_argument(
        "--ema", action="store_true", help="take the averaged weights of a single file that has both kinds"
    )
    group.add_argument(
        "--prediction-type",
        choices=("epsilon", "v_prediction"),
        help="what the UNet predicts, noise or v (default: as the model says; see docs/checkpoints.md)",
    )


def _add_adapters(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:SCALE]",
        help="a LoRA (.safetensors of diffusers, PEFT or kohya) and its strength (default: 1); repeat it for more",
    )  # fmt: skip
    group.add_argument(
        "--embedding", action="append", default=[], metavar="FILE[=TOKEN]",
        help="a textual inversion (.safetensors), and what prompts write for it; repeat it for more",
    )  # fmt: skip


def _add_sources(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--revision", help="branch, tag or commit on the hub")
    group.add_argument("--token", help="hub access token; default: HF_TOKEN or the stored login")
    group.add_argument("--cache-dir", type=console.path, help="hub cache; default: HF_HOME")
    group.add_argument(
        "--tokenizer", type=console.path, help="tokenizer folder or JSON to use instead of the model's own"
    )
