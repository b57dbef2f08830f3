"""What teacher and student must have in common, and how a teacher is loaded."""

import copy

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hf_distill import make_student
from hf_distill.training.teacher import Teacher, check_alignment, check_tokenizers, load_teacher
from tests.conftest import collate, make_model, make_rows

NAMES = {0: "negative", 1: "neutral", 2: "positive"}


def classifier(id2label, **options):
    return make_model(
        "bert", "classification", id2label=id2label, label2id={v: k for k, v in id2label.items()}, **options
    )


def make_tokenizer(words):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, "a")))


def test_labels_in_another_order_are_permuted():
    student = classifier(NAMES)
    teacher = classifier({0: "positive", 1: "negative", 2: "neutral"}, seed=1)
    inputs = collate(make_rows("classification"))
    inputs.pop("labels")
    expected = teacher(**inputs).logits
    logits = Teacher(teacher, student)(inputs, torch.ones(16)).logits(slice(None))
    for index, name in NAMES.items():
        assert torch.equal(logits[:, index], expected[:, teacher.config.label2id[name]])


def test_labels_with_other_names():
    with pytest.raises(ValueError, match=r"\['negative', 'neutral', 'positive'\].*\['bad', 'so so', 'good'\]"):
        check_alignment(classifier(NAMES), classifier({0: "bad", 1: "so so", 2: "good"}))


def test_fewer_labels():
    with pytest.raises(ValueError, match="have to be the same"):
        check_alignment(classifier(NAMES), classifier({0: "negative", 1: "positive"}))


def test_default_names_are_matched_by_index_with_a_warning(caplog, monkeypatch):
    from hf_distill.training import teacher

    warnings = []
    monkeypatch.setattr(teacher.logger, "warning", warnings.append)
    assert check_alignment(classifier(NAMES), make_model("bert", "classification", num_labels=3)) is None
    assert len(warnings) == 1
    assert "matched by index" in warnings[0]


def test_default_names_of_another_number():
    with pytest.raises(ValueError, match="have to be the same"):
        check_alignment(classifier(NAMES), make_model("bert", "classification", num_labels=2))


@pytest.mark.parametrize("options", [{"num_labels": 1}, {"problem_type": "multi_label_classification"}])
def test_problem_types_that_are_not_distilled(options):
    with pytest.raises(ValueError, match="one label per sequence"):
        check_alignment(
            make_model("bert", "classification", **options), make_model("bert", "classification", **options)
        )


def test_vocabularies_of_other_size(family, head):
    student, teacher = make_model(family, head), make_model(family, head)
    teacher.resize_token_embeddings(70)
    with pytest.raises(ValueError, match="has 61 entries and the teacher's 70"):
        check_alignment(student, teacher)


def test_other_heads():
    with pytest.raises(ValueError, match="load both with AutoModelForSequenceClassification"):
        check_alignment(make_model("bert", "classification"), make_model("bert", "mlm"))


@pytest.mark.parametrize("teacher", [None, 7, torch.nn.Linear(2, 2), {"logits": 1}])
def test_not_a_model(teacher):
    with pytest.raises(TypeError, match="teacher_model should be a transformers model or its name"):
        Teacher(teacher, make_model("bert", "mlm"))


def test_shared_parameters():
    teacher = make_model("bert", "mlm")
    with pytest.raises(ValueError, match=r"share .* parameters, bert.embeddings.word_embeddings.weight among them"):
        Teacher(teacher, teacher)
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    student = make_student(teacher)
    student.bert.embeddings = teacher.bert.embeddings
    with pytest.raises(ValueError, match=r"share 5 parameters.*copy.deepcopy\(teacher\)"):
        Teacher(teacher, student)
    Teacher(copy.deepcopy(teacher), student)


def test_reads_in_evaluation_mode_without_gradients(family, head):
    student, teacher = make_model(family, head), make_model(family, head, dropout=0.5)
    read = Teacher(teacher.train(), student)
    inputs = collate(make_rows(head))
    positions = inputs.pop("labels").ne(-100)
    first, second = (read(inputs, positions) for _ in range(2))
    assert torch.equal(first.logits(slice(None)), second.logits(slice(None)))
    assert not teacher.training
    assert not first.last_hidden_state.requires_grad
    assert not first.logits(slice(None)).requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_load(tmp_path, family, head):
    teacher = make_model(family, head, dtype="float32")
    teacher.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = load_teacher(str(tmp_path), make_model(family, head), tokenizer=None)
    assert type(loaded) is type(teacher)
    assert loaded.dtype == torch.bfloat16  # as it is stored
    assert load_teacher(str(tmp_path), make_model(family, head), None, torch.float32).dtype == torch.float32
    for name, weight in teacher.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


def test_load_a_teacher_without_a_trained_head(tmp_path):
    make_model("bert", "mlm").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no weights for .*classifier.weight.*fine-tune it first"):
        load_teacher(str(tmp_path), make_model("bert", "classification"), tokenizer=None)


def test_load_refuses_pickle(tmp_path):
    teacher = make_model("bert", "mlm")
    teacher.config.save_pretrained(tmp_path)
    torch.save(teacher.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_teacher(str(tmp_path), make_model("bert", "mlm"), tokenizer=None)


def test_tokenizers_that_differ(tmp_path):
    make_model("bert", "mlm").save_pretrained(tmp_path)
    make_tokenizer(["a", "b", "d"]).save_pretrained(tmp_path)
    load_teacher(str(tmp_path), make_model("bert", "mlm"), make_tokenizer(["a", "b", "d"]))
    with pytest.raises(ValueError, match=r"differ in 2 words, such as 'b' \(id 2 and 1\)"):
        load_teacher(str(tmp_path), make_model("bert", "mlm"), make_tokenizer(["a", "d", "b"]))
    with pytest.raises(ValueError, match=r"differ in 1 words, such as 'c' \(id 3 and None\)"):
        check_tokenizers(make_tokenizer("abdc"), make_tokenizer("abd"), "teacher")
