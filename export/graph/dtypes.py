"""The dtypes of exported tensors, and their names in the manifest."""

import onnx_ir as ir

HALF, FLOAT, INT64, INT32 = ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32

_NAMES = {FLOAT: "float32", HALF: "float16", INT64: "int64", INT32: "int32"}


def dtype_name(dtype: ir.DataType | None) -> str | None:
    """The manifest's name of a dtype, such as "float32"; None for a dtype that no exported tensor may have."""
    return None if dtype is None else _NAMES.get(dtype)
