"""libebca through ctypes, with the arguments of the Python session."""

import ctypes
import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8, c_uint32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import ebca

ERRORS = {
    1: ebca.errors.ParameterError,
    2: ebca.errors.EngineError,
    3: ebca.errors.BackendError,
    4: ebca.errors.NumericalError,
    5: ebca.errors.CancelledError,
}


class NativeError(Exception):
    """A status that has no class in `ebca.errors`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Tensor(ctypes.Structure):
    _fields_ = (("data", POINTER(c_float)), ("shape", c_int64 * 4), ("rank", c_int32), ("memory", c_int32))


class Prompt(ctypes.Structure):
    _fields_ = (("texts", POINTER(c_char_p)), ("count", c_size_t), ("embeds", Tensor))


class Schedule(ctypes.Structure):
    _fields_ = (
        ("kind", c_int32),
        ("value", c_double),
        ("parameter", c_double),
        ("values", POINTER(c_double)),
        ("count", c_size_t),
    )


class TokenWeight(ctypes.Structure):
    _fields_ = (("word", c_char_p), ("position", c_int64), ("factor", c_double))


class Edit(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("prompt", Prompt),
        ("direction", c_int32),
        ("alpha", Schedule),
        ("gamma_attn", Schedule),
        ("gamma_norm", Schedule),
    )


class Image(ctypes.Structure):
    _fields_ = (("pixels", POINTER(c_uint8)), ("height", c_int32), ("width", c_int32), ("channels", c_int32))


class RePaintParams(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("jump_length", c_int32),
        ("jump_count", c_int32),
        ("eta", c_double),
        ("update_known", c_int32),
    )


class RegularizeParams(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("rounds", c_int32),
        ("rolls", c_int32),
        ("auto_correlation", c_double),
        ("kl", c_double),
        ("seed", c_uint32),
    )


class StepInfo(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("index", c_int64),
        ("total", c_int64),
        ("timestep", c_double),
        ("latents", POINTER(c_float)),
        ("latents_shape", c_int64 * 4),
        ("contexts", POINTER(c_float)),
        ("contexts_shape", c_int64 * 4),
    )


StepCallback = ctypes.CFUNCTYPE(ctypes.c_int, POINTER(StepInfo), c_void_p)
LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
PrepareCallback = ctypes.CFUNCTYPE(None, c_int64, c_int64, c_char_p, c_void_p)


class EngineParams(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("path", c_char_p),
        ("device", c_char_p),
        ("onnxruntime_library", c_char_p),
        ("cache_dir", c_char_p),
        ("threads", c_int32),
        ("cuda_stream", c_void_p),
        ("on_prepare", PrepareCallback),
        ("on_prepare_data", c_void_p),
        ("log", LogCallback),
        ("log_data", c_void_p),
        ("backend", c_char_p),
        ("precision", c_char_p),
        ("openvino_library", c_char_p),
        ("kernels_dir", c_char_p),
        ("tensorrt_rtx_library", c_char_p),
    )


class EngineInfo(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("model", c_char_p),
        ("kind", c_char_p),
        ("backend", c_char_p),
        ("backend_version", c_char_p),
        ("tasks", c_uint32),
        ("has_text_encoder", c_int32),
        ("has_vae", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("downscale", c_int32),
        ("latent_channels", c_int32),
        ("context_width", c_int32),
        ("max_tokens", c_int32),
        ("threads", c_int32),
        ("guidance_scale", c_double),
        ("scheduler", c_char_p),
        ("schedulers", c_char_p),
    )


class SessionParams(ctypes.Structure):
    _fields_ = (("struct_size", c_size_t), ("height", c_int32), ("width", c_int32), ("batch", c_int32))


class GenerateParams(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("prompt", Prompt),
        ("negative_prompt", Prompt),
        ("steps", c_int32),
        ("guidance_scale", c_double),
        ("scheduler", c_char_p),
        ("seeds", POINTER(c_int64)),
        ("seed_count", c_size_t),
        ("gamma_attn", Schedule),
        ("gamma_norm", Schedule),
        ("token_weights", POINTER(TokenWeight)),
        ("token_weight_count", c_size_t),
        ("norm_factor", c_double),
        ("edits", POINTER(Edit)),
        ("edit_count", c_size_t),
        ("reset_edits", c_int32),
        ("images", POINTER(Image)),
        ("image_count", c_size_t),
        ("masks", POINTER(Image)),
        ("mask_count", c_size_t),
        ("strength", c_double),
        ("repaint", POINTER(RePaintParams)),
        ("composite", c_int32),
        ("latents", Tensor),
        ("latents_only", c_int32),
        ("on_step", StepCallback),
        ("on_step_data", c_void_p),
    )


class InvertParams(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("images", POINTER(Image)),
        ("image_count", c_size_t),
        ("latents", Tensor),
        ("prompt", Prompt),
        ("steps", c_int32),
        ("regularize", POINTER(RegularizeParams)),
        ("on_step", StepCallback),
        ("on_step_data", c_void_p),
    )


class ResultStruct(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("task", c_char_p),
        ("scheduler", c_char_p),
        ("pictures", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("pixels", POINTER(c_uint8)),
        ("latents", POINTER(c_float)),
        ("latents_shape", c_int64 * 4),
        ("evaluations", c_size_t),
        ("timesteps", POINTER(c_double)),
        ("unet_seconds", POINTER(c_double)),
        ("text_encoder_seconds", c_double),
        ("vae_encoder_seconds", c_double),
        ("open_seconds", c_double),
        ("scheduler_seconds", c_double),
        ("vae_seconds", c_double),
        ("seeds", POINTER(c_int64)),
        ("seed_count", c_size_t),
    )


PARAMS: Mapping[str, type[ctypes.Structure]] = {
    "engine_params": EngineParams,
    "session_params": SessionParams,
    "generate_params": GenerateParams,
    "invert_params": InvertParams,
    "edit": Edit,
    "repaint_params": RePaintParams,
    "regularize_params": RegularizeParams,
}

_KINDS = ("constant", "step", "reverse_step", "linear", "exponential", "values")


@dataclass(frozen=True)
class Made:
    """A copy of what a call gave."""

    task: str
    scheduler: str
    pixels: np.ndarray | None  # [n,H,W,3] uint8
    latents: np.ndarray  # [n,C,h,w]
    timesteps: list[float]
    unet_seconds: list[float]
    seeds: list[int]
    seconds: dict[str, float]


class Library:
    """The loaded library; `lib` is what ctypes calls."""

    def __init__(self, path: Path, onnxruntime: Path) -> None:
        self.path, self.onnxruntime = path, onnxruntime
        self.lib = ctypes.CDLL(str(path))
        for name in ("version", "last_error", "engine_last_error", "session_last_error"):
            getattr(self.lib, f"ebca_{name}").restype = c_char_p
        for name in ("engine_last_error", "session_last_error", "engine_free", "session_free", "result_free"):
            getattr(self.lib, f"ebca_{name}").argtypes = [c_void_p]
        for name in ("engine_free", "session_free", "result_free", *(f"{params}_init" for params in PARAMS)):
            getattr(self.lib, f"ebca_{name}").restype = None
        for params in PARAMS:
            getattr(self.lib, f"ebca_{params}_init").argtypes = [c_void_p, c_size_t]
        for name in ("session_create", "session_generate", "session_invert"):
            getattr(self.lib, f"ebca_{name}").argtypes = [c_void_p, c_void_p, c_void_p]
        self.lib.ebca_engine_get_info.argtypes = [c_void_p, c_void_p]
        self.lib.ebca_session_cancel.argtypes = [c_void_p]

    def init(self, name: str) -> Any:
        """A params struct with its defaults."""
        params = PARAMS[name]()
        getattr(self.lib, f"ebca_{name}_init")(ctypes.byref(params), ctypes.sizeof(params))
        return params

    def last_error(self) -> str:
        return str(self.lib.ebca_last_error().decode())

    def check(self, status: int) -> None:
        if status:
            message = self.last_error()
            raise ERRORS[status](message) if status in ERRORS else NativeError(status, message)

    def open(
        self,
        path: Path | str,
        *,
        device: str = "cpu",
        cache: Path | None = None,
        threads: int = 0,
        onnxruntime: Path | str | None = None,
        backend: str | None = None,
        precision: str | None = None,
        openvino: Path | str | None = None,
        on_prepare: Callable[[int, int, str], None] | None = None,
        log: Callable[[int, str], None] | None = None,
    ) -> "Engine":
        params, keep = self.init("engine_params"), []
        params.path, params.device = str(path).encode(), device.encode()
        params.onnxruntime_library = str(onnxruntime or self.onnxruntime).encode()
        params.cache_dir = None if cache is None else str(cache).encode()
        params.threads = threads
        params.backend = None if backend is None else backend.encode()
        params.precision = None if precision is None else precision.encode()
        params.openvino_library = None if openvino is None else str(openvino).encode()
        if on_prepare:
            prepare = on_prepare
            params.on_prepare = PrepareCallback(lambda done, total, name, _: prepare(done, total, name.decode()))
            keep.append(params.on_prepare)
        if log:
            write = log
            params.log = LogCallback(lambda level, message, _: write(level, message.decode()))
            keep.append(params.log)
        handle = c_void_p()
        self.check(self.lib.ebca_engine_open(ctypes.byref(params), ctypes.byref(handle)))
        return Engine(self, handle, keep)


class Engine:
    def __init__(self, library: Library, handle: c_void_p, keep: list[Any]) -> None:
        self.library, self.handle, self._keep = library, handle, keep

    def info(self) -> EngineInfo:
        info = EngineInfo(struct_size=ctypes.sizeof(EngineInfo))
        self.library.check(self.library.lib.ebca_engine_get_info(self.handle, ctypes.byref(info)))
        return info

    def session(self, height: int = 0, width: int = 0, batch: int = 1) -> "Session":
        params = self.library.init("session_params")
        params.height, params.width, params.batch = height, width, batch
        handle = c_void_p()
        self.library.check(
            self.library.lib.ebca_session_create(self.handle, ctypes.byref(params), ctypes.byref(handle))
        )
        return Session(self.library, handle, self._keep)

    def close(self) -> None:
        self.library.lib.ebca_engine_free(self.handle)
        self.handle = c_void_p()


class Session:
    def __init__(self, library: Library, handle: c_void_p, keep: list[Any]) -> None:
        # A session keeps its engine alive, and so the engine's callbacks are called.
        self.library, self.handle, self._keep = library, handle, keep

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        on_step: Callable[[StepInfo], bool | None] | None = None,
        **given: Any,
    ) -> Made:
        """The arguments of `ebca.Session.generate`, but for those that the library does not have."""
        params, keep = self.library.init("generate_params"), _Kept()
        params.prompt = keep.prompt(prompt, given.pop("prompt_embeds", None))
        params.negative_prompt = keep.prompt(negative_prompt, given.pop("negative_prompt_embeds", None))
        for name in ("gamma_attn", "gamma_norm"):
            setattr(params, name, keep.schedule(given.pop(name, 0.0)))
        if "seed" in given:
            seeds = np.atleast_1d(np.asarray(given.pop("seed"), np.int64))
            params.seeds, params.seed_count = keep.pointer(seeds, c_int64), seeds.size
        if weights := given.pop("token_weights", None):
            params.token_weights, params.token_weight_count = keep.token_weights(weights), len(weights)
        if edits := given.pop("edits", None):
            made = [keep.edit(self.library, edit) for edit in edits]
            params.edits, params.edit_count = keep.array(Edit, made), len(made)
        for name in ("image", "mask"):
            if (value := given.pop(name, None)) is not None:
                images = keep.images(value)
                setattr(params, f"{name}s", keep.array(Image, images))
                setattr(params, f"{name}_count", len(images))
        if (repaint := given.pop("repaint", None)) is not None:
            chosen = self.library.init("repaint_params")
            for name in ("jump_length", "jump_count", "eta", "update_known"):
                setattr(chosen, name, getattr(repaint, name))
            params.repaint = ctypes.pointer(chosen)
        if (latents := given.pop("latents", None)) is not None:
            params.latents = keep.tensor(latents)
        if (scheduler := given.pop("scheduler", None)) is not None:
            params.scheduler = scheduler.encode()
        params.latents_only = given.pop("output", "np") == "latents"
        for name, value in given.items():
            assert hasattr(params, name), name
            setattr(params, name, value)
        params.on_step = keep.callback(on_step)
        return self._call(self.library.lib.ebca_session_generate, params, keep)

    def invert(
        self,
        image: np.ndarray | None = None,
        prompt: str | Sequence[str] | None = None,
        *,
        steps: int = 50,
        latents: np.ndarray | None = None,
        prompt_embeds: np.ndarray | None = None,
        regularize: ebca.NoiseRegularization | None = None,
        on_step: Callable[[StepInfo], bool | None] | None = None,
    ) -> Made:
        params, keep = self.library.init("invert_params"), _Kept()
        params.prompt, params.steps = keep.prompt(prompt, prompt_embeds), steps
        if image is not None:
            images = keep.images(image)
            params.images, params.image_count = keep.array(Image, images), len(images)
        if latents is not None:
            params.latents = keep.tensor(latents)
        if regularize is not None:
            chosen = self.library.init("regularize_params")
            for name in ("rounds", "rolls", "auto_correlation", "kl", "seed"):
                setattr(chosen, name, getattr(regularize, name))
            params.regularize = ctypes.pointer(chosen)
        params.on_step = keep.callback(on_step)
        return self._call(self.library.lib.ebca_session_invert, params, keep)

    def cancel(self) -> None:
        self.library.check(self.library.lib.ebca_session_cancel(self.handle))

    def last_error(self) -> str:
        return str(self.library.lib.ebca_session_last_error(self.handle).decode())

    def close(self) -> None:
        self.library.lib.ebca_session_free(self.handle)
        self.handle = c_void_p()

    def _call(self, function: Any, params: ctypes.Structure, keep: "_Kept") -> Made:
        out = POINTER(ResultStruct)()
        status = function(self.handle, ctypes.byref(params), ctypes.byref(out))
        if keep.raised:
            raise keep.raised[0]
        self.library.check(status)
        try:
            r = out.contents
            shape = (r.pictures, r.height, r.width, 3)
            return Made(
                r.task.decode(),
                r.scheduler.decode(),
                np.ctypeslib.as_array(r.pixels, shape).copy() if r.pixels else None,
                np.ctypeslib.as_array(r.latents, tuple(r.latents_shape)).copy(),
                r.timesteps[: r.evaluations],
                r.unet_seconds[: r.evaluations],
                r.seeds[: r.seed_count],
                {
                    name.removesuffix("_seconds"): getattr(r, name)
                    for name, kind in r._fields_
                    if kind is c_double and name.endswith("_seconds")
                },
            )
        finally:
            self.library.lib.ebca_result_free(out)


class _Kept:
    """Makes C's forms of Python's values, and keeps the memory that they point to."""

    def __init__(self) -> None:
        self._alive: list[Any] = []
        self.raised: list[BaseException] = []

    def pointer(self, array: np.ndarray, kind: Any) -> Any:
        self._alive.append(array)
        return array.ctypes.data_as(POINTER(kind))

    def array(self, kind: Any, items: Sequence[Any]) -> Any:
        made = (kind * len(items))(*items)
        self._alive.append(made)
        return made

    def tensor(self, value: np.ndarray) -> Tensor:
        array = np.ascontiguousarray(value, np.float32)
        shape = (c_int64 * 4)(*array.shape)
        return Tensor(self.pointer(array, c_float), shape, array.ndim, 0)

    def prompt(self, text: str | Sequence[str] | None, embeds: np.ndarray | None) -> Prompt:
        prompt = Prompt()
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            prompt.texts = self.array(c_char_p, [one.encode() for one in texts])
            prompt.count = len(texts)
        if embeds is not None:
            prompt.embeds = self.tensor(embeds)
        return prompt

    def schedule(self, value: Any) -> Schedule:
        if isinstance(value, ebca.Schedule):
            return Schedule(_KINDS.index(value.kind), value.value, value.parameter, None, 0)
        if np.ndim(value) == 0:
            return Schedule(0, float(value), 0.0, None, 0)
        values = np.asarray(value, np.float64)
        return Schedule(5, 0.0, 0.0, self.pointer(values, c_double), values.size)

    def token_weights(self, weights: Mapping[str | int, float]) -> Any:
        made = [
            TokenWeight(key.encode() if isinstance(key, str) else None, key if isinstance(key, int) else 0, factor)
            for key, factor in weights.items()
        ]
        return self.array(TokenWeight, made)

    def edit(self, library: Library, edit: ebca.Edit) -> Edit:
        made: Edit = library.init("edit")
        made.prompt = self.prompt(edit.prompt, edit.prompt_embeds)
        made.direction = edit.direction
        for name in ("alpha", "gamma_attn", "gamma_norm"):
            setattr(made, name, self.schedule(getattr(edit, name)))
        return made

    def images(self, value: np.ndarray | Sequence[np.ndarray]) -> list[Image]:
        each = [value] if isinstance(value, np.ndarray) else list(value)
        made = []
        for one in each:
            array = np.ascontiguousarray(one, np.uint8)
            channels = 1 if array.ndim == 2 else array.shape[2]
            made.append(Image(self.pointer(array, c_uint8), array.shape[0], array.shape[1], channels))
        return made

    def callback(self, on_step: Callable[[StepInfo], bool | None] | None) -> Any:
        if on_step is None:
            return StepCallback()

        def call(info: Any, _: Any) -> int:
            try:
                return int(on_step(info.contents) is not False)
            except BaseException as error:
                self.raised.append(error)
                return 0

        made = StepCallback(call)
        self._alive.append(made)
        return made


def unavailable(reason: str) -> NoReturn:
    """Skip a test for what this machine lacks, or fail where it is required."""
    if os.environ.get("EBCA_CPP_REQUIRED"):
        pytest.fail(reason)
    pytest.skip(reason)


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run that all its test processes see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """Hold while something is built in `folder`: one test process at a time."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(*command: str | Path, **options: Any) -> str:
    """Run a program; its output, which is shown where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout
