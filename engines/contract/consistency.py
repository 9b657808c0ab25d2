"""Whether the parts of a manifest fit each other: files, graphs, steps, layers, and the models around the UNet."""

from collections.abc import Mapping
from typing import Any

from ebca.engines.contract import dims, plans
from ebca.engines.contract.dims import Dim
from ebca.engines.contract.entries import (
    ADDED_INPUTS,
    TIME_IDS,
    Component,
    LayerSpec,
    Manifest,
    Step,
    TextEncoderSpec,
    UNetSpec,
)
from ebca.engines.contract.tensors import TensorSpec
from ebca.errors import EngineError

Tensors = Mapping[str, TensorSpec]

_INPUTS, _OUTPUTS = ("sample", "timestep", "contexts"), ("noise", "contexts_out")

# The op's tensors; the last dimension of those that end in None is heads * head_dim.
_OP_SHAPES: Mapping[str, tuple[Dim | None, ...]] = {
    **dict.fromkeys(("q", "out"), ("batch", "positions", None)),
    **dict.fromkeys(("k", "v", "g"), ("batch", "contexts", "tokens", None)),
    **dict.fromkeys(("weights", "gamma_norm", "energy_attn", "energy_norm"), ("batch", "contexts")),
    "gamma_attn": ("batch", "contexts", "tokens"),
    "norm_factor": (),
    "tie": ("batch", "contexts", "contexts"),
    "mask": ("batch", "contexts", "positions"),
    "bias": ("batch", "contexts", "groups", "positions"),
    "token_groups": ("batch", "contexts", "tokens"),
    "maps": ("batch", "groups", "positions"),
}
# What computes in float16 where graphs do.
_OP_HALF = ("q", "k", "v", "out")
_CONTROLS = ("weights", "gamma_attn", "gamma_norm", "norm_factor", "tie")
OP_VARIANTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "attention": (("q", "k", "v", "weights"), ("out",)),
    "update": (("q", "k", "v", *_CONTROLS), ("out", "g")),
    "update_masked": (("q", "k", "v", *_CONTROLS, "mask"), ("out", "g")),
    "energies": (("q", "k", "v", *_CONTROLS, "mask"), ("out", "g", "energy_attn", "energy_norm")),
}
"""Inputs and outputs of each variant of the op."""

GUIDED_VARIANTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    f"{variant}_guided": ((*inputs, "bias", "token_groups"), (*outputs, "maps"))
    for variant, (inputs, outputs) in OP_VARIANTS.items()
}
"""Those of the guided variants, which the ops of `UNetSpec.subject_layers` have."""


def check(manifest: Manifest) -> None:
    """Raise EngineError if two parts of a manifest contradict each other, or one names something that is not there."""
    for name, component in manifest.components.items():
        for file in (component.graph, component.weights, *component.lowered.values()):
            if file is not None:
                _need_file(manifest, file, f"component '{name}'")
    if manifest.weights is not None:
        _need_file(manifest, manifest.weights, "the list of weights")
    _check_edges(manifest.unet)
    _check_compute(manifest)
    _check_channels_last(manifest.unet)
    _check_steps(manifest)
    for layer in manifest.unet.layers:
        _check_op(manifest, layer, OP_VARIANTS)
    _check_subject_layers(manifest)
    _check_full_unets(manifest)
    _check_controlnets(manifest)
    _check_kind(manifest)
    _check_text(manifest)
    _check_vae(manifest)
    check_schedulers(manifest.schedulers, {path: record.size for path, record in manifest.files.items()})
    for library, entry in manifest.plans.items():
        plans.check(library, entry, manifest.components, manifest.files)


def check_schedulers(section: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Raise EngineError if the scheduler section contradicts itself or the files.

    Args:
        section: of the manifest, read with `ebca.engines.contract.reading.schedulers`.
        sizes: path to bytes of the files.
    """
    tables, alphas = section["tables"], section["alphas_cumprod"]
    for role in ("default", "image_to_image"):
        if (name := section.get(role)) is not None and name not in tables:
            raise EngineError(f"schedulers.{role} is '{name}', which has no table")
    for who, file in (
        ("schedulers.alphas_cumprod", alphas),
        *((f"the scheduler {name}", table["file"]) for name, table in tables.items()),
    ):
        if file not in sizes:
            raise EngineError(f"{who} needs '{file}', which is not among the files")
    count = section["config"]["num_train_timesteps"]
    if sizes[alphas] != 8 * count:
        raise EngineError(f"num_train_timesteps is {count}, and '{alphas}' has {sizes[alphas]} bytes instead of 8 each")
    for name, table in tables.items():
        memory = table["memory"]
        width = 2 + memory["latents"] + memory["noises"] + (memory.get("fresh_noises") or 0)
        needed = 8 * sum(1 + evaluations * width for evaluations in table["steps"].values())
        # Another size means that records lie elsewhere than the manifest says.
        if (size := sizes[table["file"]]) != needed:
            raise EngineError(f"the tables of {name} have {needed} bytes, and '{table['file']}' has {size}")


def _need_file(manifest: Manifest, file: str, who: str) -> None:
    if file not in manifest.files:
        raise EngineError(f"{who} needs '{file}', which is not among the files")


def _component(manifest: Manifest, name: str, who: str) -> Component:
    if name not in manifest.components:
        raise EngineError(f"{who} needs the unknown component '{name}'")
    return manifest.components[name]


def _check_tensors(who: str, given: Tensors, expected: Tensors) -> None:
    """The same names, dtypes and shapes."""
    if given.keys() != expected.keys():
        raise EngineError(f"{who} has the tensors {_listed(given)} instead of {_listed(expected)}")
    for name, tensor in expected.items():
        if not given[name].equals(tensor):
            raise EngineError(f"tensor '{name}' of {who} is {_spelled(given[name])} instead of {_spelled(tensor)}")


def _listed(tensors: Tensors) -> str:
    names = sorted(tensors)
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none"


def _spelled(tensor: TensorSpec) -> str:
    return f"{tensor.dtype} [{', '.join(map(str, tensor.shape))}]"


def _check_edges(unet: UNetSpec) -> None:
    """What the host fills and reads."""
    added = unet.inputs[len(_INPUTS) :]
    if unet.inputs[: len(_INPUTS)] != _INPUTS or added not in ((), ADDED_INPUTS) or unet.outputs != _OUTPUTS:
        inputs, more, outputs = ", ".join(_INPUTS), ", ".join(ADDED_INPUTS), ", ".join(_OUTPUTS)
        raise EngineError(
            f"the UNet has other inputs than {inputs}, and perhaps {more}, or other outputs than {outputs}"
        )
    contexts = TensorSpec("float32", ("batch", "contexts", "tokens", unet.context_dim))
    expected = {
        "sample": TensorSpec("float32", ("batch", unet.in_channels, "height", "width")),
        "timestep": TensorSpec("float32", ("batch",)),
        "contexts": contexts,
        "noise": TensorSpec("float32", ("batch", unet.out_channels, "height", "width")),
        "contexts_out": contexts,
    }
    if added:
        embeds, ids = ADDED_INPUTS
        shape = unet.tensors[embeds].shape if embeds in unet.tensors else ()
        if len(shape) != 2 or not isinstance(shape[1], int):
            raise EngineError(f"the UNet has no tensor '{embeds}' of a known width")
        expected[embeds] = TensorSpec("float32", ("batch", shape[1]))
        expected[ids] = TensorSpec("float32", ("batch", TIME_IDS))
    _check_tensors("the UNet", {name: unet.tensors[name] for name in expected if name in unet.tensors}, expected)


def _check_compute(manifest: Manifest) -> None:
    half = [name for name, tensor in manifest.unet.tensors.items() if tensor.dtype == "float16"]
    if bool(half) != (manifest.compute == "fp16"):
        which = f"'{half[0]}'" if half else "no tensor"
        raise EngineError(f"compute is '{manifest.compute}', and {which} of the UNet is float16")


def _check_channels_last(unet: UNetSpec) -> None:
    for names in unet.channels_last.values():
        for name in names:
            edge = name in (*unet.inputs, *unet.outputs, *unet.controls)
            if edge or name not in unet.tensors or len(unet.tensors[name].shape) != 4:
                raise EngineError(f"'{name}' of channels_last is not an image between segments")


def _check_steps(manifest: Manifest) -> None:
    """Each step reads what was written before, and its graph has the tensors of the step."""
    unet, written = manifest.unet, {*manifest.unet.inputs, *manifest.unet.controls}
    for step in unet.steps:
        for name in (*step.inputs, *step.outputs):
            if name not in unet.tensors:
                raise EngineError(f"a step uses the unknown tensor '{name}'")
        for name in step.inputs:
            if name not in written:
                raise EngineError(f"a step reads '{name}' before it is written")
        # A tensor that was written twice could have been read in between, from memory that is used again.
        for name in step.outputs:
            if name in written:
                raise EngineError(f"a step writes '{name}', which is there already")
            written.add(name)
        if step.segment is not None:
            component = _component(manifest, step.segment, "a step")
            who = f"segment '{step.segment}'"
            _check_tensors(who, component.inputs, {name: unet.tensors[name] for name in step.inputs})
            _check_tensors(who, component.outputs, {name: unet.tensors[name] for name in step.outputs})
        else:
            _check_layer_step(unet, step)
    for name in unet.outputs:
        if name not in written:
            raise EngineError(f"no step writes '{name}'")
    run = sorted(step.layer for step in unet.steps if step.layer is not None)
    if run != list(range(len(unet.layers))):
        raise EngineError(f"the steps do not run each of the {len(unet.layers)} layers once")


def _check_layer_step(unet: UNetSpec, step: Step) -> None:
    """q, k, v to out, g in the layer's sizes."""
    layer = step.layer
    if layer is None or layer >= len(unet.layers):
        raise EngineError(f"a step has layer {layer}, and there are {len(unet.layers)}")
    if len(step.inputs) != 3 or len(step.outputs) != 2:
        raise EngineError(f"the step of layer {layer} is not q, k, v to out, g")
    spec = unet.layers[layer]
    names = dict(zip(("q", "k", "v", "out", "g"), (*step.inputs, *step.outputs), strict=True))
    half = unet.tensors[names["q"]].dtype
    expected = _op_tensors(names, spec, half, f"{spec.height}*{spec.width}")
    _check_tensors(f"layer {layer}", {n: unet.tensors[names[n]] for n in names}, expected)


def _op_tensors(names: Mapping[str, Any] | tuple[str, ...], layer: LayerSpec, half: str, positions: Dim) -> Tensors:
    """The op's tensors of these names: computed in `half`, at a layer with so many positions."""
    width = layer.heads * layer.head_dim
    return {
        name: TensorSpec(
            half if name in _OP_HALF else "int32" if name == "token_groups" else "float32",
            tuple(width if d is None else positions if d == "positions" else d for d in _OP_SHAPES[name]),
        )
        for name in names
    }


def _check_subject_layers(manifest: Manifest) -> None:
    """Layers of one size, in order, with the guided variants; the sources among them."""
    unet, found = manifest.unet, manifest.unet.subject_layers
    if found is None:
        return
    for name, layers in (("biased", found.biased), ("sources", found.sources)):
        if not layers or list(layers) != sorted(set(layers)) or layers[-1] >= len(unet.layers):
            raise EngineError(
                f"subject_layers.{name} is {list(layers)[:8]} instead of ascending indices below {len(unet.layers)}"
            )
    if stray := set(found.sources) - set(found.biased):
        raise EngineError(f"layer {min(stray)} is among the sources of subject_layers, but not biased")
    first = unet.layers[found.biased[0]]
    for index in found.biased:
        layer = unet.layers[index]
        if not dims.same((layer.height, layer.width), (first.height, first.width)):
            raise EngineError(f"layers {found.biased[0]} and {index} of subject_layers have different sizes")
        _check_op(manifest, layer, GUIDED_VARIANTS)


def _check_op(
    manifest: Manifest, layer: LayerSpec, needed: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
) -> None:
    """The op of a layer has these variants, with the layer's sizes."""
    unet = manifest.unet
    variants = unet.ops.get(layer.op, {})
    step = next(s for s in unet.steps if s.layer is not None and unet.layers[s.layer] is layer)
    half = unet.tensors[step.inputs[0]].dtype
    for variant, (inputs, outputs) in needed.items():
        if variant not in variants:
            raise EngineError(f"op '{layer.op}' of layer '{layer.name}' has no variant '{variant}'")
        component = _component(manifest, variants[variant], f"op '{layer.op}'")
        _check_tensors(f"op '{variants[variant]}'", component.inputs, _op_tensors(inputs, layer, half, "positions"))
        _check_tensors(f"op '{variants[variant]}'", component.outputs, _op_tensors(outputs, layer, half, "positions"))


def _check_full_unets(manifest: Manifest) -> None:
    unet = manifest.unet
    outputs = {name: unet.tensors[name] for name in unet.outputs}
    for full, controls in ((unet.full_unet, ()), (unet.full_unet_with_updates, _CONTROLS)):
        if full is None:
            continue
        component = _component(manifest, full, "the UNet")
        inputs = {name: unet.tensors[name] for name in unet.inputs}
        # A control has the same shape in every op.
        inputs |= {name: TensorSpec("float32", tuple(d or 0 for d in _OP_SHAPES[name])) for name in controls}
        _check_tensors(f"the full UNet '{full}'", component.inputs, inputs)
        _check_tensors(f"the full UNet '{full}'", component.outputs, outputs)


def _check_controlnets(manifest: Manifest) -> None:
    """Each takes what the UNet takes, and adds to all that segments read."""
    unet = manifest.unet
    if bool(unet.controls) != bool(manifest.controlnets):
        raise EngineError("controlnets and unet.controls need each other")
    if not unet.controls:
        return
    if unet.full_unet or unet.full_unet_with_updates:
        raise EngineError("a UNet for ControlNets is also there in one piece, which does not read unet.controls")
    for name in unet.controls:
        if name not in unet.tensors or unet.tensors[name].dtype != "float32":
            raise EngineError(f"'{name}' of unet.controls is no float32 tensor of the UNet")
    residuals = {name: unet.tensors[name] for name in unet.controls}
    for name, net in manifest.controlnets.items():
        who = f"the ControlNet '{name}'"
        encoder, component = _component(manifest, net.hint, who), _component(manifest, net.component, who)
        pixels = TensorSpec("float32", ("batch", 3, f"{net.downscale}*height", f"{net.downscale}*width"))
        _check_tensors(who, encoder.inputs, {"image": pixels})
        hint = component.inputs.get("hint")
        if hint is None or len(hint.shape) != 4 or not isinstance(hint.shape[1], int):
            raise EngineError(f"{who} has no input 'hint' that is an image")
        hint = TensorSpec("float32", ("batch", hint.shape[1], "height", "width"))
        _check_tensors(who, encoder.outputs, {"hint": hint})
        inputs = {one: unet.tensors[one] for one in unet.inputs}
        inputs |= {"scale": TensorSpec("float32", ()), "hint": hint}
        inputs |= {f"before_{one}": tensor for one, tensor in residuals.items()}
        _check_tensors(who, component.inputs, inputs)
        _check_tensors(who, component.outputs, residuals)


def _check_kind(manifest: Manifest) -> None:
    unet, kind = manifest.unet, manifest.kind
    complete = None not in (manifest.text_encoder, manifest.vae, manifest.tokenizer)
    if complete == (kind == "unet"):
        raise EngineError(f"model.kind is '{kind}' of a directory {'with' if complete else 'without'} all other models")
    latent = unet.out_channels
    channels = {"text-to-image": latent, "inpainting": 2 * latent + 1, "instruct-pix2pix": 2 * latent}
    expected = channels.get(kind)
    if expected is not None and unet.in_channels != expected:
        raise EngineError(f"model.kind is '{kind}', and unet.in_channels is {unet.in_channels} instead of {expected}")


def _check_text(manifest: Manifest) -> None:
    spec, tokenizer = manifest.text_encoder, manifest.tokenizer
    if tokenizer is not None:
        _need_file(manifest, tokenizer.file, "the tokenizer")
    if spec is None:
        return
    ids = TensorSpec("int64", ("batch", spec.max_length))
    inputs = {"input_ids": ids}
    outputs = {"hidden_states": TensorSpec("float32", ("batch", spec.max_length, spec.hidden_size))}
    if spec.pooled_size is not None:
        inputs["input_ids_2"] = ids
        outputs["pooled"] = TensorSpec("float32", ("batch", spec.pooled_size))
    component = _component(manifest, spec.component, "the text encoder")
    _check_tensors("the text encoder", component.inputs, inputs)
    _check_tensors("the text encoder", component.outputs, outputs)
    if spec.layers_component is not None:
        what = "the text encoder's layers"
        component = _component(manifest, spec.layers_component, what)
        _check_tensors(what, component.inputs, {**inputs, "skip": TensorSpec("int64", (1,))})
        _check_tensors(what, component.outputs, outputs)
    _check_pooled(manifest, spec)
    if spec.hidden_size != manifest.unet.context_dim:
        raise EngineError(
            f"text_encoder.hidden_size is {spec.hidden_size}, and unet.context_dim is {manifest.unet.context_dim}"
        )
    if tokenizer is None:
        raise EngineError("there is a text encoder, but no tokenizer")
    length = tokenizer.info["model_max_length"]
    if length != spec.max_length:
        raise EngineError(f"the tokenizer makes {length} tokens, and text_encoder.max_length is {spec.max_length}")


def _check_pooled(manifest: Manifest, spec: TextEncoderSpec) -> None:
    """The UNet takes what the text encoder pools, and the second encoder's padding is known."""
    if spec.pooled_size != manifest.unet.pooled_size:
        raise EngineError(
            f"text_encoder.pooled_size is {spec.pooled_size}, and the UNet's {ADDED_INPUTS[0]} are "
            f"{manifest.unet.pooled_size} wide"
        )
    width, first = spec.hidden_size, spec.first_hidden_size
    if (spec.pooled_size is None) != (first is None) or (first is not None and first >= width):
        raise EngineError(f"text_encoder.first_hidden_size is {first}, beside {width} in all")
    padded = manifest.tokenizer is not None and manifest.tokenizer.info.get("pad_token_2") is not None
    if manifest.tokenizer is not None and padded != (spec.pooled_size is not None):
        raise EngineError(
            "tokenizer.info has pad_token_2, and there is one text encoder"
            if padded
            else "there are two text encoders, and tokenizer.info has no pad_token_2"
        )


def _check_vae(manifest: Manifest) -> None:
    spec, unet = manifest.vae, manifest.unet
    if spec is None:
        return
    if spec.latent_channels != unet.out_channels:
        raise EngineError(
            f"vae.latent_channels is {spec.latent_channels}, and unet.out_channels is {unet.out_channels}"
        )
    latents = TensorSpec("float32", ("batch", spec.latent_channels, "height", "width"))
    image = TensorSpec("float32", ("batch", 3, f"{spec.downscale}*height", f"{spec.downscale}*width"))
    decoder = _component(manifest, spec.decoder, "the VAE")
    _check_tensors("the VAE's decoder", decoder.inputs, {"latents": latents})
    _check_tensors("the VAE's decoder", decoder.outputs, {"image": image})
    encoder = _component(manifest, spec.encoder, "the VAE")
    _check_tensors("the VAE's encoder", encoder.inputs, {"image": image})
    _check_tensors("the VAE's encoder", encoder.outputs, {"mean": latents, "std": latents})
    if spec.preview is not None:
        preview = _component(manifest, spec.preview, "the VAE")
        _check_tensors("the decoder of previews", preview.inputs, {"latents": latents})
        _check_tensors("the decoder of previews", preview.outputs, {"image": image})
