"""Folders that already hold a training: messages, and files that do not change."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import Dataset

from hf_distill import DistillationTrainingArguments, TrainingRun, make_student, model_identity
from hf_distill.training.checkpoints.runs import MAY_CHANGE, RECORD, WITHOUT_EFFECT, data_identity
from tests.conftest import make_model, make_rows
from tests.tasks.test_text_classification import assert_equal_weights, weights


@pytest.fixture
def run(make_trainer, tmp_path):
    """Trains a student of a fixed teacher in `out`: three steps with a checkpoint each. Returns the trainer."""
    teacher = make_model("bert", "classification")

    def run(settings=None, stop_at=None, finishes=True, resume=False, overwrite=False, **options):
        options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "alpha_cos": 0.0, **options}
        student = make_student(make_model("bert", "classification", seed=1, dropout=0.1))
        trainer = make_trainer(student, teacher, make_rows("classification"), **options)
        begun = TrainingRun.begin(trainer.args, settings or {}, resume=resume, overwrite=overwrite)
        if begun is None:
            return None
        if stop_at is not None:
            step = trainer.training_step
            trainer.training_step = lambda *args: (
                (_ for _ in ()).throw(KeyboardInterrupt) if trainer.state.global_step == stop_at else step(*args)
            )
        begun.train(trainer)
        trainer.save_model()
        trainer.save_metrics("train", {"steps": trainer.steps_made})
        if finishes:
            begun.finish()
        return trainer

    return run


def everything(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_finished_training_is_left_alone(run, tmp_path, caplog):
    run()
    before = everything(tmp_path / "out")
    how = {"logging_steps": 2, "save_total_limit": 2, "run_name": "again", "save_steps": 3}
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    for options in ({}, {"resume": True}, how, split, {"gradient_checkpointing": True}):
        assert run(**options) is None
        assert everything(tmp_path / "out") == before
    assert "already has a model trained with the same settings, models and data" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"learning_rate": 1e-3},
            "learning_rate was 5e-05 and is 0.001. It cannot resume with another learning_rate",
        ),
        ({"temperature": 4.0}, "temperature was 2.0 and is 4.0"),
        (
            {"alpha_kl": 1.0, "seed": 1},
            r"seed was 42 and is 1; alpha_kl was 5.0 and is 1.0. It cannot resume with another seed",
        ),
        ({"per_device_train_batch_size": 8}, "rows_per_step was 16 and is 8"),
        ({"settings": {"model": "b"}}, "model was None and is 'b'"),
        ({"max_steps": 4}, "max_steps was 3 and is 4. Continue from the last checkpoint with --resume, choose another"),
        (
            {"resume": True, "max_steps": 4, "learning_rate": 1e-3},
            "settings: learning_rate was 5e-05 and is 0.001. It",
        ),
        (
            {"resume": True, "max_steps": 2},
            "There is nothing to train: .*checkpoint-3 is already at step 3 of .*Raise num_train_epochs",
        ),
        ({"resume": True, "overwrite": True}, "overwrite starts over, resume and resume_from_checkpoint continue"),
    ],
)
def test_a_finished_training_with_other_settings(run, tmp_path, options, message):
    run()
    before = everything(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        run(**options)
    assert everything(tmp_path / "out") == before


def test_an_option_that_a_later_version_added_had_its_default(run, tmp_path):
    run()
    file = tmp_path / "out" / RECORD
    record = json.loads(file.read_text())
    del record["settings"]["on_policy_max_new_tokens"], record["settings"]["divergence"]
    file.write_text(json.dumps(record))
    assert run() is None
    with pytest.raises(ValueError, match=r"settings: divergence was 'forward_kl' and is 'reverse_kl'"):
        run(divergence="reverse_kl")


def test_resume_for_longer(run, tmp_path):
    run()
    trainer = run(resume=True, max_steps=5)
    assert (trainer.steps_made, trainer.state.global_step) == (2, 5)
    assert "| steps | 5 |" in (tmp_path / "out" / "README.md").read_text()
    assert run(max_steps=5) is None


def test_resume_to_measure_something_else(run, tmp_path):
    """If no step is left, the weights stay, and the results of the earlier run are removed."""
    run({"test_data": "a.csv"})
    before, card = weights(tmp_path / "out"), (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "out" / "test_results.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"test_data was 'a.csv' and is 'b.csv'. Continue from the last checkpoint with --res"
    ):
        run({"test_data": "b.csv"})
    assert run({"test_data": "b.csv"}, resume=True).steps_made == 0
    assert not (tmp_path / "out" / "test_results.json").exists()
    assert_equal_weights(weights(tmp_path / "out"), before)
    assert (tmp_path / "out" / "README.md").read_text() == card
    assert run({"test_data": "b.csv"}) is None


def test_resume_without_a_checkpoint(run):
    run(save_strategy="no")
    with pytest.raises(
        ValueError, match=r"There is no checkpoint in .*out to resume from: start over with --overwrite"
    ):
        run(save_strategy="no", resume=True, max_steps=5)


def test_overwrite(run, tmp_path):
    """Checkpoints of the earlier training are removed, and so are results that the new one does not write."""
    run(save_strategy="no", learning_rate=1e-3)
    expected = weights(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    run()
    (tmp_path / "out" / "test_results.json").write_text("{}")
    trainer = run(overwrite=True, learning_rate=1e-3, save_strategy="no")
    assert trainer.steps_made == 3
    assert_equal_weights(weights(tmp_path / "out"), expected)
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    assert not (tmp_path / "out" / "test_results.json").exists()
    assert "| learning rate | 0.001," in (tmp_path / "out" / "README.md").read_text()
    assert run(overwrite=True, learning_rate=1e-3, save_strategy="no").steps_made == 3  # equal, and asked for


def test_what_fails_before_the_first_step_removes_nothing(run, tmp_path):
    run()
    before = everything(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(overwrite=True, learning_rate=1e-3, stop_at=0)
    assert everything(tmp_path / "out") == before


@pytest.mark.parametrize("finishes", [True, False])
def test_a_training_that_was_stopped_goes_on(run, tmp_path, finishes):
    """A stopped training continues to the same bits, with a card; also if it stopped after its last checkpoint."""
    run()
    expected, card = weights(tmp_path / "out"), (tmp_path / "out" / "README.md").read_text()
    shutil.rmtree(tmp_path / "out")
    if finishes:
        with pytest.raises(KeyboardInterrupt):
            run(stop_at=2)
    else:
        run(finishes=False)
        for name in ("README.md", "model.safetensors"):
            (tmp_path / "out" / name).unlink()
    trainer = run()
    assert trainer.steps_made == (1 if finishes else 0)
    assert_equal_weights(weights(tmp_path / "out"), expected)
    assert (tmp_path / "out" / "README.md").read_text() == card
    assert run() is None


def test_a_training_that_was_stopped_with_other_settings(run, tmp_path):
    """Changed settings are refused, unless there is no checkpoint yet."""
    with pytest.raises(KeyboardInterrupt):
        run(stop_at=1)
    with pytest.raises(ValueError, match="has a stopped training with other settings: learning_rate was"):
        run(learning_rate=1e-3)
    shutil.rmtree(tmp_path / "out" / "checkpoint-1")
    assert run(learning_rate=1e-3).steps_made == 3


def test_checkpoints_of_unknown_settings(run, tmp_path):
    """Checkpoints without recorded settings, as from a script, are resumed. If no step is left, that is an error."""
    run()
    (tmp_path / "out" / "training_run.json").unlink()
    with pytest.raises(ValueError, match=r"There is nothing to train: .*checkpoint-3 is already at step 3 of 3"):
        run(learning_rate=1e-3)
    shutil.rmtree(tmp_path / "out" / "checkpoint-3")
    assert run().steps_made == 1


def test_no_step(run, tmp_path):
    with pytest.raises(ValueError, match=r"There is nothing to train: Raise num_train_epochs=0 or max_steps=-1"):
        run(max_steps=-1, num_train_epochs=0)
    assert not everything(tmp_path)


def test_identities(tmp_path):
    """The identity depends on the content of a model or data, not on its name or on other files in its folder."""
    make_model("bert", "classification").save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    (tmp_path / "other" / "README.md").write_text("a card")
    one, other = (model_identity(str(tmp_path / name)) for name in ("one", "other"))
    assert one["sha256"] == other["sha256"]
    assert one["name"] != other["name"]
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1.0}))
    assert model_identity(str(tmp_path / "other"))["sha256"] != one["sha256"]
    assert model_identity("someone/model") == {"name": "someone/model", "sha256": None}

    rows = Dataset.from_dict({"text": ["a", "b"], "labels": [0, 1]})
    written = data_identity("a.csv", rows)
    assert written["name"] == "a.csv (2 rows)"
    assert data_identity("b.csv", Dataset.from_dict(rows.to_dict()))["sha256"] == written["sha256"]
    assert data_identity("a.csv", rows.select([1, 0]))["sha256"] != written["sha256"]


def test_data_that_changed_under_its_name(run):
    rows = [Dataset.from_dict({"text": [text]}) for text in ("a", "b")]
    run({"train_data": data_identity("a.csv", rows[0]), "teacher": model_identity("some/teacher")})
    settings = {"train_data": data_identity("a.csv", rows[1]), "teacher": model_identity("other/teacher")}
    with pytest.raises(
        ValueError, match=r"train_data, a.csv \(1 rows\), has changed; teacher was some/.* is other/teacher"
    ):
        run(settings)
    assert run({"train_data": data_identity("b.csv", rows[0]), "teacher": model_identity("some/teacher")}) is None


def test_the_arguments_that_may_change():
    fields = {*DistillationTrainingArguments.__dataclass_fields__, "validation_data", "test_data"}
    assert fields >= MAY_CHANGE
    assert not MAY_CHANGE & WITHOUT_EFFECT
