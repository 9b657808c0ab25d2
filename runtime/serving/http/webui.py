"""A part of the API of Stable Diffusion's web UI (AUTOMATIC1111), as editor plug-ins use it.

As there, fields that do not exist are ignored. Those that exist there, would change the image and are not supported are
refused.
"""

import base64
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

from ebca.errors import ParameterError
from ebca.runtime.serving.http import samplers, schema
from ebca.runtime.serving.http.context import Context, owner_of
from ebca.runtime.serving.http.waiting import finished_images
from ebca.runtime.serving.live import View
from ebca.runtime.serving.service import Service
from ebca.runtime.serving.store import State
from ebca.runtime.serving.uploads import decoded
from ebca.runtime.serving.work import Asked

_PREVIEWS = 5
_MOST_SEED = 2**32

# What each of these means "off" by; anything else would change the image.
_OFF: Mapping[str, tuple[Any, ...]] = {
    "restore_faces": (False,),
    "tiling": (False,),
    "enable_hr": (False,),
    "subseed_strength": (0,),
    "styles": ([],),
    "script_name": ("",),
    "refiner_checkpoint": ("", "None"),
    "mask_blur": (0,),
    "mask_blur_x": (0,),
    "mask_blur_y": (0,),
    "inpaint_full_res": (False, 0),
    "inpainting_fill": (1,),
    "resize_mode": (0,),
    "initial_noise_multiplier": (1,),
    "eta": (0,),
    "s_churn": (0,),
    "seed_resize_from_h": (-1, 0),
    "seed_resize_from_w": (-1, 0),
}
# Plug-ins send these with every call.
_ONLY_WITH_MASK = ("mask_blur", "mask_blur_x", "mask_blur_y", "inpaint_full_res", "inpainting_fill")


class TextToImage(BaseModel):
    """The body of `POST /sdapi/v1/txt2img`; the fields of EBCA go into `alwayson_scripts.ebca.args`, as one object."""

    model_config = ConfigDict(extra="allow")

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = -1
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    batch_size: int = 1
    n_iter: int = 1
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    override_settings: dict[str, Any] | None = None
    alwayson_scripts: dict[str, Any] | None = None
    send_images: bool = True


class ImageToImage(TextToImage):
    """The body of `POST /sdapi/v1/img2img`."""

    init_images: list[str] = []
    mask: str | None = None
    inpainting_mask_invert: int = 0
    denoising_strength: float | None = None


class ImagesReply(BaseModel):
    """Images as base64 of PNG files, and `info`, which is JSON in a string."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


def router(context: Context) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/sdapi/v1", tags=["Web UI"])
    service = context.service
    refusals = schema.refusals(409, 413, 429, 500, 503, 504)

    async def reply(request: Request, body: TextToImage, given: Mapping[str, Any]) -> JSONResponse:
        model = await run_in_threadpool(context.describe)
        job = await run_in_threadpool(service.submit, asked_of(body, given, model), owner_of(request))
        view, files = await finished_images(service, job, request)
        images = [base64.b64encode(file).decode() for file in files] if body.send_images else []
        return JSONResponse({"images": images, "parameters": _echo(body), "info": json.dumps(_info(view))})

    @routes.post("/txt2img", response_model=ImagesReply, responses=refusals)
    async def txt2img(request: Request, body: TextToImage) -> Any:
        """Images of a prompt."""
        return await reply(request, body, {})

    @routes.post("/img2img", response_model=ImagesReply, responses=refusals)
    async def img2img(request: Request, body: ImageToImage) -> Any:
        """An image changed, or inpainted where the mask is white."""
        return await reply(request, body, await run_in_threadpool(images_of, service, body))

    _add_state(routes, context)
    _add_lists(routes, context)
    return routes


def asked_of(body: TextToImage, given: Mapping[str, Any], model: Mapping[str, Any]) -> Asked:
    """What a body asks for.

    Raises:
        ParameterError: something that would change the image and is not supported.
    """
    _check_off(body, masked="mask" in given)
    count = body.batch_size * body.n_iter
    if body.batch_size < 1 or body.n_iter < 1:
        raise ParameterError(f"batch_size is {body.batch_size} and n_iter {body.n_iter}", "give 1 or more")
    first = secrets.randbelow(_MOST_SEED) if body.seed == -1 else body.seed
    request: dict[str, Any] = {
        "prompt": body.prompt,
        "negative_prompt": body.negative_prompt,
        # As there, the images of a batch have consecutive seeds.
        "seed": [first + index for index in range(min(count, 10_000))] if count > 1 else first,
        "steps": body.steps,
        "guidance_scale": body.cfg_scale,
        "scheduler": samplers.scheduler_of(body.sampler_name or body.sampler_index, body.scheduler, model),
        **_overridden(body.override_settings or {}, model),
        **given,
        **_of_ebca(body.alwayson_scripts or {}),
    }
    return Asked(request, body.height, body.width, count, _PREVIEWS)


def images_of(service: Service, body: ImageToImage) -> dict[str, Any]:
    """The image, mask and strength of a body.

    Raises:
        ParameterError: another number of images.
        UnreadableError, TooLargeError: as `Service.decode`.
    """
    if len(body.init_images) != 1:
        raise ParameterError(f"init_images has {len(body.init_images)} images", "give one")
    given: dict[str, Any] = {"image": service.decode("init_images", decoded("init_images", body.init_images[0]))}
    if body.mask is not None:
        mask = service.decode("mask", decoded("mask", body.mask)).convert("L")
        given["mask"] = mask.point([255 - value for value in range(256)]) if body.inpainting_mask_invert else mask
    if body.denoising_strength is not None:
        given["strength"] = body.denoising_strength
    return given


def _check_off(body: TextToImage, masked: bool) -> None:
    for name, off in _OFF.items():
        value = (body.model_extra or {}).get(name)
        if value is None or value in off or (name in _ONLY_WITH_MASK and not masked):
            continue
        problem = f"{name} is {value!r}"[:120] + ", which is not supported"
        raise ParameterError(problem, f"give {off[0]!r}, or leave it out")


def _overridden(settings: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    _check_model(settings, model)
    layers = settings.get("CLIP_stop_at_last_layers")
    if layers is None:
        return {}
    if not isinstance(layers, int) or isinstance(layers, bool):
        raise ParameterError(f"CLIP_stop_at_last_layers is {layers!r}"[:100], "give a whole number from 1")
    # There, 1 is all layers.
    return {"clip_skip": layers - 1}


def _check_model(settings: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    asked = settings.get("sd_model_checkpoint")
    if asked is not None and asked not in ("", model["model"]):
        raise ParameterError(f"there is no model {asked!r}"[:100], f"this service has '{model['model']}'")


def _of_ebca(scripts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of EBCA among scripts; others must have no arguments."""
    found: dict[str, Any] = {}
    for name, script in scripts.items():
        args = script.get("args") if isinstance(script, Mapping) else script
        if not args:
            continue
        if name.lower() != "ebca":
            raise ParameterError(f"the script '{name[:60]}' is not supported", "leave it out")
        if not isinstance(args, list) or len(args) != 1 or not isinstance(args[0], Mapping):
            raise ParameterError("the arguments of the script 'ebca' cannot be read", "give a list with one object")
        if own := sorted({"image", "mask", "output"} & args[0].keys()):
            raise ParameterError(f"the script 'ebca' has the field '{own[0]}'", "use init_images and mask")
        found |= args[0]
    return found


def _add_state(routes: APIRouter, context: Context) -> None:
    service = context.service

    @routes.get("/progress", responses=schema.refusals())
    def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
        """How far the oldest running job is, and what it looks like."""
        live = service.running(owner_of(request))
        view = live[0] if live else None
        preview = None if view is None or skip_current_image else view.preview
        return {
            "progress": 0.0 if view is None or not view.total else view.done / view.total,
            "eta_relative": _left(view),
            "state": _state(view, len(live)),
            "current_image": None if preview is None else base64.b64encode(preview).decode(),
            "textinfo": None,
        }

    @routes.post("/interrupt", responses=schema.refusals())
    def interrupt(request: Request) -> dict[str, Any]:
        """Cancel what runs."""
        for view in service.running(owner_of(request)):
            if view.state is State.RUNNING:
                service.cancel(view.job.id, view.job.owner)
        return {}

    @routes.get("/options", responses=schema.refusals())
    def options() -> dict[str, Any]:
        """The settings that plug-ins read."""
        return {"sd_model_checkpoint": context.describe()["model"], "CLIP_stop_at_last_layers": 1}

    @routes.post("/options", responses=schema.refusals())
    def set_options(body: dict[str, Any]) -> None:
        """Nothing can be set: the model must be the one there is, and layers of CLIP go with each call."""
        _check_model(body, context.describe())
        if body.get("CLIP_stop_at_last_layers") not in (None, 1):
            raise ParameterError("CLIP_stop_at_last_layers cannot be set here", "send it in override_settings")


def _add_lists(routes: APIRouter, context: Context) -> None:
    @routes.get("/sd-models", responses=schema.refusals())
    def models() -> list[dict[str, Any]]:
        """The one model."""
        name = context.describe()["model"]
        return [{"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}]

    @routes.get("/samplers", responses=schema.refusals())
    def all_samplers() -> list[dict[str, Any]]:
        """The schedulers by the names that they have there."""
        found = samplers.listed(context.describe())
        return [{"name": name, "aliases": aliases, "options": {}} for name, aliases in found]

    @routes.get("/schedulers", responses=schema.refusals())
    def schedulers() -> list[dict[str, Any]]:
        """Noise levels by the names that they have there."""
        names = ("automatic", "karras")
        return [{"name": name, "label": name.capitalize(), "aliases": None} for name in names]


def _left(view: View | None) -> float:
    """Seconds that the evaluations of a job will still take."""
    if view is None or not view.done or view.job.started is None:
        return 0.0
    return (time.time() - view.job.started) / view.done * (view.total - view.done)


def _state(view: View | None, count: int) -> dict[str, Any]:
    return {
        "skipped": False,
        "interrupted": False,
        "job": "" if view is None else view.job.id,
        "job_count": count,
        "job_no": 0,
        "sampling_step": 0 if view is None else view.done,
        "sampling_steps": 0 if view is None else view.total,
    }


def _echo(body: TextToImage) -> dict[str, Any]:
    """The body without images, as plug-ins expect to get it back."""
    return {name: value for name, value in body.model_dump().items() if name not in ("init_images", "mask")}


def _info(view: View) -> dict[str, Any]:
    made = view.job.parameters
    count = int(made["num_images"])
    seeds = made["seed"] if isinstance(made["seed"], list) else [made["seed"]] * count
    return {
        "prompt": made["prompt"],
        "all_prompts": [made["prompt"]] * count,
        "negative_prompt": made["negative_prompt"],
        "seed": seeds[0],
        "all_seeds": seeds,
        "width": made["width"],
        "height": made["height"],
        "sampler_name": samplers.name_of(str(made["scheduler"])),
        "cfg_scale": made["guidance_scale"],
        "steps": made["steps"],
        "batch_size": count,
        "sd_model_name": made["model"],
        "infotexts": [json.dumps({"ebca": dict(made)})] * count,
    }
