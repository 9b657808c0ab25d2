"""Interleaved timing: contenders take turns, so a machine that slows down slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

Call = Callable[[], object]
OnRound = Callable[[int, int], None]

# Worker threads of a library spin for tens of milliseconds after a call. A short call of the next contender would pay
# for that (it took twice as long), so it first runs untimed for a while. A long call is not affected.
_SETTLE_SECONDS = 0.1
_LONG_SECONDS = 1.0


@dataclass(frozen=True)
class Contender:
    """One thing to time. `arranged` is entered before each call, untimed, to set up what contenders share."""

    name: str
    call: Call
    arranged: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Samples:
    """Seconds per call, in order."""

    seconds: tuple[float, ...]

    @property
    def p50(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p90(self) -> float:
        """By linear interpolation, so the largest of a few samples counts."""
        ordered = sorted(self.seconds)
        position = 0.9 * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True)
class Ratio:
    """Median, smallest and largest of the ratios of two contenders' times in the same round."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numerator: Samples, denominator: Samples) -> "Ratio":
        ratios = [a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))


def interleave(
    contenders: Sequence[Contender], *, warmup: int, repeats: int, on_round: OnRound | None = None
) -> Mapping[str, Samples]:
    """Time contenders in turns: A B C, A B C, ...

    Args:
        contenders: in the order of a round; names are unique.
        warmup: rounds before measuring.
        repeats: rounds that are measured.
        on_round: called with (done, total) before each round and after the last.
    """
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    latest = dict.fromkeys(seconds, _LONG_SECONDS)
    for index in range(warmup + repeats):
        if on_round:
            on_round(index, warmup + repeats)
        for contender in contenders:
            with contender.arranged():
                if latest[contender.name] < _LONG_SECONDS and len(contenders) > 1:
                    until = time.perf_counter() + _SETTLE_SECONDS
                    while time.perf_counter() < until:
                        contender.call()
                began = time.perf_counter()
                contender.call()
                latest[contender.name] = taken = time.perf_counter() - began
            if index >= warmup:
                seconds[contender.name].append(taken)
    if on_round:
        on_round(warmup + repeats, warmup + repeats)
    return {name: Samples(tuple(values)) for name, values in seconds.items()}


def time_call(call: Call, *, warmup: int, repeats: int) -> Samples:
    """Time a single call."""
    return interleave([Contender("", call)], warmup=warmup, repeats=repeats)[""]
