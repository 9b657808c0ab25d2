"""Compares an engine on any backend and device with ONNX Runtime on the CPU, part by part.

Every step of the UNet, segment or op, gets the reference's results as inputs, so that each error belongs to one step.
Text encoder and VAE follow. Inputs are random with a fixed seed, with two contexts and updates.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ebca.engines.contract.accuracy import LIMITS, relative_l2
from ebca.errors import ParameterError
from ebca.runtime.components import TextEmbeddings
from ebca.runtime.diagnostics.trial import random_conditions
from ebca.runtime.engine import Engine
from ebca.runtime.execution.control import EnergyControl, resolve
from ebca.runtime.execution.inspection import evaluate, step_name

REFERENCE = "onnxruntime"

# Enough for random latents and contexts. Plans run at the sizes that they were built for.
_LARGEST_SIDE = 32
_TOKENS = 77
_TIMESTEP = 500.0
_VARIANT = "update"

OnPart = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Difference:
    """Error of one part: relative L2 of its worst output, and the limit."""

    part: str
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.error <= self.limit


def verify(engine: Engine, reference: Engine, on_part: OnPart | None = None) -> list[Difference]:
    """Compare every part of an opened engine with the same directory on the reference backend.

    Args:
        engine: on any device and backend.
        reference: `ebca.load(directory, backend=REFERENCE)`.
        on_part: called with (done, total, part).

    Raises:
        ParameterError: both run on the same backend and device, or they are different engines.
        EngineError, BackendError: a part does not run.
    """
    if (engine.backend.name, engine.device.name) == (reference.backend.name, reference.device.name):
        raise ParameterError(f"{engine.backend.name} is the reference of the comparison", "name another backend")
    if engine.manifest.files != reference.manifest.files:
        problem = f"'{engine.directory.path}' and '{reference.directory.path}' are different engines"
        raise ParameterError(problem, "open the same directory twice")
    limit = LIMITS[engine.precision]
    found: list[Difference] = []
    total = _number_of_parts(engine)
    for part, actual, expected in _results(engine, reference):
        if on_part:
            on_part(len(found), total, part)
        errors = [relative_l2(actual[name], expected[name]) for name in expected]
        found.append(Difference(part, max(errors), limit))
    return found


_Results = dict[str, np.ndarray]


def _results(engine: Engine, reference: Engine) -> Iterator[tuple[str, _Results, _Results]]:
    """Part, its outputs, and the reference's."""
    yield from _unet(engine, reference)
    manifest, rng = engine.manifest, np.random.default_rng(1)
    if text := manifest.text_encoder:
        # Every vocabulary starts with 512 symbols for bytes.
        ids = rng.integers(0, 512, (1, text.max_length))
        given = (ids,) if text.pooled_size is None else (ids, ids)
        actual, expected = (_embeddings(one.encode(*given)) for one in (engine, reference))
        yield "text_encoder", actual, expected
    if vae := manifest.vae:
        sizes = _sizes(engine)
        shape = (1, vae.latent_channels, sizes["height"], sizes["width"])
        latents = rng.standard_normal(shape, np.float32) * np.float32(vae.scaling_factor)
        yield "vae_decoder", {"image": engine.decode(latents)}, {"image": reference.decode(latents)}
        pixels = rng.uniform(0, 1, (1, *(vae.downscale * side for side in shape[2:]), 3)).astype(np.float32)
        # The deviation is tiny compared with the mean, so both count as one output.
        latents_of = (np.stack(one.encode_image(pixels)) for one in (engine, reference))
        actual, expected = ({"latents": each} for each in latents_of)
        yield "vae_encoder", actual, expected


def _embeddings(made: TextEmbeddings) -> _Results:
    pooled = {} if made.pooled is None else {"pooled": made.pooled}
    return {"hidden_states": made.contexts, **pooled}


def _unet(engine: Engine, reference: Engine) -> Iterator[tuple[str, _Results, _Results]]:
    unet, sizes = engine.manifest.unet, _sizes(engine)
    rng = np.random.default_rng(0)
    rows = sizes["batch"]
    values: _Results = {
        "sample": rng.standard_normal((rows, unet.in_channels, sizes["height"], sizes["width"]), np.float32),
        "timestep": np.full(rows, _TIMESTEP, np.float32),
        **random_conditions(unet, sizes, rng),
    }
    weights = np.linspace(1, -0.4, sizes["contexts"])
    control = resolve(EnergyControl(gamma_attn=0.01, gamma_norm=0.02, weights=weights), unet.layers, sizes)
    executors = [one.executor(sizes) for one in (engine, reference)]
    for executor in executors:
        executor.set_control(control)
    for index, step in enumerate(unet.steps):
        given = {name: values[name] for name in step.inputs}
        actual, expected = (evaluate(executor, index, _VARIANT, given) for executor in executors)
        values |= expected
        yield step_name(step), actual, expected
    if engine.full_unet_with_updates:
        for executor in executors:
            executor.sample[...], executor.timestep[...] = values["sample"], values["timestep"]
            executor.set_conditions(values)
            executor.run(_VARIANT)
        actual, expected = ({"noise": one.noise, "contexts_out": one.contexts_out} for one in executors)
        yield engine.full_unet_with_updates, actual, expected


def _sizes(engine: Engine) -> dict[str, int]:
    """Sizes of the UNet evaluation: the optimum of the backend's plans, or small ones without plans."""
    manifest = engine.manifest
    most = manifest.unet.max_contexts or 2
    if plans := manifest.plans.get(engine.backend.name):
        sizes = {name: best for name, (_, best, _) in plans.shapes[0].items()}
    else:
        side = min(manifest.unet.sample_size, _LARGEST_SIDE)
        tokens = manifest.text_encoder.max_length if manifest.text_encoder else _TOKENS
        sizes = {"batch": 2, "tokens": tokens, "height": side, "width": max(side * 3 // 4, 1)}
    return {**sizes, "contexts": min(2, most)}


def _number_of_parts(engine: Engine) -> int:
    manifest = engine.manifest
    return (
        len(manifest.unet.steps)
        + bool(engine.full_unet_with_updates)
        + bool(manifest.text_encoder)
        + 2 * bool(manifest.vae)
    )
