"""Predictions computed by hand, batches of texts, and errors for bad texts and damaged folders."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_distill import export_model, load_predictor, push_folder
from hf_distill.deployment.heads import PREDICTION_HEADS, OutputReader
from hf_distill.deployment.predictor import predictor_of
from hf_distill.deployment.text_encoder import MAX_BATCH_TOKENS, TextEncoder
from tests.conftest import make_text_tokenizer, make_texts
from tests.deployment.conftest import tiny_student


def logits(*probabilities: list[float]) -> np.ndarray:
    return np.log(np.array(probabilities, np.float32))


def encode(text):
    tokenizer = make_text_tokenizer().backend_tokenizer
    return tokenizer.encode(*text) if isinstance(text, tuple) else tokenizer.encode(text)


def predict(head, text, outputs, top_k=1, **reader):
    reader = OutputReader(make_text_tokenizer().backend_tokenizer, **reader)
    return PREDICTION_HEADS[head].predict(outputs, encode(text), text, reader, top_k)


def near(**values):
    return {name: pytest.approx(value) if isinstance(value, float) else value for name, value in values.items()}


def test_sequence_classification():
    labels = ["bad", "fair", "good"]
    outputs = {"logits": logits([0.2, 0.1, 0.7])[0]}
    head = "sequence classification"
    assert predict(head, "w5", outputs, labels=labels) == near(label="good", score=0.7)
    both = predict(head, "w5", outputs, top_k=2, labels=labels)
    assert both == [near(label="good", score=0.7), near(label="bad", score=0.2)]
    assert len(predict(head, "w5", outputs, top_k=None, labels=labels)) == 3

    outputs = {"logits": np.array([0.0, 2.0, -800.0], np.float32)}
    several = predict(head, "w5", outputs, None, labels=labels, problem_type="multi_label_classification")
    assert [own["score"] for own in several] == pytest.approx([1 / (1 + np.exp(-2)), 0.5, 0.0])
    number = predict(head, "w5", {"logits": np.array([-1.5])}, labels=["stars"], problem_type="regression")
    assert number == near(label="stars", score=-1.5)


def test_token_classification():
    """In [CLS] w5 w6 w7 w8 w9 [SEP], w5 and w6 are one entity, w7 another of the same kind, w8 none, w9 a place."""
    labels = ["O", "B-PER", "I-PER", "I-LOC"]
    confident = [[0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.1, 0.7, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]]
    rows = [[0.1, 0.7, 0.1, 0.1], *confident, [0.05, 0.05, 0.1, 0.8], [0.1, 0.1, 0.1, 0.7]]
    rows[2] = [0.05, 0.05, 0.85, 0.05]
    found = predict("token classification", "w5 w6 w7 w8 w9", {"logits": logits(*rows)}, labels=labels)
    assert found == [
        near(label="PER", score=0.775, text="w5 w6", start=0, end=5),
        near(label="PER", score=0.7, text="w7", start=6, end=8),
        near(label="LOC", score=0.8, text="w9", start=12, end=14),
    ]


def test_question_answering():
    """This tokenizer puts nothing between question and context, w5 w7 w8 w9. The answer is never in the question."""
    starts, ends, context = np.full(4, 5.0), np.full(4, 5.0), [1, 2, 3]
    starts[context], ends[context] = np.log([0.1, 0.6, 0.3]), np.log([0.5, 0.1, 0.4])
    outputs = {"start_logits": starts, "end_logits": ends}
    best = predict("question answering", ("w5", "w7 w8 w9"), outputs)
    assert best == near(answer="w8 w9", score=0.24, start=3, end=8)  # not 0.6 * 0.5, whose end is before its start
    second = predict("question answering", ("w5", "w7 w8 w9"), outputs, top_k=2)[1]
    assert second == near(answer="w9", score=0.12, start=6, end=8)
    assert len(predict("question answering", ("w5", "w7 w8 w9"), outputs, top_k=None)) == 6


def test_masked_and_causal_language_modelling():
    distribution = np.full(61, 0.1 / 59, np.float32)
    distribution[[8, 9]] = 0.5, 0.4
    rows = np.log(np.stack([np.full(61, 1 / 61), distribution, np.full(61, 1 / 61)]).astype(np.float32))
    filled = predict("masked language modelling", "[MASK]", {"logits": rows}, mask_token_id=4, top_k=2)
    assert filled == [near(label="w8", score=0.5), near(label="w9", score=0.4)]
    with pytest.raises(ValueError, match=r"Expected exactly one \[MASK\] within max_length tokens; found 0 in 'w5'"):
        predict("masked language modelling", "w5", {"logits": rows}, mask_token_id=4)
    assert predict("causal language modelling", "w5", {"logits": rows[[0, 2, 1]]}) == near(label="w8", score=0.5)


def test_logits_are_those_of_the_model(student):
    texts = make_texts(20)
    model = AutoModelForSequenceClassification.from_pretrained(student).eval()
    with torch.no_grad():
        expected = model(**AutoTokenizer.from_pretrained(student)(texts, padding=True, return_tensors="pt")).logits
    predictor = load_predictor(student)
    np.testing.assert_allclose(predictor.logits(texts), expected.numpy(), atol=1e-5)
    assert predictor.logits([]).shape == (0, 2)
    assert predictor.predict([]) == []
    with pytest.raises(ValueError, match="is for token classification: only sequence classification"):
        predictor_of(tiny_student("bert", "token classification"), make_text_tokenizer(), "tokens").logits(texts)


class Sized:
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


@given(sizes=st.lists(st.integers(1, 5000), max_size=80), max_size=st.integers(1, 40))
def test_batches(sizes, max_size):
    """Each text once, in order of length, within both limits unless it is alone."""
    batches = list(TextEncoder.batches([Sized(size) for size in sizes], max_size))
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(sizes)))
    assert [sizes[index] for index in order] == sorted(sizes)
    for batch in batches:
        assert len(batch) <= max_size
        assert len(batch) == 1 or len(batch) * max(sizes[index] for index in batch) <= MAX_BATCH_TOKENS


def test_bad_texts(exported):
    predictor = load_predictor(exported)
    for texts, message in {
        ("w5", ""): "Text 1 is empty",
        ("w5", " \n"): "Text 1 is empty",
        (None,): "Text 0 must be a string, but is NoneType",
        (b"w5",): "Text 0 must be a string, but is bytes",
        ("w5 \ud800",): "Text 0 is not valid Unicode: it contains a lone surrogate at position 3",
    }.items():
        with pytest.raises(ValueError, match=message):
            predictor.predict(list(texts))
    with pytest.raises(ValueError, match="texts must be a list of strings, but is one string"):
        predictor.predict("w5 w6")


def test_a_long_text_is_cut_at_what_the_model_takes(exported):
    predictor = load_predictor(exported)
    assert predictor.encoder.max_length == 38  # the tokenizer's; the model takes 64
    long = " ".join(["w5"] * 20_000)
    cut = " ".join(["w5"] * 36)  # and the two around it
    np.testing.assert_array_equal(predictor.logits([long]), predictor.logits([cut]))
    assert predictor.encoder.encode([long])[0].overflowing
    assert not predictor.encoder.encode([cut])[0].overflowing


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_half_written_graph(exported, tmp_path):
    folder = copied(exported, tmp_path)
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[:1000])
    with pytest.raises(
        ValueError, match=rf"model\.onnx has 1,000 bytes instead of {len(whole):,}: the copy is incomplete"
    ):
        load_predictor(folder)
    (folder / "model.onnx").write_bytes(bytes(len(whole)))
    with pytest.raises(ValueError, match=r"onnxruntime .* cannot read .*model\.onnx"):
        load_predictor(folder)


def test_an_opset_that_the_runtime_does_not_know(exported, tmp_path):
    folder = copied(exported, tmp_path)
    graph = onnx.load(folder / "model.onnx")
    graph.opset_import[0].version = 99
    onnx.save(graph, folder / "model.onnx")
    manifest = json.loads((folder / "export.json").read_text())
    manifest["files"] = {"model.onnx": (folder / "model.onnx").stat().st_size}
    (folder / "export.json").write_text(json.dumps(manifest | {"opset": 99}))
    with pytest.raises(ValueError, match=r"with opset 99: install that version or a later one"):
        load_predictor(folder)


def test_folders_that_are_no_model(exported, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"it has neither .safetensors weights nor export\.json"):
        load_predictor(tmp_path / "empty")
    with pytest.raises(ValueError, match="neither as a local folder nor on the Hub"):
        load_predictor(tmp_path / "nothing")
    with pytest.raises(ValueError, match="has no model in the format pytorch: it has onnx"):
        load_predictor(exported, "pytorch")
    folder = copied(exported, tmp_path)
    (folder / "export.json").write_text("{")
    with pytest.raises(ValueError, match=r"export\.json cannot be read"):
        load_predictor(folder)
    shutil.copy(exported / "export.json", folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a valid tokenizer"):
        load_predictor(folder)


def test_which_of_several_formats_is_taken(student, exported, tmp_path):
    folder = shutil.copytree(student, tmp_path / "student")
    assert load_predictor(folder).format == "pytorch"
    shutil.copytree(exported, folder / "onnx")
    assert load_predictor(folder).format == "onnx"
    export_model(student, folder / "int8", texts=make_texts(6), min_agreement=0)
    assert load_predictor(folder).format == "onnx-int8"
    assert [load_predictor(folder, own).format for own in ("pytorch", "onnx")] == ["pytorch", "onnx"]


def test_from_the_hub(hub, student, exported, tmp_path):
    """From a repository with several formats, only the loaded one is downloaded."""
    folder, texts = shutil.copytree(student, tmp_path / "several"), make_texts(4)
    shutil.copytree(exported, folder / "onnx")
    push_folder(folder, "several")
    cache = tmp_path / "cache"

    predictor = load_predictor("tester/several")
    assert predictor.format == "onnx"
    np.testing.assert_array_equal(predictor.logits(texts), load_predictor(exported).logits(texts))
    assert len(list(cache.rglob("model.onnx"))) == 1
    assert list(cache.rglob("model.safetensors")) == []

    predictor = load_predictor("tester/several", "pytorch")
    np.testing.assert_array_equal(predictor.logits(texts), load_predictor(student).logits(texts))
    with pytest.raises(ValueError, match="has no model in the format onnx-int8: it has onnx, pytorch"):
        load_predictor("tester/several", "onnx-int8")
    with pytest.raises(ValueError, match="neither as a local folder nor on the Hub"):
        load_predictor("tester/nothing")


def test_onnx_runs_without_pytorch(exported):
    code = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # an import of them fails
from hf_distill import load_predictor
(answer,) = load_predictor({str(exported)!r}).predict(["w5 w6"])
assert answer["label"] in ("bad", "good")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_without_onnxruntime(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime is not installed: pip install 'hf_distill\[onnx\]'"):
        load_predictor(exported)


def test_threads(exported, student):
    before = torch.get_num_threads()
    try:
        assert load_predictor(exported, threads=3).backend.session.get_session_options().intra_op_num_threads == 3
        load_predictor(student, threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_int8_is_exact_without_vnni(exported):
    """On such a CPU the tests of int8 fail without this option; on others it changes nothing."""
    options = load_predictor(exported).backend.session.get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
