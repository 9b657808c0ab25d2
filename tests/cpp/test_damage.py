"""Engine directories that are damaged at random: refused, or exactly the right image; never a crash or a hang."""

import os
from pathlib import Path

from helpers import damage

SLOW = bool(os.environ.get("EBCA_SLOW_TESTS"))
COUNT, SECONDS = (500, 1800.0) if SLOW else (60, 8.0)


def test_a_damaged_directory_is_refused_or_makes_the_right_image(library_file: Path, onnxruntime_file: Path) -> None:
    verdicts, findings = damage.judged(library_file, onnxruntime_file, COUNT, SECONDS)
    assert findings == []
    assert verdicts["refused"] >= 5, verdicts
    if SLOW:
        assert verdicts.total() == COUNT and len(verdicts) == 3, verdicts


def test_a_crash_and_a_hang_are_found(library_file: Path, tmp_path: Path) -> None:
    """A library that cannot be opened ends the process before the first directory."""
    _, findings = damage.judged(library_file, tmp_path / "nothing.so", 1, 60.0)
    assert len(findings) == 1 and "ended with 1" in findings[0]
