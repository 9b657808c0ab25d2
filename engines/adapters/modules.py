"""From the names that LoRA files use to the weights of an engine.

Three families of names lead to one module, and all of them are looked up with `.` written as `_`:

    diffusers, PEFT      down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k
    kohya                lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k
    kohya, CompVis       lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ebca.engines.contract.weights import Weights

# Written before the name of a module, and the part of the model that it says.
_PREFIXES: Mapping[str, str | None] = {
    **{"base_model.model.": None, "model.diffusion_model.": "unet", "diffusion_model.": "unet"},
    **{"unet.": "unet", "lora_unet_": "unet", "lycoris_unet_": "unet"},
    **{"text_encoder.": "text_encoder", "lora_te_": "text_encoder", "lora_te1_": "text_encoder"},
    "lycoris_": None,
}
_RESNET = {
    **{"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"},
    **{"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"},
}
_EDGES = {
    **{"conv_in": "input_blocks.0.0", "conv_out": "out.2"},
    **{"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"},
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
# What old files of diffusers call the projections of the text encoder.
_TEXT_ALIASES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


@dataclass(frozen=True)
class Weight:
    """A weight of an engine: its part of the model, and its name there."""

    part: str
    name: str


class Modules:
    """Finds the weights of an engine by the names of their modules."""

    def __init__(self, weights: Weights) -> None:
        self._found: dict[str, dict[str, Weight]] = {}
        for part, named in weights.items():
            modules = [name.removesuffix(".weight") for name in named]
            aliases = _unet_aliases(modules) if part == "unet" else _text_aliases(modules)
            self._found[part] = {_spelled(alias): Weight(part, f"{module}.weight") for alias, module in aliases}

    def find(self, module: str) -> Weight | None:
        """The weight of a module as a file names it; None if the engine has no such module."""
        parts = list(self._found)
        rest = module
        while prefix := next((p for p in _PREFIXES if rest.startswith(p)), None):
            rest = rest.removeprefix(prefix)
            if (part := _PREFIXES[prefix]) is not None:
                parts = [part]
        return next((w for part in parts if (w := self._found.get(part, {}).get(_spelled(rest)))), None)


def _spelled(module: str) -> str:
    return module.replace(".", "_")


def _unet_aliases(modules: Iterable[str]) -> Iterator[tuple[str, str]]:
    modules = list(modules)
    layers = 1 + max(
        (int(m[1]) for name in modules if (m := re.match(r"down_blocks\.0\.resnets\.(\d+)\.", name))), default=0
    )
    attentive = {int(m[1]) for name in modules if (m := re.match(r"up_blocks\.(\d+)\.attentions\.", name))}
    for module in modules:
        for name in (module, _compvis(module, layers, attentive)):
            if name is not None:
                yield name, module
                # Old attention processors of diffusers.
                if name.endswith(".to_out.0"):
                    yield name.removesuffix(".0"), module


def _compvis(module: str, layers: int, attentive: Iterable[int]) -> str | None:
    """The name of a module of the UNet in CompVis' layout; None if it has none.

    Args:
        module: its name in diffusers.
        layers: resnets of each block on the way down; there is one more on the way up.
        attentive: blocks on the way up with attention, whose upsampler comes after it.
    """
    if module in _EDGES:
        return _EDGES[module]
    if found := _MIDDLE.fullmatch(module):
        kind, index, rest = found.groups()
        place = 1 if kind == "attentions" else 2 * int(index)
        return f"middle_block.{place}.{_inner(kind, rest)}"
    if not (found := _BLOCK.fullmatch(module)):
        return None
    way, block, kind, index, rest = found.groups()
    number = int(block) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{number + layers + 1}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"output_blocks.{number + layers}.{2 if int(block) in attentive else 1}.{rest}"
    side, number = ("input", number + 1) if way == "down" else ("output", number)
    return f"{side}_blocks.{number + int(index)}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    return _RESNET.get(rest, rest) if kind == "resnets" else rest


def _text_aliases(modules: Iterable[str]) -> Iterator[tuple[str, str]]:
    for module in modules:
        short = module.removeprefix("text_model.")
        stem, _, last = module.rpartition(".")
        names = [module, short]
        if last in _TEXT_ALIASES:
            names += [f"{stem}.{_TEXT_ALIASES[last]}", f"{short.rpartition('.')[0]}.{_TEXT_ALIASES[last]}"]
        for name in names:
            yield name, module
