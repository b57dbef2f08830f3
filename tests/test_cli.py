"""`hf-distill` from the shell."""

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_distill import __version__
from hf_distill.cli import main
from tests.conftest import make_model
from tests.training.test_teacher import make_tokenizer


@pytest.fixture
def teacher(tmp_path):
    make_model("roberta", "mlm").save_pretrained(tmp_path / "teacher")
    make_tokenizer(["a", "b", "c"]).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_make_student(teacher, tmp_path, capsys):
    assert main(["make-student", str(teacher), "--output", str(tmp_path / "out" / "student")]) == 0
    assert "layers [0, 2]" in capsys.readouterr().out
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "out" / "student")
    assert student.config.num_hidden_layers == 2
    assert student.config.distilled_from["teacher"] == "teacher"
    whole = AutoModelForMaskedLM.from_pretrained(teacher)
    assert torch.equal(
        student.roberta.encoder.layer[1].output.dense.weight, whole.roberta.encoder.layer[2].output.dense.weight
    )
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out" / "student")) == 3


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        (["--layers", "1", "3"], [1, 3]),
        (["--layers", "2"], [2]),
        (["--layers", "last", "--num-layers", "1"], [3]),
        (["--num-layers", "3"], [0, 1, 2]),
    ],
)
def test_choice_of_layers(teacher, tmp_path, options, layers):
    assert main(["make-student", str(teacher), "--output", str(tmp_path / "student"), *options]) == 0
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    assert student.config.distilled_from["layers"] == layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-layers", "5"], "num_layers=5, but the teacher has 4 layers"),
        (["--layers", "middle"], "layers='middle' is not a known strategy"),
        (["--layers", "0", "two"], "'two' is not an index"),
        (["--layers", "-1"], "out of range"),
    ],
)
def test_bad_choice_is_one_line_and_leaves_nothing(teacher, tmp_path, capsys, options, message):
    assert main(["make-student", str(teacher), "--output", str(tmp_path / "student"), *options]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("hf-distill: ")  # above it is the progress bar of loading
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_output_that_exists_is_left_alone(teacher, tmp_path, capsys):
    (tmp_path / "student").mkdir()
    assert main(["make-student", str(teacher), "--output", str(tmp_path / "student")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert not list((tmp_path / "student").iterdir())


def test_teacher_that_is_not_there(tmp_path, capsys):
    assert main(["make-student", str(tmp_path / "nothing"), "--output", str(tmp_path / "student")]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


def test_version_and_help(capsys):
    for option, expected in (("--version", __version__), ("--help", "make-student")):
        with pytest.raises(SystemExit) as exit_code:
            main([option])
        assert exit_code.value.code == 0
        assert expected in capsys.readouterr().out
