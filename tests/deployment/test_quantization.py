"""Changes to a graph before ONNX Runtime quantizes it: results are the same, or the same up to rounding."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hf_distill.deployment import quantization
from hf_distill.deployment.quantization import fold_transposes, quantize_embeddings, smooth


def graph_of(nodes, inputs, outputs, constants) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def run(model: ir.Model, **inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def products(random: np.random.Generator) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """`x @ a` and `x @ b`, where the third channel of x is an outlier."""
    weights = {name: random.normal(size=(6, 4)).astype(np.float32) for name in ("a", "b")}
    nodes = [helper.make_node("MatMul", ["x", name], [f"x{name}"]) for name in weights]
    model = graph_of(nodes, {"x": (TensorProto.FLOAT, ["n", 6])}, {"xa": ["n", 4], "xb": ["n", 4]}, weights)
    return model, weights


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), outlier=st.floats(50, 1000))
def test_smoothing_changes_nothing_but_the_ranges(seed, outlier):
    random = np.random.default_rng(seed)
    x = random.normal(size=(8, 6)).astype(np.float32)
    x[:, 2] *= outlier
    model, _ = products(random)
    before = run(model, x=x)
    smooth(model.graph, {"x": np.abs(x).max(0)})
    after = run(model, x=x)
    assert [node.op_type for node in model.graph] == ["Mul", "MatMul", "MatMul"]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(one).max())


def test_smoothing_by_hand():
    """Equation 4 of Xiao et al., 2022, with alpha 0.8, scaled so that the product of the scales is 1."""
    weight = np.array([[1.0, -2.0], [0.5, 0.25], [4.0, 1.0]], np.float32)
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n", 3])},
        {"y": ["n", 2]},
        {"w": weight},
    )
    smooth(model.graph, {"x": np.array([1.0, 32.0, 2.0])})
    scales = np.array([1 / 2**0.2, 32**0.8 / 0.5**0.2, 2**0.8 / 4**0.2])
    scales /= scales.prod() ** (1 / 3)
    multiply, product = model.graph
    np.testing.assert_allclose(multiply.inputs[1].const_value.numpy(), 1 / scales, rtol=1e-6)
    np.testing.assert_allclose(product.inputs[1].const_value.numpy(), scales[:, None] * weight, rtol=1e-6)


def test_without_outliers_nothing_is_smoothed():
    model, _ = products(np.random.default_rng(0))
    smooth(model.graph, {"x": np.array([1.0, 2.0, 1.5, 3.0, 1.0, 2.0])})
    assert [node.op_type for node in model.graph] == ["MatMul", "MatMul"]


@pytest.mark.parametrize("width", [64, 20])
def test_embeddings_are_within_half_a_step(width):
    """The step size is the largest value of a block of 32 over 127, or of the row if rows do not divide into blocks."""
    random = np.random.default_rng(0)
    table = (random.normal(size=(50, width)) * np.exp(random.normal(size=(50, 1)))).astype(np.float32)
    table[7] = 0
    model = graph_of(
        [helper.make_node("Gather", ["table", "ids"], ["found"]), helper.make_node("Identity", ["found"], ["rows"])],
        {"ids": (TensorProto.INT64, ["texts", "tokens"])},
        {"rows": ["texts", "tokens", width]},
        {"table": table},
    )
    quantize_embeddings(model.graph)
    ids = np.arange(50).reshape(5, 10)
    (rows,) = run(model, ids=ids)
    assert rows.shape == (5, 10, width)
    blocks = table.reshape(50, -1, 32 if width == 64 else width)
    step = np.abs(blocks).max(-1, keepdims=True) / 127
    error = np.abs(rows.reshape(blocks.shape) - blocks)
    assert (error <= step * 0.5 * 1.01 + np.abs(blocks) * 2**-11).all()  # scales are in fp16
    assert (rows.reshape(50, width)[7] == 0).all()
    kept = {value.name: value.const_value.dtype for value in model.graph.initializers.values() if value.uses()}
    assert ir.DataType.FLOAT not in kept.values()


def test_a_table_that_is_looked_up_twice():
    """As GPT-2's, which has the embeddings of tokens and of token types. It is stored once."""
    table = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"]),
        helper.make_node("Gather", ["table", "types"], ["kinds"]),
        helper.make_node("Add", ["words", "kinds"], ["rows"]),
    ]
    inputs = dict.fromkeys(("ids", "types"), (TensorProto.INT64, ["tokens"]))
    model = graph_of(nodes, inputs, {"rows": ["tokens", 64]}, {"table": table})
    quantize_embeddings(model.graph)
    ids, types = np.arange(50), np.arange(50) % 2
    (rows,) = run(model, ids=ids, types=types)
    np.testing.assert_allclose(rows, table[ids] + table[types], atol=2 * np.abs(table).max() / 127)
    stored = [value for value in model.graph.initializers.values() if value.uses() and value.dtype == ir.DataType.INT8]
    assert len(stored) == 1


def test_a_tied_head_gets_a_matrix():
    table = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    model = graph_of(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0]),
            helper.make_node("MatMul", ["rows", "head"], ["logits"]),
        ],
        {"ids": (TensorProto.INT64, ["texts", "tokens"])},
        {"logits": ["texts", "tokens", 50]},
        {"table": table},
    )
    ids = np.arange(6).reshape(2, 3)
    (before,) = run(model, ids=ids)
    fold_transposes(model.graph)
    (after,) = run(model, ids=ids)
    np.testing.assert_allclose(before, after, rtol=1e-5)
    assert [node.op_type for node in model.graph] == ["Gather", "MatMul"]


def test_missing_packages_name_their_extra(monkeypatch, tmp_path):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("hf_distill.optional.import_module", missing)
    with pytest.raises(ImportError, match=r"torchao\.quantization is not installed: pip install 'hf_distill\[quant\]'"):
        quantization.save_quantized(None, tmp_path)
    with pytest.raises(ImportError, match=r"onnx_ir is not installed: pip install 'hf_distill\[onnx\]'"):
        quantization.quantize_graph(tmp_path / "a", tmp_path / "b", [])
