"""Parameters out of an ONNX file, by the names that their modules had in PyTorch.

An exporter keeps the names of embeddings, norms and biases. The weights of linear layers it turns into constants with
names of its own, transposed, which are found by the node that multiplies with them: its name is the module's path.
Where they were made integers for the sake of size (a scale and a zero point beside each), they are made numbers again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fmplex_backend.arrays import Array
from fmplex_backend.errors import Refused

_PRODUCTS = ("MatMul", "MatMulInteger")
_QUANTIZED = "_quantized"
_PRODUCT_NAME = re.compile(r"\.MatMul\w*$")


def read_onnx(path: Path, prefixes: Iterable[str]) -> dict[str, Array]:
    """fp32 arrays by parameter name, the first of ``prefixes`` that fits taken off; names without any are left out.

    Raises `Refused` where the file cannot be read.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    try:
        graph = onnx.load(str(path)).graph
    except (OSError, DecodeError) as error:
        raise Refused(f"{path.name}: no ONNX file: {error}") from None
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found: dict[str, Array] = {}
    for name in constants:
        plain = name.removesuffix(_QUANTIZED)
        if not plain.endswith(("_scale", "_zero_point")):
            found[plain] = _numbers(plain, constants)
    for node in graph.node:
        if node.op_type in _PRODUCTS and node.input[1] in constants:
            path_of_module = _PRODUCT_NAME.sub("", node.name.strip("/").replace("/", "."))
            found[f"{path_of_module}.weight"] = _numbers(node.input[1].removesuffix(_QUANTIZED), constants).T
    return {
        name.removeprefix(prefix): np.array(array, np.float32, order="C")
        for name, array in found.items()
        if (prefix := next((prefix for prefix in prefixes if name.startswith(prefix)), None)) is not None
    }


def _numbers(name: str, constants: dict[str, Array]) -> Array:
    if (quantized := constants.get(name + _QUANTIZED)) is None:
        return constants[name]
    offset, scale = (constants[f"{name}_{part}"].astype(np.float32) for part in ("zero_point", "scale"))
    numbers: Array = (quantized.astype(np.float32) - offset) * scale
    return numbers
