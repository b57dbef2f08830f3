"""`hf-distill train --task embedding`: the same vectors in training, evaluation, sentence-transformers and exports."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from hf_distill import (
    TASKS,
    DistillationTrainingArguments,
    EmbeddingArguments,
    evaluate_model,
    export_model,
    train_model,
)
from hf_distill.cli import main
from hf_distill.embedding import EmbeddingModel
from tests.conftest import make_texts
from tests.embedding.models import encode, library, make_embedding_model, make_transformer_folder

TEXTS = make_texts(40)
OPTIONS = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": 3}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a teacher and data, as the working directory."""
    monkeypatch.chdir(tmp_path)
    make_embedding_model(dense=6).save_pretrained("teacher")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    scored = [
        {"text": a, "text_pair": b, "score": n % 5}
        for n, (a, b) in enumerate(zip(TEXTS[:12], TEXTS[12:24], strict=True))
    ]
    (tmp_path / "sts.jsonl").write_text("\n".join(map(json.dumps, scored)))
    searched = [{"query": a, "positive": b} for a, b in zip(TEXTS[:12], TEXTS[12:24], strict=True)]
    (tmp_path / "search.jsonl").write_text("\n".join(map(json.dumps, searched)))
    return tmp_path


def train(training=None, **options):
    args = EmbeddingArguments(**{"train_file": "texts.txt", **options})
    teacher = {} if "teacher_model_name_or_path" in (training or {}) else {"teacher_model_name_or_path": "teacher"}
    return train_model(args, DistillationTrainingArguments("student", **OPTIONS, **teacher, **(training or {})))


def cosines(vectors):
    first, second = vectors[:12], vectors[12:]
    return torch.cosine_similarity(first, second).numpy()


def test_from_texts_to_an_export(here):
    trainer = train(validation_file="sts.jsonl", test_file="search.jsonl")
    assert trainer.losses.keys() == {"embedding"}
    assert {"test_ndcg@10", "test_mrr@10", "test_recall@10"} <= json.loads(
        (here / "student" / "test_results.json").read_text()
    ).keys()
    student = library.SentenceTransformer("student", device="cpu")
    assert student[0].model.config.num_hidden_layers == 2
    pairs = [json.loads(line) for line in (here / "sts.jsonl").read_text().splitlines()]
    texts = [row["text"] for row in pairs] + [row["text_pair"] for row in pairs]
    vectors = encode(student, texts)
    expected = spearmanr(cosines(vectors), [row["score"] for row in pairs]).statistic
    trained = json.loads((here / "student" / "eval_results.json").read_text())
    assert trained["eval_spearman_cosine"] == pytest.approx(expected, abs=1e-6)

    export_model("student", "export", format="onnx")
    teacher = encode(library.SentenceTransformer("teacher", device="cpu"), texts)
    for model in ("student", "export"):
        metrics = evaluate_model(model, "sts.jsonl", teacher="teacher")
        assert metrics["spearman_cosine"] == pytest.approx(expected, abs=1e-6)
        agreement = torch.cosine_similarity(vectors, teacher).mean().item()
        assert metrics["cosine_to_teacher"] == pytest.approx(agreement, abs=1e-5)
        assert evaluate_model(model, "texts.txt", teacher="teacher")["rows"] == 40


def test_stored_and_live_teacher_train_alike(here):
    losses = []
    for store in (True, False):
        trainer = train(store_teacher_targets=store, overwrite=True)
        losses.append(trainer.state.log_history[-1]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_teacher_with_another_tokenizer(here):
    from tests.data.pair_tokenizer import make_pair_tokenizer

    teacher = make_embedding_model(dense=6, seed=5)
    teacher.tokenizer = make_pair_tokenizer()
    teacher.save_pretrained("other")
    make_embedding_model(dense=6, num_layers=2).save_pretrained("small")
    trainer = train({"teacher_model_name_or_path": "other"}, model_name_or_path="small")
    stored = np.array(trainer.train_dataset["teacher_embeddings"][:4])
    saved = library.SentenceTransformer("other", device="cpu")
    np.testing.assert_allclose(stored, encode(saved, TEXTS[:4]).numpy(), atol=1e-3)


def test_prompts_are_read_and_saved(here):
    train(query_prompt="w9 w9 ", document_prompt="w8 ")
    saved = library.SentenceTransformer("student", device="cpu")
    assert saved.prompts == {"query": "w9 w9 ", "document": "w8 "}
    pairs = [json.loads(line) for line in (here / "search.jsonl").read_text().splitlines()]
    queries, documents = (encode(saved, [own[name] for own in pairs]) for name in ("query", "positive"))
    plain = (queries @ documents.T).diagonal()
    prompted = (
        saved.encode_query([own["query"] for own in pairs])
        @ saved.encode_document([own["positive"] for own in pairs]).T
    )
    assert not np.allclose(plain, prompted.diagonal(), atol=1e-3)
    ranks = [(row > row[index]).sum() + 1 for index, row in enumerate(prompted)]
    expected = np.mean([1 / rank if rank <= 10 else 0.0 for rank in ranks])
    assert evaluate_model("student", "search.jsonl")["mrr@10"] == pytest.approx(expected)


def test_named_pooling(here):
    make_transformer_folder(here / "plain", num_layers=2)
    trainer = train({"alpha_embedding": 1.0, "project_embeddings": True}, model_name_or_path="plain", pooling="cls")
    assert trainer.model.head[0].pooling_mode == "cls"
    assert EmbeddingModel.from_pretrained("student").embedding_width == 16
    with pytest.raises(ValueError, match="name the pooling that it was trained with"):
        train({"alpha_embedding": 1.0, "project_embeddings": True}, model_name_or_path="plain", overwrite=True)
    with pytest.raises(ValueError, match="pooling='cls' has no effect on a student that is cut"):
        EmbeddingArguments(train_file="texts.txt", pooling="cls")


def test_given_weights_are_kept(here):
    trainer = train({"alpha_similarity": 2.0})
    assert trainer.loss_weights["similarity"] == 2.0
    assert trainer.losses.keys() == {"similarity"}
    both = train({"alpha_kl": 0.0, "alpha_task": 0.0, "alpha_embedding": 1.0}, overwrite=True)
    assert both.losses.keys() == {"cos", "embedding"}


def test_validation_share(here):
    assert len(train(validation_share=0.25).eval_dataset) == 10
    pairs = TASKS["embedding"].load("sts.jsonl", TASKS["embedding"].reading_defaults(), None)[0]
    parts = TASKS["embedding"].hold_out(pairs, 0.25, 0)
    assert [len(parts["train"]), len(parts["test"])] == [len(pairs) - 2 * (len(pairs) // 8), 2 * (len(pairs) // 8)]
    for part in parts.values():
        half = len(part) // 2
        assert part["role"][:] == ["first"] * half + ["second"] * half
        assert part["partners"][half:] == [[number] for number in range(half)]
        known = {(pairs[row]["text"], pairs[row + len(pairs) // 2]["text"]) for row in range(len(pairs) // 2)}
        assert {*zip(part["text"][:half], part["text"][half:], strict=True)} <= known
    with pytest.raises(ValueError, match="cannot split queries and documents"):
        train(train_file="search.jsonl", validation_share=0.25, overwrite=True)


def test_without_a_teacher(here):
    with pytest.raises(ValueError, match="alpha_embedding"):
        train_model(
            EmbeddingArguments(train_file="texts.txt", model_name_or_path="teacher"),
            DistillationTrainingArguments("student", **OPTIONS),
        )


def test_command(here, capsys):
    words = "train --task embedding --teacher_model_name_or_path teacher --train_file texts.txt --output_dir student"
    assert main([*words.split(), "--use_cpu", "true", "--max_steps", "1", "--report_to", "none"]) == 0
    assert main(["evaluate", "student", "--data", "sts.jsonl", "--teacher", "teacher", "--task", "embedding"]) == 0
    assert "overlap@10" in capsys.readouterr().out
