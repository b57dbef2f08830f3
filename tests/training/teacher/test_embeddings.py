"""Stored vectors teach what live ones teach, to their precision; imported ones are read row by row."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_distill import add_teacher_targets, import_teacher_targets, join_teacher_targets, make_student
from tests.conftest import make_model, make_texts
from tests.embedding.models import TEXTS, encode, make_embedding_model, make_sentence_transformer

ON = {"alpha_kl": 0, "alpha_task": 0, "alpha_cos": 0, "alpha_embedding": 1.0, "alpha_similarity": 1.0}


def encoded(tokenizer, texts):
    return Dataset.from_dict({"text": list(texts), **tokenizer(list(texts), truncation=True)})


def step(make_trainer, student, teacher, rows):
    trainer = make_trainer(
        student, teacher, rows, None, None, {"processing_class": student.tokenizer}, max_steps=1, **ON
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    return [logged[name] for name in ("loss_embedding", "loss_similarity", "grad_norm")]


@pytest.mark.parametrize(("dtype", "precision"), [("float32", 1e-6), ("float16", 2e-3), ("int8", 2e-2), (None, 2e-3)])
def test_stored_equals_live(make_trainer, tmp_path, dtype, precision):
    teacher = make_embedding_model()
    rows = encoded(teacher.tokenizer, TEXTS)
    stored = add_teacher_targets(rows, teacher, teacher.tokenizer, embedding_dtype=dtype, output_dir=tmp_path / "t")
    expected = step(make_trainer, make_student(teacher, 2), teacher, rows)
    found = step(make_trainer, make_student(teacher, 2), None, stored)
    assert found == pytest.approx(expected, rel=precision)
    values = np.array(stored["teacher_embeddings"][:], dtype=np.float32)
    if dtype == "int8":
        values = values * np.array(stored["teacher_embedding_scale"][:])
    np.testing.assert_allclose(values, encode(teacher).numpy(), atol=precision / 2)
    assert stored.features["teacher_embeddings"].feature.dtype == (dtype or "float16")


def test_int8_rounds_by_half_a_step(tmp_path):
    teacher = make_embedding_model(normalize=False)
    rows = encoded(teacher.tokenizer, TEXTS)
    stored = add_teacher_targets(rows, teacher, teacher.tokenizer, embedding_dtype="int8", output_dir=tmp_path / "t")
    steps = np.array(stored["teacher_embedding_scale"][:])
    expected = encode(teacher).numpy()
    np.testing.assert_allclose(steps[:, 0], np.abs(expected).max(1) / 127, rtol=1e-5)
    error = np.abs(np.array(stored["teacher_embeddings"][:]) * steps - expected)
    assert (error <= steps * 0.501).all()


def test_teacher_with_another_tokenizer_reads_texts(tmp_path):
    """A `SentenceTransformer` is taken as it is."""
    teacher = make_sentence_transformer(seed=3)
    rows = Dataset.from_dict({"text": TEXTS})
    stored = add_teacher_targets(rows, teacher, teacher.tokenizer, text_columns="text", output_dir=tmp_path / "t")
    np.testing.assert_allclose(np.array(stored["teacher_embeddings"][:]), encode(teacher).numpy(), atol=1e-3)


def test_options_have_targets_of_their_own(tmp_path):
    teacher = make_embedding_model()
    rows = encoded(teacher.tokenizer, TEXTS)
    add_teacher_targets(rows, teacher, teacher.tokenizer, output_dir=tmp_path / "t")
    with pytest.raises(ValueError, match="embedding_dtype"):
        add_teacher_targets(rows, teacher, teacher.tokenizer, embedding_dtype="int8", output_dir=tmp_path / "t")


def test_imported_vectors(make_trainer):
    """An API's answers as a column, here as wide as the student's vectors."""
    student = make_embedding_model(num_layers=2)
    answers = np.random.default_rng(0).normal(size=(len(TEXTS), 16))
    rows = encoded(student.tokenizer, TEXTS).add_column("answer", answers.tolist())
    rows = import_teacher_targets(rows, format="embeddings", teacher="an API", column="answer", embedding_dtype="int8")
    own = encode(student).double()
    expected = (1 - torch.cosine_similarity(own, torch.tensor(answers))).mean().item()
    assert step(make_trainer, student, None, rows)[0] == pytest.approx(expected, abs=1e-3)


def test_imported_vectors_of_another_width(make_trainer):
    student = make_embedding_model(num_layers=2)
    rows = encoded(student.tokenizer, TEXTS)
    rows = import_teacher_targets(rows, [[1.0, 2.0]] * len(TEXTS), format="embeddings", teacher="an API")
    with pytest.raises(ValueError, match="vectors are 16 wide and the teacher's 2: set project_embeddings=True"):
        make_trainer(student, None, rows, **ON)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([[1.0, 2.0], [1.0]], "Row 1 has a vector of the shape \\[1\\], and the first one has 2 numbers"),
        ([[1.0, 2.0], [0.0, 0.0]], "Row 1 has a vector that is 0 or not finite"),
        ([[1.0, 2.0], [1.0, float("nan")]], "Row 1 has a vector that is 0 or not finite"),
        ([[1.0, 2.0], "good"], "Row 1 has 'good', not a list of numbers"),
    ],
)
def test_imported_vectors_are_checked(answers, message):
    rows = Dataset.from_dict({"text": make_texts(2)})
    with pytest.raises(ValueError, match=message):
        import_teacher_targets(rows, answers, format="embeddings", teacher="an API")


def test_errors(tmp_path):
    teacher = make_embedding_model()
    rows = encoded(teacher.tokenizer, TEXTS)
    with pytest.raises(ValueError, match="embedding_dtype='int4' should be one of 'float32', 'float16', 'int8'"):
        add_teacher_targets(rows, teacher, teacher.tokenizer, embedding_dtype="int4")
    with pytest.raises(ValueError, match="leave hidden_states out"):
        add_teacher_targets(rows, teacher, teacher.tokenizer, hidden_states=True)
    classifier = make_model("bert", "classification")
    with pytest.raises(ValueError, match="embedding_dtype='int8' would have no effect for a BertForSequence"):
        add_teacher_targets(rows, classifier, teacher.tokenizer, embedding_dtype="int8")
    with pytest.raises(ValueError, match="embedding_dtype would have no effect with format='logits'"):
        import_teacher_targets(
            rows, [[0.0, 1.0]] * 12, format="logits", teacher="t", labels=["a", "b"], embedding_dtype="int8"
        )
    stored = [
        add_teacher_targets(rows, own, teacher.tokenizer, output_dir=tmp_path / str(index))
        for index, own in enumerate((teacher, make_embedding_model(seed=1)))
    ]
    with pytest.raises(ValueError, match="Vectors of different models cannot be averaged"):
        join_teacher_targets(stored)
