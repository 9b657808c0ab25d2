import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebca.engines.contract import dims
from ebca.errors import EngineError

SIZES = {"batch": 2, "contexts": 3, "tokens": 77, "height": 65, "width": 40}


@pytest.mark.parametrize(
    ("dim", "value"),
    [
        (320, 320),
        ("batch", 2),
        ("height", 65),
        ("height_1", 33),
        ("height_3*width_3", 9 * 5),
        ("8*height", 520),
        ("batch*contexts", 6),
    ],
)
def test_evaluate(dim: dims.Dim, value: int) -> None:
    assert dims.evaluate(dim, SIZES) == value


@given(st.integers(1, 5000), st.integers(0, 8))
def test_halvings_are_repeated_rounding_up(height: int, halvings: int) -> None:
    expected = height
    for _ in range(halvings):
        expected = (expected + 1) // 2
    assert dims.evaluate(f"height_{halvings}", {"height": height}) == expected


@pytest.mark.parametrize("dim", ["depth", "depth_2", "height_x", "height+1", "", "__import__('os')"])
def test_unknown_names_are_refused(dim: str) -> None:
    with pytest.raises(EngineError, match="unknown name"):
        dims.evaluate(dim, SIZES)


def test_shape() -> None:
    assert dims.shape(("batch", 4, "height", "width"), SIZES) == (2, 4, 65, 40)
