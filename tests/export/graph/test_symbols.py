import onnx_ir as ir
import pytest

from ebca.errors import ExportError
from ebca.export.graph.symbols import Symbols


def _value(*dims: int | str | None) -> ir.Value:
    return ir.Value(name="v", shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT))


@pytest.fixture
def symbols() -> Symbols:
    sample = _value("s53", 4, "s30", "s91")
    contexts = _value("s56", "s24", "s25", 32)
    return Symbols(
        [(sample, {0: "batch", 2: "height", 3: "width"}), (contexts, {0: "batch", 1: "contexts", 2: "tokens"})]
    )


@pytest.mark.parametrize(
    ("torch_dim", "dim"),
    [
        ("s53", "batch"),
        ("s56", "batch"),
        ("s24", "contexts"),
        ("s30", "height"),
        ("s30*s91", "height*width"),
        ("(((s30 - 1)//2)) + 1", "height_1"),
        ("((((s30 - 1)//4)) + 1)*((((s91 - 1)//4)) + 1)", "height_2*width_2"),
        ("(((((s30 - 1)//2)) + 1 - 1)//2) + 1", "height_2"),
    ],
)
def test_dimensions(symbols: Symbols, torch_dim: str, dim: str) -> None:
    assert symbols.shape(_value(torch_dim, 320)) == (dim, 320)


@pytest.mark.parametrize("torch_dim", ["s30 + 5", "s53*s30*s91*s24*7"])
def test_outside_the_language(symbols: Symbols, torch_dim: str) -> None:
    with pytest.raises(ExportError, match="not a product of known sizes"):
        symbols.shape(_value(torch_dim))


def test_only_arithmetic_is_evaluated(symbols: Symbols) -> None:
    with pytest.raises(ExportError, match="cannot be translated"):
        symbols.shape(_value("__import__('os').getpid()"))


def test_open_shapes(symbols: Symbols) -> None:
    with pytest.raises(ExportError, match="open dimension"):
        symbols.shape(_value(None, 3))
    with pytest.raises(ExportError, match="no shape"):
        symbols.shape(ir.Value(name="v"))


def test_flattened_positions_have_a_height_and_a_width(symbols: Symbols) -> None:
    halved = "((((s30 - 1)//4)) + 1)*((((s91 - 1)//4)) + 1)"
    assert symbols.height_and_width(_value("s53", "s30*s91", 320), 1) == ("height", "width")
    assert symbols.height_and_width(_value("s53", halved, 320), 1) == ("height_2", "width_2")
    # Not a batch of images, not an image without a side, not a fixed size.
    for dim in ("s53*s30", "s30", "s30*s30", 64):
        with pytest.raises(ExportError, match="not a height times a width"):
            symbols.height_and_width(_value("s53", dim, 320), 1)
