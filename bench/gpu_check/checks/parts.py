"""Where does the time of a step go? Every segment and op on its own, as `ebca-bench --segments` measures it."""

from ebca.bench.gpu_check.results import Found
from ebca.bench.gpu_check.visit import BACKEND, Visit
from ebca.bench.latency.measure import Settings, measure
from ebca.bench.latency.report import to_json


def run(visit: Visit, found: Found) -> None:
    settings = Settings(visit.engine("model"), device="cuda", backend=BACKEND, segments=True, warmup=1, repeats=5)
    for name, value in to_json(measure(settings)).items():
        found[name] = value
    medians = {name: times["p50_ms"] for name, times in found.results["segments"].items()}
    ops = sum(value for name, value in medians.items() if name.startswith("attention_"))
    found["sums"] = {"segments_ms": sum(medians.values()) - ops, "ops_ms": ops}
