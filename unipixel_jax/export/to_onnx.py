"""Parts as ONNX: by jax2onnx, then without ``Einsum``, and with all that does not depend on the inputs computed (onnxslim).

Compilers for other chips take only a part of ONNX. Huawei's ATC, which compiles for Ascend, knows neither loops nor ``Einsum`` nor ``LayerNormalization``
(CANN 5.0's list of operators), so no part has any: towers are unstacked, and the loop over an answer's tokens is the caller's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unipixel_jax.errors import UserError, needing
from unipixel_jax.export.parts import Part
from unipixel_jax.ops.attention import use_attention

OPSET = 18
REFUSED = ("Loop", "If", "Scan", "Einsum", "LayerNormalization", "SequenceConstruct", "SequenceAt", "Unique", "NonZero")
"""Operators that no part may have."""
LARGEST_MODEL = 1 << 30
"""Bytes of weights from which on they lie in a file beside the model, since a message of protobuf has 2 GB at most."""
SMALLEST_WEIGHT = 1024


def convert(part: Part) -> Any:
    """Return a part as an ``onnx.ModelProto``.

    Raises:
        UserError: a package is missing, or the part needs an operator that is refused.
    """
    with needing("onnx", "export --format onnx"):
        import jax2onnx
        import onnxslim
    with use_attention("xla"), _quiet():
        model = jax2onnx.to_onnx(
            part.function, list(part.inputs.values()), model_name=part.name, opset=OPSET, input_names=list(part.inputs), output_names=list(part.outputs)
        )
        model = onnxslim.slim(without_einsum(model))
    found = sorted(operators(model) & set(REFUSED))
    if found:
        raise UserError(f"the part {part.name} needs {', '.join(found)}, which other compilers do not know: export it with --format stablehlo")
    return model


def save(model: Any, path: Path) -> None:
    """Write a model; large weights go to a file beside it, whose name ends with ".data"."""
    import onnx

    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    if size < LARGEST_MODEL:
        onnx.save(model, str(path))
        return
    beside = {"all_tensors_to_one_file": True, "location": f"{path.name}.data", "size_threshold": SMALLEST_WEIGHT}
    onnx.save_model(model, str(path), save_as_external_data=True, **beside)


def operators(model: Any) -> set[str]:
    """Return the names of the operators of a model; those of other domains than ONNX's own have their domain in front."""
    return {f"{node.domain}:{node.op_type}" if node.domain else node.op_type for node in model.graph.node}


def without_einsum(model: Any) -> Any:
    """Return a model in which every ``Einsum`` of two arrays is a ``MatMul`` between ``Transpose`` and ``Reshape``."""
    import onnx

    shapes = _shapes(model)
    nodes = []
    for node in model.graph.node:
        nodes += _product(node, shapes) if node.op_type == "Einsum" and len(node.input) == 2 else [node]
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in _constants(nodes)]
    kept = [node for node in nodes if not isinstance(node, tuple)]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(constants)
    return model


def _product(node: Any, shapes: dict[str, tuple[int, ...]]) -> list[Any]:
    """Return the nodes, and names with values of constants, that compute a node's ``Einsum``."""
    import onnx

    equation = next(own.s.decode() for own in node.attribute if own.name == "equation").replace(" ", "")
    inputs, out = equation.split("->")
    left, right = inputs.split(",")
    length = dict(zip(left, shapes[node.input[0]], strict=True)) | dict(zip(right, shapes[node.input[1]], strict=True))
    batch = [c for c in out if c in left and c in right]
    summed = [c for c in left if c in right and c not in out]
    own, other = ([c for c in side if c in out and c not in batch] for side in (left, right))
    made: list[Any] = []

    def add(kind: str, given: list[str], result: str, **attributes: Any) -> str:
        made.append(onnx.helper.make_node(kind, given, [result], name=f"{node.output[0]}_{len(made)}", **attributes))
        return result

    def reshaped(name: str, sizes: list[int], result: str) -> str:
        made.append((f"{result}_shape", np.asarray(sizes, np.int64)))
        return add("Reshape", [name, f"{result}_shape"], result)

    def sides(name: str, letters: str, order: list[list[str]], result: str) -> str:
        places = [letters.index(c) for group in order for c in group]
        turned = add("Transpose", [name], f"{result}_turned", perm=places)
        return reshaped(turned, [int(np.prod([length[c] for c in group], dtype=np.int64)) for group in order], result)

    base = node.output[0]
    first = sides(node.input[0], left, [batch, own, summed], f"{base}_left")
    second = sides(node.input[1], right, [batch, summed, other], f"{base}_right")
    product = add("MatMul", [first, second], f"{base}_product")
    order = [*batch, *own, *other]
    unfolded = reshaped(product, [length[c] for c in order], f"{base}_unfolded")
    add("Transpose", [unfolded], base, perm=[order.index(c) for c in out])
    return made


def _constants(nodes: list[Any]) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in (node for node in nodes if isinstance(node, tuple)))


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all arrays of a model whose shapes are known."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        found[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the packages' remarks about their own graphs from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
