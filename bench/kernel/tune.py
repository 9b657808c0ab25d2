"""Find the fastest block sizes of the kernels on the GPU of this machine."""

import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ebca.bench.kernel.layer import Call, Layer
from ebca.bench.kernel.layers import LAYERS
from ebca.bench.kernel.measure import interleave
from ebca.engines.contract.accuracy import KERNEL_LIMITS
from ebca.errors import BackendError
from ebca.plugins import compile as ahead
from ebca.plugins.energy_attention.launches import EnergyAttention, OpShape
from ebca.plugins.kernels.binaries import KernelSet
from ebca.plugins.kernels.launch import CudaLauncher, KernelLibrary


def candidates() -> Iterator[dict[str, int]]:
    """Block sizes to try. The compiler refuses some of them."""
    names = ("BLOCK_N", "T1", "ROWS", "EAGER", "num_stages", "max_registers")
    for values in itertools.product((16, 64), (32, 64), (16, 64), (0, 1), (1, 2, 3), (128, 168, 255)):
        yield {**dict(zip(names, values, strict=True)), "BLOCK_P": 64, "num_warps": 4}


def tune(torch: Any, launcher: CudaLauncher, dtype: str, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """The fastest block sizes on this GPU for every entry of tuning.json, timed on `update` with one context.

    The forms for several contexts, a mask or guidance keep the block sizes of `default`.
    """
    base = json.loads(ahead.TUNING.read_text(encoding="utf-8"))["default"]
    sizes = {(d, n): h for layers in LAYERS.values() for h, d, n in layers}
    result: dict[str, list[dict[str, Any]]] = {}
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
                several = {"EAGER": 0, "max_registers": 255, **entry, **entry.get("several", {})}
                several = {name: several[name] for name in best}
                forms = {"several": several, "guided": entry.get("guided", {})}
                entries[index] = {"positions_from": entry["positions_from"], **best, **forms}
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
            try:
                made = ahead.compile_spec(ahead.forward_spec(width, dtype, launcher.capability, entry, single=True))
            except BackendError:
                continue
            ahead.write_set(Path(folder) / name, [made, *combine])
            library = EnergyAttention(KernelLibrary(launcher, KernelSet.load(Path(folder) / name)))
            calls[name] = layer.kernel(library, "update")
            blocks[name] = block
            layer.check(name, calls[name], KERNEL_LIMITS[dtype])
    samples = interleave(torch, calls, repeats)
    return blocks[min(samples, key=lambda name: samples[name].p50)]
