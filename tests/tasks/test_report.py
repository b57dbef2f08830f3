"""A report on tiny models: every figure is checked with a second computation."""

import json
import sys
from pathlib import Path

import datasets
import numpy as np
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_distill import classify_texts, export_model, load_labelled_texts, write_report
from hf_distill.cli import main
from hf_distill.evaluation import benchmark
from hf_distill.evaluation.report import comparison_table
from hf_distill.hub.cards import RESULTS_BEGIN, RESULTS_END
from hf_distill.hub.push import check_nothing_private
from hf_distill.tasks import report as report_module
from hf_distill.tasks.data import note_reading
from hf_distill.tasks.registry import TASKS
from hf_distill.tasks.text_classification import TextClassification
from tests.conftest import make_model, make_text_tokenizer, make_texts
from tests.tasks.test_text_classification import make_reviews, write_reviews

LABELS = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
TURNED = {"id2label": {0: "pos", 1: "neg"}, "label2id": {"pos": 0, "neg": 1}}


def save(folder, family="bert", head="classification", **options):
    make_model(family, head, **options).save_pretrained(folder)
    make_text_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A teacher; a student of another family with its classes in another order; its export; and labelled texts."""
    folder = tmp_path_factory.mktemp("models")
    save(folder / "large", **LABELS)
    save(folder / "small", "distilbert", seed=3, num_layers=2, **TURNED)
    export_model(folder / "small", folder / "small-onnx", "onnx", texts=make_texts(8))
    write_reviews(folder / "test.csv", make_reviews(40, seed=1))
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def no_processes(monkeypatch):
    """Measurements in separate processes are tested elsewhere."""
    own = {"peak_memory": 5_000_000, "cold_start": 0.5, "imports_torch": False}
    monkeypatch.setattr(benchmark, "_starts", lambda *args: own)
    monkeypatch.setattr(benchmark, "BURST", 3)


@torch.inference_mode()
def logits_of(folder, texts):
    """One text at a time."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [model(**tokenizer(text, truncation=True, max_length=38, return_tensors="pt")).logits[0] for text in texts]
    return torch.stack(rows).double().numpy()


def logits_of_onnx(folder, texts):
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = [own.name for own in session.get_inputs()]
    rows = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=38, return_tensors="np")
        rows.append(session.run(["logits"], {name: inputs[name].astype(np.int64) for name in names})[0][0])
    return np.stack(rows).astype(np.float64)


def softmax(logits):
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(-1, keepdims=True)


def calibration_error(probabilities, labels):
    total = 0.0
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


def test_every_figure(models, tmp_path, no_processes, capsys):
    output = tmp_path / "made" / "report"
    words = ["report", "--teacher", str(models / "large"), "--student", str(models / "small")]
    words += ["--export", str(models / "small-onnx"), "--data", str(models / "test.csv"), "--output", str(output)]
    assert main([*words, "--examples", "5", "--lengths", "8", "16", "--rounds", "2", "--threads", "1"]) == 0
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))

    texts, names = zip(*make_reviews(40, seed=1), strict=True)
    labels = np.array([["neg", "pos"].index(name) for name in names])
    logits = {
        "teacher": logits_of(models / "large", texts),
        "student": logits_of(models / "small", texts)[:, [1, 0]],
        "small-onnx": logits_of_onnx(models / "small-onnx", texts)[:, [1, 0]],
    }
    probabilities = {name: softmax(own) for name, own in logits.items()}
    said = {name: own.argmax(-1) for name, own in logits.items()}
    kl = {
        name: (probabilities["teacher"] * np.log(probabilities["teacher"] / own)).sum(-1)
        for name, own in probabilities.items()
    }
    assert list(report["models"]) == list(logits)
    for name, own in report["models"].items():
        expected = {
            "accuracy": accuracy_score(labels, said[name]),
            "f1": f1_score(labels, said[name]),
            "matthews_correlation": matthews_corrcoef(labels, said[name]),
            "expected_calibration_error": calibration_error(probabilities[name], labels),
        }
        assert own["quality"] == pytest.approx(expected, abs=1e-5)
        if name == "teacher":
            continue
        best = report["models"]["teacher"]["quality"]
        assert own["retained"] == {
            metric: pytest.approx(expected[metric] / best[metric], abs=1e-5) if best[metric] > 0 else None
            for metric in ("accuracy", "f1", "matthews_correlation")
        }
        fidelity = {"agreement": (said[name] == said["teacher"]).mean(), "kl_to_teacher": kl[name].mean()}
        assert own["fidelity"] == pytest.approx(fidelity, abs=1e-5)
    assert 0 < report["models"]["student"]["fidelity"]["agreement"] < 1
    assert report["models"]["small-onnx"]["fidelity_to_student"]["agreement"] == 1

    order = np.argsort(-kl["student"])[:5]
    assert [example["row"] for example in report["examples"]] == (order + 1).tolist()
    for row, example in zip(order, report["examples"], strict=True):
        assert texts[row].startswith(example["input"].removesuffix("..."))
        assert example["label"] == names[row]
        assert example["difference"] == pytest.approx(kl["student"][row], abs=1e-5)
        for role in ("teacher", "student"):
            label, score = ["neg", "pos"][said[role][row]], probabilities[role][row].max()
            assert example[role] == f"{label} {score:.0%}"

    sizes = {name: own["size_and_speed"] for name, own in report["models"].items()}
    assert sizes["student"]["parameters"] == sizes["small-onnx"]["parameters"]
    assert sizes["teacher"]["parameters"] == make_model("bert", "classification").num_parameters()
    assert sizes["small-onnx"]["bytes_on_disk"] == (models / "small-onnx" / "model.onnx").stat().st_size
    assert list(sizes["student"]["latency"]) == ["8", "16"]
    assert report["data"]["source"] == "test.csv"
    assert (report["data"]["split"], report["data"]["labels"], report["data"]["rows"]) == (None, ["neg", "pos"], 40)
    assert report["models"]["teacher"]["model"] == "large"
    assert report["published"][0]["source"].endswith("1910.01108")

    page = (output / "report.md").read_text(encoding="utf-8")
    assert page.startswith("# small compared with large\n")
    assert [line for line in page.splitlines() if len(line) > 80 and "http" not in line] == []
    for picture in ("calibration.png", "quality_against_latency.png"):
        assert f"]({picture})" in page
        assert (output / picture).stat().st_size > 1000
    assert f"{report['models']['student']['quality']['accuracy']:.2%}" in page
    printed = capsys.readouterr().out
    assert "ms for 16 tokens" in printed
    assert f"Written to {output}" in printed
    assert {file.name for file in output.iterdir()} == {
        "report.md",
        "report.json",
        "calibration.png",
        "quality_against_latency.png",
    }
    for file in output.iterdir():
        assert str(tmp_path.parents[1]).encode() not in file.read_bytes(), file
    check_nothing_private(output, [file.name for file in output.iterdir()])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"student": "tagger"}, "large is a model for text-classification .*, not for token-classification"),
        ({"student": "several"}, "different problem types, multi_label_classification and single_label_classification"),
        ({"teacher": "number"}, "different problem types, single_label_classification and regression"),
        ({"student": "three"}, "three has the classes LABEL_0, LABEL_1, LABEL_2, but neg, pos are needed"),
        ({"student": "nothing/at/all"}, "No model found at nothing/at/all"),
        ({"student": "empty"}, "No model found at empty"),
        ({"data": "nothing.csv"}, "File or folder not found: nothing.csv"),
        ({"data": "header.csv"}, "header.csv has no rows"),
        ({"data": "other.csv"}, "'label' has labels that the training data or the model does not have: mixed"),
        ({"text_column": "review"}, "test.csv has no column 'review'"),
        ({"exports": ["large", "student"]}, "Two models have the same name"),
        ({"output": "test.csv"}, "test.csv is a file: give a folder"),
        ({"card": "README.md"}, "README.md does not exist"),
        ({"card": "test.csv"}, "test.csv has no section for results"),
        ({"num_examples": -1}, "num_examples=-1 must be 0 or more"),
        ({"lengths": [64]}, "Cannot measure teacher at 64 tokens: it accepts 3 to 38"),
        ({"data": "surrogate.json"}, "Could not read surrogate.json: .*The surrogate pair in string is invalid"),
    ],
)
def test_what_cannot_be_reported(models, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(models)
    monkeypatch.setattr(benchmark, "_starts", lambda *args: pytest.fail("the long work had begun"))
    heads = {"tagger": "token_classification", "several": "multi_label", "number": "regression"}
    for name, head in heads.items():
        if name in (given.get("student"), given.get("teacher")):
            save(Path(name), head=head)
    if given.get("student") == "three":
        save(Path("three"), num_labels=3)
    Path("empty").mkdir(exist_ok=True)
    Path("header.csv").write_text("text,label\n")
    Path("surrogate.json").write_text('{"text": "w5", "label": "neg"}\n{"text": "w5 \\ud800", "label": "pos"}\n')
    write_reviews(Path("other.csv"), [*make_reviews(4, seed=0), ("w5", "mixed")])
    settings = {"teacher": "large", "student": "small", "data": "test.csv", "output": tmp_path / "report"}
    with pytest.raises(ValueError, match=message):
        write_report(**(settings | given))
    assert not (tmp_path / "report").exists()


def test_data_is_checked_before_a_model_is_loaded(models, tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "load_predictor", lambda *args: pytest.fail("a model was loaded"))
    options = {"exports": [models / "small-onnx"], "label_column": "mood"}
    with pytest.raises(ValueError, match=r"test.csv has no column 'mood', only 'text', 'label'"):
        write_report(models / "large", models / "small", models / "test.csv", tmp_path / "report", **options)
    write_reviews(tmp_path / "other.csv", [*make_reviews(4, seed=0), ("w5", "mixed")])
    with pytest.raises(ValueError, match="labels that the training data or the model does not have: mixed"):
        write_report(models / "large", models / "small-onnx", tmp_path / "other.csv", tmp_path / "report")


def test_what_a_student_was_trained_with(models, tmp_path, no_processes):
    """Columns, length and truncation are the student's; teacher and exports use their own limits."""
    folder = save(tmp_path / "ends", seed=3, num_layers=2, **LABELS)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), make_text_tokenizer()
    task = TASKS["text-classification"]
    reading = {"text_column": "review", "label_column": "mood", "truncation": "head_tail", "max_length": 12}
    note_reading(task, task.reading_defaults() | reading, model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = make_reviews(40, seed=1)
    data = write_reviews(tmp_path / "test.csv", rows, header=("review", "mood"))
    export_model(folder, tmp_path / "onnx", "onnx", texts=make_texts(8))
    options = {"exports": [tmp_path / "onnx"], "rounds": 1, "threads": 1}
    written = write_report(models / "large", folder, data, tmp_path / "report", **options)
    assert (written["data"]["text_column"], written["data"]["label_column"]) == ("review", "mood")
    read = {name: (own["max_length"], own["truncation"]) for name, own in written["models"].items()}
    assert read == {"teacher": (38, "head"), "student": (12, "head_tail"), "onnx": (12, "head_tail")}
    labels = torch.tensor([["neg", "pos"].index(label) for _, label in rows])
    predicted = classify_texts(model, make_text_tokenizer(), [text for text, _ in rows], 12, "head_tail").argmax(-1)
    for name in ("student", "onnx"):
        assert written["models"][name]["quality"]["accuracy"] == pytest.approx((predicted == labels).float().mean())


def test_the_card(models, tmp_path, no_processes, monkeypatch):
    """The comparison replaces the results in the card. Metadata is added only for data on the Hub."""
    card = tmp_path / "README.md"
    card.write_text(f"---\nlicense: mit\n---\n\n# small\n\n{RESULTS_BEGIN}\n\nold\n\n{RESULTS_END}\n\nThe end.\n")
    options = {"lengths": [8], "rounds": 1, "card": card}
    report = write_report(
        models / "large", models / "small", models / "test.csv", tmp_path / "report", threads=1, **options
    )
    content = card.read_text()
    assert f"{RESULTS_BEGIN}\n\n{comparison_table(report)}\n\n{RESULTS_END}\n\nThe end." in content
    assert "old" not in content
    assert ModelCard.load(card).data.eval_results is None

    rows, names = load_labelled_texts(models / "test.csv", label_names=["neg", "pos"])
    monkeypatch.setattr(TextClassification, "load", lambda *given, **options: (rows, names))
    report = write_report(models / "large", models / "small", "me/reviews", tmp_path / "report", threads=1, **options)
    results = {own.metric_type: own.metric_value for own in ModelCard.load(card).data.eval_results}
    quality = report["models"]["student"]["quality"]
    assert results == {name: quality[name] for name in ("accuracy", "f1", "matthews_correlation")}
    assert report["data"]["source"] == "me/reviews"
    assert report["data"]["split"] == "test"


@pytest.mark.parametrize("module", ["sklearn.metrics", "matplotlib.figure"])
def test_without_the_packages(models, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"hf_distill\[evaluation\]"):
        write_report(models / "large", models / "small", models / "test.csv", tmp_path / "report")


def test_the_command_says_what_is_wrong(models, capsys):
    words = ["report", "--teacher", str(models / "large"), "--student", "nothing/at/all", "--data", "test.csv"]
    assert main([*words, "--output", "report"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-distill: ")]
    assert "nothing/at/all" in line
