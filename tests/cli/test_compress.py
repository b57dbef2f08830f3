"""`hf-distill compress`: its options, its exit code, and its errors."""

import datasets
import pytest

from hf_distill.cli import main
from tests.compression.requests import end_after, record_of, write_request


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_request(tmp_path)


def words(**options):
    own = {
        "train": "train.csv",
        "test": "test.csv",
        "format": "pytorch",
        "threads": 1,
        "budget": "1h",
        "output": "small",
    }
    return ["compress", "teacher", *(f"--{name}={value}" for name, value in {**own, **options}.items())]


def code_of(given):
    """The exit code of a command."""
    try:
        return main(given)
    except SystemExit as exit:
        return exit.code


@pytest.mark.long
def test_finds_a_student(folder, monkeypatch, capsys):
    end_after(monkeypatch, 1)
    code = code_of(words(keep=0.3))
    record = record_of(folder)
    assert code == (0 if record["is_met"] else 3)
    shown = capsys.readouterr().out
    assert f"keeps\n{record['test']['share']:.1%}" in shown or f"keeps {record['test']['share']:.1%}" in shown
    assert "hf-distill serve small/model" in shown


@pytest.mark.long
def test_exit_code_if_no_student_keeps_enough(folder, monkeypatch, capsys):
    end_after(monkeypatch, 1)
    assert code_of(words(keep=0.9, max_ms=1000)) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "No student does what was asked for; the nearest: 2 layers" in shown
    assert (folder / "small" / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["compress", "teacher", "--output=small"], "keep is missing: hf-distill compress TEACHER --train"),
        (["compress"], "teacher, keep, output are missing"),
        (["compress", "teacher", "--keep=0.9", "--output=small", "--train=train.csv"], "give test_file"),
        (words(keep=1.5), "keep=1.5 must be between 0 and 1"),
        (words(keep=0.9, budget="soon"), "budget='soon' must be a time such as 1h"),
        (["compress", "--join=small"], "small has no search: start one with hf-distill compress"),
    ],
)
def test_errors(folder, capsys, given, message):
    assert code_of(given) == 2
    assert message in capsys.readouterr().err
