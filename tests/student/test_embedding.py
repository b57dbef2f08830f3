"""Students of embedding models: the transformer is cut, the other modules are kept."""

import pytest
import torch

from hf_distill import make_student, trim_vocabulary
from hf_distill.cli import main
from hf_distill.embedding import EmbeddingModel
from tests.embedding.models import (
    TEXTS,
    encode,
    library,
    make_embedding_model,
    make_sentence_transformer,
    models,
    tokenized,
)

CUTS = [
    {"num_layers": 2},
    {"layers": [0, 3]},
    {"intermediate_size": 16},
    {"hidden_size": 8, "num_attention_heads": 1},
    {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 1},
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("dense", [None, 6])
def test_cut_in_every_direction(cut, dense, tmp_path):
    teacher = make_sentence_transformer(dense=dense)
    before = encode(teacher)
    student = make_student(teacher, **cut)
    assert torch.equal(encode(teacher), before)
    assert student.embedding_width == (dense or cut.get("hidden_size", 16))
    assert student.settings["prompts"]["query"] == "w5 w6 "
    assert student.max_length == 24
    transformer = make_student(teacher[0].model, **cut)
    with torch.no_grad():
        hidden = transformer(**tokenized(student)).last_hidden_state
        torch.testing.assert_close(student(**tokenized(student)).last_hidden_state, hidden)
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(encode(library.SentenceTransformer(str(tmp_path), device="cpu")), encode(student))


@pytest.mark.parametrize("pooling", ["mean", ("cls", "max")])
def test_dense_module_reads_the_units_that_stay(pooling):
    """The student's vectors are those of the teacher's Dense if the units that were cut are 0."""
    teacher = make_embedding_model(dense=6, pooling=pooling, normalize=False)
    student = make_student(teacher, hidden_size=8, num_attention_heads=1)
    words = "embeddings.word_embeddings.weight"
    own, other = (model.transformer.get_parameter(words) for model in (student, teacher))
    kept = [index for column in own.T for index in range(16) if torch.equal(column, other[:, index])]
    assert len(kept) == 8
    inputs = tokenized(student)
    with torch.no_grad():
        hidden = student(**inputs).last_hidden_state
        whole = torch.zeros(*hidden.shape[:2], 16)
        whole[..., kept] = hidden
        features = {"token_embeddings": whole, "attention_mask": inputs["attention_mask"]}
        for module in teacher.head:
            features = module(features)
        torch.testing.assert_close(student(**inputs).embeddings, features["sentence_embedding"])


def test_dense_module_with_a_residual():
    teacher = make_sentence_transformer()
    teacher.add_module("3", models.Dense(16, 16, use_residual=True))
    with pytest.raises(ValueError, match="give num_layers or intermediate_size instead"):
        make_student(teacher, hidden_size=8, num_attention_heads=1)
    assert make_student(teacher, num_layers=2).embedding_width == 16


def test_trimmed_vocabulary(tmp_path):
    model = make_embedding_model()
    texts = [text for text in TEXTS if text]
    trimmed = trim_vocabulary(model, model.tokenizer, texts=texts[:4])
    assert len(trimmed.kept) < 61
    torch.testing.assert_close(encode(trimmed.model, texts[:4]), encode(model, texts[:4]))
    trimmed.model.save_pretrained(tmp_path)
    saved = library.SentenceTransformer(str(tmp_path), device="cpu")
    torch.testing.assert_close(encode(saved, texts[:4]), encode(model, texts[:4]))


def test_command_writes_a_sentence_transformer(tmp_path, capsys):
    make_embedding_model(dense=6).save_pretrained(tmp_path / "teacher")
    words = ["make-student", tmp_path / "teacher", "--output", tmp_path / "student", "--num-layers", 2]
    assert main([str(word) for word in words]) == 0
    student = EmbeddingModel.from_pretrained(tmp_path / "student")
    assert student.transformer.config.num_hidden_layers == 2
    assert student.max_length == 24
    torch.testing.assert_close(
        encode(library.SentenceTransformer(str(tmp_path / "student"), device="cpu")), encode(student)
    )
    assert "SentenceTransformer(" in (tmp_path / "student" / "README.md").read_text()
