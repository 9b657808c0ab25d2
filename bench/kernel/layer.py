"""One layer of energy attention on a GPU: its tensors, our kernels and PyTorch's on them, and the expected results.

update       our kernels, with the energy step
attention    our kernels without it
sdpa         PyTorch's scaled_dot_product_attention alone
unfused      the complete operator in PyTorch, with scores in memory
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ebca.engines.contract.accuracy import relative_l2
from ebca.errors import BackendError
from ebca.plugins.energy_attention import energy_attention, signature
from ebca.plugins.energy_attention.launches import EnergyAttention, OpShape

Results = Mapping[str, Any]
Call = Callable[[], Results]


class Layer:
    """Random tensors of one layer on the GPU, the contenders that use them, and the expected results."""

    def __init__(self, torch: Any, dtype: str, shape: OpShape, device: str = "cuda") -> None:
        self.torch, self.dtype, self.shape = torch, dtype, shape
        rng = np.random.default_rng(0)
        B, N, S, T, C = shape.batch, shape.positions, shape.contexts, shape.tokens, shape.channels
        storage = getattr(torch, dtype)

        def random(*sizes: int, scale: float = 1.0, shift: float = 0.0) -> Any:
            values = rng.standard_normal(sizes, dtype=np.float32) * scale + shift
            return torch.from_numpy(values).to(device, storage)

        self.tensors = {
            "q": random(B, N, C, shift=0.5),
            "k": random(B, S, T, C, scale=0.4),
            "v": random(B, S, T, C),
            "weights": torch.ones(B, S, device=device),
            "gamma_attn": torch.full((B, S, T), 0.01, device=device),
            "gamma_norm": torch.full((B, S), 0.02, device=device),
            "norm_factor": torch.tensor(4.0 / math.sqrt(C), device=device),
            "tie": torch.eye(S, device=device).expand(B, S, S).contiguous(),
            "out": torch.empty(B, N, C, device=device, dtype=storage),
            "g": torch.empty(B, S, T, C, device=device),
        }
        inputs = {name: value.float().cpu().numpy() for name, value in self.tensors.items()}
        names = [n for n in signature("update", 1, 1).inputs if n not in ("q", "k", "v")]
        self.expected = energy_attention(
            inputs["q"], inputs["k"], inputs["v"], heads=shape.heads, **{n: inputs[n] for n in names}
        )
        self._scratch: list[Any] = []

    def kernel(self, library: EnergyAttention, variant: str) -> Call:
        """A variant of our kernels, which runs on the stream that is current when it is called."""
        scratch = self.torch.empty(
            library.launches(variant, self.dtype, self.shape).scratch_bytes, device="cuda", dtype=self.torch.uint8
        )
        self._scratch.append(scratch)
        pointers = {name: value.data_ptr() for name, value in self.tensors.items()}
        op = library.bind(variant, self.dtype, self.shape, pointers, scratch.data_ptr())
        results: Results = {
            name: self.tensors[name] for name in ("out", "g") if name in signature(variant, 1, 1).outputs
        }

        def call() -> Results:
            op(self.torch.cuda.current_stream().cuda_stream)
            return results

        return call

    def sdpa(self) -> Results:
        """PyTorch's attention to the first context, the only one in `measure`."""
        q, k, v = self._heads()
        out = self.torch.nn.functional.scaled_dot_product_attention(q, k[:, 0], v[:, 0])
        return {"out": out.transpose(1, 2).flatten(2)}

    def unfused(self) -> Results:
        """The equations, composed of PyTorch's own kernels."""
        t, shape = self.tensors, self.shape
        q, k, v = self._heads()
        scores = q[:, None] @ k.transpose(-1, -2) / math.sqrt(shape.head_dim)  # [B, S, H, N, T]
        weights = (t["weights"] / t["weights"].sum(1, keepdim=True)).to(q.dtype)[:, :, None, None, None]
        out = (scores.softmax(-1) @ v * weights).sum(1).transpose(1, 2).reshape(t["q"].shape)
        attn = scores.softmax(-2).transpose(-1, -2) @ q[:, None]  # [B, S, H, T, d]
        attn = attn.transpose(2, 3).reshape(t["k"].shape).float()
        k_float = t["k"].float()
        r = (t["norm_factor"] * k_float.square().sum(-1)).softmax(-1)
        g0 = t["gamma_attn"][..., None] * attn - t["gamma_norm"][..., None, None] * r[..., None] * k_float
        return {"out": out, "g": self.torch.einsum("bsz,bztc->bstc", t["tie"], g0)}

    def _heads(self) -> tuple[Any, Any, Any]:
        shape = self.shape

        def split(x: Any) -> Any:
            return x.unflatten(-1, (shape.heads, shape.head_dim)).transpose(-2, -3)

        return split(self.tensors["q"]), split(self.tensors["k"]), split(self.tensors["v"])

    def check(self, name: str, call: Call, limit: float) -> None:
        """Run once, with outputs filled with NaN. Raises BackendError for a relative L2 error above the limit."""
        for output in ("out", "g"):
            self.tensors[output].fill_(math.nan)
        for output, value in call().items():
            error = relative_l2(value.double().cpu().numpy(), getattr(self.expected, output))
            if not error <= limit:
                raise BackendError(f"{name}, {self.shape}: {output} is off by {error:.1e}", "nothing was timed")

    def work(self, *, step: bool) -> tuple[float, float]:
        """(bytes, flops) that every implementation needs: each tensor once, and the matrix products."""
        shape = self.shape
        names = ("q", "k", "v", "out", "g") if step else ("q", "k", "v", "out")
        nbytes = sum(self.tensors[n].numel() * self.tensors[n].element_size() for n in names)
        product = 2 * shape.batch * shape.contexts * shape.positions * shape.tokens * shape.channels
        return nbytes, product * (3 if step else 2)
