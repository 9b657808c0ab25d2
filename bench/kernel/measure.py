"""Check, then time, the contenders at one layer.

Every contender is recorded in a CUDA graph of several calls, the graphs take turns, and CUDA events time them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ebca.bench.kernel.layer import Layer
from ebca.bench.timing import Samples
from ebca.engines.contract.accuracy import KERNEL_LIMITS, UNFUSED_FACTOR
from ebca.errors import EbcaError
from ebca.plugins.energy_attention.launches import EnergyAttention, OpShape

_CALLS_PER_GRAPH = 20
_WARMUP = 3


@dataclass(frozen=True)
class Row:
    """One contender at one layer.

    nbytes: bytes that must move once. flops: of its matrix products.
    """

    name: str
    samples: Samples
    nbytes: float
    flops: float

    def as_json(self) -> dict[str, float]:
        seconds = self.samples.p50
        return {
            "p50_us": 1e6 * seconds,
            "p90_us": 1e6 * self.samples.p90,
            "gb_per_s": self.nbytes / seconds / 1e9,
            "tflop_per_s": self.flops / seconds / 1e12,
        }


def load_torch(device: int) -> Any:
    """PyTorch, set to one GPU. Raises EbcaError if it is missing or sees no GPU."""
    try:
        import torch
    except ImportError:
        raise EbcaError("this benchmark needs PyTorch with CUDA", 'run `pip install "ebca[bench]"`') from None
    if not torch.cuda.is_available():
        raise EbcaError(f"PyTorch {torch.__version__} sees no GPU", "install a build of it for CUDA")
    torch.cuda.set_device(device)
    return torch


def interleave(torch: Any, calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Samples]:
    """Seconds per call of each contender, in rounds; one CUDA graph holds _CALLS_PER_GRAPH calls."""
    graphs = {}
    for name, call in calls.items():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            for _ in range(_CALLS_PER_GRAPH):
                call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(repeats + _WARMUP):
        for name, graph in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if index >= _WARMUP:
                seconds[name].append(start.elapsed_time(end) / 1e3 / _CALLS_PER_GRAPH)
    return {name: Samples(tuple(values)) for name, values in seconds.items()}


def measure(torch: Any, library: EnergyAttention, dtype: str, shape: OpShape, repeats: int) -> list[Row]:
    """Check, then time, all contenders at one layer."""
    layer = Layer(torch, dtype, shape)
    calls = {
        "update": layer.kernel(library, "update"),
        "attention": layer.kernel(library, "attention"),
        "sdpa": layer.sdpa,
        "unfused": layer.unfused,
    }
    for name, call in calls.items():
        layer.check(name, call, KERNEL_LIMITS[dtype] * (UNFUSED_FACTOR if name == "unfused" else 1))
    samples = interleave(torch, calls, repeats)
    return [Row(name, samples[name], *layer.work(step=name in ("update", "unfused"))) for name in calls]


def peaks(torch: Any, dtype: str) -> dict[str, float]:
    """What this GPU achieves on a large copy and a large matrix product in PyTorch."""
    a = torch.randn(8192, 8192, device="cuda").to(getattr(torch, dtype))
    b = torch.empty_like(a)
    samples = interleave(torch, {"copy": lambda: b.copy_(a), "matmul": lambda: torch.mm(a, a, out=b)}, 5)
    return {
        "gb_per_s": 2 * a.numel() * a.element_size() / samples["copy"].p50 / 1e9,
        "tflop_per_s": 2 * 8192**3 / samples["matmul"].p50 / 1e12,
    }
