"""What teacher and student must have in common, and how a teacher is loaded."""

import copy

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hf_distill import make_student
from hf_distill.training.scoring.find_head import find_head
from hf_distill.training.teacher.live import Teacher, check_tokenizers, fingerprint
from hf_distill.training.teacher.loading import load_teacher
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
    scored = find_head(student).score(inputs)
    inputs.pop("labels")
    expected = teacher(**inputs).logits
    logits = Teacher(teacher, student)(inputs, scored).logits(slice(None))
    for index, name in NAMES.items():
        assert torch.equal(logits[:, index], expected[:, teacher.config.label2id[name]])


def test_padded_vocabularies_are_cut(family):
    """Vocabulary entries beyond the tokenizer's are not words. Their logits are left out."""
    student, teacher = make_model(family, "mlm"), make_model(family, "mlm", seed=1)
    teacher.resize_token_embeddings(70)
    inputs = collate(make_rows("mlm"))
    scored = find_head(student).score(inputs)
    inputs.pop("labels")
    logits = Teacher(teacher, student, make_tokenizer([str(i) for i in range(60)]))(inputs, scored).logits(slice(None))
    torch.testing.assert_close(logits, teacher(**inputs).logits[scored.positions][:, :61])


@pytest.mark.parametrize("teacher", [None, 7, torch.nn.Linear(2, 2), {"logits": 1}])
def test_not_a_model(teacher):
    with pytest.raises(TypeError, match="teacher_model should be a transformers model or its name"):
        Teacher(teacher, make_model("bert", "mlm"))


def test_shared_parameters():
    teacher = make_model("bert", "mlm")
    with pytest.raises(ValueError, match=r"share .* parameters, such as bert.embeddings.word_embeddings.weight"):
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
    scored = find_head(student).score(inputs)
    inputs.pop("labels")
    first, second = (read(inputs, scored) for _ in range(2))
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
    with pytest.raises(ValueError, match=r"differ in 2 tokens, such as 'b' \(id 2 and 1\)"):
        load_teacher(str(tmp_path), make_model("bert", "mlm"), make_tokenizer(["a", "d", "b"]))
    with pytest.raises(ValueError, match=r"differ in 1 tokens, such as 'c' \(id 3 and None\)"):
        check_tokenizers(make_tokenizer("abdc"), make_tokenizer("abd"), "teacher")


def test_fingerprint():
    teacher = make_model("bert", "mlm")
    others = make_student(teacher), make_model("bert", "mlm", seed=1), make_model("roberta", "mlm")
    first, copied, *different = (fingerprint(m.named_parameters()) for m in (teacher, copy.deepcopy(teacher), *others))
    assert first == copied
    assert len({first, *different}) == 4
