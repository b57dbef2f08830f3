"""Summarization and translation from data to service, on tiny models: the same texts at each stop."""

import json
import random

import datasets
import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_distill import (
    DistillationTrainingArguments,
    SummarizationArguments,
    TranslationArguments,
    evaluate_model,
    export_model,
    load_predictor,
    train_model,
    write_report,
)
from hf_distill.cli import main
from hf_distill.evaluation import benchmark, benchmark_inputs
from hf_distill.lengths import READING
from hf_distill.serving.predict import answers_of
from hf_distill.serving.worker import answer
from hf_distill.tasks.registry import TASKS, task_of
from tests.conftest import make_model, make_text_tokenizer

ARGUMENTS = {"summarization": SummarizationArguments, "translation": TranslationArguments}
MAIN_METRIC = {"summarization": "rouge1", "translation": "chrf"}


def make_pairs(num_rows, seed):
    """The target is the first words of the source."""
    draw = random.Random(seed)
    sources = [[f"w{draw.randint(5, 60)}" for _ in range(draw.randint(3, 20))] for _ in range(num_rows)]
    return [{"article": " ".join(words), "summary": " ".join(words[:4])} for words in sources]


def write_lines(file, rows):
    file.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """A folder with the teachers `bart` and `t5`, `train.jsonl`, `test.jsonl` and `sources.txt`."""
    for family, options in (("bart", {}), ("t5", {"num_decoder_layers": 2})):
        model = make_model(family, "seq2seq", seed=2, **options)
        model.generation_config.update(num_beams=2, early_stopping=True)
        model.save_pretrained(tmp_path / family)
        make_text_tokenizer().save_pretrained(tmp_path / family)
    write_lines(tmp_path / "train.jsonl", make_pairs(24, seed=0))
    write_lines(tmp_path / "test.jsonl", make_pairs(8, seed=1))
    (tmp_path / "sources.txt").write_text("\n".join(row["article"] for row in make_pairs(12, seed=2)))
    return tmp_path


def train(folder, task="summarization", teacher="bart", training=None, **options):
    options = {
        "train_file": str(folder / "train.jsonl"),
        "source_column": "article",
        "target_column": "summary",
        "max_target_length": 6,
        "overwrite": True,
        **options,
    }
    settings = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "logging_steps": 1,
        **(training or {}),
    }
    if teacher is not None:
        settings["teacher_model_name_or_path"] = str(folder / teacher)
    return train_model(ARGUMENTS[task](**options), DistillationTrainingArguments(str(folder / "out"), **settings))


@pytest.mark.parametrize(("task", "teacher"), [("summarization", "bart"), ("translation", "t5")])
def test_the_same_texts_at_each_stop(folder, task, teacher, capsys):
    test_file, out = str(folder / "test.jsonl"), folder / "out"
    trainer = train(folder, task, teacher, validation_file=test_file, num_layers=1, source_prefix="w30 w31: ")
    in_training = trainer.predict(trainer.eval_dataset).predictions
    tokenizer = make_text_tokenizer()
    texts = [text.strip() for text in tokenizer.batch_decode(np.maximum(in_training, 0), skip_special_tokens=True)]
    assert len({*texts}) > 1

    sources = [row["article"] for row in make_pairs(8, seed=1)]
    predictor = load_predictor(out)
    assert [own["text"] for own in predictor.predict(sources)] == texts
    assert [own["text"] for own in answers_of(answer(predictor, sources, 1), None)] == texts

    expected = json.loads((out / "eval_results.json").read_text())
    evaluated = evaluate_model(out, test_file, teacher=folder / teacher)
    assert evaluated["rows"] == 8
    for name in TASKS[task].quality:
        assert evaluated[name] == pytest.approx(expected[f"eval_{name}"])
    assert {*TASKS[task].fidelity} < evaluated.keys()
    assert expected["eval_loss_kl"] > 0
    assert main(["evaluate", str(out), "--data", test_file]) == 0
    assert f"{MAIN_METRIC[task]}" in capsys.readouterr().out
    config = AutoModelForSeq2SeqLM.from_pretrained(out).config
    assert getattr(config, READING)["source_prefix"] == "w30 w31: "
    assert task_of(config, "out").name == task


def script_metrics(folder, prefix, compute):
    """What the example scripts of transformers do: `Seq2SeqTrainer` generates, and texts and labels are decoded."""
    tokenizer, model = make_text_tokenizer(), AutoModelForSeq2SeqLM.from_pretrained(folder / "bart")
    rows = [
        {**tokenizer(prefix + row["article"]), "labels": tokenizer(text_target=row["summary"])["input_ids"]}
        for row in make_pairs(8, seed=1)
    ]

    def compute_metrics(evaluated):
        both = [np.where(ids == -100, 0, ids) for ids in (evaluated.predictions, evaluated.label_ids)]
        texts, references = [[text.strip() for text in tokenizer.batch_decode(ids, True)] for ids in both]
        return compute(texts, references)

    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "predict_with_generate": True}
    return Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(str(folder / "script"), generation_max_length=7, **options),
        DataCollatorForSeq2Seq(tokenizer, model=model),
        eval_dataset=rows,
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    ).evaluate()


def test_metrics_as_in_the_example_scripts_of_transformers(folder):
    def compute(texts, references):
        scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
        scores = [scorer.score(one, other) for one, other in zip(references, texts, strict=True)]
        rouge = {name: 100 * np.mean([score[name].fmeasure for score in scores]) for name in ("rouge1", "rougeL")}
        return {**rouge, "bleu": corpus_bleu(texts, [references]).score, "chrf": corpus_chrf(texts, [references]).score}

    expected = script_metrics(folder, "w30 w31: ", compute)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "bart")
    model.generation_config.max_length = 7
    model.save_pretrained(folder / "bart")
    columns = {"source_column": "article", "target_column": "summary", "source_prefix": "w30 w31: "}
    for task in ("summarization", "translation"):
        measured = evaluate_model(folder / "bart", folder / "test.jsonl", task=task, **columns)
        common = measured.keys() & {"rouge1", "rougeL", "bleu", "chrf"}
        assert len(common) == 2
        for name in common:
            assert measured[name] == pytest.approx(expected[f"eval_{name}"])
    assert expected["eval_rouge1"] > 0


def test_a_student_from_the_teacher_alone(folder, monkeypatch):
    """Sources without targets: the teacher writes them, by beam search."""
    trainer = train(folder, train_file=None, unlabelled_file=str(folder / "sources.txt"))
    teacher = load_predictor(folder / "bart")
    assert len(trainer.train_dataset) == 12
    assert trainer.teacher is not None
    written = make_text_tokenizer().batch_decode(trainer.train_dataset["labels"][:], skip_special_tokens=True)
    teacher.backend.model.generation_config.update(num_beams=5, max_length=7)
    sources = (folder / "sources.txt").read_text().splitlines()
    texts = [own["text"].split() for own in teacher.predict(sources)]
    assert written == [" ".join(words[:4]) for words in texts]  # and the tokens for the start and the end


@pytest.mark.parametrize(("targets", "rows"), [("teacher", 24), ("both", 48)])
def test_whose_targets(folder, targets, rows):
    trainer = train(folder, targets=targets, training={"max_steps": 1})
    assert len(trainer.train_dataset) == rows


def test_a_teacher_with_another_tokenizer_writes_targets(folder):
    """Its texts are all that the student learns from, so the vocabularies may differ."""
    make_model("bart", "seq2seq", vocab_size=70, seed=5).save_pretrained(folder / "other")
    make_text_tokenizer().save_pretrained(folder / "other")
    options = {"alpha_kl": 0.0, "alpha_cos": 0.0, "alpha_task": 1.0}
    trainer = train(folder, teacher="other", training=options, targets="teacher", model_name_or_path=str(folder / "t5"))
    assert trainer.teacher is None
    assert trainer.state.log_history[0]["loss_task"] > 0


def test_fine_tuning_with_lora_and_beams(folder):
    options = {"predict_with_generate": True, "generation_num_beams": 3}
    train(folder, teacher=None, training=options, model_name_or_path=str(folder / "bart"), lora_rank=2)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "out")
    assert (model.generation_config.num_beams, model.generation_config.max_length) == (3, 7)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_stored_targets(folder):
    trainer = train(folder, training={"alpha_cos": 0.0, "temperature": 1.0}, store_teacher_targets=True)
    assert "teacher_top_ids" in trainer.train_dataset.column_names


def test_only_the_decoder_is_cut(folder):
    trainer = train(folder, stages=[{"name": "student", "cut": {"num_layers": {"decoder": 1}}}])
    assert (trainer.model.config.encoder_layers, trainer.model.config.decoder_layers) == (2, 1)


def test_report(folder, monkeypatch):
    sizes = {"peak_memory": 5_000_000, "cold_start": 0.5, "imports_torch": False}
    monkeypatch.setattr(benchmark, "_starts", lambda *args: sizes)
    for name, value in {"BURST": 1, "BATCH_SIZES": (2,)}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark_inputs, "NUM_TEXTS", 2)
    train(folder)
    report = write_report(
        folder / "bart",
        folder / "out",
        folder / "test.jsonl",
        folder / "report",
        lengths=[8],
        threads=1,
        rounds=1,
    )
    assert {"rouge1", "words"} <= report["models"]["student"]["quality"].keys()
    page = (folder / "report" / "report.md").read_text()
    assert "ROUGE-L with the teacher" in page
    with pytest.raises(ValueError, match="are not exported to onnx"):
        export_model(folder / "out", folder / "onnx", "onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "student"}, "targets='student' must be one of given, teacher, both"),
        ({"max_target_length": 0}, "max_target_length=0 must be 1 or more"),
        ({"target_column": "article"}, "source_column and target_column are both 'article'"),
        ({"source_lang": "en_XX"}, "source_lang='en_XX' would have no effect"),
        ({"teacher": None, "model_name_or_path": "bart", "targets": "both"}, "Labels by a teacher need one"),
        ({"target_column": "title"}, "train.jsonl has no column 'title'"),
    ],
)
def test_errors(folder, options, message):
    if "model_name_or_path" in options:
        options = options | {"model_name_or_path": str(folder / options["model_name_or_path"])}
    with pytest.raises(ValueError, match=message):
        train(folder, **options)


def test_bad_rows_and_lengths(folder):
    rows = make_pairs(3, seed=0)
    write_lines(folder / "train.jsonl", [*rows, rows[0] | {"summary": " "}])
    with pytest.raises(ValueError, match=r"train.jsonl has empty texts in the column 'summary', in row 4"):
        train(folder)
    model = make_model("bart", "seq2seq")
    model.generation_config.min_length = 20
    model.save_pretrained(folder / "bart")
    write_lines(folder / "train.jsonl", rows)
    with pytest.raises(ValueError, match="max_target_length=6 is below min_length=20 of the generation config"):
        train(folder)


def test_a_model_for_another_task(folder):
    with pytest.raises(ValueError, match="is a model for summarization or translation, not for text-classification"):
        evaluate_model(folder / "bart", "unused", task="text-classification")
