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


@pytest.mark.parametrize("dim", ["depth", "depth_2"])
def test_unknown_names_are_refused(dim: str) -> None:
    for use in (dims.check, lambda dim: dims.evaluate(dim, SIZES)):
        with pytest.raises(EngineError, match=f"'{dim}' uses the unknown name 'depth'"):
            use(dim)


@pytest.mark.parametrize(
    "dim",
    ["height_x", "height+1", "", "batch*", "__import__('os')", "-1", "\u0661", "height_31", "height_" + "9" * 5000],
)
def test_other_texts_are_refused(dim: str) -> None:
    with pytest.raises(EngineError, match="neither a number nor a product"):
        dims.parse(dim)


@pytest.mark.parametrize("dim", ["0", "0*batch", "4096*8192", "9" * 20])
def test_numbers_out_of_range_are_refused(dim: str) -> None:
    with pytest.raises(EngineError, match="is not from 1 to 16777216"):
        dims.parse(dim)


def test_shapes_are_compared_by_their_values() -> None:
    assert dims.same(("batch", "height_1*width_1", 64), (" batch ", "width_1*height_1", "8*8"))
    assert not dims.same(("batch", "height*width"), ("batch", "height_1*width"))
    assert not dims.same(("batch",), ("batch", 1))


def test_shape() -> None:
    assert dims.shape(("batch", 4, "height", "width"), SIZES) == (2, 4, 65, 40)


def test_the_value_of_every_symbolic_dimension() -> None:
    shapes = [("batch", 4, "height_1", "width_1"), ("batch", "height_1*width_1", 320), ("8*height",)]
    sizes = {"batch": 2, "height": 9, "width": 4}
    expected = {"batch": 2, "height_1": 5, "width_1": 2, "height_1*width_1": 10, "8*height": 72}
    assert dims.fixed(shapes, sizes) == expected


def test_sizes_from_shapes() -> None:
    shapes = [("batch", 3, "8*height", "8*width"), ("batch", 77)]
    assert dims.sizes_of(shapes, [(2, 3, 16, 40), (2, 77)]) == {"batch": 2, "height": 2, "width": 5}
    for wrong in ([(2, 4, 16, 40), (2, 77)], [(2, 3, 17, 40), (2, 77)], [(2, 3, 16, 40), (3, 77)]):
        with pytest.raises(EngineError, match="the engine expects"):
            dims.sizes_of(shapes, wrong)
