"""Sequence classifiers that read pairs of texts: the same tokens as in training, in PyTorch and in exports."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_distill import encode_pairs, export_model, load_predictor
from hf_distill.deployment.parity_texts import QUESTIONS
from hf_distill.deployment.predictor import predictor_of
from hf_distill.evaluation.benchmark_inputs import exact_input
from hf_distill.lengths import READING
from tests.conftest import make_texts
from tests.data.pair_tokenizer import make_pair_tokenizer
from tests.deployment.conftest import tiny_student

PAIRS = list(zip(make_texts(12, 1, 30), make_texts(12, 2, 30), strict=True))
"""Some of these are longer than the tokenizer's limit of 38 tokens."""


def make_classifier():
    model = tiny_student("bert", "sequence classification", id2label={0: "relevance"})
    setattr(model.config, READING, {"reads_pairs": True})
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "reranker"
    make_classifier().save_pretrained(folder)
    make_pair_tokenizer().save_pretrained(folder)
    return folder


def test_same_tokens_as_in_training():
    rows = encode_pairs(
        Dataset.from_dict({"text": [a for a, _ in PAIRS], "text_pair": [b for _, b in PAIRS]}),
        make_pair_tokenizer(),
        38,
    )
    predictor = predictor_of(make_classifier(), make_pair_tokenizer(), "reranker")
    encodings = predictor.encoder.encode(PAIRS)
    assert [encoding.ids for encoding in encodings] == rows["input_ids"][:]
    assert [encoding.type_ids for encoding in encodings] == rows["token_type_ids"][:]
    too_long = [len(f"{a} {b}".split()) > 35 for a, b in PAIRS]
    assert [bool(encoding.overflowing) for encoding in encodings] == too_long
    assert 0 < sum(too_long) < len(PAIRS)


def test_scores_are_those_of_the_model(folder):
    tokenizer, predictor = make_pair_tokenizer(), load_predictor(folder)
    assert predictor.reads_pairs
    first, second = map(list, zip(*PAIRS, strict=True))
    inputs = tokenizer(first, second, truncation="longest_first", padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = make_classifier()(**inputs).logits.numpy()
    np.testing.assert_allclose(predictor.logits(PAIRS), expected, atol=1e-5)
    assert [own["score"] for own in predictor.predict(PAIRS)] == pytest.approx(expected[:, 0].tolist(), abs=1e-5)


@pytest.mark.parametrize("format", ["onnx", "onnx-int8"])
def test_exports(folder, tmp_path, format, monkeypatch):
    """The export is compared with its student on pairs, and knows that it reads them."""
    compared = []
    measure = export_model.__globals__["measure_parity"]
    monkeypatch.setitem(
        export_model.__globals__, "measure_parity", lambda *args: compared.append(args[2]) or measure(*args)
    )
    export = export_model(folder, tmp_path / format, format, min_agreement=0)
    assert {question for question, _ in compared[0]} == set(QUESTIONS)
    assert json.loads((export.folder / "export.json").read_text())["reads_pairs"] is True
    exported = load_predictor(export.folder)
    assert exported.reads_pairs
    tolerance = 1e-4 if format == "onnx" else 0.05
    np.testing.assert_allclose(exported.logits(PAIRS), load_predictor(folder).logits(PAIRS), atol=tolerance)


def test_what_says_that_a_model_reads_pairs(tmp_path):
    model, tokenizer = tiny_student("bert", "sequence classification"), make_pair_tokenizer()
    assert not predictor_of(model, tokenizer, "texts").reads_pairs
    for record in ("sentence_transformers", "sbert_ce_default_activation_function"):  # a CrossEncoder
        model = tiny_student("bert", "sequence classification")
        setattr(model.config, record, {"activation_fn": "torch.nn.modules.linear.Identity"})
        assert predictor_of(model, tokenizer, "cross-encoder").reads_pairs
    model = make_classifier()
    delattr(model.config, READING)
    export = export_model(model, tmp_path / "onnx", "onnx", tokenizer=tokenizer, texts=PAIRS)  # the given texts do
    assert load_predictor(export.folder).reads_pairs
    question_answering = tiny_student("bert", "question answering")
    assert predictor_of(question_answering, tokenizer, "answers").reads_pairs


@pytest.mark.parametrize("activation", ["torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"])
def test_a_cross_encoder_with_a_file_of_its_own(tmp_path, activation):
    """As of sentence-transformers 6. Scores are those of its `predict`."""
    model = tiny_student("bert", "sequence classification", id2label={0: "LABEL_0"})
    model.save_pretrained(tmp_path / "reranker")
    make_pair_tokenizer().save_pretrained(tmp_path / "reranker")
    noted = {"model_type": "CrossEncoder", "activation_fn": activation}
    (tmp_path / "reranker" / "config_sentence_transformers.json").write_text(json.dumps(noted))
    predictor = load_predictor(tmp_path / "reranker")
    assert predictor.reads_pairs
    logit = predictor.logits(PAIRS[:1]).item()
    expected = 1 / (1 + np.exp(-logit)) if "Sigmoid" in activation else logit
    assert predictor.predict(PAIRS[:1])[0]["score"] == pytest.approx(expected)


def test_one_text_in_place_of_a_pair():
    predictor = predictor_of(make_classifier(), make_pair_tokenizer(), "reranker")
    with pytest.raises(ValueError, match="Text 1 must be a pair of texts, because reranker reads pairs"):
        predictor.predict([("w5", "w6"), "w5 w6"])
    for pair in (("w5", " "), ("", "w5")):
        with pytest.raises(ValueError, match="Text 0 is empty"):
            predictor.predict([pair])


def test_latency_is_measured_on_pairs():
    predictor = predictor_of(make_classifier(), make_pair_tokenizer(), "reranker")
    assert exact_input(predictor, PAIRS, 30, "reranker")["input_ids"].shape == (1, 30)
