"""The networks around the UNet as one graph each: CLIP text encoder, VAE decoder, VAE encoder."""

import re
from collections.abc import Sequence
from functools import partial

import onnx_ir as ir
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ebca.engines.contract.dims import Dim
from ebca.export.graph.exporting import Dynamic, Examples, exported
from ebca.export.graph.fold import fold_transposes
from ebca.export.graph.kept_trace import Keep, not_kept


class TextEncoder(nn.Module):
    """input_ids [batch,tokens] int64 -> last hidden state [batch,tokens,D], as Stable Diffusion 1.x and 2.x use it."""

    def __init__(self, model: CLIPTextModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids).last_hidden_state


class TextEncoderLayers(nn.Module):
    """input_ids [batch,tokens] int64, skip [1] int64 -> the output [batch,tokens,D] of the layer before the last `skip`
    layers, after the final norm. All layers are computed."""

    def __init__(self, model: CLIPTextModel) -> None:
        super().__init__()
        # The same name as in `TextEncoder`: so have the weights, which the two share.
        self.model = model

    def forward(self, input_ids: Tensor, skip: Tensor) -> Tensor:
        states = self.model(input_ids=input_ids, output_hidden_states=True).hidden_states
        # The first is not a layer's.
        chosen = torch.stack(states[:0:-1]).index_select(0, skip)[0]
        # Releases of transformers keep it in different places.
        return getattr(self.model, "text_model", self.model).final_layer_norm(chosen)


# The id that configurations of CLIP had for the end token before it was right.
_OLD_END = 2


class _BothTextEncoders(nn.Module):
    """The two text encoders of Stable Diffusion XL."""

    def __init__(self, first: CLIPTextModel, second: CLIPTextModelWithProjection) -> None:
        super().__init__()
        # The same names in each form: so have the weights, which they share.
        self.first, self.second = first, second

    def states(self, input_ids: Tensor, input_ids_2: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor], Tensor]:
        """What enters each layer and leaves the last one, of both; and the projection of the second."""
        states = self.first(input_ids=input_ids, output_hidden_states=True).hidden_states
        second = self.second.text_model(input_ids=input_ids_2, output_hidden_states=True)
        pooled = self.second.text_projection(self._at_end(second.last_hidden_state, input_ids_2))
        return states, second.hidden_states, pooled

    def _at_end(self, hidden_states: Tensor, input_ids: Tensor) -> Tensor:
        """The state [batch,D] at the end token, as transformers finds it: at the largest id in old configurations.

        A product with ones and zeros: ONNX Runtime has no ArgMax of integers on a GPU.
        """
        end = self.second.config.eos_token_id
        ends = input_ids == (input_ids.amax(-1, keepdim=True) if end == _OLD_END else end)
        length = input_ids.shape[1]
        # Different everywhere, and largest at the first end token; at the first token if there is no other.
        order = ends.to(hidden_states.dtype) * length - torch.arange(length, dtype=hidden_states.dtype)
        first = (order == order.amax(-1, keepdim=True)).to(hidden_states.dtype)
        return torch.matmul(first[:, None], hidden_states)[:, 0]


class TextEncoders(_BothTextEncoders):
    """input_ids, input_ids_2 [batch,tokens] int64 -> the output [batch,tokens,D1+D2] of the layer before the last one
    of each encoder, without the final norm, and the projection [batch,P] of the second one at the end token."""

    def forward(self, input_ids: Tensor, input_ids_2: Tensor) -> tuple[Tensor, Tensor]:
        states, states_2, pooled = self.states(input_ids, input_ids_2)
        return torch.cat([states[-2], states_2[-2]], dim=-1), pooled


class TextEncodersLayers(_BothTextEncoders):
    """As `TextEncoders`, with an input skip [1] int64: of each encoder, the layer that many before that one."""

    def forward(self, input_ids: Tensor, input_ids_2: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        states, states_2, pooled = self.states(input_ids, input_ids_2)
        # The first is not a layer's.
        chosen = [torch.stack(tuple(each[-2:0:-1])).index_select(0, skip)[0] for each in (states, states_2)]
        return torch.cat(chosen, dim=-1), pooled


class VaeDecoder(nn.Module):
    """Unscaled latents [batch,C,height,width] -> image [batch,3,8*height,8*width] in [-1, 1]."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents, return_dict=False)[0]


class PreviewDecoder(nn.Module):
    """Scaled latents [batch,C,height,width] -> image [batch,3,8*height,8*width] in about [-1, 1]."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]


class VaeEncoder(nn.Module):
    """Image [batch,3,8*height,8*width] in [-1, 1] -> mean and standard deviation of the unscaled latents."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        distribution = self.vae.encode(image, return_dict=False)[0]
        return distribution.mean, distribution.std


def text_encoder_graph(model: CLIPTextModel, max_length: int, keep: Keep = not_kept) -> ir.Graph:
    """One graph: input_ids -> hidden_states. `keep` may have the trace already."""
    return _text_graph(TextEncoder(model), (model,), max_length, _encoded(model, max_length), keep)


def text_encoder_layers_graph(model: CLIPTextModel, max_length: int, keep: Keep = not_kept) -> ir.Graph:
    """One graph: input_ids, skip -> hidden_states. `keep` may have the trace already."""
    module = TextEncoderLayers(model)
    return _text_graph(module, (model,), max_length, _encoded(model, max_length), keep, chosen=True)


def text_encoders_graph(
    first: CLIPTextModel, second: CLIPTextModelWithProjection, max_length: int, keep: Keep = not_kept
) -> ir.Graph:
    """One graph: input_ids, input_ids_2 -> hidden_states, pooled. `keep` may have the trace already."""
    outputs = _encoded_by_both(first, second, max_length)
    return _text_graph(TextEncoders(first, second), (first, second), max_length, outputs, keep)


def text_encoders_layers_graph(
    first: CLIPTextModel, second: CLIPTextModelWithProjection, max_length: int, keep: Keep = not_kept
) -> ir.Graph:
    """One graph: input_ids, input_ids_2, skip -> hidden_states, pooled. `keep` may have the trace already."""
    outputs = _encoded_by_both(first, second, max_length)
    return _text_graph(TextEncodersLayers(first, second), (first, second), max_length, outputs, keep, chosen=True)


def _text_graph(
    module: nn.Module,
    models: Sequence[CLIPTextModel | CLIPTextModelWithProjection],
    max_length: int,
    outputs: "Named",
    keep: Keep,
    *,
    chosen: bool = False,
) -> ir.Graph:
    """One graph of a module that takes the ids of each model; with `chosen`, the layers to skip too."""
    names = ("input_ids", "input_ids_2")[: len(models)]
    examples = [_example_ids(model, max_length) for model in models]
    dynamic: list[dict[int, object]] = [{0: torch.export.Dim.DYNAMIC} for _ in models]
    inputs: list[tuple[str, tuple[Dim, ...]]] = [(name, ("batch", max_length)) for name in names]
    if chosen:
        examples.append(torch.zeros(1, dtype=torch.int64))
        dynamic.append({})
        inputs.append(("skip", (1,)))
    return trace_module(module, tuple(examples), tuple(dynamic), inputs, outputs, keep)


def _encoded(model: CLIPTextModel, max_length: int) -> "Named":
    return [("hidden_states", ("batch", max_length, model.config.hidden_size))]


def _encoded_by_both(first: CLIPTextModel, second: CLIPTextModelWithProjection, max_length: int) -> "Named":
    width = first.config.hidden_size + second.config.hidden_size
    return [("hidden_states", ("batch", max_length, width)), ("pooled", ("batch", second.config.projection_dim))]


def _example_ids(model: CLIPTextModel | CLIPTextModelWithProjection, max_length: int) -> Tensor:
    ids = torch.zeros(2, max_length, dtype=torch.int64)
    ids[:, -1] = model.config.eos_token_id
    return ids


def vae_decoder_graph(vae: AutoencoderKL, keep: Keep = not_kept) -> ir.Graph:
    """One graph: latents -> image. `keep` may have the trace already."""
    return _decoder_graph(VaeDecoder(vae), vae, downscale(vae), keep)


def preview_decoder_graph(vae: AutoencoderTiny, keep: Keep = not_kept) -> ir.Graph:
    """One graph: latents -> image. `keep` may have the trace already."""
    config = vae.config
    factor = config.upsampling_scaling_factor ** (len(config.decoder_block_out_channels) - 1)
    return _decoder_graph(PreviewDecoder(vae), vae, factor, keep)


def _decoder_graph(module: nn.Module, vae: AutoencoderKL | AutoencoderTiny, factor: int, keep: Keep) -> ir.Graph:
    channels = vae.config.latent_channels
    dynamic = torch.export.Dim.DYNAMIC
    return trace_module(
        module,
        (torch.zeros(2, channels, 9, 11),),
        ({0: dynamic, 2: dynamic, 3: dynamic},),
        [("latents", ("batch", channels, "height", "width"))],
        [("image", ("batch", vae.config.out_channels, f"{factor}*height", f"{factor}*width"))],
        keep,
    )


def vae_encoder_graph(vae: AutoencoderKL, keep: Keep = not_kept) -> ir.Graph:
    """One graph: image -> mean, std. `keep` may have the trace already."""
    channels, factor = vae.config.latent_channels, downscale(vae)
    dynamic = torch.export.Dim.DYNAMIC
    latents: tuple[Dim, ...] = ("batch", channels, "height", "width")
    return trace_module(
        VaeEncoder(vae),
        (torch.zeros(2, vae.config.in_channels, 9 * factor, 11 * factor),),
        ({0: dynamic, 2: dynamic, 3: dynamic},),
        [("image", ("batch", vae.config.in_channels, f"{factor}*height", f"{factor}*width"))],
        [("mean", latents), ("std", latents)],
        keep,
    )


def downscale(vae: AutoencoderKL) -> int:
    """Pixels per latent, along each side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


_SYMBOL = re.compile(r"\bs\d+\b")

Named = Sequence[tuple[str, tuple[Dim, ...]]]


def trace_module(
    module: nn.Module, examples: Examples, dynamic: Dynamic, inputs: Named, outputs: Named, keep: Keep
) -> ir.Graph:
    """One graph of a module.

    Args:
        module: to trace.
        examples: its inputs.
        dynamic: axes of each that are not fixed, as `torch.export.export` takes them.
        inputs, outputs: names and shapes.
        keep: may have the trace already.
    """
    model = keep(module, partial(_exported, module, examples, dynamic))
    fold_transposes(model)
    graph = model.graph
    _rename_symbols(graph, [shape for _, shape in inputs])
    for value, (name, shape) in zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True):
        value.name, value.shape = name, ir.Shape(shape)
    return graph


def _exported(module: nn.Module, examples: Examples, dynamic: Dynamic) -> ir.Model:
    return exported(module.eval(), examples, dynamic)


def _rename_symbols(graph: ir.Graph, shapes: Sequence[tuple[Dim, ...]]) -> None:
    """Write dimensions in our names instead of torch's symbols, which have no meaning outside the trace."""
    names = {
        dim.value: str(ours)
        for value, shape in zip(graph.inputs, shapes, strict=True)
        for dim, ours in zip(value.shape or (), shape, strict=True)
        if isinstance(dim, ir.SymbolicDim) and dim.value is not None
    }

    def renamed(dim: int | ir.SymbolicDim) -> Dim | None:
        if isinstance(dim, int) or dim.value is None:
            return dim if isinstance(dim, int) else None
        inside = _SYMBOL.sub(lambda found: f"({names.get(found[0], found[0])})", dim.value)
        return names.get(dim.value, inside)

    for node in graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([renamed(dim) for dim in value.shape])
