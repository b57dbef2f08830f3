"""The stages of the recipe on tiny models and made-up reviews, with the options of the real run."""

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
from transformers import AutoModelForSequenceClassification

from hf_distill import make_student
from recipes.imdb import train
from tests.conftest import make_model, make_text_tokenizer
from tests.processes import run_on_two_processes
from tests.tasks.test_text_classification import assert_equal_weights, make_reviews, weights, write_reviews

RECIPE = Path(train.__file__).parent
CONFIG, SMOKE = str(RECIPE / "config.yaml"), str(RECIPE / "smoke.yaml")
WORDS = ["--config", CONFIG, SMOKE]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The models and data that `smoke.yaml` names: a pretrained model, a general student, and reviews."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pretrained = make_model("roberta", "mlm")
    pretrained.save_pretrained(tmp_path / "pretrained")
    make_student(pretrained).save_pretrained(tmp_path / "general")
    for name in ("pretrained", "general"):
        make_text_tokenizer().save_pretrained(tmp_path / name)
    write_reviews(tmp_path / "train.csv", make_reviews(64, seed=0))
    write_reviews(tmp_path / "test.csv", make_reviews(24, seed=1))
    (tmp_path / "unlabelled.txt").write_text("\n".join(text for text, _ in make_reviews(32, seed=2)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_stages(folder):
    trainers = {stage: train.main([stage, *WORDS]) for stage in train.MODELS}
    measured = train.main(["compare", *WORDS])

    weights = {
        name: {loss: weight for loss, weight in trainer.loss_weights.items() if weight}
        for name, trainer in trainers.items()
    }
    assert weights["teacher"] == weights["baseline"] == {"task": 1}
    assert weights["student"] == {"kl": 5, "task": 2, "cos": 1}
    assert weights["two_step"] == {"kl": 5, "task": 2}
    assert "teacher_logits" in trainers["two_step"].train_dataset.column_names
    assert [len(trainer.train_dataset) for trainer in trainers.values()] == [48, 48, 80, 48]
    layers = [trainer.model.config.num_hidden_layers for trainer in trainers.values()]
    assert layers == [4, 2, 2, 2]
    assert all(trainer.args.bf16 for trainer in trainers.values())
    evaluated = [log["eval_accuracy"] for log in trainers["teacher"].state.log_history if "eval_accuracy" in log]
    assert evaluated[2:] == [max(evaluated)]  # after each of two epochs; the final model is the better one

    assert list(measured) == list(train.MODELS)
    assert all(own.keys() >= train.COLUMNS.keys() for own in measured.values())
    assert (measured["teacher"]["agreement"], measured["teacher"]["kl_to_teacher"]) == (1, 0)
    assert measured["teacher"]["accuracy"] > 0.8
    teacher, student = (measured[name]["parameters"] for name in ("teacher", "student"))
    assert teacher > student == AutoModelForSequenceClassification.from_pretrained("out/student").num_parameters()
    written = folder / "out" / "comparison"
    assert json.loads((written / "comparison.json").read_text()) == measured
    rows = (written / "comparison.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in rows] == ["model", "---", *train.MODELS]
    assert rows[2].split("|")[4].strip() == "100.00%"
    plots = ["calibration", "quality_against_latency", *(f"training_{stage}" for stage in train.MODELS)]
    assert all((written / f"{plot}.png").stat().st_size > 1000 for plot in plots)


def test_a_stage_resumes_by_itself(folder):
    """A training stopped after the first epoch and started again with the same command gives the same weights."""
    train.main(["teacher", *WORDS])
    expected = weights("out/teacher")
    Path("out/teacher").rename("whole")
    shutil.copytree("whole/checkpoint-6", "out/teacher/checkpoint-6")
    trainer = train.main(["teacher", *WORDS])
    assert trainer.state.global_step == 12
    assert_equal_weights(weights("out/teacher"), expected)


def run_stage_on_two_processes(folder, stage):
    """The recipe runs as a script. Its exit status is ignored, because gloo's threads sometimes abort at the end."""
    words = [RECIPE / "train.py", stage, *WORDS, "--ddp_backend", "gloo"]
    run = run_on_two_processes(words, env={"HF_DATASETS_CACHE": str(folder / "cache")})
    assert Path("out", stage.replace("_", "-"), "test_results.json").exists(), run.stderr[-3000:]


@pytest.mark.long
def test_two_processes(folder):
    run_stage_on_two_processes(folder, "teacher")
    assert json.loads(Path("out/teacher/trainer_state.json").read_text())["max_steps"] == 6  # 48 / (2 * 2 * 4) * 2
    assert AutoModelForSequenceClassification.from_pretrained("out/teacher").config.label2id == {"neg": 0, "pos": 1}


@pytest.mark.long
def test_two_processes_share_the_teachers_reading(folder):
    """The options of the two-step recipe, with unlabelled texts."""
    make_model("roberta", "classification").save_pretrained("out/teacher")
    make_text_tokenizer().save_pretrained("out/teacher")
    for name in ("train.csv", "test.csv"):
        write_reviews(Path(name), make_reviews(48, seed=0, names=("0", "1")))
    run_stage_on_two_processes(folder, "two_step")
    written = json.loads(Path("out/two-step/test_results.json").read_text())
    assert {"test_loss_kl", "test_accuracy"} <= written.keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--output_dir", "out"],
            "must be a stage, teacher, student, two_step, baseline or compare, but is ''",
        ),
        (["pupil", *WORDS], "but is 'pupil'"),
        (["student", *WORDS], "No model found at out/teacher"),
        (["teacher", *WORDS, "--text_column", "review"], "train.csv has no column 'review', only 'text', 'label'"),
        (["teacher", *WORDS, "--test_file", "more.csv"], "the training data or the model does not have: mixed"),
        (["teacher", *WORDS, "--validation_share", "0"], r"validation_share=0.0 must be between 0 and 1"),
        (["compare", *WORDS], "No model found in out/teacher: run the stage teacher first"),
        (["compare", *WORDS, "--output_dir", "out"], "Each stage needs its own output_dir"),
    ],
)
def test_errors_before_the_first_step(folder, words, message):
    write_reviews(folder / "more.csv", [*make_reviews(4, seed=0), ("w5", "mixed")])
    with pytest.raises(ValueError, match=message):
        train.main(words)
    assert not Path("out/teacher/config.json").exists()


def test_comparison_needs_a_student_and_a_test_set(folder):
    train.main(["teacher", *WORDS, "--max_steps", "1"])
    with pytest.raises(ValueError, match="No model found in out/student: run the stage student first"):
        train.main(["compare", *WORDS])
    shutil.copytree("out/teacher", "out/student")
    Path("no_test.yaml").write_text("test_file: null")
    with pytest.raises(ValueError, match="The stage compare needs a test set"):
        train.main(["compare", *WORDS, "no_test.yaml"])


def test_help(capsys):
    with pytest.raises(SystemExit):
        train.main(["student", "--help"])
    assert "--gradient_checkpointing" in capsys.readouterr().out


def test_the_real_config():
    runs = {stage: train.read(stage, ["--config", CONFIG, "--use_cpu"]) for stage in train.MODELS}
    teacher = runs["teacher"]
    assert (teacher.task.dataset_name, teacher.task.train_split) == ("stanfordnlp/imdb", "train")
    training = teacher.training
    assert (training.learning_rate, training.num_train_epochs, training.weight_decay) == (2e-5, 3, 0.01)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 16
    assert training.eval_strategy == training.save_strategy == "epoch"
    assert training.load_best_model_at_end
    for stage in ("student", "two_step"):
        assert runs[stage].training.teacher_model_name_or_path == training.output_dir
    assert runs["student"].task.model_name_or_path is None
    assert runs["two_step"].task.unlabelled_split == "unsupervised"
    assert runs["two_step"].task.model_name_or_path == runs["baseline"].task.model_name_or_path
    assert len({run.training.output_dir for run in runs.values()}) == 4


def test_the_smoke_run_changes_models_data_and_sizes_only():
    def keys(file):
        return set(re.findall(r"^ *(\w+):", Path(file).read_text(), flags=re.MULTILINE))

    losses = {name for name in keys(CONFIG) if re.match("alpha|temp|weight|warm|max_grad|eval_|load_|save_", name)}
    assert len(losses) > 8
    assert not losses & keys(SMOKE)
