"""Kinds of engine directories, made from a complete one by editing its graphs: a second instead of an export's minutes.

New weights are random, so the images are meaningless, but both runtimes must make the same.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from helpers import manifests


def unet_alone(source: Path, target: Path) -> Path:
    """Without text encoder, tokenizer and VAE."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["model"]["kind"] = "unet"
        manifest["text_encoder"] = manifest["vae"] = manifest["tokenizer"] = None

    return _edited(source, target, edit)


def nine_channels(source: Path, target: Path) -> Path:
    """An inpainting model: the first convolution also takes the mask and the latents of the masked image."""

    def edit(manifest: dict[str, Any]) -> None:
        unet, channels = manifest["unet"], 2 * manifest["unet"]["out_channels"] + 1
        manifest["model"]["kind"], unet["in_channels"] = "inpainting", channels
        unet["tensors"]["sample"]["shape"][1] = channels
        for component in manifest["components"].values():
            if "sample" in component["inputs"]:
                component["inputs"]["sample"]["shape"][1] = channels
                for graph in (component["graph"], *component["lowered"].values()):
                    _widen_input(target / graph, channels)

    return _edited(source, target, edit)


def with_full_unet(source: Path, target: Path) -> Path:
    """With a graph of the full UNet beside its parts: they are joined in the order of the steps, each op as plain
    attention over one context."""

    def edit(manifest: dict[str, Any]) -> None:
        unet = manifest["unet"]
        _join(target, manifest).rename(target / "unet" / "full.onnx")
        sides = {side: {name: unet["tensors"][name] for name in unet[side]} for side in ("inputs", "outputs")}
        like = manifest["components"][unet["plan"][0]["segment"]]
        manifest["components"]["full"] = {**like, **sides, "graph": "unet/full.onnx", "weights": None, "lowered": {}}
        manifest["files"]["unet/full.onnx"] = {}
        unet["vanilla"] = "full"

    return _edited(source, target, edit)


def with_float16_between(source: Path, target: Path, *, ops: bool = False) -> Path:
    """The segments hand their hidden states and skips to one another as float16, as those do that compute in it.

    Args:
        source, target: folders.
        ops: the ops get theirs as float16, too.
    """

    def edit(manifest: dict[str, Any]) -> None:
        names = {name for name in manifest["unet"]["tensors"] if name.startswith(("hidden_", "skip_"))}
        assert names
        if ops:
            own = ("q", "k", "v", "out")
            names |= {*own, *(name for name in manifest["unet"]["tensors"] if name.rpartition(".")[2] in own)}
        manifest["compute"] = "fp16"
        for tensors in (manifest["unet"]["tensors"], *_sides(manifest)):
            for name in names & tensors.keys():
                tensors[name]["dtype"] = "float16"
        for component in manifest["components"].values():
            if names & (component["inputs"].keys() | component["outputs"].keys()):
                for graph in (component["graph"], *component["lowered"].values()):
                    _cast_at_the_edges(target / graph, names)

    return _edited(source, target, edit)


def with_channels_last(source: Path, target: Path) -> Path:
    """The segments hand images to one another with channels last, as those for ONNX Runtime's CUDA provider do."""

    def edit(manifest: dict[str, Any]) -> None:
        from ebca.export.graph.cuda.channels_last import is_image

        unet = manifest["unet"]
        names = {name for name, tensor in unet["tensors"].items() if is_image(tensor["shape"])}
        names -= {*unet["inputs"], *unet["outputs"]}
        assert names
        unet["channels_last"] = {"onnxruntime": sorted(names)}
        for step in unet["plan"]:
            if step["segment"]:
                _move_channels(target / manifest["components"][step["segment"]]["lowered"]["onnxruntime"], names)

    return _edited(source, target, edit)


def _sides(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for component in manifest["components"].values():
        yield component["inputs"]
        yield component["outputs"]


def _edited(source: Path, target: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy whose manifest describes its files as they are after the edit."""
    shutil.copytree(source, target)
    manifest = manifests.load(target)
    edit(manifest)
    for name in manifest["files"]:
        content = (target / name).read_bytes()
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return manifests.write(target, manifest)


def _widen_input(path: Path, channels: int) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    graph = model.graph
    (conv,) = [node for node in graph.node if "sample" in node.input]
    # Stored as float16, and cast.
    (stored,) = [node.input[0] for node in graph.node if conv.input[1] in node.output]
    old = next(numpy_helper.to_array(one) for one in graph.initializer if one.name == stored).astype(np.float32)
    more = np.random.default_rng(0).standard_normal((old.shape[0], channels - old.shape[1], *old.shape[2:]))
    wide = np.concatenate([old, 0.05 * more.astype(np.float32)], axis=1)
    graph.initializer.append(numpy_helper.from_array(wide, "wide"))
    conv.input[1] = "wide"
    (sample,) = [one for one in graph.input if one.name == "sample"]
    sample.type.tensor_type.shape.dim[1].dim_value = channels
    # With all weights in it, so its own file is no longer read.
    onnx.save(model, path)


def _move_channels(path: Path, names: set[str]) -> None:
    import onnx_ir as ir

    from ebca.export.graph.cuda.channels_last import channels_last

    model = ir.load(path)
    channels_last(model.graph, names)
    ir.save(model, path)


def _cast_at_the_edges(path: Path, names: set[str]) -> None:
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(path)
    graph = model.graph
    inputs = [one for one in graph.input if one.name in names]
    outputs = [one for one in graph.output if one.name in names]
    exact = {one.name: f"{one.name}.float32" for one in (*inputs, *outputs)}
    for node in graph.node:
        node.input[:] = [exact.get(name, name) for name in node.input]
        node.output[:] = [exact.get(name, name) for name in node.output]
    for one in (*inputs, *outputs):
        one.type.tensor_type.elem_type = TensorProto.FLOAT16
    for index, one in enumerate(inputs):
        graph.node.insert(index, helper.make_node("Cast", [one.name], [exact[one.name]], to=TensorProto.FLOAT))
    for one in outputs:
        graph.node.append(helper.make_node("Cast", [exact[one.name]], [one.name], to=TensorProto.FLOAT16))
    onnx.save(model, path)


def _join(folder: Path, manifest: dict[str, Any]) -> Path:
    """The steps as one graph."""
    import onnx
    from onnx import compose, helper

    unet, components = manifest["unet"], manifest["components"]
    joined, opsets = onnx.GraphProto(name="full"), {}
    joined.node.append(helper.make_node("Shape", ["contexts"], ["rows_and_contexts"], start=0, end=2))
    joined.node.append(helper.make_node("ConstantOfShape", ["rows_and_contexts"], ["ones"], value=_scalar(1.0)))
    for index, step in enumerate(unet["plan"]):
        if step["segment"] is not None:
            model = onnx.load(folder / components[step["segment"]]["graph"])
            names = {name: name for name in (*step["inputs"], *step["outputs"])}
        else:
            op = unet["ops"][unet["layers"][step["layer"]]["op"]]["attention"]
            model = onnx.load(folder / components[op]["graph"])
            q, k, v = step["inputs"]
            out, g = step["outputs"]
            names = {"q": q, "k": k, "v": v, "weights": "ones", "out": out}
            # The segment after it adds the update; plain attention has none.
            shape = f"shape_of_{g}"
            joined.node.append(helper.make_node("Shape", [k], [shape]))
            joined.node.append(helper.make_node("ConstantOfShape", [shape], [g], value=_scalar(0.0)))
        prefix = f"step_{index}."
        part = compose.add_prefix(model, prefix).graph
        names = {prefix + old: new for old, new in names.items()}
        for node in part.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        joined.node.extend(part.node)
        joined.initializer.extend(part.initializer)
        opsets |= {one.domain: max(one.version, opsets.get(one.domain, 0)) for one in model.opset_import}
        for value in part.input:
            if names[value.name] in unet["inputs"] and names[value.name] not in [one.name for one in joined.input]:
                value.name = names[value.name]
                joined.input.append(value)
        for value in part.output:
            if names[value.name] in unet["outputs"]:
                value.name = names[value.name]
                joined.output.append(value)
    model = helper.make_model(joined, opset_imports=[helper.make_opsetid(*one) for one in opsets.items()])
    model.ir_version = 11
    onnx.save(model, folder / "full.onnx")
    return folder / "full.onnx"


def _scalar(value: float) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array([value], np.float32))
