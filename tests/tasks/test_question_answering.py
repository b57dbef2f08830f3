"""Question answering from the data to the service: the same answers at every stop."""

import json
import math

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, EvalPrediction

from hf_distill import DistillationTrainingArguments, evaluate_model, export_model, load_predictor, train_model
from hf_distill.cli import main
from hf_distill.data.questions import load_questions
from hf_distill.deployment.predictor import predictor_of
from hf_distill.deployment.text_encoder import windows_of
from hf_distill.evaluation.question_answering import answer_metrics
from hf_distill.serving.worker import answer
from hf_distill.tasks.question_answering import QuestionAnswering, QuestionAnsweringArguments
from tests.deployment.conftest import tiny_student
from tests.question_answering import answering_student, make_question_rows, make_question_tokenizer, write_squad

TRAIN, TEST = make_question_rows(24, 40), make_question_rows(12, 40, seed=7)
PAIRS = [(row["question"], row["context"]) for row in TRAIN[:8]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """A folder with `teacher`, `train.json` and `test.json`."""
    answering_student(num_layers=2).save_pretrained(tmp_path / "teacher")
    make_question_tokenizer(24).save_pretrained(tmp_path / "teacher")
    write_squad(tmp_path / "train.json", TRAIN)
    write_squad(tmp_path / "test.json", TEST)
    return tmp_path


def train(folder, task=None, **training):
    task = {"train_file": str(folder / "train.json"), "unanswerable": True, "stride": 6, **(task or {})}
    options = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-3,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "logging_steps": 4,
        "teacher_model_name_or_path": str(folder / "teacher"),
    }
    training = DistillationTrainingArguments(str(folder / "out"), **{**options, **training})
    return train_model(QuestionAnsweringArguments(**task), training)


def results(folder, part="test"):
    found = json.loads((folder / f"{part}_results.json").read_text())
    return {name.removeprefix(f"{part}_"): value for name, value in found.items()}


def answers_of(predictor, rows=TEST):
    return predictor.predict([(row["question"], row["context"]) for row in rows])


def answers_of_worker(predictor, rows=TEST):
    """What a worker of the service answers to a batch of requests."""
    entries = answer(predictor, [[row["question"], row["context"]] for row in rows], 1)
    return [entry["answers"][0] for entry in entries]


METRICS = {"f1", "exact_match", "answerable_f1", "answerable_exact_match", "unanswerable_accuracy"}


def test_from_data_to_service(folder):
    """Distils, evaluates, exports, predicts and answers requests; both exports have their own answers everywhere."""
    task = {"test_file": str(folder / "test.json"), "validation_share": 0.25, "no_answer_threshold": -5.0}
    trainer = train(folder, task, eval_strategy="epoch")
    assert len(trainer.train_dataset) > 18  # several windows per question
    assert METRICS - {"unanswerable_accuracy"} <= results(folder / "out", "eval").keys()
    trained = {name: value for name, value in results(folder / "out").items() if name in METRICS}
    evaluated = evaluate_model(folder / "out", folder / "test.json", teacher=folder / "teacher")
    assert evaluated.keys() == METRICS | {"rows", "agreement", "f1_to_teacher"}
    assert trained == {name: evaluated[name] for name in METRICS}

    predictor = load_predictor(folder / "out")
    assert (predictor.encoder.max_length, predictor.encoder.stride) == (24, 6)
    answers = answers_of(predictor)
    assert {own["answer"] == "" for own in answers} == {True, False}
    assert answer_metrics([own["answer"] for own in answers], [row["answers"] for row in TEST]) == trained
    for format in ("onnx", "onnx-int8"):
        export = export_model(folder / "out", folder / format, format, min_agreement=0.5, texts=PAIRS)
        predictor = load_predictor(export.folder)
        own = answers_of(predictor)
        assert answers_of_worker(predictor) == own
        metrics = answer_metrics([one["answer"] for one in own], [row["answers"] for row in TEST])
        measured = evaluate_model(export.folder, folder / "test.json")
        assert {name: measured[name] for name in METRICS} == metrics
        if format == "onnx":
            assert [one["answer"] for one in own] == [one["answer"] for one in answers]


def test_without_labels(folder):
    """From the teacher alone, also with LoRA: questions and contexts without answers."""
    rows = [{"query": row["question"], "text": row["context"]} for row in TRAIN]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"train_file": None, "unlabelled_file": str(folder / "rows.jsonl"), "lora_rank": 2}
    columns = {"question_column": "query", "context_column": "text"}
    trainer = train(folder, task | columns, alpha_task=0, alpha_cos=0, learning_rate=1e-2, num_train_epochs=4)
    assert set(trainer.train_dataset["start_positions"]) == {-100}
    assert "teacher_logits" in trainer.train_dataset.column_names
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0]
    assert AutoModelForQuestionAnswering.from_pretrained(folder / "out").config.num_hidden_layers == 1


def test_the_shell(folder, capsys):
    """`unanswerable` is what the model, else the teacher, was trained with."""
    answering_student(num_layers=2, unanswerable=True).save_pretrained(folder / "teacher")
    (folder / "config.yaml").write_text(
        f"task: question-answering\nteacher_model_name_or_path: {folder}/teacher\ntrain_file: {folder}/train.json\n"
        f"output_dir: {folder}/out\nuse_cpu: true\nreport_to: none\nsave_strategy: 'no'\nmax_steps: 1\nmax_length: 20\n"
    )
    assert main(["train", str(folder / "config.yaml")]) == 0
    assert json.loads((folder / "out" / "config.json").read_text())["task_options"]["unanswerable"] is True
    words = [str(folder / "out"), "--data", str(folder / "test.json"), "--no_answer_threshold", "-1000"]
    assert main(["evaluate", *words]) == 0
    assert "unanswerable_accuracy       1.0" in capsys.readouterr().out


def test_metrics_of_training_are_those_of_all_windows(folder):
    """Predictions come in one padded array, as `Trainer` gathers them."""
    task, rows = QuestionAnswering(), load_questions(folder / "test.json")
    reading = task.reading_defaults() | {
        "unanswerable": True,
        "max_length": 20,
        "stride": 5,
        "no_answer_threshold": -7.5,
    }
    tokenizer = make_question_tokenizer()
    encoded = task.encode(rows, tokenizer, reading)
    predictor = predictor_of(answering_student(stride=5, unanswerable=True), tokenizer, "student")
    outputs = predictor.run(windows_of(predictor.encoder.encode(task.inputs(rows))))
    padded = [np.full((len(outputs), 20), -100.0) for _ in range(2)]
    for row, own in enumerate(outputs):
        for array, name in zip(padded, ("start_logits", "end_logits"), strict=True):
            array[row, : len(own[name])] = own[name]
    labels = tuple(np.array(encoded[name]) for name in ("start_positions", "end_positions"))
    found = task.compute_metrics(EvalPrediction(tuple(padded), labels), rows, tokenizer, reading)
    predictions = task.predict(predictor, rows, reading, None)
    assert found == task.metrics(predictions, rows, reading)
    assert {own["answer"] == "" for own in predictions} == {True, False}
    assert task.metrics(predictions, None, reading, predictions) == {"agreement": 1.0, "f1_to_teacher": 1.0}
    assert task.differences(predictions, predictions, reading) == [0.0] * len(rows)


def by_the_example_script(model, tokenizer, rows, max_length, stride, threshold, max_tokens=30):
    """Answers as `run_qa.py` of transformers finds them: its windows, padded, and its rule, in plain Python."""
    features = tokenizer(
        [row["question"] for row in rows],
        [row["context"] for row in rows],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length",
        return_tensors="pt",
    )
    owners, offsets = features.pop("overflow_to_sample_mapping").tolist(), features.pop("offset_mapping").tolist()
    with torch.no_grad():
        outputs = model(**features)
    answers = []
    for number, row in enumerate(rows):
        null, spans = math.inf, {}
        for feature in (feature for feature, owner in enumerate(owners) if owner == number):
            starts, ends = outputs.start_logits[feature].tolist(), outputs.end_logits[feature].tolist()
            null = min(null, starts[0] + ends[0])
            context = [token for token, own in enumerate(features.sequence_ids(feature)) if own == 1]
            for first in context:
                for last in range(first, min(first + max_tokens, context[-1] + 1)):
                    place = offsets[feature][first][0], offsets[feature][last][1]
                    spans[place] = max(spans.get(place, -math.inf), starts[first] + ends[last])
        (start, end), best = max(spans.items(), key=lambda own: own[1])
        answers.append("" if null - best > threshold else row["context"][start:end])
    return answers


@pytest.mark.parametrize("threshold", [-6.5, 0.0])
def test_the_example_script_of_transformers(folder, threshold):
    """The same model and data give the same answers and metrics. Random logits make ties unlikely."""
    model, tokenizer = answering_student(), make_question_tokenizer(24)
    model.save_pretrained(folder / "own")
    tokenizer.save_pretrained(folder / "own")
    expected = by_the_example_script(model, tokenizer, TEST, 24, 6, threshold)
    assert len(set(expected)) > 4
    options = {"unanswerable": True, "stride": 6, "no_answer_threshold": threshold}
    found = evaluate_model(folder / "own", folder / "test.json", **options)
    assert found == {"rows": 12} | answer_metrics(expected, [row["answers"] for row in TEST])
    task, rows = QuestionAnswering(), load_questions(folder / "test.json")
    predictor = load_predictor(folder / "own")
    predictions = task.predict(predictor, rows, task.reading_defaults() | options, None)
    assert [own["answer"] for own in predictions] == expected


def test_words_of_a_report(folder):
    task, rows = QuestionAnswering(), load_questions(folder / "test.json")
    words = [task.words_of_label(rows, row, {}, None) for row in (0, 3)]
    assert words == [TEST[0]["answers"][0], "no answer"]
    assert task.words_of_input(rows, 0).startswith(TEST[0]["question"])
    for text, shown in (("w5", "w5 (0.25)"), ("", "no answer (0.25)")):
        assert task.words_of_prediction({"answer": text, "score": 0.25}, rows, 0, {}, None) == shown


def test_batches_are_padded_on_the_right():
    tokenizer = make_question_tokenizer()
    tokenizer.padding_side = "left"
    rows = [{"input_ids": [1, 5], "start_positions": 1}, {"input_ids": [1, 5, 2], "start_positions": 2}]
    batch = QuestionAnswering().collator(tokenizer, None)(rows)
    assert batch["input_ids"].tolist() == [[1, 5, 0], [1, 5, 2]]
    assert tokenizer.padding_side == "left"


def test_bad_input(folder):
    with pytest.raises(ValueError, match=r"has questions without an answer, in 6 rows: .* set unanswerable=true"):
        train(folder, {"unanswerable": False})
    TRAIN[4]["answers"], kept = ["w999"], TRAIN[4]["answers"]
    write_squad(folder / "train.json", TRAIN)
    TRAIN[4]["answers"] = kept
    with pytest.raises(ValueError, match=r"train.json, row 5 \(id q4\): the answer 'w999' is not in the context"):
        train(folder)
    for options, message in (
        ({"stride": 12, "max_length": 24}, "stride=12 must be less than half of max_length=24"),
        ({"stride": -1}, "stride=-1 must be 0 or more"),
        ({"max_answer_tokens": 0}, "max_answer_tokens=0 must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            QuestionAnsweringArguments(**options)
    tiny_student("bert", "sequence classification").save_pretrained(folder / "teacher")
    with pytest.raises(ValueError, match=r"is a model for text-classification .*, not for question-answering"):
        train(folder)
