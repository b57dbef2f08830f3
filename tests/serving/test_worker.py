"""Answers of a worker for each served head; errors of one text do not affect the other texts in a batch."""

import logging

import pytest

from hf_distill.deployment.predictor import predictor_of
from hf_distill.serving.model_info import SERVED_HEADS, model_info, revision_of, warm_up
from hf_distill.serving.predict import answers_of
from hf_distill.serving.worker import answer
from tests.conftest import make_text_tokenizer, make_texts
from tests.deployment.conftest import tiny_student
from tests.serving.conftest import save_student


def make_predictor(head="sequence classification", **options):
    return predictor_of(tiny_student("bert", head, **options), make_text_tokenizer(), "tiny")


def answered(predictor, texts, top_k=None):
    return answers_of(answer(predictor, texts, top_k or 1), top_k)


def test_sequence_classification():
    predictor = make_predictor(id2label={0: "bad", 1: "fair", 2: "good"})
    texts = make_texts(5)
    assert answered(predictor, texts) == predictor.predict(texts)
    expected = predictor.predict(texts, top_k=None)
    assert answered(predictor, texts, 100) == [{**scores[0], "scores": scores} for scores in expected]
    assert [len(own["scores"]) for own in answered(predictor, texts, 2)] == [2] * 5


def test_token_classification():
    predictor = make_predictor("token classification", id2label={0: "O", 1: "B-PER", 2: "I-PER", 3: "LOC"})
    texts = make_texts(5)
    expected = predictor.predict(texts)
    assert any(expected)  # random weights find something
    assert answered(predictor, texts) == answered(predictor, texts, 3) == [{"entities": own} for own in expected]
    predictor.reader.labels[:] = ["O"] * 4
    assert answered(predictor, ["w5 w6"]) == [{"entities": []}]


def test_masked_language_modelling():
    predictor = make_predictor("masked language modelling")
    expected = predictor.predict(["w5 [MASK] w7"], top_k=3)
    assert answered(predictor, ["w5 [MASK] w7"], 3) == [{**own[0], "scores": own} for own in expected]
    good, bad, empty = answer(predictor, ["[MASK]", "w5 w6", " "], 1)
    assert [own["label"] for own in good["scores"]] == [predictor.predict(["[MASK]"])[0]["label"]]
    assert bad["error"].startswith("Expected exactly one [MASK] within max_length tokens; found 0 in 'w5 w6'")
    assert empty["error"] == "is empty."


def test_pairs_arrive_as_lists():
    predictor = make_predictor("question answering")
    good, empty = answer(predictor, [["w5", "w6 w7 w8"], ["w5", " "]], 1)
    assert good["answers"] == predictor.predict([("w5", "w6 w7 w8")])
    assert empty["error"] == "is empty."


def test_tokens_and_truncation_are_told():
    whole, cut = answer(make_predictor(), ["w5 w6", "w5 " * 50], 1)
    assert (whole["tokens"], whole["truncated"]) == (4, False)
    assert (cut["tokens"], cut["truncated"]) == (38, True)


def test_a_model_that_fails_is_logged_without_the_text(monkeypatch, caplog):
    predictor, secret = make_predictor(), "w42"

    def fail(inputs):
        raise RuntimeError(f"{secret} is too much")

    monkeypatch.setattr(predictor, "backend", fail)
    with caplog.at_level(logging.ERROR):
        assert answer(predictor, [secret], 1) is None
    assert "1 texts failed with RuntimeError" in caplog.text
    assert secret not in caplog.text.replace('secret = make_predictor(), "w42"', "")


def test_warming_up_reads_texts_of_all_lengths(monkeypatch):
    predictor = make_predictor()
    lengths = []
    backend = predictor.backend

    def spy(inputs):
        lengths.append(inputs["input_ids"].shape[1])
        return backend(inputs)

    monkeypatch.setattr(predictor, "backend", spy)
    assert 0 < warm_up(predictor) < 1e7
    assert lengths == sorted(set(lengths))
    assert (lengths[0], lengths[-1]) == (3, 38)


def test_what_can_be_served(tmp_path):
    named = {0: "bad", 1: "good"}
    served = ", ".join(SERVED_HEADS)
    with pytest.raises(
        ValueError,
        match=f"m is for causal language modelling and cannot be served: serve a model for one of {served}",
    ):
        model_info(_gpt2(), "m")
    for head in SERVED_HEADS[:2]:
        with pytest.raises(ValueError, match="m has no class names, only LABEL_0, LABEL_1"):
            model_info(make_predictor(head), "m")
    for labels in ({0: "LABEL_0"}, named):  # a number needs no name
        predictor = make_predictor(id2label=labels)
        predictor.folder = save_student(tmp_path / str(len(labels)), id2label=labels)
        info = model_info(predictor, "me/m")
        assert info.name == "me/m"
        assert info.max_length == 38


def _gpt2():
    return predictor_of(tiny_student("gpt2", "causal language modelling"), make_text_tokenizer(), "tiny")


def test_revision(tmp_path):
    """The revision is the commit of a snapshot, also for an export in its subfolder; else a hash of the folder."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    for below in ("", "onnx-int8"):
        folder = tmp_path / "models--me--m" / "snapshots" / commit / below
        assert revision_of(folder) == commit

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"weights")
    revision = revision_of(folder)
    assert len(revision) == 12
    (folder / "README.md").write_text("no part of the model")
    assert revision_of(folder) == revision
    (folder / "model.onnx").write_bytes(b"weightz")
    assert revision_of(folder) != revision


def test_header_of_a_name_that_is_no_ascii(tmp_path):
    predictor = make_predictor(id2label={0: "bad", 1: "good"})
    predictor.folder = save_student(tmp_path / "Modell für Texte", id2label={0: "bad", 1: "good"})
    headers = model_info(predictor, str(predictor.folder)).headers()
    assert headers["x-model-name"] == "Modell%20f%C3%BCr%20Texte"
    assert headers["x-model-format"] == "pytorch"
