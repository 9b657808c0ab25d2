"""Interleaving, warm-up, percentiles and ratios."""

from contextlib import contextmanager

import pytest

from ebca.bench import timing
from ebca.bench.timing import Contender, Ratio, Samples, interleave, time_call


def test_percentiles() -> None:
    samples = Samples((5.0, 1.0, 4.0, 2.0, 3.0))
    assert samples.p50 == 3.0
    assert samples.p90 == pytest.approx(4.6)
    assert Samples((2.0,)).p50 == Samples((2.0,)).p90 == 2.0


def test_a_ratio_compares_within_rounds() -> None:
    # The machine is three times slower in the second round: no ratio changes.
    ratio = Ratio.of(Samples((2.0, 6.0, 2.0)), Samples((1.0, 3.0, 1.0)))
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.0)


def test_contenders_take_turns_and_warmup_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_LONG_SECONDS", 0.0)
    calls: list[str] = []
    rounds: list[tuple[int, int]] = []

    @contextmanager
    def arranged():  # type: ignore[no-untyped-def]
        calls.append("(")
        yield
        calls.append(")")

    contenders = [
        Contender("a", lambda: calls.append("a")),
        Contender("b", lambda: calls.append("b"), arranged),
    ]
    samples = interleave(contenders, warmup=1, repeats=2, on_round=lambda done, total: rounds.append((done, total)))
    assert "".join(calls) == "a(b)" * 3
    assert [len(samples[name].seconds) for name in "ab"] == [2, 2]
    assert rounds == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_short_call_settles_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SETTLE_SECONDS", 0.01)
    counts = {"a": 0, "b": 0}

    def call(name: str) -> None:
        counts[name] += 1

    interleave([Contender(n, lambda n=n: call(n)) for n in counts], warmup=1, repeats=1)  # type: ignore[misc]
    assert all(count > 2 for count in counts.values())


def test_a_single_contender_does_not_settle() -> None:
    calls: list[int] = []
    assert len(time_call(lambda: calls.append(1), warmup=2, repeats=3).seconds) == 3
    assert len(calls) == 5
