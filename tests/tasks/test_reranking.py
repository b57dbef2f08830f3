"""Rerankers from data to service, on tiny models and documents."""

import json
import random

import datasets
import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from hf_distill import (
    DistillationTrainingArguments,
    RerankingArguments,
    evaluate_model,
    export_model,
    load_predictor,
    load_rankings,
    ranking_metrics,
    train_model,
    write_report,
)
from hf_distill.evaluation import benchmark
from hf_distill.tasks.registry import TASKS
from tests.conftest import make_model
from tests.data.pair_tokenizer import make_pair_tokenizer
from tests.serving.running import RunningService

BAD, GOOD = range(5, 33), range(33, 61)
"""Words of documents that are relevant, and of documents that are not."""


def make_queries(num_queries, seed):
    generator = random.Random(seed)

    def text(words, most=12):
        return " ".join(f"w{word}" for word in generator.choices(words, k=generator.randint(1, most)))

    return [
        {"query": f"w{5 + n} w{6 + n}", "positive": [text(GOOD)], "negative": [text(BAD) for _ in range(3)]}
        for n in range(num_queries)
    ]


def write(file, rows):
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `train.jsonl`, `test.jsonl`, and `teacher`, a reranker that does not say its problem type."""
    folder = tmp_path_factory.mktemp("reranking")
    datasets.config.HF_DATASETS_CACHE, before = str(folder / "cache"), datasets.config.HF_DATASETS_CACHE
    write(folder / "train.jsonl", make_queries(40, 0))
    write(folder / "test.jsonl", make_queries(12, 1))
    make_model("bert", "classification", num_labels=1).save_pretrained(folder / "teacher")
    make_pair_tokenizer().save_pretrained(folder / "teacher")
    make_model("bert", "mlm").save_pretrained(folder / "pretrained")
    make_pair_tokenizer().save_pretrained(folder / "pretrained")
    yield folder
    datasets.config.HF_DATASETS_CACHE = before


def train(folder, output, teacher=None, training=None, **task):
    options = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 16,
        "learning_rate": 2e-3,
        "num_train_epochs": 3,
        "save_strategy": "no",
        "teacher_model_name_or_path": None if teacher is None else str(folder / teacher),
    }
    training = DistillationTrainingArguments(str(folder / output), **{**options, **(training or {})})
    return train_model(RerankingArguments(overwrite=True, **task), training)


@pytest.fixture(scope="module")
def fine_tuned(folder):
    """A reranker that was trained on labels, in `fine_tuned`."""
    train(
        folder,
        "fine_tuned",
        model_name_or_path=str(folder / "pretrained"),
        train_file=str(folder / "train.jsonl"),
        test_file=str(folder / "test.jsonl"),
    )
    return folder / "fine_tuned"


@pytest.mark.long
def test_the_same_predictions_from_training_to_service(folder, fine_tuned, tmp_path):
    results = json.loads((fine_tuned / "test_results.json").read_text())
    assert "\npipeline_tag: text-ranking\n" in (fine_tuned / "README.md").read_text()
    assert results["test_ndcg@10"] > 0.9  # 0.7 on average for random scores
    model = AutoModelForSequenceClassification.from_pretrained(fine_tuned)
    assert (model.config.id2label, model.config.problem_type) == ({0: "relevance"}, "multi_label_classification")

    rows = load_rankings(folder / "test.jsonl")
    pairs = list(zip(rows["text"], rows["text_pair"], strict=True))
    expected = load_predictor(fine_tuned).logits(pairs)
    measured = ranking_metrics(expected, rows["group"][:], rows["labels"][:])
    assert {name: results[f"test_{name}"] for name in measured} == pytest.approx(measured, abs=1e-6)

    student = evaluate_model(fine_tuned, folder / "test.jsonl", teacher=fine_tuned)
    assert student == {"rows": 48, **measured, "spearmanr_to_teacher": pytest.approx(1.0), "agreement": 1.0}

    for format in ("onnx", "onnx-int8"):
        export = export_model(fine_tuned, tmp_path / format, format, min_agreement=0)
        logits = load_predictor(export.folder).logits(pairs)
        np.testing.assert_allclose(logits, expected, atol=1e-4 if format == "onnx" else 0.3)
        of_export = evaluate_model(export.folder, folder / "test.jsonl")
        assert of_export["ndcg@10"] == pytest.approx(measured["ndcg@10"], abs=1e-6 if format == "onnx" else 0.1)

    query, documents = rows["text"][0], rows["text_pair"][:4]
    scores = 1 / (1 + np.exp(-load_predictor(tmp_path / "onnx-int8", threads=1).logits(pairs[:4])[:, 0]))
    with RunningService(tmp_path, tmp_path / "onnx-int8", "--workers", "1") as service:
        results = service.post({"query": query, "documents": documents}, "/rerank").json["results"]
    assert [own["index"] for own in results] == np.argsort(-scores).tolist()
    assert [own["relevance_score"] for own in results] == pytest.approx(sorted(scores, reverse=True))


def test_from_a_teacher_alone(folder, tmp_path):
    """Without labels, from a teacher that does not say its problem type. Its logits are stored or computed live."""
    unlabelled = write(
        tmp_path / "log.jsonl", [{"query": row["query"], "found": row["negative"]} for row in make_queries(20, 2)]
    )
    data = {"unlabelled_file": unlabelled, "documents_column": "found"}
    trained = {}
    for stored in (True, False):
        losses = {"alpha_task": 0.0, "alpha_cos": 0.0, "num_train_epochs": 1}
        trainer = train(folder, f"stored_{stored}", "teacher", losses, store_teacher_targets=stored, **data)
        assert trainer.model.config.problem_type == "multi_label_classification"
        assert trainer.model.config.num_hidden_layers == 2
        trained[stored] = load_predictor(folder / f"stored_{stored}").logits([("w5", "w40 w41")])
    np.testing.assert_allclose(trained[True], trained[False], atol=1e-4)


def test_labels_and_teacher(folder, fine_tuned):
    """A relevance above 1 counts as 1. Queries are held out whole."""
    rows = [
        {"query": own["query"], "documents": [*own["positive"], *own["negative"]], "scores": [3, 0.5, 0, 0]}
        for own in make_queries(20, 3)
    ]
    trainer = train(
        folder,
        "student",
        "fine_tuned",
        {"num_train_epochs": 1, "alpha_cos": 0.0, "eval_strategy": "epoch", "lr_scheduler_type": "constant"},
        train_file=write(folder / "graded.jsonl", rows),
        documents_column="documents",
        scores_column="scores",
        validation_share=0.25,
        lora_rank=2,
    )
    labels = [label for own in trainer.train_dataset for label in own["labels"]]
    assert sorted(labels) == [0.0] * 30 + [0.5] * 15 + [1.0] * 15
    assert len(trainer.eval_dataset) == 20
    assert json.loads((folder / "student" / "eval_results.json").read_text())["eval_ndcg@10"] > 0.5
    assert load_predictor(folder / "student").reads_pairs


ON = {"alpha_margin": 1.0, "alpha_listwise": 1.0, "alpha_cos": 0.0, "num_train_epochs": 1}


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "live"])
def test_losses_over_the_documents_of_a_query(folder, fine_tuned, stored):
    """Rows are queries: so are the batch size and the held-out share. The metrics are those of the pairs."""
    rows = [{**own, "negative": own["negative"][: 1 + n % 3]} for n, own in enumerate(make_queries(20, 5))]
    options = {**ON, "per_device_train_batch_size": 5, "eval_strategy": "epoch"}
    trainer = train(
        folder,
        f"over_queries_{stored}",
        "fine_tuned",
        options,
        train_file=write(folder / "ragged.jsonl", rows),
        validation_share=0.25,
        test_file=str(folder / "test.jsonl"),
        store_teacher_targets=stored,
    )
    assert trainer.model.config.num_hidden_layers == 2
    assert (len(trainer.train_dataset), len(trainer.eval_dataset), trainer.state.max_steps) == (15, 5, 3)
    assert {len(own["labels"]) for own in trainer.train_dataset} == {2, 3, 4}
    logged = next(logs for logs in trainer.state.log_history if "eval_loss_margin" in logs)
    assert min(logged[f"eval_loss_{name}"] for name in ("margin", "listwise", "kl", "task")) > 1e-4

    output = folder / f"over_queries_{stored}"
    results = json.loads((output / "test_results.json").read_text())
    measured = evaluate_model(output, folder / "test.jsonl")
    for name in ("ndcg@10", "mrr@10", "map"):
        assert results[f"test_{name}"] == pytest.approx(measured[name], abs=1e-6)
    assert "MarginMSE" in (output / "README.md").read_text()


def test_a_teacher_with_another_tokenizer(folder, tmp_path):
    """It reads pairs of texts; its scores of the documents of a query are put together."""
    make_model("bert", "classification", num_labels=1).save_pretrained(tmp_path / "teacher")
    words = make_pair_tokenizer()
    words.add_tokens(["another"])
    words.save_pretrained(tmp_path / "teacher")
    student = make_model("bert", "classification", num_labels=1, num_layers=2, seed=1)
    student.save_pretrained(tmp_path / "student")
    make_pair_tokenizer().save_pretrained(tmp_path / "student")
    options = {**ON, "teacher_model_name_or_path": str(tmp_path / "teacher"), "max_steps": 1}
    names = {"train_file": str(folder / "train.jsonl"), "model_name_or_path": str(tmp_path / "student")}
    trainer = train(folder, "with_other_tokens", None, options, **names)
    rows = load_rankings(folder / "train.jsonl")
    pairs = list(zip(rows["text"], rows["text_pair"], strict=True))
    expected = load_predictor(tmp_path / "teacher").logits(pairs)[:, 0].reshape(-1, 4)
    np.testing.assert_allclose(np.stack(trainer.train_dataset["teacher_logits"][:]), expected, atol=1e-5)


def test_the_order_from_a_teacher_alone(folder, tmp_path):
    """Without labels. A cut that reads data reads the same rows."""
    log = [{"query": row["query"], "found": row["negative"]} for row in make_queries(20, 2)]
    data = {"unlabelled_file": write(tmp_path / "log.jsonl", log), "documents_column": "found"}
    only = {"alpha_kl": 0.0, "alpha_task": 0.0, "alpha_cos": 0.0, "alpha_listwise": 1.0, "num_train_epochs": 1}
    stages = [{"name": "cut", "cut": {"num_layers": 3, "layers": "influence"}}]
    trainer = train(folder, "order", "teacher", {**only, "temperature": 1.0}, stages=stages, **data)
    assert trainer.model.config.num_hidden_layers == 3
    assert trainer.state.log_history[0]["loss_listwise"] > 1e-4
    with pytest.raises(ValueError, match=r"no labels without train_file or train_split, but alpha_margin=1.0 needs"):
        train(folder, "out", "teacher", {**only, "alpha_margin": 1.0}, **data)


def test_queries_that_cannot_be_compared(folder, tmp_path):
    def train_on(scores, **losses):
        rows = [
            {"query": f"w{5 + n}", "documents": [f"w{40 + n}" for n in range(len(own))], "scores": own}
            for n, own in enumerate(scores)
        ]
        columns = {"documents_column": "documents", "scores_column": "scores"}
        file = write(tmp_path / "few.jsonl", rows)
        train(folder, "out", "teacher", {"alpha_cos": 0.0, "max_steps": 1, **losses}, train_file=file, **columns)

    with pytest.raises(ValueError, match="The query 'w6' lacks a second document, without which alpha_listwise has no"):
        train_on([[1, 0], [1]], alpha_listwise=1.0)
    with pytest.raises(ValueError, match="The query 'w6' lacks a document that is not relevant, without which alpha_m"):
        train_on([[1, 0], [1, 2]], alpha_margin=1.0)
    train_on([[1, 0], [1, 2]], alpha_listwise=1.0)


def test_a_teacher_for_numbers_gives_a_student_for_numbers(folder):
    """As its config says."""
    make_model("bert", "classification", num_labels=1, problem_type="regression").save_pretrained(folder / "numbers")
    make_pair_tokenizer().save_pretrained(folder / "numbers")
    data = {"train_file": str(folder / "train.jsonl"), "unlabelled_file": str(folder / "test.jsonl")}
    trainer = train(folder, "number", "numbers", {"max_steps": 2, "alpha_cos": 0.0}, **data)
    assert trainer.model.config.problem_type == "regression"
    assert np.isnan([own["labels"] for own in trainer.train_dataset]).sum() == 48


def test_report(folder, fine_tuned, tmp_path, monkeypatch):
    start = {"peak_memory": 1, "cold_start": 1.0, "imports_torch": True}
    monkeypatch.setattr(benchmark, "_starts", lambda *args: start)  # which are separate processes
    monkeypatch.setattr(benchmark, "BURST", 3)
    options = {"lengths": [8], "threads": 1, "rounds": 1, "num_examples": 2}
    report = write_report(fine_tuned, fine_tuned, folder / "test.jsonl", tmp_path / "report", **options)
    assert report["task"] == "reranking"
    assert report["models"]["student"]["retained"] == {"ndcg@10": 1.0, "mrr@10": 1.0, "map": 1.0}
    page = (tmp_path / "report" / "report.md").read_text()
    assert "NDCG@10" in page
    assert "same first document as the teacher" in page


def test_a_model_with_several_classes_does_not_rerank(folder):
    make_model("bert", "classification", num_labels=2).save_pretrained(folder / "classifier")
    make_pair_tokenizer().save_pretrained(folder / "classifier")
    message = "is a model for text-classification or text-pair-classification, not for reranking: set task="
    with pytest.raises(ValueError, match=message):
        evaluate_model(folder / "classifier", folder / "test.jsonl", task="reranking")
    with pytest.raises(ValueError, match=message):
        train(folder, "out", "classifier", train_file=str(folder / "train.jsonl"))


def test_words(folder):
    rows, task = load_rankings(folder / "test.jsonl"), TASKS["reranking"]
    assert task.words_of_input(rows, 0) == f"{rows[0]['text']} | {rows[0]['text_pair']}"
    assert task.words_of_label(rows, 0, {}, None) == "1"
