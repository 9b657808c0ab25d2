"""Numbers for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ebca.runtime.serving.store import State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "ebca_http_requests_total", "HTTP requests", ["method", "route", "status"], registry=self.registry
        )
        self._latency = Histogram(
            "ebca_http_request_seconds", "until the response ends", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self._jobs = Counter("ebca_jobs_total", "jobs that ended", ["state"], registry=self.registry)
        self._run = Histogram("ebca_job_seconds", "running of jobs", buckets=_SECONDS, registry=self.registry)
        for state in State:
            if state.final:
                self._jobs.labels(state.value)

    def watch(self, counts: Callable[[], tuple[int, int]]) -> None:
        """Show how many jobs wait and run, as `Service.counts` says."""
        for index, name in enumerate(("waiting", "running")):
            gauge = Gauge(f"ebca_jobs_{name}", f"jobs that are {name}", registry=self.registry)
            gauge.set_function(lambda index=index: counts()[index])  # type: ignore[misc]

    def job(self, state: State, seconds: float) -> None:
        """Count a job that has ended; see `ebca.runtime.serving.service.OnFinished`."""
        self._jobs.labels(state.value).inc()
        if state is State.DONE:
            self._run.observe(seconds)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)
