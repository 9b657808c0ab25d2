"""From the members of a `manifest.json` to its data classes: every value is read with its type and range.

Whether the parts fit each other is the matter of `ebca.engines.contract.consistency`.
"""

import re
from collections.abc import Mapping
from typing import Any

from ebca.engines.contract import dims, files, limits, plans
from ebca.engines.contract.checked import Entry
from ebca.engines.contract.entries import (
    GUIDANCE_SCALE,
    Adapter,
    Component,
    ControlNetSpec,
    Derived,
    FileRecord,
    LayerSpec,
    Manifest,
    Step,
    SubjectLayers,
    TextEncoderSpec,
    TokenizerSpec,
    UNetSpec,
    VaeSpec,
)
from ebca.engines.contract.tensors import TensorSpec, read_dimension, read_tensor, read_tensors
from ebca.errors import EngineError

KINDS = ("text-to-image", "inpainting", "instruct-pix2pix", "unet")
PRECISIONS = ("fp32", "fp16")
COMPUTES = ("fp32", "fp16")

TOKENS = ("bos", "eos", "pad")
"""The special tokens of a tokenizer: start, end and padding."""

_SHA256 = re.compile("[0-9a-f]{64}")
_COUNT = re.compile("[1-9][0-9]{0,6}")

# The file `engine.json` is the cache's own.
_MARKER = "engine"

# What the op's own graphs call the positions of a layer, and groups of tokens.
_COMPONENT_NAMES = (*dims.NAMES, "positions", "groups")


def manifest(entry: Entry) -> Manifest:
    """A manifest from the document. Raises EngineError for a value of the wrong type or range."""
    text_encoder, vae, tokenizer = entry.get("text_encoder"), entry.get("vae"), entry.get("tokenizer")
    compute, parity = entry.get("compute"), entry.get("parity")
    made, built, nets = entry.get("created_by"), entry.get("plans"), entry.get("controlnets")
    weights, derived = entry.get("weights"), entry.get("derived")
    return Manifest(
        model=_model(entry["model"]),
        precision=entry["precision"].choice(*PRECISIONS),
        components={_file_stem(name, c): component(c) for name, c in entry["components"].items()},
        unet=_unet(entry["unet"]),
        schedulers=schedulers(entry["schedulers"]),
        files={path: _record(path, record) for path, record in entry["files"].items()},
        text_encoder=None if text_encoder is None else _text_encoder(text_encoder),
        vae=None if vae is None else _vae(vae),
        tokenizer=None if tokenizer is None else _tokenizer(tokenizer),
        parity={} if parity is None else _errors(parity),
        created_by={} if made is None else {name: version.name() for name, version in made.items()},
        compute=COMPUTES[0] if compute is None else compute.choice(*COMPUTES),
        plans={} if built is None else {library: plans.read_plans(its) for library, its in built.items()},
        controlnets={} if nets is None else {name: _controlnet(net) for name, net in nets.items()},
        weights=None if weights is None else weights.text(),
        derived=None if derived is None else _derived(derived),
    )


def component(entry: Entry) -> Component:
    """One component. Raises EngineError as `manifest`."""
    weights, scratch = entry.get("weights"), entry.get("scratch")
    return Component(
        graph=entry["graph"].text(),
        inputs=read_tensors(entry["inputs"], _COMPONENT_NAMES),
        outputs=read_tensors(entry["outputs"], _COMPONENT_NAMES),
        weights=None if weights is None else weights.text(),
        lowered={backend: graph.text() for backend, graph in entry["lowered"].items()},
        float32_only=entry["float32_only"].boolean(),
        scratch=() if scratch is None else tuple(_scratch(tensors) for tensors in scratch.elements()),
    )


def _scratch(entry: Entry) -> tuple[TensorSpec, ...]:
    return tuple(read_tensor(tensor, _COMPONENT_NAMES) for tensor in entry.elements())


def schedulers(entry: Entry) -> dict[str, Any]:
    """The scheduler section as it is, with every value checked that the runtimes use. What is null counts as missing.

    Raises:
        EngineError: a value of the wrong type or range.
    """
    entry["default"].name()
    entry["alphas_cumprod"].text()
    config = entry["config"]
    config["num_train_timesteps"].integer(1, limits.TRAIN_TIMESTEPS)
    for place, name in ((config, "prediction_type"), (entry, "image_to_image")):
        if (chosen := place.get(name)) is not None:
            chosen.name()
    if (steps := entry.get("default_steps")) is not None:
        steps.integer(1, limits.STEPS)
    tables = {name: _table(table) for name, table in entry["tables"].items()}
    if (left_out := entry.get("left_out")) is not None:
        for _, reason in left_out.items():
            reason.text()
    return {**_present(entry), "config": _present(config), "tables": tables}


def _table(entry: Entry) -> dict[str, Any]:
    entry["file"].text()
    if (minimum := entry.get("minimum_steps")) is not None:
        minimum.integer(1, limits.STEPS)
    entry["memory"]["latents"].integer(1, limits.TABLE_LATENTS)
    entry["memory"]["noises"].integer(1, limits.TABLE_NOISES)
    if (fresh := entry["memory"].get("fresh_noises")) is not None:
        fresh.integer(0, limits.TABLE_FRESH_NOISES)
    if (order := entry.get("order")) is not None:
        order.integer(1, limits.TABLE_ORDER)
    for count, evaluations in entry["steps"].items():
        if not _COUNT.fullmatch(count):
            raise EngineError(f"{entry.path}.steps has {count!r} instead of a number of steps")
        # More evaluations than any scheduler needs.
        evaluations.integer(1, min(4 * int(count) + 16, limits.TABLE_EVALUATIONS))
    return _present(entry)


def _present(entry: Entry) -> dict[str, Any]:
    return {name: value for name, value in entry.value.items() if value is not None}


def _derived(entry: Entry) -> Derived:
    return Derived(entry["base"].text(), tuple(_adapter(adapter) for adapter in entry["adapters"].elements()))


def _adapter(entry: Entry) -> Adapter:
    scale, token = entry.get("scale"), entry.get("token")
    return Adapter(
        entry["kind"].choice("lora", "embedding"),
        entry["file"].text(),
        entry["sha256"].text(),
        None if scale is None else scale.number(),
        None if token is None else token.name(),
    )


def _model(entry: Entry) -> dict[str, Any]:
    scale, source = entry.get("guidance_scale"), entry.get("source")
    zeros = entry.get("force_zeros_for_empty_prompt")
    if source is not None:
        for _, value in source.items():
            if value.value is not None:
                value.text()
    return {
        "name": entry["name"].name(),
        "kind": entry["kind"].choice(*KINDS),
        "source": None if source is None else dict(source.value),
        "guidance_scale": GUIDANCE_SCALE if scale is None else scale.number(-limits.FACTOR, limits.FACTOR),
        "force_zeros_for_empty_prompt": False if zeros is None else zeros.boolean(),
    }


def _file_stem(name: str, entry: Entry) -> str:
    """The name of a component, which becomes that of files in the cache."""
    unusable = name.startswith(".") or "/" in name or "\\" in name or name == _MARKER
    if unusable or len(name.encode()) > limits.NAME_BYTES:
        raise EngineError(f"{entry.path} cannot be the name of a component")
    return name


def _unet(entry: Entry) -> UNetSpec:
    def size(name: str, limit: int = limits.DIMENSION) -> int:
        return entry[name].integer(1, limit)

    contexts, last = entry.get("max_contexts"), entry.get("channels_last")
    full, with_updates, subjects = entry.get("vanilla"), entry.get("whole"), entry.get("subject_layers")
    controls = entry.get("controls")
    return UNetSpec(
        in_channels=size("in_channels"),
        out_channels=size("out_channels"),
        context_dim=size("context_dim"),
        sample_size=size("sample_size", limits.SAMPLE_SIZE),
        inputs=entry["inputs"].names(),
        outputs=entry["outputs"].names(),
        tensors=read_tensors(entry["tensors"]),
        layers=tuple(_layer(layer) for layer in entry["layers"].elements()),
        ops={name: {v: c.name() for v, c in variants.items()} for name, variants in entry["ops"].items()},
        steps=tuple(_step(step) for step in entry["plan"].elements()),
        max_contexts=None if contexts is None else contexts.integer(1, limits.CONTEXTS),
        full_unet=None if full is None else full.name(),
        full_unet_with_updates=None if with_updates is None else with_updates.name(),
        channels_last={} if last is None else {backend: names.names() for backend, names in last.items()},
        subject_layers=None if subjects is None else _subject_layers(subjects),
        controls=() if controls is None else controls.names(),
    )


def _subject_layers(entry: Entry) -> SubjectLayers:
    def layers(name: str) -> tuple[int, ...]:
        return tuple(layer.integer(0, limits.DIMENSION) for layer in entry[name].elements())

    return SubjectLayers(layers("biased"), layers("sources"))


def _layer(entry: Entry) -> LayerSpec:
    heads, head_dim = (entry[name].integer(1, limits.DIMENSION) for name in ("heads", "head_dim"))
    height, width = (read_dimension(entry[name]) for name in ("height", "width"))
    return LayerSpec(entry["name"].name(), entry["op"].name(), heads, head_dim, height, width)


def _step(entry: Entry) -> Step:
    segment, layer = entry.get("segment"), entry.get("layer")
    if (segment is None) == (layer is None):
        raise EngineError(f"{entry.path} has to name either a segment or a layer")
    return Step(
        segment=None if segment is None else segment.name(),
        layer=None if layer is None else layer.integer(0, limits.DIMENSION),
        inputs=entry["inputs"].names(),
        outputs=entry["outputs"].names(),
    )


def _controlnet(entry: Entry) -> ControlNetSpec:
    return ControlNetSpec(
        component=entry["component"].name(),
        hint=entry["hint"].name(),
        downscale=entry["downscale"].integer(1, limits.DIMENSION),
    )


def _text_encoder(entry: Entry) -> TextEncoderSpec:
    layers, component, pooled = entry.get("layers"), entry.get("layers_component"), entry.get("pooled_size")
    first = entry.get("first_hidden_size")
    return TextEncoderSpec(
        component=entry["component"].name(),
        max_length=entry["max_length"].integer(3, limits.TOKENS),
        hidden_size=entry["hidden_size"].integer(1, limits.DIMENSION),
        layers=None if layers is None else layers.integer(1, limits.DIMENSION),
        layers_component=None if component is None else component.name(),
        pooled_size=None if pooled is None else pooled.integer(1, limits.DIMENSION),
        first_hidden_size=None if first is None else first.integer(1, limits.DIMENSION),
    )


def _vae(entry: Entry) -> VaeSpec:
    preview = entry.get("preview")
    return VaeSpec(
        decoder=entry["decoder"].name(),
        encoder=entry["encoder"].name(),
        latent_channels=entry["latent_channels"].integer(1, limits.DIMENSION),
        scaling_factor=entry["scaling_factor"].number(1 / limits.FACTOR, limits.FACTOR),
        shift_factor=entry["shift_factor"].number(-limits.FACTOR, limits.FACTOR),
        downscale=entry["downscale"].integer(1, limits.DOWNSCALE),
        preview=None if preview is None else preview.name(),
    )


def _tokenizer(entry: Entry) -> TokenizerSpec:
    info = entry["info"]
    info["model_max_length"].integer(3, limits.TOKENS)
    for token in TOKENS:
        info[f"{token}_token"].name()
        info[f"{token}_token_id"].integer(0, limits.TOKEN_ID)
    if (second := info.get("pad_token_2")) is not None:
        second.name()
        info["pad_token_id_2"].integer(0, limits.TOKEN_ID)
    if (expansions := info.get("expansions")) is not None:
        for _, ids in expansions.items():
            if not [index.integer(0, limits.TOKEN_ID) for index in ids.elements()]:
                ids.refuse("a list of token ids")
    return TokenizerSpec(entry["file"].text(), dict(info.value))


def _record(path: str, entry: Entry) -> FileRecord:
    files.check_path(path)
    if not _SHA256.fullmatch(entry["sha256"].text()):
        entry["sha256"].refuse("64 hexadecimal digits")
    return FileRecord(entry["size"].integer(0, limits.FILE_BYTES), entry["sha256"].text())


def _errors(entry: Entry) -> dict[str, Any]:
    """The record of errors against PyTorch: numbers, and objects of them."""
    return {
        name: _errors(value) if isinstance(value.value, Mapping) else value.number() for name, value in entry.items()
    }
