"""Long contexts in windows: the same answers from the model, by hand, and from exports."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_distill import export_model, load_predictor
from hf_distill.answers import best_answers
from hf_distill.data.question_tokens import encode_questions
from hf_distill.data.questions import FEATURES
from hf_distill.deployment.parity_texts import with_questions
from hf_distill.deployment.predictor import predictor_of
from hf_distill.deployment.text_encoder import windows_of
from hf_distill.evaluation.benchmark import exact_input
from tests.question_answering import answering_student, make_question_rows, make_question_tokenizer

READING = {"stride": 5, "unanswerable": True, "no_answer_threshold": -7.5, "max_answer_tokens": 8}


def pairs_of(rows):
    return [(row["question"], row["context"]) for row in rows]


def near(answers):
    return [{**own, "score": pytest.approx(own["score"], abs=1e-4)} for own in answers]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answering")
    answering_student(**READING).save_pretrained(folder / "student")
    make_question_tokenizer().save_pretrained(folder / "student")
    texts = pairs_of(make_question_rows(6, 60, 3))
    for format in ("onnx", "onnx-int8"):
        export_model(folder / "student", folder / format, format, texts=texts, min_agreement=0.5)
    return folder


def test_the_model_reads_the_rows_of_training():
    """The same tokens; and the same answers, when each window is run alone and without padding."""
    student, tokenizer, rows = answering_student(**READING), make_question_tokenizer(), make_question_rows(12)
    predictor = predictor_of(student, tokenizer, "student")
    encodings = predictor.encoder.encode(pairs_of(rows))
    encoded = encode_questions(Dataset.from_list(rows, FEATURES), tokenizer, 20, 5)
    assert [window.ids for window in windows_of(encodings)] == encoded["input_ids"][:]
    assert max(len(own.windows) for own in encodings) > 3
    expected = []
    for own, (_, context) in zip(encodings, pairs_of(rows), strict=True):
        logits = []
        for window in own.windows:
            inputs = torch.tensor([window.ids]), torch.ones(1, len(window.ids)), torch.tensor([window.type_ids])
            with torch.no_grad():
                output = student(*inputs)
            logits.append(np.stack([output.start_logits[0].numpy(), output.end_logits[0].numpy()]))
        expected += best_answers(own.windows, *np.concatenate(logits, axis=1), context, 8, -7.5)
    answers = predictor.predict(pairs_of(rows))
    assert answers == near(expected)
    assert {answer["answer"] == "" for answer in answers} == {True, False}
    for answer, (_, context) in zip(answers, pairs_of(rows), strict=True):
        assert answer["answer"] == context[answer["start"] : answer["end"]]


def test_without_a_record_every_question_has_an_answer():
    predictor = predictor_of(answering_student(), make_question_tokenizer(), "student")
    pairs = pairs_of(make_question_rows(12))
    assert predictor.encoder.stride == 5  # a quarter of a window
    assert all(own["answer"] for own in predictor.predict(pairs))
    some = predictor.predict(pairs, top_k=3)
    assert [own[0] for own in some] == near(predictor.predict(pairs))
    assert all(len(own) <= 3 for own in some)


def test_exports(folders):
    pairs = pairs_of(make_question_rows(12))
    expected = load_predictor(folders / "student").predict(pairs, top_k=4)
    predictor = load_predictor(folders / "onnx")
    assert [near(own) for own in expected] == predictor.predict(pairs, top_k=4)
    manifest = json.loads((folders / "onnx" / "export.json").read_text())
    known = {name: manifest[name] for name in ("truncation", "stride", "max_answer_tokens", "no_answer_threshold")}
    assert known == {"truncation": "context", "stride": 5, "max_answer_tokens": 8, "no_answer_threshold": -7.5}
    assert manifest["parity"]["decisions"] > 2 * manifest["parity"]["texts"]  # windows count one by one
    int8 = load_predictor(folders / "onnx-int8").predict(pairs)
    same = [own["answer"] == best[0]["answer"] for own, best in zip(int8, expected, strict=True)]
    assert np.mean(same) >= 0.5


def test_an_export_compared_on_texts(folders, tmp_path):
    """Each text gets a question."""
    export = export_model(folders / "student", tmp_path / "onnx", "onnx", texts=["w5 w6", "w7 " * 40])
    assert export.parity.agreement == 1.0


def test_exports_of_earlier_versions(folders, tmp_path):
    """Their manifests have no stride: they truncate a long context, and every question has an answer."""
    old = tmp_path / "old"
    old.mkdir()
    for file in (folders / "onnx").iterdir():
        (old / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((old / "export.json").read_text())
    for name in ("truncation", "stride", "max_answer_tokens", "no_answer_threshold"):
        del manifest[name]
    (old / "export.json").write_text(json.dumps(manifest))
    (answer,) = load_predictor(old).predict([("w5", "w6 w7 " * 30)])
    assert 0 < answer["end"] <= len("w6 w7 " * 8)


def test_bad_inputs():
    predictor = predictor_of(answering_student(), make_question_tokenizer(), "student")
    with pytest.raises(ValueError, match=r"Text 1 cannot be read. The question takes 16 of 20 tokens .* shorten the"):
        predictor.predict([("w5", "w6"), ("w5 " * 13, "w6 " * 30)])
    assert predictor.predict([("w5 " * 12, "w6 w7")])[0]["answer"]  # it fits
    with pytest.raises(ValueError, match="Text 0 is empty"):
        predictor.predict([("w5", " ")])
    with pytest.raises(ValueError, match="Text 0 must be a pair of texts, because student reads pairs"):
        predictor.predict(["w5"])


def test_inputs_of_a_benchmark():
    """Texts get a question. Inputs of an exact length are one text, as the windows of a context have their own."""
    predictor = predictor_of(answering_student(), make_question_tokenizer(), "student")
    pairs = with_questions(["w5", ("w6", "w7")])
    assert pairs == [("Who is speaking?", "w5"), ("w6", "w7")]
    assert exact_input(predictor, pairs, 12, "student")["input_ids"].shape == (1, 12)
