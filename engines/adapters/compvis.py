"""Names of the UNet's modules in the original layout of Stable Diffusion (CompVis), in which single files and many
LoRAs are written."""

import re
from collections.abc import Collection

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_EDGES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    # Of Stable Diffusion XL: pooled embedding and sizes.
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def module_name(module: str, layers: int, attentive: Collection[int]) -> str | None:
    """The name of a module of the UNet in CompVis' layout; None if it has no place there.

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
    # Blocks are counted through.
    number = int(block) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{number + layers + 1}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        # In the last block of its level.
        return f"output_blocks.{number + layers}.{2 if int(block) in attentive else 1}.{rest}"
    side, number = ("input", number + 1) if way == "down" else ("output", number)
    return f"{side}_blocks.{number + int(index)}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    return _RESNET.get(rest, rest) if kind == "resnets" else rest
