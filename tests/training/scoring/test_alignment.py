"""What the outputs of student and teacher must have in common."""

import pytest

from hf_distill.training.scoring import alignment
from hf_distill.training.scoring.alignment import check_alignment, head_spec
from tests.conftest import make_model
from tests.training.teacher.test_live import NAMES, classifier, make_tokenizer


def check(student, teacher, tokenizer=None):
    return check_alignment(head_spec(student), head_spec(teacher), tokenizer)


def test_labels_with_other_names():
    with pytest.raises(ValueError, match=r"\['negative', 'neutral', 'positive'\].*\['bad', 'so so', 'good'\]"):
        check(classifier(NAMES), classifier({0: "bad", 1: "so so", 2: "good"}))


def test_fewer_labels():
    with pytest.raises(ValueError, match="must be the same"):
        check(classifier(NAMES), classifier({0: "negative", 1: "positive"}))


def test_default_names_are_matched_by_index_with_a_warning(monkeypatch):
    warnings = []
    monkeypatch.setattr(alignment.logger, "warning", warnings.append)
    assert check(classifier(NAMES), make_model("bert", "classification", num_labels=3)) is None
    assert len(warnings) == 1
    assert "matched by index" in warnings[0]


def test_default_names_of_another_number():
    with pytest.raises(ValueError, match="must be the same"):
        check(classifier(NAMES), make_model("bert", "classification", num_labels=2))


def test_labels_of_tokens_are_permuted_too():
    names = {0: "O", 1: "PER", 2: "LOC"}
    student, teacher = (
        make_model(
            "bert", "token_classification", num_labels=3, id2label=labels, label2id={v: k for k, v in labels.items()}
        )
        for labels in (names, {0: "LOC", 1: "O", 2: "PER"})
    )
    assert check(student, teacher) == [1, 2, 0]


def test_problem_types_that_differ():
    student, teacher = (
        make_model("bert", "classification", num_labels=3, problem_type=problem_type)
        for problem_type in (None, "multi_label_classification")
    )
    with pytest.raises(ValueError, match=r"problem_type=None, the teacher .*set the same values in both"):
        check(student, teacher)


def test_a_single_output_may_be_a_relevance(monkeypatch):
    """Many rerankers do not say whether it is a relevance or a number, and name it as they like."""
    monkeypatch.setattr(alignment.logger, "warning", lambda message: pytest.fail(message))

    def reranker(problem_type, name):
        return make_model("bert", "classification", num_labels=1, problem_type=problem_type, id2label={0: name})

    student = reranker("multi_label_classification", "relevance")
    for teacher in (reranker(None, "LABEL_0"), reranker("multi_label_classification", "score")):
        assert check(student, teacher) is None
    with pytest.raises(ValueError, match="problem_type='regression': set the same values in both"):
        check(student, reranker("regression", "relevance"))


def test_vocabularies_of_other_size(family):
    student, teacher = make_model(family, "mlm"), make_model(family, "mlm")
    teacher.resize_token_embeddings(70)
    with pytest.raises(ValueError, match=r"has 61 entries and the teacher's 70.*pass the tokenizer"):
        check(student, teacher)
    with pytest.raises(ValueError, match="given as processing_class has 64 entries"):
        check(student, teacher, make_tokenizer([str(i) for i in range(64)]))


def test_vocabulary_of_what_does_not_read_words():
    """Speech models have a vocabulary size for a head that they do not have."""
    student, teacher = make_model("wav2vec2", "audio"), make_model("wav2vec2", "audio", seed=1, vocab_size=40)
    assert check(student, teacher) is None


def test_decoders_that_start_otherwise():
    student, teacher = make_model("bart", "seq2seq"), make_model("bart", "seq2seq", decoder_start_token_id=1)
    with pytest.raises(ValueError, match="starts with token 2 and the teacher's with 1"):
        check(student, teacher)


def test_other_heads():
    with pytest.raises(ValueError, match="load both with AutoModelForSequenceClassification"):
        check(make_model("bert", "classification"), make_model("bert", "mlm"))
