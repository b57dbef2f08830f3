"""A student from its teacher's name. The tests of the command, `tests/cli/test_make_student.py`, cover the rest."""

import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_distill import describe
from hf_distill.student.folders import load_skeleton, make_student_folder
from tests.conftest import make_model
from tests.training.teacher.test_live import make_tokenizer


@pytest.fixture
def teacher(tmp_path):
    make_model("roberta", "mlm").save_pretrained(tmp_path / "teacher")
    make_tokenizer(["a", "b", "c"]).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_what_is_returned_is_what_is_saved(teacher, tmp_path):
    student, whole = make_student_folder(str(teacher), str(tmp_path / "student"), num_layers=3, layers="last")
    saved = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    assert saved.config.distilled_from["layers"] == student.config.distilled_from["layers"] == [1, 2, 3]
    assert saved.num_parameters() == student.num_parameters() < whole.num_parameters()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "student")) == 3
    assert (tmp_path / "student" / "README.md").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_skeleton_has_no_weights(teacher):
    (teacher / "model.safetensors").unlink()
    skeleton = load_skeleton(teacher)
    assert {weight.device.type for weight in skeleton.parameters()} == {"meta"}
    assert describe(skeleton) == describe(make_model("roberta", "mlm"))
