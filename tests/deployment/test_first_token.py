"""Which parts of the last layer are computed only for the first token; everything else stays the same."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from hf_distill.deployment import onnx as onnx_export
from hf_distill.deployment.first_token import compute_first_token_alone
from hf_distill.deployment.onnx import write_graph
from tests.deployment.conftest import tiny_student

INPUTS = ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("model_type", "head", "narrowed"),
    [
        ("bert", "sequence classification", 3),  # the attention's output and the two products of the feed-forward block
        pytest.param("roberta", "sequence classification", 3, marks=pytest.mark.long),
        pytest.param("modernbert", "sequence classification", 1, marks=pytest.mark.long),  # its block splits its output
        ("bert", "token classification", 0),  # uses all tokens
    ],
)
def test_products_with_fewer_rows(model_type, head, narrowed, tmp_path, monkeypatch):
    counts, graphs = [], {}

    def narrow(model):
        graphs["whole"] = ir.to_proto(model).SerializeToString()
        counts.append(compute_first_token_alone(model))
        graphs["narrowed"] = ir.to_proto(model).SerializeToString()

    monkeypatch.setattr(onnx_export, "compute_first_token_alone", narrow)
    write_graph(tiny_student(model_type, head), INPUTS, ["logits"], tmp_path / "model.onnx")
    assert counts == [narrowed]

    ids = np.random.default_rng(0).integers(5, 61, (4, 17))
    mask = (np.arange(17) < np.array([[17], [1], [9], [16]])).astype(np.int64)
    logits = {}
    for name, graph in graphs.items():
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        (logits[name],) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    assert np.abs(logits["narrowed"] - logits["whole"]).max() < 1e-6


@pytest.mark.parametrize(("outputs", "narrowed"), [(["logits"], 1), (["logits", "hidden"], 0)])
def test_what_is_also_given_out_stays_whole(outputs, narrowed):
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    shape = ["texts", "tokens", 4]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["states", "weight"], ["hidden"]),
            helper.make_node("Gather", ["hidden", "zero"], ["logits"], axis=1),
        ],
        "graph",
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array(0), "zero")],
        value_info=[helper.make_tensor_value_info("hidden", TensorProto.FLOAT, shape)],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    model.graph.outputs[-1].shape = ir.Shape(shape if len(outputs) == 2 else ["texts", 4])
    assert compute_first_token_alone(model) == narrowed
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    states = np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(session.run(["logits"], {"states": states})[0], states[:, 0] @ weight, rtol=1e-5)
