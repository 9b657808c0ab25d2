import numpy as np
import pytest

from ebca.bench.alignment.rivals import located


def test_a_maximum_counts_if_it_is_near_the_subject() -> None:
    """Cells of 8 pixels: (2, 5) is at x 44, y 20."""
    maps = np.zeros((1, 2, 8, 8), np.float32)
    maps[0, :, 2, 5] = 1
    places = np.array([[[50, 25, 8], [44, 33, 8]]], np.float32)
    assert located.located(maps, places) == 0.5
    assert located.located(maps, places[:, [1, 1]]) == 0


def test_the_table_has_a_line_per_layer_and_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert located.main(["--count", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 7 * 3 and lines[1].split()[:4] == ["0", "8", "x", "8"]
    assert all(line.count("%") == len(located.EVALUATIONS) for line in lines[1:])
    # The words of the bundled model know the place.
    last = next(line for line in lines if line.split()[0] == "6" and " words " in line)
    assert float(last.split()[-1].rstrip("%")) >= 66


def test_no_images_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert located.main(["--count", "0"]) == 1
    assert "--count is 0; give 1 or more" in capsys.readouterr().err
