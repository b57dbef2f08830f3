"""Stages that cut the student of the stage before: what is made, and that a kill at any point changes nothing."""

import shutil

import pytest
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from hf_distill import make_student
from hf_distill.tasks import cuts
from tests.tasks import test_stages, test_text_classification
from tests.tasks.test_stages import MOMENTS, kill, run
from tests.tasks.test_text_classification import (
    assert_equal_weights,
    distil,
    folder,
    make_reviews,
    teacher,
    weights,
)

_own_cache, dropout = test_text_classification._own_cache, test_stages.dropout
__all__ = ["_own_cache", "dropout", "folder", "teacher"]

WIDE = {"name": "inner", "cut": {"num_layers": 3, "layers": "spread", "intermediate_size": 24}, "max_steps": 3}
NARROW = {"name": "narrow", "cut": {"layers": [0, 2], "num_attention_heads": 1, "hidden_size": 8}}
ON_DATA = {"name": "narrow", "cut": {"num_layers": 2, "layers": "influence", "intermediate_size": 16}}
LOGITS = {"alpha_cos": 0.0}


def test_a_cut_at_the_start_of_each_stage(folder):
    """The same as cutting and training by hand, twice. The config records one cut from the teacher."""
    teacher = AutoModelForSequenceClassification.from_pretrained(folder / "teacher")
    _save(make_student(teacher, **WIDE["cut"]), folder / "cut-1", folder)
    distil(folder, {"model_name_or_path": str(folder / "cut-1")}, max_steps=3, **LOGITS)
    (folder / "out").rename(folder / "first")
    first = AutoModelForSequenceClassification.from_pretrained(folder / "first")
    _save(make_student(first, **NARROW["cut"]), folder / "cut-2", folder)
    distil(folder, {"model_name_or_path": str(folder / "cut-2")}, max_steps=4, **LOGITS)
    expected = weights(folder / "out")
    shutil.rmtree(folder / "out")

    assert run(folder, [WIDE, NARROW], temperature=2.0, **LOGITS).steps_made == 4
    assert_equal_weights(weights(folder / "out" / "stage-1-inner"), weights(folder / "first"))
    assert_equal_weights(weights(folder / "out"), expected)
    config = AutoModelForSequenceClassification.from_pretrained(folder / "out").config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (2, 8, 24)
    origin = config.distilled_from
    assert (origin["teacher"], origin["layers"], origin["num_teacher_layers"]) == ("teacher", [0, 3], 4)
    assert origin["sizes"] == {
        "intermediate_size": {"student": 24, "teacher": teacher.config.intermediate_size},
        "num_attention_heads": {"student": 1, "teacher": teacher.config.num_attention_heads},
        "hidden_size": {"student": 8, "teacher": teacher.config.hidden_size},
    }
    assert run(folder, [WIDE, NARROW], temperature=2.0, **LOGITS) is None


def _save(student, path, folder):
    student.save_pretrained(path)
    for file in (folder / "teacher").glob("*token*"):
        shutil.copy(file, path)


def test_kill_and_resume(folder):
    """With choices on data. One run that is killed again and again, and one that is not."""
    stages = [{**WIDE, "cut": {"intermediate_size": 24, "width": "activation"}}, ON_DATA]
    run(folder, stages, **LOGITS)
    expected = weights(folder / "out"), weights(folder / "out" / "stage-1-inner")
    shutil.rmtree(folder / "out")
    for moment in MOMENTS:
        with pytest.MonkeyPatch.context() as patch:
            kill(patch, *moment)
            with pytest.raises(KeyboardInterrupt):
                run(folder, stages, **LOGITS)
    assert run(folder, stages, **LOGITS).steps_made == 0
    assert_equal_weights(weights(folder / "out"), expected[0])
    assert_equal_weights(weights(folder / "out" / "stage-1-inner"), expected[1])


def test_another_cut_is_another_training(folder):
    run(folder, [WIDE, NARROW], **LOGITS)
    with pytest.raises(ValueError, match=r"stage-1-inner has a finished training with other settings: cut was"):
        run(folder, [{**WIDE, "cut": {"num_layers": 3}}, NARROW], **LOGITS)


@pytest.mark.parametrize(
    ("stages", "task", "message"),
    [
        ([{**WIDE, "cut": 3}], {}, r"Stage 'inner': cut=3 must map options to values"),
        ([{**WIDE, "cut": {"num_layer": 3}}], {}, r"cut has no option num_layer\. Did you mean num_layers\?"),
        ([{**WIDE, "cut": {"hidden_size": 8, "width": "size"}}], {}, r"Stage 'inner': width='size' is unknown: use "),
        (
            [{**WIDE, "cut": {"num_layers": 2, "width": "taylor"}}],
            {},
            "Stage 'inner': width='taylor' would have no",
        ),
        ([WIDE], {"num_layers": 2}, "num_layers and layers have no effect if the first stage has a cut"),
        ("wide", {}, "stages='wide' should be a list"),
        ([WIDE, {**NARROW, "cut": {"intermediate_size": 25}}], {}, "Stage 'narrow': intermediate_size=25, but the"),
        ([WIDE, {**NARROW, "cut": {"num_layers": 4}}], {}, "Stage 'narrow': num_layers=4"),
        ([{**WIDE, "cut": {"hidden_size": 9}}], {}, "Stage 'inner': "),
        (
            [WIDE, {**NARROW, "alpha_cos": 1.0}],
            {},
            r"Stage 'narrow': alpha_cos=1\.0 compares hidden states",
        ),
    ],
)
def test_errors_before_the_first_step(folder, stages, task, message):
    with pytest.raises(ValueError, match=message):
        run(folder, stages, task, **LOGITS)
    assert not (folder / "out").exists()


def test_taylor_reads_labelled_texts_only(folder):
    texts = [text for text, _ in make_reviews(40, seed=3)]
    (folder / "unlabelled.txt").write_text("\n".join(texts))
    stages = [{"name": "inner", "cut": {"intermediate_size": 16, "width": "taylor"}, "max_steps": 1}]
    run(folder, stages, {"unlabelled_file": str(folder / "unlabelled.txt")}, **LOGITS)
    without = {"train_file": None, "unlabelled_file": str(folder / "unlabelled.txt"), "overwrite": True}
    with pytest.raises(ValueError, match="width='taylor' needs labelled training texts"):
        run(folder, stages, {**without, "test_file": None}, alpha_task=0.0, **LOGITS)


def test_calibration_texts_are_evenly_spaced():
    rows = Dataset.from_dict({"input_ids": [[index] for index in range(600)], "teacher_logits": [[0.0]] * 600})
    batches = cuts._batches({"width": "activation"}, rows, lambda part: {"ids": [row["input_ids"][0] for row in part]})
    read = [index for batch in batches for index in batch["ids"]]
    assert read == list(range(0, 512, 2))
    assert cuts._batches({"num_layers": 2}, rows, list) is None
