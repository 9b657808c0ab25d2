"""Results survive an interruption, and readings the way through a file."""

from pathlib import Path

import numpy as np
import pytest

from ebca.bench.alignment.detector import Reading
from ebca.bench.alignment.journal import Journal
from ebca.bench.alignment.readings import from_text, measures, to_text, vector
from ebca.errors import ParameterError

READINGS = [
    Reading(("present", "present"), 2),
    Reading(("present", "neglected", "misshapen"), 12, None),
    Reading(("present", "miscolored"), 1, False),
    Reading(("present", "present"), 2, True),
    Reading(("present", "present"), 2, False),
]


def test_a_journal_continues_after_a_cut(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.jsonl"
    journal = Journal(file)
    journal.add({"b": 1, "a": [2]}, "first")
    journal.add({"c": None}, {"x": 1.5})
    with file.open("a") as stream:
        stream.write('{"key": "cut')
    again = Journal(file)
    assert len(again) == 2 and again.get({"a": [2], "b": 1}) == "first" and again.get({"a": 1}) is None
    again.add({"d": 1}, 2)
    assert Journal(file).get({"d": 1}) == 2 and len(file.read_text().splitlines()) == 3
    again.remove()
    assert not file.exists()


def test_damaged_lines_are_dropped(tmp_path: Path) -> None:
    """A byte that is no text used to make the whole journal unreadable."""
    file = tmp_path / "a.jsonl"
    journal = Journal(file)
    for i in range(4):
        journal.add({"i": i}, "ä")
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"00e4", b"00\xe44")
    lines[2] = b'{"key": ["i", 2], "record": 1}\n'
    file.write_bytes(b"".join(lines))
    again = Journal(file)
    assert [again.get({"i": i}) for i in range(4)] == ["ä", None, None, "ä"]
    assert len(file.read_bytes().splitlines()) == 2


def test_a_journal_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ParameterError, match="cannot be written"):
        Journal(tmp_path / "file" / "a.jsonl")
    Journal(None).add({}, 1)


def test_readings_are_short_texts() -> None:
    text = to_text(READINGS)
    assert text == "00:2: 032:12: 01:1:f 00:2:t 00:2:f"
    assert from_text(text) == READINGS


def test_vectors_of_readings() -> None:
    assert vector(READINGS, "exact").tolist() == [True, False, False, True, True]
    assert vector(READINGS, "related").tolist() == [False, False, False, True, False]
    # A relation that does not hold is not correct.
    assert vector(READINGS, "correct").tolist() == [True, False, False, True, False]
    np.testing.assert_allclose(vector(READINGS, "neglected"), [0, 1 / 3, 0, 0, 0])
    assert "correct" in measures("relation") and "related" not in measures("two")
