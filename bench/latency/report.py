"""A latency report as JSON and as text."""

from typing import Any

from rich.console import Console
from rich.table import Table

from ebca.bench.latency.measure import Report
from ebca.bench.latency.subject import FULL_UNET
from ebca.bench.timing import Samples

_STAGE_NOTES = {
    "text_encoder": "prompt and negative prompt, once per image",
    "unet_first_step": "once per session: the backend warms up",
    "unet_step": "EBCU step, both rows of guidance",
    "unet_step_vanilla": "gammas 0",
    "scheduler": "guidance and new latents, per evaluation",
    "graph_launch": "the host's part of a step on a GPU",
    "vae": "decoder, once per call",
}
_ROW_NOTES = {
    "pytorch_sdpa": "plain UNet in PyTorch",
    "pytorch_ebca": "EBCU in PyTorch",
    "pytorch_ebca_compiled": "EBCU in PyTorch, torch.compile",
    FULL_UNET: "full UNet as one graph, same backend",
}


def to_json(report: Report) -> dict[str, Any]:
    """The contents of `--json FILE`: milliseconds (`_ms`), seconds (`_s`), megabytes of 10^6 bytes (`_mb`), relative
    L2."""
    settings, subject = report.settings, report.subject
    p50, p90 = report.total
    data: dict[str, Any] = {
        "stages": {
            **{name: _milliseconds(samples) for name, samples in report.stages.items()},
            "total": {"p50_ms": 1e3 * p50, "p90_ms": 1e3 * p90},
        },
        "compare": {name: _milliseconds(samples) for name, samples in report.compare.items()},
        "ratios": {name: ratio.median for name, ratio in report.ratios.items()},
        "open_s": report.open_seconds,
        "peak_rss_mb": report.peak_rss_bytes / 1e6,
        "engine": str(settings.engine),
        "device": report.device,
        "versions": dict(report.versions),
        "settings": {
            "model": str(report.engine.manifest.model["name"]),
            "backend": report.engine.backend.name,
            "precision": settings.precision,
            "threads": subject.threads,
            "height": subject.height,
            "width": subject.width,
            "batch_size": settings.batch_size,
            "steps": settings.steps,
            "evaluations": report.table.evaluations,
            "scheduler": report.table.name,
            "warmup": settings.warmup,
            "repeats": settings.repeats,
            "gamma_attn": settings.gamma_attn,
            "gamma_norm": settings.gamma_norm,
            "arena_mb": subject.executor.buffers.memory["arena"] / 1e6,
            "peak_rss_comparable": report.peak_rss_comparable,
        },
        "errors": dict(report.errors),
    }
    if report.segments:
        data["segments"] = {name: _milliseconds(samples) for name, samples in report.segments.items()}
    if report.device_memory:
        data["device_memory_mb"] = {name: size / 1e6 for name, size in report.device_memory.items()}
    if report.prepare_seconds is not None:
        data["prepare_s"] = report.prepare_seconds
    return data


def print_report(report: Report, out: Console) -> None:
    """Print tables of stages and contenders, and the conditions they were measured under."""
    settings, subject = report.settings, report.subject
    backend = report.engine.backend.name
    title = (
        f"{report.engine.manifest.model['name']}: {backend} {settings.precision}, {subject.threads} threads, "
        f"{settings.batch_size} x {subject.width}x{subject.height}, {subject.sizes['batch']} UNet rows"
    )
    out.print(title, style="bold", highlight=False)
    table = _table("stage", "p50 ms", "p90 ms", "")
    order = [name for name in _STAGE_NOTES if name in report.stages]
    for name in order:
        samples = report.stages[name]
        table.add_row(name, _ms(samples.p50), _ms(samples.p90), _STAGE_NOTES[name])
    table.add_section()
    evaluations, p50, p90 = report.table.evaluations, *report.total
    note = f"extrapolated: {settings.steps} steps of {report.table.name}, {evaluations} evaluations"
    table.add_row("total", _ms(p50), _ms(p90), note)
    out.print(table)
    if absent := [name for name in ("text_encoder", "vae") if name not in report.stages]:
        out.print(f"UNet only: no {' and no '.join(absent)} in this engine", highlight=False)
    _print_comparison(report, out)
    if report.segments:
        _print_segments(report, out)
    out.print(f"open        {report.open_seconds:.2f} s (load and open the UNet, already prepared)", highlight=False)
    if report.prepare_seconds is not None:
        out.print(f"prepare     {report.prepare_seconds:.1f} s (first use of this engine here)", highlight=False)
    remark = "" if report.peak_rss_comparable else " (not comparable: this process holds more than the engine)"
    out.print(f"peak RSS    {report.peak_rss_bytes / 1e6:.0f} MB{remark}", highlight=False)
    out.print(f"arena       {subject.executor.buffers.memory['arena'] / 1e6:.1f} MB between segments", highlight=False)
    if report.device_memory:
        split = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in report.device_memory.items())
        out.print(f"GPU memory  {sum(report.device_memory.values()) / 1e6:.0f} MB: {split}", highlight=False)
    checks = ", ".join(f"{name} {error:.1e}" for name, error in report.errors.items())
    out.print(f"checked     {checks} (relative L2, limit {subject.limit:.0e})", highlight=False)
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    out.print(f"device      {report.device}; {versions}", highlight=False)


def _print_comparison(report: Report, out: Console) -> None:
    table = _table("same rounds", "p50 ms", "p90 ms", "EBCU step / it", "plain step / it", "")
    steps = ("unet_step", "unet_step_vanilla")
    rows = {name: (report.stages[name], "this engine") for name in steps}
    rows |= {name: (samples, _ROW_NOTES[name]) for name, samples in report.compare.items()}
    for name, (samples, note) in rows.items():
        cells = []
        for step in steps:
            ratio = report.ratios.get(f"{step}/{name}")
            cells.append(f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" if ratio else "")
        table.add_row(name, _ms(samples.p50), _ms(samples.p90), *cells, note)
    out.print(table)


def _print_segments(report: Report, out: Console) -> None:
    table = _table("on its own", "p50 ms", "p90 ms", "share", "")
    layers = {f"attention_{i:02}": layer.name for i, layer in enumerate(report.engine.manifest.unet.layers)}
    total = sum(samples.p50 for samples in report.segments.values())
    for name, samples in report.segments.items():
        row = name, _ms(samples.p50), _ms(samples.p90), f"{samples.p50 / total:.1%}", layers.get(name, "")
        table.add_row(*row)
    table.add_section()
    attention = sum(report.segments[name].p50 for name in layers)
    for name, seconds in (("all segments", total - attention), ("all attention", attention)):
        table.add_row(name, _ms(seconds), "", f"{seconds / total:.1%}", "")
    out.print(table)


def _table(*headings: str) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index in (0, len(headings) - 1) else "right")
    return table


def _ms(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _milliseconds(samples: Samples) -> dict[str, float]:
    return {"p50_ms": 1e3 * samples.p50, "p90_ms": 1e3 * samples.p90}
