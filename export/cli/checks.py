"""What the command line asks for, as `ExportOptions`, and the rules about flags that those do not have.

Rules about the options themselves are in `ExportOptions.validate`. Everything is checked before a model is loaded.
"""

import argparse
from dataclasses import replace
from importlib.util import find_spec

from ebca.engines.backends import registry as backends
from ebca.engines.machine import nvidia
from ebca.errors import BackendError, ExportError, ParameterError
from ebca.export.cli.arguments import FLAGS, GPU, PLANNED, PREPARED
from ebca.export.options import ExportOptions
from ebca.export.plans import shapes, tensorrt
from ebca.export.plans.shapes import MAX_CONTEXTS, ImageShape, PlanOptions
from ebca.export.spacing import parsed, parsed_config

_MOST_IMAGES = 1024
_NEEDED = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "safetensors", "accelerate")


def check_packages() -> None:
    """Raise ExportError unless the packages of the "export" extra are installed."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ExportError(f"exporting needs {', '.join(missing)}", 'run `pip install "ebca[export]"`')


def checked_options(args: argparse.Namespace) -> ExportOptions:
    """The options of a command line that passes every check. Plans lack the native shape, see `with_native_shape`.

    Raises:
        ParameterError: a value is wrong, or flags do not go together.
        BackendError: the backend is not installed, or needs a GPU that is not here.
    """
    _check_values(args)
    _check_gpu_flags(args)
    options = _options(args)
    options.validate(lambda field: FLAGS.get(field, field))
    if args.backend in PREPARED and args.backend not in backends.available():
        raise BackendError(f"backend '{args.backend}' is not installed", f"run `pip install {args.backend}`")
    if args.verify:
        _check_can_verify(args)
    if options.plans is None:
        return options
    capabilities = tensorrt.check_capabilities(args.backend, args.compute_capability)
    # Fails now rather than after the graphs if the library needs a GPU and there is none.
    tensorrt.Builder(args.backend, capabilities, with_op=args.full_unet_plan)
    return replace(options, plans=replace(options.plans, capabilities=capabilities))


def with_native_shape(options: ExportOptions, args: argparse.Namespace, native: int) -> ExportOptions:
    """The options with plans for one shape, if no other was asked for: --height and --width, else the native size.

    Args:
        native: side of the images that the model was trained on, in pixels.
    """
    if options.plans is None or options.plans.shapes:
        return options
    shape = shapes.fixed(f"{args.batch_size}x{args.height or native}x{args.width or native}")
    return replace(options, plans=replace(options.plans, shapes=(shape,)))


def _options(args: argparse.Namespace) -> ExportOptions:
    for_gpu = args.backend in GPU
    plans = None
    if args.backend in PLANNED:
        contexts = MAX_CONTEXTS if args.max_contexts is None else args.max_contexts
        plans = PlanOptions(args.backend, _shapes(args), max_contexts=contexts)
    return ExportOptions(
        precision=args.precision or ("fp16" if for_gpu else "fp32"),
        compute="fp16" if for_gpu else "fp32",
        vae_float32=args.vae_fp32,
        plans=plans,
        with_full_unet=args.with_full_unet,
        with_full_unet_updates=args.full_unet_plan,
        scheduler_steps=tuple(args.scheduler_steps),
        schedulers=tuple(args.schedulers),
        scheduler_config=parsed_config(args.scheduler_config),
        spacings=tuple(parsed(flag, text) for flag in ("--timesteps", "--sigmas") for text in getattr(args, flag[2:])),
        guidance_scale=args.guidance_scale,
        default_steps=args.default_steps,
        subject_side=args.subject_side,
    )


def _shapes(args: argparse.Namespace) -> tuple[ImageShape, ...]:
    if args.dynamic:
        return (shapes.dynamic(args.dynamic),)
    return tuple(dict.fromkeys(shapes.fixed(text) for text in args.shape))


def _check_values(args: argparse.Namespace) -> None:
    for name in ("height", "width"):
        value = getattr(args, name)
        if value is not None:
            shapes.check_side(f"--{name}", value)
    if not 1 <= args.batch_size <= _MOST_IMAGES:
        raise ParameterError(f"--batch-size is {args.batch_size}", f"give 1 or more, at most {_MOST_IMAGES}")
    _check_sizes_mean_something(args)
    if not args.model:
        raise ParameterError("--model is empty", "name a model, a folder or a file")


def _check_sizes_mean_something(args: argparse.Namespace) -> None:
    """Raise ParameterError for an image size that nothing would read: engines take any size when they make images."""
    given = [f"--{name}" for name in ("height", "width") if getattr(args, name) is not None]
    given += ["--batch-size"] if args.batch_size != 1 else []
    if not given or args.dry_run:
        return
    if args.backend not in PLANNED:
        raise ParameterError(
            f"{given[0]} is about --dry-run and plans; an engine makes images of any size", f"leave {given[0]} out"
        )
    if args.shape or args.dynamic:
        raise ParameterError(
            f"{given[0]} and {'--shape' if args.shape else '--dynamic'} exclude each other", "give one of them"
        )


def _check_gpu_flags(args: argparse.Namespace) -> None:
    """Raise ParameterError for a flag that --backend excludes or makes pointless."""
    about_plans = {
        "--shape": bool(args.shape),
        "--dynamic": args.dynamic is not None,
        "--compute-capability": bool(args.compute_capability),
        "--max-contexts": args.max_contexts is not None,
    }
    for flag, is_given in about_plans.items():
        if is_given and args.backend not in PLANNED:
            raise ParameterError(f"{flag} is about plans", "give --backend tensorrt-rtx or tensorrt too")
    if args.full_unet_plan and args.backend not in PLANNED:
        raise ParameterError("--full-unet-plan is about plans with a plugin inside", "give --backend tensorrt too")
    if args.vae_fp32 and args.backend not in GPU:
        raise ParameterError("--vae-fp32 is about float16 directories", "give a --backend for GPUs too")
    if args.precision == "fp32" and args.backend in GPU:
        raise ParameterError(f"--backend {args.backend} stores weights as float16", "leave --precision fp32 out")
    if args.controlnet and args.backend in PLANNED:
        raise ParameterError("plans are not built for ControlNets", "give --backend onnxruntime-cuda")
    if args.controlnet and args.with_full_unet:
        raise ParameterError(
            "an engine with ControlNets runs its UNet in segments only", "leave --with-full-unet or --controlnet out"
        )
    if args.shape and args.dynamic:
        raise ParameterError("--shape and --dynamic exclude each other", "give one of them")


def _check_can_verify(args: argparse.Namespace) -> None:
    """Raise before the export if nothing could be compared after it."""
    if args.dry_run:
        raise ParameterError("--dry-run writes nothing that --verify could compare", "leave one of them out")
    if args.backend in (None, "onnxruntime"):
        raise ParameterError(
            "--verify compares another backend with onnxruntime, which the export itself compares with PyTorch",
            "give --backend",
        )
    if args.backend in GPU and not nvidia.find().gpus:
        raise BackendError(
            "--verify needs an NVIDIA GPU, and the driver finds none",
            f"leave it out, and run `ebca-doctor --engine DIR --backend {args.backend} --verify` where the GPU is",
        )
