"""Searches for students of a tiny teacher, from the request to the folder of the answer."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch

from hf_distill import TASKS, evaluate_model, load_predictor
from hf_distill.compression import join
from hf_distill.compression.costs import Costs
from hf_distill.compression.search import open_study, students_of
from hf_distill.compression.settings import Clock, Settings
from hf_distill.compression.students import Maker
from hf_distill.compression.workshop import Workshop
from tests.compression.requests import data_of, end_after, record_of, search, write_csv, write_request

READING = {"text_column": "text", "label_column": "label", "problem_type": "single_label_classification"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return write_request(tmp_path)


def students_in(folder: Path, output: str = "small"):
    return students_of(open_study(Settings.read(folder / output)))


def test_teacher_reads_with_all_cores(folder, monkeypatch):
    """Workers share the cores only while students are trained."""
    threads = []

    def record(self, *_, **__):
        threads.append(torch.get_num_threads())
        raise InterruptedError("the teacher would read now")

    monkeypatch.setattr(Workshop, "open", record)
    with pytest.raises(InterruptedError):
        search(folder, workers=2)
    assert threads == [torch.get_num_threads()]


def test_the_teachers_reading_counts_when_the_search_goes_on(folder, monkeypatch):
    monkeypatch.setattr(Workshop, "open", lambda settings: time.sleep(0.2))

    def fail(workshop):
        raise InterruptedError("killed while cuts are measured")

    monkeypatch.setattr(Costs, "open", fail)
    with pytest.raises(InterruptedError):
        search(folder)
    assert Clock(3600.0, folder / "small" / "search" / "clock.json").used() > 0.2


def test_answer(folder, monkeypatch, capsys):
    end_after(monkeypatch, 3)
    threads = torch.get_num_threads()
    small = search(folder)
    assert torch.get_num_threads() == threads
    assert small.folder == folder / "small" / "model"
    assert small.low <= small.share <= small.high

    held_out = TASKS["text-classification"].load(str(folder / "test.csv"), READING, ["one", "other"])[0]
    held_out = held_out.train_test_split(0.4, seed=0)["train"]
    write_csv(folder / "shown.csv", [(row["text"], ["one", "other"][row["labels"]]) for row in held_out])
    measured = evaluate_model(small.folder, folder / "shown.csv")
    teacher = evaluate_model(folder / "teacher", folder / "shown.csv")
    assert small.share == pytest.approx(measured["accuracy"] / teacher["accuracy"])
    record = record_of(folder)
    assert record == small.content
    assert record["is_met"] == small.is_met == (small.low >= 0.8)
    assert record["quality"]["student"]["accuracy"] == pytest.approx(measured["accuracy"])
    num_variants = record["rows"]["variants"]
    assert 240 < num_variants <= 480  # all but those whose words all stayed
    assert record["rows"] == {"train": 160 + num_variants, "variants": num_variants, "validation": 80, "test": 120}
    counts = json.loads((folder / "small" / "search" / "rows" / "num_rows.json").read_text())
    assert counts == {"labelled": 160, "labelled and variants": 160 + num_variants}

    students = record["students"]
    assert len(students) == 3
    chosen = next(own for own in students if own["number"] == record["chosen"]["student"])
    model = load_predictor(small.folder).backend.model
    assert model.config.num_hidden_layers == chosen["recipe"]["sizes"]["num_layers"]
    assert model.config.intermediate_size == chosen["recipe"]["sizes"]["intermediate_size"]
    assert model.num_parameters() == chosen["parameters"]
    card = (small.folder / "README.md").read_text()
    page = (folder / "small" / "compression.md").read_text()
    assert "\n# small\n" in card
    for text in (card, page):
        assert f"{small.share:.1%}" in " ".join(text.split())
    assert (folder / "small" / "pareto.png").stat().st_size > 10_000
    shown = capsys.readouterr().err
    assert shown.count("Best so far: student") == 3


def test_the_teacher_itself_if_no_student_keeps_enough(folder, monkeypatch):
    end_after(monkeypatch, 4)
    monkeypatch.setattr(sys.modules["hf_distill.compression.answer"], "SEEDS", 2)
    small = search(folder, keep=0.96, formats=["pytorch"])
    assert (small.is_met, small.share, small.low) == (True, 1.0, 1.0)
    assert record_of(folder)["shares_of_other_seeds"] == []
    page = (folder / "small" / "compression.md").read_text()
    assert "This model does what was asked for: the teacher itself, pytorch." in " ".join(page.split())
    assert "It was not trained" in page
    assert "was not trained in this run" in (small.folder / "README.md").read_text()
    own, teacher = (load_predictor(path).backend.model for path in (small.folder, folder / "teacher"))
    assert all(torch.equal(own.state_dict()[name], value) for name, value in teacher.state_dict().items())


@pytest.mark.long
def test_a_student_is_cut_from_the_larger_one_that_was_trained(folder, monkeypatch):
    end_after(monkeypatch, 2)
    search(folder, keep=0.5)
    first, second = students_in(folder)
    assert (first.source, second.source) == (None, first.number)
    assert all(second.recipe.sizes[name] <= size for name, size in first.recipe.sizes.items())
    model = load_predictor(folder / "small" / "search" / "students" / str(second.number)).backend.model
    origin = model.config.distilled_from
    assert origin["num_teacher_layers"] == 4
    assert len(origin["layers"]) == second.recipe.sizes["num_layers"]


@pytest.mark.long
def test_search_goes_on_with_the_students_it_had(folder, monkeypatch):
    end_after(monkeypatch, 2)
    search(folder)
    before = students_in(folder)
    search(folder, keep=0.85, budget="2h")
    after = students_in(folder)
    assert after[:2] == before
    assert len(after) == 4


@pytest.mark.long
def test_one_folder_holds_one_search(folder, monkeypatch):
    end_after(monkeypatch, 1)
    search(folder)
    with pytest.raises(ValueError, match="has a search with another metric: choose another folder"):
        search(folder, metric="f1")


@pytest.mark.long
def test_ctrl_c_leaves_the_best_so_far(folder, monkeypatch, caplog):
    end_after(monkeypatch, 3)
    make = Maker.make

    def interrupted(self, number, *arguments, **options):
        if number >= 2:
            raise KeyboardInterrupt
        return make(self, number, *arguments, **options)

    monkeypatch.setattr(Maker, "make", interrupted)
    small = search(folder)
    numbers = [own["number"] for own in small.content["students"]]
    assert numbers[0] == 0
    assert numbers[-1] < 2
    assert "Interrupted: the answer is the best that was found so far" in caplog.text
    assert load_predictor(small.folder).predict(["w5 w6"])


@pytest.mark.long
def test_full_disk(folder, monkeypatch):
    end_after(monkeypatch, 2)
    make = Maker.make

    def full(self, number, *arguments, **options):
        if number == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(self, number, *arguments, **options)

    monkeypatch.setattr(Maker, "make", full)
    with pytest.raises(OSError, match=r"The disk is full\. What was found so far is kept in .*: free some space"):
        search(folder)
    monkeypatch.setattr(Maker, "make", make)
    assert [own.number for own in students_in(folder)] == [0]
    search(folder)
    first, *others = [own.number for own in students_in(folder)]
    assert first == 0
    assert len(others) == 2
    assert 1 not in others


@pytest.mark.long
def test_diverged_student_does_not_end_the_search(folder, monkeypatch, caplog):
    end_after(monkeypatch, 2)
    make = Maker.make

    def diverges(self, number, *arguments, **options):
        if number == 0:
            raise FloatingPointError("loss is nan")
        return make(self, number, *arguments, **options)

    monkeypatch.setattr(Maker, "make", diverges)
    search(folder)
    assert 0 not in [own.number for own in students_in(folder)]
    assert "Student 0 diverged: loss is nan" in caplog.text


@pytest.mark.long
def test_random_search_has_no_first_students(folder, monkeypatch):
    end_after(monkeypatch, 1)
    search(folder, sampler="random")
    trials = open_study(Settings.read(folder / "small")).get_trials()
    assert not any("fixed_params" in trial.system_attrs for trial in trials)


@pytest.mark.long
def test_smaller_vocabulary_if_the_size_is_limited(folder, monkeypatch):
    end_after(monkeypatch, 1)
    write_csv(
        folder / "train.csv", [(f"w5 w{6 + number % 7} w{6 + number // 7 % 7}", "one") for number in range(40)] * 2
    )
    with (folder / "train.csv").open("a") as file:
        file.write("".join(f"w5 w5 w{6 + number % 7} w{6 + number // 7},other\n" for number in range(40)))
    small = search(folder, keep=0.3, max_mb=1.0)
    student = small.content["students"][0]
    assert student["recipe"]["vocabulary"] == "used"
    assert load_predictor(small.folder).backend.model.config.vocab_size == 13  # five special tokens, w5 to w12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "1s"}, "A budget of 0:01 is too short: .* a student takes at least .* Give at least"),
        ({"keep": 0.99}, "120 test rows are too few to show that 99.0% of the accuracy is kept: .* it takes about"),
        (
            {"max_ms": 1e-6},
            "max_ms=1e-06 cannot be met: the smallest student that this search cuts takes .* Allow more than that",
        ),
        (
            {"max_mb": 1e-6},
            "max_mb=1e-06 cannot be met: the smallest student that this search cuts has about .* Allow more than that",
        ),
        (
            {"metric": "bleu"},
            "metric='bleu' is not a metric of text-classification whose share can be kept: use one of accuracy",
        ),
    ],
)
def test_requests_that_cannot_be_met(folder, options, message):
    with pytest.raises(ValueError, match=message):
        search(folder, **options)


def test_teacher_worse_than_guessing(folder):
    rows = [line.rsplit(",", 1) for line in (folder / "test.csv").read_text().splitlines()[1:]]
    write_csv(folder / "test.csv", [(text, "one" if label == "other" else "other") for text, label in rows])
    with pytest.raises(
        ValueError, match=r"is not better than guessing: its accuracy is .* always the same answer gives"
    ):
        search(folder)


def test_no_training_data(folder):
    with pytest.raises(ValueError, match="No training data"):
        search(folder, data=data_of(folder, train_file=None))


def test_join_needs_a_search(folder):
    with pytest.raises(ValueError, match="has no search"):
        join(folder / "small")


SCRIPT = """
import sys, datasets
from pathlib import Path
sys.modules["__main__"].__spec__ = None
folder = Path(sys.argv[1])
datasets.config.HF_DATASETS_CACHE = str(folder / "cache")
from tests.compression.requests import MODULE, search
MODULE.UNITS = 1e9
search(folder, keep=0.8, budget=float(sys.argv[2]), seed=0)
"""


def start(folder, budget):
    words = [sys.executable, "-c", SCRIPT, str(folder), str(budget)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder)


def lines_until(process, text, number=1):
    """Reads what a search shows until it has shown a text a number of times."""
    seen = []
    for line in process.stderr:
        seen.append(line)
        if sum(text in own for own in seen) == number:
            break
    return seen


@pytest.mark.long
def test_killed_search_loses_only_the_student_in_training(folder):
    process = start(folder, 600)
    lines_until(process, "Best so far", 2)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = students_in(folder)
    assert len(before) >= 2
    again = start(folder, 600)
    lines_until(again, "Best so far", 2)
    again.kill()
    after = students_in(folder)
    assert after[: len(before)] == before
    trials = open_study(Settings.read(folder / "small")).get_trials()
    lost = [trial for trial in trials if trial.number < after[len(before)].number and not trial.values]
    running = [trial for trial in lost if trial.state.name in ("RUNNING", "FAIL")]
    assert len(running) <= 1


@pytest.mark.long
def test_budget_is_kept(folder):
    started = time.perf_counter()
    process = start(folder, 60)
    _, shown = process.communicate()
    assert process.returncode == 0, shown[-3000:]
    record = record_of(folder)
    assert record["seconds"] < 66
    assert time.perf_counter() - started < 66 + 30  # the start of Python and its imports


@pytest.mark.long
def test_two_processes_share_a_search(folder):
    process = start(folder, 90)
    lines_until(process, "Best so far")
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "hf_distill.cli", "compress", "--join", str(folder / "small")]
    other = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    _, shown = process.communicate()
    assert process.returncode == other.returncode == 0, (shown[-2000:], other.stderr[-2000:])
    joined = [line.split(",")[0] for line in other.stderr.splitlines() if "Best so far" in line]
    assert joined
    numbers = [f"Student {own.number}" for own in students_in(folder)]
    assert set(joined) <= set(numbers)
    assert len(numbers) > len(joined)
