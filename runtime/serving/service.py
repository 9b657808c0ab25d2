"""Jobs: a bounded queue, one thread per runner, progress for any number of listeners, deadlines, cancelling."""

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from ebca.errors import CancelledError, EbcaError
from ebca.runtime.serving import batches
from ebca.runtime.serving.errors import ConflictError, QueueFullError, UnavailableError, UnknownJobError
from ebca.runtime.serving.limits import Limits
from ebca.runtime.serving.live import PROBLEMS, LiveJob, Pace, View
from ebca.runtime.serving.store import Job, State, Store
from ebca.runtime.serving.uploads import image_of
from ebca.runtime.serving.work import Asked, BatchRunner, Made, Progress, Runner, Work

log = logging.getLogger(__name__)

OnFinished = Callable[[State, float], None]
"""Called with the state and the seconds of running of every job that ends."""

_DECODED_AT_ONCE = 2


class Service:
    """Runs jobs. All methods may be called from any thread. Jobs that waited when the last process ended wait again.

    Args:
        runners: make the images; each gets a thread.
        store: of the jobs; the caller closes it after `shutdown`.
        limits: of requests.
        on_finished: is told about every job that ends.
        max_batch: jobs that a runner may run as one batch, if it can and they are alike.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        store: Store,
        limits: Limits,
        on_finished: OnFinished | None = None,
        max_batch: int = 1,
    ) -> None:
        self.limits = limits
        self._max_batch = max_batch
        self._runners = list(runners)
        self._store = store
        self._on_finished = on_finished
        self._changed = threading.Condition()
        self._queue: deque[str] = deque()
        self._live: dict[str, LiveJob] = {}
        self._reserved = 0
        self._draining = False
        self._pace = Pace()
        # An upload of a few kilobytes may be an image of many megabytes.
        self._decoding = threading.BoundedSemaphore(_DECODED_AT_ONCE)
        self._threads = [
            threading.Thread(target=self._work, args=(runner,), name=f"ebca-worker-{index}", daemon=True)
            for index, runner in enumerate(self._runners)
        ]
        self._clock = threading.Thread(target=self._watch_deadlines, name="ebca-deadlines", daemon=True)
        with self._changed:
            for job in store.recover():
                self._enqueue(job, self._alike(job.id))

    def start(self) -> None:
        """Start the threads."""
        for thread in (*self._threads, self._clock):
            thread.start()

    def describe(self) -> Mapping[str, Any]:
        """The model that makes the images."""
        return self._runners[0].describe()

    @property
    def ready(self) -> bool:
        """Whether jobs are taken and run."""
        return not self._draining and all(thread.is_alive() for thread in self._threads)

    def counts(self) -> tuple[int, int]:
        """How many jobs wait, and how many run."""
        with self._changed:
            return len(self._queue), sum(one.state is State.RUNNING for one in self._live.values())

    def submit(self, asked: Asked, owner: str = "", seconds: float | None = None) -> Job:
        """Check a request completely, store it, and let it wait.

        Args:
            asked: the request.
            owner: who may see the job.
            seconds: until it must be done; None: the limit.

        Raises:
            ParameterError, EngineError, TooLargeError, UnreadableError: the request cannot be used.
            QueueFullError, UnavailableError: no job is taken.
        """
        seconds = self.limits.chosen_seconds(seconds)
        # Before the check, which decodes images.
        with self._place():
            with self._decoding:
                work, parameters = self._runners[0].prepare(asked)
            job = self._written(partial(self._store.add, work, parameters, owner, seconds))
            with self._changed:
                self._enqueue(job, work.alike)
        return job

    def decode(self, name: str, data: bytes) -> Image.Image:
        """An uploaded image, for interfaces that must look at it; a few at a time.

        Raises:
            UnreadableError, TooLargeError: see `ebca.runtime.serving.uploads.image_of`.
        """
        with self._decoding:
            return image_of(name, data, self.limits)

    def run_again(self, job: str, owner: str = "", seconds: float | None = None) -> Job:
        """Let a job that ended without images wait once more.

        Raises:
            UnknownJobError: there is none.
            ConflictError: it waits, runs or is done.
            ParameterError, QueueFullError, UnavailableError: as in `submit`.
        """
        seconds = self.limits.chosen_seconds(seconds)
        with self._place(), self._changed:
            state = self.view(job, owner).state
            if not state.final or state is State.DONE:
                raise ConflictError(f"the job is {state}", "only a job that ended without images can be run again")
            self._written(partial(self._store.queue_again, job, seconds))
            self._live.pop(job, None)
            again = self._stored(job, owner)
            self._enqueue(again, self._alike(job))
        return again

    def cancel(self, job: str, owner: str = "") -> View:
        """Cancel a job that waits or runs; others stay as they are. A running one ends after its evaluation.

        Raises:
            UnknownJobError: there is none.
        """
        self._stored(job, owner)
        self._stop(job, State.CANCELLED)
        return self.view(job, owner)

    def remove(self, job: str, owner: str = "") -> None:
        """Remove a job that has ended from the store.

        Raises:
            UnknownJobError: there is none.
            ConflictError: it waits or runs.
        """
        with self._changed:
            state = self.view(job, owner).state
            if not state.final:
                raise ConflictError(f"the job is {state}", "cancel it before")
            self._written(partial(self._store.remove, job))
            self._live.pop(job, None)

    def view(self, job: str, owner: str = "") -> View:
        """A job as it is now. Raises UnknownJobError."""
        return self.live_view(job, owner) or View.of(self._stored(job, owner), None, None)

    def live_view(self, job: str, owner: str = "") -> View | None:
        """A job that waits or runs, as it is now; None: there is none in this process. Does not wait for the store."""
        with self._changed:
            live = self._live.get(job)
            if live is None or live.job.owner != owner:
                return None
            position = self._queue.index(job) + 1 if job in self._queue else None
            return View.of(live.job, live, position)

    def is_over(self, job: str) -> bool:
        """Whether nothing more happens to a job in this process. Does not wait for the store."""
        with self._changed:
            live = self._live.get(job)
            return live is None or live.state.final or (self._draining and live.state is State.QUEUED)

    def views(self, owner: str = "", limit: int = 50) -> list[View]:
        """The newest jobs of an owner, the newest first."""
        return [self.view(job.id, owner) for job in self._store.jobs(owner, limit)]

    def running(self, owner: str = "") -> list[View]:
        """The jobs of an owner that run, then those that wait, the oldest first."""
        with self._changed:
            live = [one for one in self._live.values() if not one.state.final and one.job.owner == owner]
            return [self.view(one.job.id, owner) for one in sorted(live, key=lambda one: one.state is State.QUEUED)]

    def watch(self, job: str, on_change: Callable[[], None], *, only_end: bool = False) -> Callable[[], None]:
        """Call a function, which must not wait, at every change of a job. Returns what ends it.

        A job that has ended changes no more; look at it once after this call.

        Args:
            job: its id.
            on_change: the function.
            only_end: call it when `is_over` has become true, and not for every place in the queue before.
        """
        with self._changed:
            live = self._live.get(job)
            if live is None:
                return lambda: None
            told = live.waiting if only_end else live.listeners
            told.append(on_change)

        def end() -> None:
            with self._changed:
                if on_change in told:
                    told.remove(on_change)

        return end

    def image(self, job: str, position: int, owner: str = "") -> bytes:
        """The PNG file of an image. Raises UnknownJobError."""
        self._stored(job, owner)
        return _found(self._store.image(job, position), f"the job has no image {position}")

    def image_named(self, token: str) -> bytes:
        """The PNG file with this secret name. Raises UnknownJobError."""
        return _found(self._store.image_named(token), "there is no such image")

    def telemetry(self, job: str, kind: str, owner: str = "") -> Mapping[str, Any]:
        """The energies or the attention maps of a job. Raises UnknownJobError."""
        state = self.view(job, owner).state
        field = "attention_maps" if kind == "attention" else kind
        problem = f"the job is {state}" if state is not State.DONE else f"the job has no {kind}"
        found = self._store.telemetry(job, kind)
        return _found(found, problem, f'ask for it with "{field}": true, and wait until the job is done')

    @property
    def draining(self) -> bool:
        """Whether no more jobs are taken."""
        return self._draining

    def drain(self) -> None:
        """Take no more jobs. Those that run go on; those that wait stay in the store, and who watches them is told."""
        with self._changed:
            self._draining = True
            waiting = [self._live[job] for job in self._queue]
            self._queue.clear()
            self._changed.notify_all()
        for live in waiting:
            self._tell(live, ended=True)

    def shutdown(self, grace: float = 60.0) -> None:
        """Take no more jobs, finish those that run, keep those that wait in the store.

        Args:
            grace: seconds for the running ones; then they are marked as interrupted.
        """
        self.drain()
        until = time.monotonic() + grace
        started = [thread for thread in (*self._threads, self._clock) if thread.ident is not None]
        for thread in started:
            thread.join(max(until - time.monotonic(), 0))
        with self._changed:
            running = [name for name, live in self._live.items() if live.state is State.RUNNING]
        for job in running:
            self._stop(job, State.INTERRUPTED)
        for thread in started:
            thread.join(10)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """A place in the queue while a request is checked."""
        with self._changed:
            if self._draining:
                raise UnavailableError("the service is being shut down", "try again later")
            if len(self._queue) + self._reserved >= self.limits.queue:
                after = max(round(self._pace.seconds * len(self._queue) / len(self._runners)), 1)
                raise QueueFullError(
                    f"{self.limits.queue} jobs wait already", f"try again in {after} s", min(after, 600)
                )
            self._reserved += 1
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= 1

    def _enqueue(self, job: Job, alike: str | None) -> None:
        self._live[job.id] = LiveJob(job, alike=alike)
        if self._draining:
            # It is stored, and waits for the next process.
            return
        self._queue.append(job.id)
        self._changed.notify_all()

    def _alike(self, job: str) -> str | None:
        """`Work.alike` of a stored job, if it matters: its work holds all images that it starts from."""
        return self._store.work(job).alike if self._max_batch > 1 else None

    def _stored(self, job: str, owner: str) -> Job:
        found = self._store.job(job)
        if found is None or found.owner != owner:
            raise UnknownJobError(f"there is no job '{job[:64]}'", "check its id; the oldest jobs are removed")
        return found

    def _work(self, runner: Runner) -> None:
        most = self._max_batch if isinstance(runner, BatchRunner) else 1
        try:
            while taken := self._next(most):
                if len(taken) > 1 and isinstance(runner, BatchRunner):
                    self._run_together(runner, taken)
                else:
                    self._run(runner, taken[0])
        finally:
            runner.close()

    def _next(self, most: int) -> list[LiveJob]:
        """The next job, once there is one, with others that are alike; none at the end."""
        with self._changed:
            while not self._draining and not self._queue:
                self._changed.wait()
            if self._draining:
                return []
            first = self._live[self._queue[0]]
            # The queue's order, but for those that gain by it.
            alike = [job for job in self._queue if first.alike is not None and self._live[job].alike == first.alike]
            taken = [self._live[job] for job in alike[: batches.size(len(alike), most)]] if alike else [first]
            for live in taken:
                self._queue.remove(live.job.id)
                live.state, live.began, live.together = State.RUNNING, time.monotonic(), len(taken)
            waiting = [self._live[job] for job in self._queue]
        for one in (*taken, *waiting):
            self._tell(one)
        return taken

    def _run(self, runner: Runner, live: LiveJob) -> None:
        self._finish(live, lambda: runner.run(self._begun(live), partial(self._progress, live)))

    def _run_together(self, runner: BatchRunner, lives: Sequence[LiveJob]) -> None:
        try:
            works = [self._begun(live) for live in lives]
            made = runner.run_together(works, [partial(self._progress, live) for live in lives])
        except Exception:
            # Alone, each shows whether it is the one that fails.
            log.info("a batch of %d jobs failed, and they run one by one", len(lives), exc_info=True)
            for live in lives:
                self._run(runner, live)
            return
        for live, one in zip(lives, made, strict=True):
            self._finish(live, partial(_not_cancelled, one))

    def _begun(self, live: LiveJob) -> Work:
        """The work of a job, which begins."""
        live.job = replace(live.job, started=self._store.start(live.job.id))
        return self._store.work(live.job.id)

    def _finish(self, live: LiveJob, make: Callable[[], Made]) -> None:
        """End a job with what `make` returns or raises."""
        job = live.job.id
        try:
            self._store.finish(job, make())
        except CancelledError:
            self._end(live, live.stop or State.CANCELLED, None)
        except EbcaError as error:
            self._end(live, State.FAILED, error)
        except sqlite3.Error as error:
            log.exception("job %s cannot be stored", job)
            self._end(live, State.FAILED, EbcaError(f"the job cannot be stored: {error}", "free some space"))
        except MemoryError:
            self._end(live, State.FAILED, EbcaError("the memory is too small", "ask for smaller images, or fewer"))
        except Exception:
            log.exception("job %s failed", job)
            self._end(live, State.FAILED, EbcaError("the job failed by an internal error", "see the service's log"))
        else:
            self._end(live, State.DONE, None)

    def _progress(self, live: LiveJob, progress: Progress) -> bool:
        with self._changed:
            live.take(progress)
            if live.stop is None and time.time() > live.job.deadline:
                live.stop = State.EXPIRED
            goes_on = live.stop is None
        self._tell(live)
        return goes_on

    def _stop(self, job: str, state: State) -> None:
        """Let a job end in this state, if it has not ended."""
        with self._changed:
            live = self._live.get(job)
            if live is None or live.state.final:
                return
            live.stop = live.stop or state
            if job not in self._queue:
                # Its worker ends it. Of a service that is being shut down, it stays in the store.
                return
            self._queue.remove(job)
            waiting = [self._live[one] for one in self._queue]
        self._end(live, state, None)
        for one in waiting:
            self._tell(one)

    def _end(self, live: LiveJob, state: State, error: EbcaError | None) -> None:
        error, job = error or PROBLEMS.get(state), live.job.id
        kept = True
        if state is not State.DONE and error is not None:
            try:
                self._store.fail(job, state, error)
            except sqlite3.Error:
                log.exception("the end of job %s cannot be stored", job)
                kept = False
        with self._changed:
            live.state, live.error = state, error
            if kept:
                # The store has all of it now.
                self._live.pop(job, None)
            seconds = 0.0 if live.began is None else time.monotonic() - live.began
            if state is State.DONE:
                self._pace.add(seconds / live.together)
        if self._on_finished is not None:
            self._on_finished(state, seconds)
        self._tell(live, ended=True)

    def _tell(self, live: LiveJob, *, ended: bool = False) -> None:
        with self._changed:
            listeners = [*live.listeners, *(live.waiting if ended else ())]
        for listener in listeners:
            try:
                listener()
            except Exception:
                # A listener whose event loop has ended hears nothing more.
                log.debug("a listener of job %s failed", live.job.id, exc_info=True)

    def _watch_deadlines(self) -> None:
        """Ends jobs that wait too long; running ones look at the clock themselves."""
        while True:
            with self._changed:
                if self._draining:
                    return
                now = time.time()
                late = [job for job in self._queue if self._live[job].job.deadline < now]
                if not late:
                    nearest = min((self._live[job].job.deadline for job in self._queue), default=now + 60)
                    self._changed.wait(max(nearest - now, 0.01))
            for job in late:
                self._stop(job, State.EXPIRED)

    def _written(self, write: Callable[[], Any]) -> Any:
        try:
            return write()
        except sqlite3.Error as error:
            raise UnavailableError(
                f"the job cannot be stored: {error}", "free some space on the service's disk"
            ) from None


def _not_cancelled(made: Made | None) -> Made:
    if made is None:
        raise CancelledError("the job was cancelled")
    return made


def _found(value: Any, problem: str, remedy: str = "see the job's list of images") -> Any:
    if value is None:
        raise UnknownJobError(problem, remedy)
    return value
