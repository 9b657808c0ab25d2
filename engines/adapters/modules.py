"""From the names that LoRA files use to the weights of an engine.

Three families of names lead to one module, and all of them are looked up with `.` written as `_`:

    diffusers, PEFT      down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k
    kohya                lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k
    kohya, CompVis       lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ebca.engines.adapters.compvis import module_name
from ebca.engines.contract.weights import Weights

# Written before the name of a module, and the part of the model that it says.
_PREFIXES: Mapping[str, str | None] = {
    **{"base_model.model.": None, "model.diffusion_model.": "unet", "diffusion_model.": "unet"},
    **{"unet.": "unet", "lora_unet_": "unet", "lycoris_unet_": "unet"},
    **{"text_encoder.": "text_encoder", "lora_te_": "text_encoder", "lora_te1_": "text_encoder"},
    **{"text_encoder_2.": "text_encoder_2", "lora_te2_": "text_encoder_2"},
    "lycoris_": None,
}
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
        self._weights = weights
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

    def shape(self, weight: Weight) -> tuple[int, ...]:
        """Of a weight in PyTorch."""
        return self._weights[weight.part][weight.name].shape


def _spelled(module: str) -> str:
    return module.replace(".", "_")


def _unet_aliases(modules: Iterable[str]) -> Iterator[tuple[str, str]]:
    modules = list(modules)
    layers = 1 + max(
        (int(m[1]) for name in modules if (m := re.match(r"down_blocks\.0\.resnets\.(\d+)\.", name))), default=0
    )
    attentive = {int(m[1]) for name in modules if (m := re.match(r"up_blocks\.(\d+)\.attentions\.", name))}
    for module in modules:
        for name in (module, module_name(module, layers, attentive)):
            if name is not None:
                yield name, module
                # Old attention processors of diffusers.
                if name.endswith(".to_out.0"):
                    yield name.removesuffix(".0"), module


def _text_aliases(modules: Iterable[str]) -> Iterator[tuple[str, str]]:
    for module in modules:
        short = module.removeprefix("text_model.")
        stem, _, last = module.rpartition(".")
        names = [module, short]
        if last in _TEXT_ALIASES:
            names += [f"{stem}.{_TEXT_ALIASES[last]}", f"{short.rpartition('.')[0]}.{_TEXT_ALIASES[last]}"]
        for name in names:
            yield name, module
