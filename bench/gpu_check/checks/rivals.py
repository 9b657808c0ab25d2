"""How long does PyTorch take for the same UNet evaluation?

eager, with updates and without, in turns with the engine; without updates also captured in a CUDA graph, and compiled.
Compiling takes a minute or more, so it comes last.
"""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

from ebca.bench.gpu_check.results import Found
from ebca.bench.gpu_check.visit import BACKEND, Visit
from ebca.bench.latency.measure import Settings, measure
from ebca.bench.latency.report import to_json
from ebca.engines.contract.entries import TIME_IDS

_TOKENS = 77
_REPEATS = 20


def run(visit: Visit, found: Found) -> None:
    model = visit.checkpoint()
    eager = measure(
        Settings(
            visit.engine("model"),
            device="cuda",
            backend=BACKEND,
            warmup=1,
            repeats=5,
            compare=("pytorch_sdpa", "pytorch_ebca"),
            model=model,
        )
    )
    report = to_json(eager)
    found["eager"] = {**report["compare"], "ratios": report["ratios"], "errors": report["errors"]}
    found["engine"] = {name: report["stages"][name] for name in ("unet_step", "unet_step_vanilla")}
    eager.engine.close()
    del eager
    gc.collect()
    import torch

    with torch.no_grad():
        plain = PlainUNet(model, "cuda")
        found["cuda_graph_channels_last_ms"] = event_times(captured(plain))
        began = time.monotonic()
        quick = plain.compiled()
        found["compile_s"] = time.monotonic() - began
        found["compiled_ms"] = event_times(quick)


class PlainUNet:
    """A checkpoint's UNet in float16 and channels last, called on random inputs with the two rows of guidance."""

    def __init__(self, model: str, device: str) -> None:
        import torch

        from ebca.export.checkpoint.load import load_checkpoint
        from ebca.export.graph.trace import added_conditions, pooled_width
        from ebca.export.quiet import quiet

        with quiet():
            unet = load_checkpoint(model).unet
        config = unet.config
        self._unet = unet.to(device, torch.float16).to(memory_format=torch.channels_last)
        made = {"device": device, "dtype": torch.float16}
        sample = torch.randn(2, config.in_channels, config.sample_size, config.sample_size, **made)
        contexts = torch.randn(2, _TOKENS, config.cross_attention_dim, **made)
        timestep = torch.full((2,), 500.0, device=device)
        self._inputs = sample.to(memory_format=torch.channels_last), timestep, contexts
        self._options: dict[str, Any] = {"return_dict": False}
        if (pooled := pooled_width(unet)) is not None:
            added = torch.randn(2, pooled, **made), torch.full((2, TIME_IDS), 1024.0, **made)
            self._options["added_cond_kwargs"] = added_conditions(added)

    def __call__(self) -> Any:
        return self._unet(*self._inputs, **self._options)[0]

    def compiled(self) -> Callable[[], Any]:
        """The call after torch.compile with CUDA graphs; it has run three times."""
        import torch
        import torch._inductor.config as inductor

        inductor.conv_1x1_as_mm = True
        fast = torch.compile(self._unet, mode="reduce-overhead", fullgraph=True)
        for _ in range(3):
            fast(*self._inputs, **self._options)
        return lambda: fast(*self._inputs, **self._options)[0]


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """A call as a CUDA graph."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay() -> None:
        graph.replay()

    # The graph reads the inputs and weights of what was captured.
    replay.captured = call  # type: ignore[attr-defined]
    return replay


def event_times(call: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds per call on the GPU."""
    import torch

    for _ in range(3):
        call()
    times = []
    for _ in range(_REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return {"p50_ms": statistics.median(times), "fastest_ms": min(times)}
