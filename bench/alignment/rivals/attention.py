"""Cross-attention that a guide can read and change."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ebca.bench.alignment.rivals.model import Captions, Model
from ebca.bench.alignment.scenes import Scene


@dataclass
class Run:
    """The sampling of a batch: what guides see.

    places: where the things of each scene belong, for the methods that are told: (x, y, radius) in pixels, [n,G,3].
    unconditional: rows of this evaluation that belong to the empty caption; they come first.
    """

    model: Model
    scenes: Sequence[Scene]
    captions: Captions
    evaluations: int
    places: Tensor | None = None
    unconditional: int = 0


class Guide:
    """Changes nothing. Methods override some of its calls; an instance may be used for many batches, one at a time."""

    def begin(self, run: Run) -> None:
        """A batch begins."""

    def before(self, run: Run, evaluation: int, timestep: Tensor, latents: Tensor) -> Tensor:
        """The latents [n,4,h,w] that the next evaluation sees."""
        return latents

    def attend(self, run: Run, layer: int, scores: Tensor) -> Tensor:
        """The shares of the tokens [R,H,N,T] from the scores of all rows."""
        return scores.softmax(-1)

    def step(self, run: Run, layer: int, q: Tensor, k: Tensor, scores: Tensor) -> Tensor | None:
        """A step of the keys [R,T,H d] that updates the contexts for the layers that follow; q, k [R,H,N or T,d]."""
        return None

    def after(self, run: Run, evaluation: int) -> None:
        """An evaluation has ended."""


class _Module(Protocol):
    heads: int
    scale: float
    to_q: Any
    to_k: Any
    to_v: Any
    to_out: Any


@dataclass
class Attention:
    """The guide and the contexts of the evaluation that is running; its processors share it."""

    run: Run
    guide: Guide
    context: Tensor | None = field(default=None, repr=False)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """A block in which the model's cross-attention layers ask the guide."""
        layers = self.run.model.layers
        before = [layer.processor for layer in layers]
        for index, layer in enumerate(layers):
            layer.set_processor(_Processor(self, index))
        try:
            yield
        finally:
            for layer, processor in zip(layers, before, strict=True):
                layer.set_processor(processor)


class _Processor:
    def __init__(self, shared: Attention, layer: int) -> None:
        self._shared, self._layer = shared, layer

    def __call__(
        self,
        attn: _Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        shared, layer = self._shared, self._layer
        if layer == 0:
            shared.context = encoder_hidden_states
        context = shared.context
        assert context is not None
        q, k, v = (
            projection.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projection in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        scores = q @ k.transpose(-1, -2) * attn.scale
        out = shared.guide.attend(shared.run, layer, scores) @ v
        step = shared.guide.step(shared.run, layer, q, k, scores)
        if step is not None:
            shared.context = context + step @ attn.to_k.weight
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
