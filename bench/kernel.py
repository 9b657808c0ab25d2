"""The GPU kernels against PyTorch, layer by layer: `python -m ebca.bench.kernel --json FILE`. Needs a GPU and PyTorch.

    update       the kernels, with the energy step
    attention    the kernels without it
    sdpa         PyTorch's scaled_dot_product_attention alone
    unfused      the whole operator in PyTorch, scores in memory

Every contender is recorded in a CUDA graph of several calls, the graphs take turns, and CUDA events time them. Nothing
is timed before its result is right. `--tune` tries block sizes for this GPU and writes the fastest where compile.py
reads them; `make kernels` then compiles them.
"""

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ebca import console
from ebca.bench.timing import Samples
from ebca.errors import BackendError, EbcaError
from ebca.plugins import compile as ahead
from ebca.plugins.energy_attention import energy_attention, signature
from ebca.plugins.energy_attention.launches import EnergyAttention, OpShape
from ebca.plugins.kernels.binaries import DTYPES, KernelSet
from ebca.plugins.kernels.launch import CudaLauncher, KernelLibrary

PROGRAM = "python -m ebca.bench.kernel"

# heads, head_dim, positions at 512 x 512 (SD 1.x), 768 x 768 (SD 2.x), 1024 x 1024 (SDXL)
LAYERS: Mapping[str, Sequence[tuple[int, int, int]]] = {
    "sd-1": [(8, 40, 4096), (8, 80, 1024), (8, 160, 256), (8, 160, 64)],
    "sd-2": [(5, 64, 9216), (10, 64, 2304), (20, 64, 576), (20, 64, 144)],
    "sdxl": [(10, 64, 4096), (20, 64, 1024)],
}

# What tests/plugins/test_kernel_maths.py allows, for the same reason: twice the storage type's roundoff.
LIMITS: Final = {"float16": 2 * 2.0**-11, "bfloat16": 2 * 2.0**-8}
UNFUSED: Final = 8
"""The unfused form is allowed so many times more: it rounds the scores too, and a softmax magnifies that."""
_CALLS_PER_GRAPH = 20

Results = Mapping[str, Any]
Call = Callable[[], Results]


@dataclass(frozen=True)
class Row:
    """One contender at one layer. Bytes are those that must move once; flops those of its matrix products."""

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


class Layer:
    """Random tensors of one layer on the GPU, the contenders on them, and what they should give."""

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
        """A variant of ours, on the stream that is current when it is called; the results are in place."""
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
        """PyTorch's attention to the first context, which is all there is in `measure`."""
        q, k, v = self._heads()
        out = self.torch.nn.functional.scaled_dot_product_attention(q, k[:, 0], v[:, 0])
        return {"out": out.transpose(1, 2).flatten(2)}

    def unfused(self) -> Results:
        """The equations in PyTorch's own kernels."""
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
        """Run once, from outputs of NaN. Raises BackendError for a relative L2 error over the limit."""
        for output in ("out", "g"):
            self.tensors[output].fill_(math.nan)
        for output, value in call().items():
            wanted = getattr(self.expected, output)
            error = float(np.linalg.norm(value.double().cpu().numpy() - wanted) / np.linalg.norm(wanted))
            if not error <= limit:
                raise BackendError(f"{name}, {self.shape}: {output} is off by {error:.1e}", "nothing was timed")

    def work(self, *, step: bool) -> tuple[float, float]:
        """(bytes, flops) that any implementation needs: each tensor once, and the matrix products."""
        shape = self.shape
        names = ("q", "k", "v", "out", "g") if step else ("q", "k", "v", "out")
        nbytes = sum(self.tensors[n].numel() * self.tensors[n].element_size() for n in names)
        product = 2 * shape.batch * shape.contexts * shape.positions * shape.tokens * shape.channels
        return nbytes, product * (3 if step else 2)


def interleave(torch: Any, calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Samples]:
    """Seconds per call of each contender, in rounds; _CALLS_PER_GRAPH calls in one CUDA graph."""
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
    for index in range(repeats + 3):
        for name, graph in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if index >= 3:
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
        layer.check(name, call, LIMITS[dtype] * (UNFUSED if name == "unfused" else 1))
    samples = interleave(torch, calls, repeats)
    return [Row(name, samples[name], *layer.work(step=name in ("update", "unfused"))) for name in calls]


def peaks(torch: Any, dtype: str) -> dict[str, float]:
    """What this GPU reaches on a large copy and a large matrix product in PyTorch."""
    a = torch.randn(8192, 8192, device="cuda").to(getattr(torch, dtype))
    b = torch.empty_like(a)
    samples = interleave(torch, {"copy": lambda: b.copy_(a), "matmul": lambda: torch.mm(a, a, out=b)}, 5)
    return {
        "gb_per_s": 2 * a.numel() * a.element_size() / samples["copy"].p50 / 1e9,
        "tflop_per_s": 2 * 8192**3 / samples["matmul"].p50 / 1e12,
    }


# ---- tuning


def candidates() -> Iterator[dict[str, int]]:
    """Block sizes to try, less those that compile.py refuses."""
    for block, warps, stages in itertools.product((16, 32, 64, 128), (2, 4, 8), (1, 2, 3)):
        yield {"BLOCK_N": block, "num_warps": warps, "num_stages": stages}


def tune(torch: Any, launcher: CudaLauncher, dtype: str, repeats: int) -> dict[str, list[dict[str, int]]]:
    """The fastest block sizes of this GPU for every entry of tuning.json, timed on `update` with one context."""
    base = json.loads(ahead.TUNING.read_text(encoding="utf-8"))["default"]
    sizes = {(d, n): h for layers in LAYERS.values() for h, d, n in layers}
    result: dict[str, list[dict[str, int]]] = {}
    for width in ahead.WIDTHS:
        entries = sorted(base[str(width.largest)], key=lambda entry: entry["positions_from"])
        result[str(width.largest)] = entries
        ends = [*(entry["positions_from"] for entry in entries[1:]), 2**31]
        for index, (entry, end) in enumerate(zip(entries, ends, strict=True)):
            fits = [
                (n, d, h)
                for (d, n), h in sizes.items()
                if width.smallest <= d <= width.largest and entry["positions_from"] <= n < end
            ]
            if fits:
                positions, head_dim, heads = max(fits)
                shape = OpShape(2, positions, 1, 77, heads, head_dim)
                best = _fastest(torch, launcher, dtype, width, shape, repeats)
                entries[index] = {"positions_from": entry["positions_from"], **best}
    return result


def _fastest(
    torch: Any, launcher: CudaLauncher, dtype: str, width: ahead.Width, shape: OpShape, repeats: int
) -> dict[str, int]:
    layer = Layer(torch, dtype, shape)
    tuning = json.loads(ahead.TUNING.read_text(encoding="utf-8"))
    others = [s for s in ahead.specs(launcher.capability, tuning) if s.kernel == "ebca_combine" and s.dtype == dtype]
    combine = [ahead.compile_spec(spec) for spec in others]
    calls: dict[str, Call] = {}
    blocks = {}
    with tempfile.TemporaryDirectory() as folder:
        for block in candidates():
            name = " ".join(f"{key}={value}" for key, value in block.items())
            entry = {"positions_from": 1, **block}
            spec = ahead.forward_spec(width, dtype, launcher.capability, entry, update=True, single=True)
            try:
                # The form for several contexts takes the same block sizes, so it must keep the limits too.
                ahead.compile_spec(
                    ahead.forward_spec(width, dtype, launcher.capability, entry, update=True, single=False)
                )
                made = ahead.compile_spec(spec)
            except BackendError:
                continue
            ahead.write_set(Path(folder) / name, [made, *combine])
            library = EnergyAttention(KernelLibrary(launcher, KernelSet.load(Path(folder) / name)))
            calls[name] = layer.kernel(library, "update")
            blocks[name] = block
            layer.check(name, calls[name], LIMITS[dtype])
    samples = interleave(torch, calls, repeats)
    return blocks[min(samples, key=lambda name: samples[name].p50)]


# ---- the command line


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog=PROGRAM, description="Time the GPU kernels against PyTorch, layer by layer.")
    p.add_argument("--json", metavar="FILE", help="also write the results there")
    p.add_argument("--model", choices=LAYERS, action="append", help="layers of which models (default: all)")
    p.add_argument("--dtype", choices=DTYPES, default="float16", help="storage type (default: float16)")
    p.add_argument("--batch-size", type=int, default=1, metavar="N", help="pictures; twice the rows (default: 1)")
    p.add_argument("--repeats", type=int, default=30, metavar="N", help="rounds that count (default: 30)")
    p.add_argument("--device", type=int, default=0, metavar="INDEX", help="which GPU (default: 0)")
    p.add_argument("--tune", metavar="FILE", nargs="?", const=str(ahead.TUNING), help="find block sizes and write them")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    return console.run(PROGRAM, lambda: _main(args), interrupted="interrupted; nothing was written")


def _main(args: argparse.Namespace) -> int:
    with CudaLauncher(args.device) as launcher:
        torch = _torch(args.device)
        if args.tune:
            tuning = json.loads(ahead.TUNING.read_text(encoding="utf-8"))
            tuning[ahead.text(launcher.capability)] = tune(torch, launcher, args.dtype, args.repeats)
            Path(args.tune).write_text(json.dumps(tuning, indent=2) + "\n", encoding="utf-8")
            print(f"wrote {args.tune}; run `make kernels`")
            return 0
        library = EnergyAttention(KernelLibrary(launcher))
        report: dict[str, Any] = {
            "device": torch.cuda.get_device_name(args.device),
            "capability": ahead.text(launcher.capability),
            "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
            "dtype": args.dtype,
            "peak": peaks(torch, args.dtype),
            "layers": [],
        }
        print(f"{report['device']}, {args.dtype}; peak {_rates(report['peak'])} (PyTorch's copy and matrix product)")
        for model in args.model or LAYERS:
            for heads, head_dim, positions in LAYERS[model]:
                shape = OpShape(2 * args.batch_size, positions, 1, 77, heads, head_dim)
                rows = {row.name: row.as_json() for row in measure(torch, library, args.dtype, shape, args.repeats)}
                report["layers"].append({"model": model, **vars(shape), "contenders": rows})
                print(f"{model}: {positions} positions, {heads} heads of {head_dim}")
                for name, row in rows.items():
                    print(f"  {name:10} {row['p50_us']:8.1f} us  {_rates(row)}")
    if args.json:
        console.write_json(args.json, report)
    return 0


def _torch(device: int) -> Any:
    try:
        import torch
    except ImportError:
        raise EbcaError("this benchmark needs PyTorch with CUDA", 'run `pip install "ebca[bench]"`') from None
    if not torch.cuda.is_available():
        raise EbcaError(f"PyTorch {torch.__version__} sees no GPU", "install a build of it for CUDA")
    torch.cuda.set_device(device)
    return torch


def _rates(row: Mapping[str, float]) -> str:
    return f"{row['gb_per_s']:.0f} GB/s, {row['tflop_per_s']:.1f} TFLOP/s"


if __name__ == "__main__":
    sys.exit(main())
