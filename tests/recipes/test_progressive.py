"""The recipe on a tiny teacher and made-up reviews, with the options of the real run."""

import itertools
import json
import re
import shutil
import signal
from pathlib import Path

import datasets
import pytest
import yaml
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from hf_distill import DistillationTrainingArguments, TextClassificationArguments, make_student, parse_config
from recipes.benchmarks import progressive
from recipes.progressive import train
from tests.conftest import make_config, make_model, make_text_tokenizer, make_texts
from tests.processes import run_python
from tests.tasks.test_text_classification import assert_equal_weights, make_reviews, weights, write_reviews

RECIPE = Path(train.__file__).parent
CONFIG, MINIATURE = RECIPE / "config.yaml", RECIPE / "miniature.yaml"
TINY = {
    "teacher_model_name_or_path": "teacher",
    "train_file": "train.csv",
    "test_file": "test.csv",
    "validation_share": 0.25,
    "max_length": 24,
    "output_dir": "out",
    "stages": [
        {
            "name": "larger",
            "cut": {"layers": [0, 1, 3], "intermediate_size": 24, "width": "activation"},
            "max_steps": 3,
        },
        {"name": "target", "cut": {"layers": [0, 2], "num_attention_heads": 1, "hidden_size": 8}, "max_steps": 4},
    ],
    "per_device_train_batch_size": 8,
    "save_steps": 1,
    "logging_steps": 1,
}


@pytest.fixture
def words(tmp_path, monkeypatch):
    """Command-line options for a teacher with 4 layers and reviews."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    make_model("roberta", "classification", dropout=0.1, **names).save_pretrained(tmp_path / "teacher")
    make_text_tokenizer().save_pretrained(tmp_path / "teacher")
    write_reviews(tmp_path / "train.csv", make_reviews(64, seed=0))
    write_reviews(tmp_path / "test.csv", make_reviews(24, seed=1))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.chdir(tmp_path)
    return ["--config", str(CONFIG), str(MINIATURE), "tiny.yaml"]


KILLED = """
import os, signal, sys
from hf_distill import DistillationTrainer
from recipes.progressive import train

folder, step, make_step = sys.argv[1], int(sys.argv[2]), DistillationTrainer.training_step

def training_step(self, *args):
    if self.args.output_dir == folder and self.state.global_step == step:
        os.kill(os.getpid(), signal.SIGKILL)
    return make_step(self, *args)

DistillationTrainer.training_step = training_step
train.main(sys.argv[3:])
"""


def test_the_students(words, capsys):
    trainer = train.main(words)
    assert {name: weight for name, weight in trainer.loss_weights.items() if weight} == {"kl": 5, "task": 2}
    assert "teacher_logits" in trainer.train_dataset.column_names
    larger, target = (
        AutoModelForSequenceClassification.from_pretrained(name) for name in ("out/stage-1-larger", "out")
    )
    assert (larger.config.num_hidden_layers, larger.config.hidden_size) == (3, 16)
    assert (target.config.num_hidden_layers, target.config.hidden_size, target.config.intermediate_size) == (2, 8, 24)
    assert target.config.distilled_from["layers"] == [0, 3]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines] == ["| ", "| ---", "| the teacher", "| larger", "| target"]
    accuracy = json.loads(Path("out/eval_results.json").read_text())["eval_accuracy"]
    assert lines[-1].endswith(f" | {accuracy:.2%} |")
    assert f"| {target.num_parameters():,} |" in lines[-1]
    assert "test_accuracy" in json.loads(Path("out/test_results.json").read_text())
    assert not Path("out/stage-1-larger/test_results.json").exists()


@pytest.mark.long
def test_a_killed_run_continues(words, tmp_path):
    """Killed in the first round and in the second, and started again with the same command: the same weights."""
    train.main(words)
    expected = weights("out"), weights("out/stage-1-larger")
    shutil.rmtree("out")
    Path("killed.py").write_text(KILLED)
    for folder, step in (("out/stage-1-larger", 2), ("out", 1)):
        env = {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
        run = run_python(["killed.py", folder, step, *words], env=env, cwd=tmp_path)
        assert run.returncode == -signal.SIGKILL, run.stderr[-3000:]
        assert not Path("out/model.safetensors").exists()
    finished = Path("out/stage-1-larger/model.safetensors").stat().st_mtime_ns
    assert train.main(words).steps_made == 3
    assert Path("out/stage-1-larger/model.safetensors").stat().st_mtime_ns == finished
    assert_equal_weights(weights("out"), expected[0])
    assert_equal_weights(weights("out/stage-1-larger"), expected[1])
    assert train.main(words) is None
    with pytest.raises(ValueError, match="other settings: learning_rate was"):
        train.main([*words, "--learning_rate", "0.5"])


def test_a_config_without_stages(words):
    with pytest.raises(ValueError, match="There are no stages: give a YAML file with some"):
        train.main(["--output_dir", "out", "--train_file", "train.csv"])


@pytest.mark.parametrize(("files", "num_layers", "head_width"), [([CONFIG], 12, 64), ([CONFIG, MINIATURE], 6, 32)])
def test_the_real_cuts_fit(files, num_layers, head_width):
    """On a teacher with the layers and heads of the real one, and heads of width 4."""
    types = [TextClassificationArguments, DistillationTrainingArguments]
    task, training = parse_config(types, ["--config", *map(str, files), "--use_cpu"])
    sizes = {"num_layers": num_layers, "width": 48, "num_attention_heads": 12, "intermediate_size": 96}
    teacher = student = make_model("roberta", "classification", **sizes)
    for stage in task.stages:
        cut = stage["cut"]
        heads = cut["num_attention_heads"]
        assert (cut["hidden_size"], cut["intermediate_size"]) == (head_width * heads, 4 * head_width * heads)
        assert cut["width"] == "activation"
        narrow = {"hidden_size": 4 * heads, "intermediate_size": 8 * heads, "width": "magnitude"}
        student = make_student(student, **{**cut, **narrow})
    for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size"):
        assert 2 * getattr(student.config, name) == getattr(teacher.config, name)
    assert (training.alpha_kl, training.alpha_task, training.alpha_cos) == (5, 2, 0)


def test_the_comparison(tmp_path, monkeypatch, capsys):
    """All ways end with the same sizes. A second run trains nothing again."""
    names = {"BATCH_SIZE": 8, "STEPS_TO_TIME": 2, "TIMINGS": 1, "NUM_CALIBRATION": 8}
    for name, value in names.items():
        monkeypatch.setattr(progressive, name, value)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    make_model("bert", "classification").base_model.save_pretrained(tmp_path / "pretrained")
    make_text_tokenizer().save_pretrained(tmp_path / "pretrained")
    rows = Dataset.from_dict({"text": make_texts(24, longest=8), "labels": [row % 2 for row in range(24)]})
    sentences = dict.fromkeys(("teacher", "train", "test"), rows)
    output, ways = tmp_path / "progressive.json", ["one cut", "2 rounds"]

    def run():
        return progressive.run(tmp_path / "pretrained", sentences, output, ways, [0, 1], seconds=0.01)

    trainings = run()
    assert list(trainings) == ["one cut, seed 0", "2 rounds, seed 0", "one cut, seed 1", "2 rounds, seed 1"]
    assert [len(own["steps"]) for own in trainings.values()] == [1, 2, 1, 2]
    measured = json.loads(output.read_text())
    assert measured["trainings"] == trainings
    assert list(measured["step_seconds"]) == ["layers 0 2, width 8", "layers 0 2 3, width 16"]
    printed = capsys.readouterr().out
    assert all(printed.count(f"\n| {way} | ") == 1 for way in ways)

    written = output.read_bytes()
    monkeypatch.setattr(progressive.Benchmark, "train", None)
    assert run() == trainings
    assert output.read_bytes() == written


def test_the_sizes_of_the_comparison():
    """Of MiniLM: rounds get smaller, and end with half of everything. Shares of the time add up."""
    config = make_config("bert", num_layers=6, width=384, num_attention_heads=12, intermediate_size=1536)
    for number in progressive.WAYS.values():
        rounds = progressive.rounds_of(config, number)
        kept, sizes = rounds[-1]
        assert kept == [0, 2, 4]
        assert sizes == {"num_attention_heads": 6, "hidden_size": 192, "intermediate_size": 768}
        assert all(set(later) < set(before) for (before, _), (later, _) in itertools.pairwise(rounds))
        assert all(own["hidden_size"] == 32 * own["num_attention_heads"] for _, own in rounds)
        assert sum(progressive.shares_of(number)) == 1


def test_the_miniature_changes_no_loss():
    real, miniature = (yaml.safe_load(file.read_text()) for file in (CONFIG, MINIATURE))
    losses = {name for name in real if re.match("alpha|temp|weight|lr|max_grad", name)}
    assert len(losses) > 5
    assert not losses & miniature.keys()
