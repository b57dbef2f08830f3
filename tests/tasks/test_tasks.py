"""What every row of `TASKS` must say of itself, and which task a model is for."""

import dataclasses

import pytest
import yaml
from transformers import BertConfig

from hf_distill import DistillationTrainingArguments
from hf_distill.cli import main
from hf_distill.cli.task_sources import options_of_task, task_arguments
from hf_distill.config_files import parse_config
from hf_distill.deployment.heads import PREDICTION_HEADS
from hf_distill.evaluation.report import Metric
from hf_distill.tasks.registry import TASKS, task_named, task_of
from hf_distill.tasks.training import train_model

EVERY = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


@EVERY
def test_a_row_is_complete(task):
    assert TASKS[task.name] is task
    assert task.head in PREDICTION_HEADS
    assert task.arguments().task == task.name
    assert len(task.quality) > 0
    assert all(isinstance(own, Metric) for own in (*task.quality.values(), *task.fidelity.values()))
    assert all("help" in field.metadata for field in task.reading_fields())
    assert not task.summary.endswith(".")


@EVERY
def test_its_example_is_a_config(task, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"task: {task.name}\n{task.example}")
    assert "output_dir" in yaml.safe_load(task.example)
    args, training = parse_config([task.arguments, DistillationTrainingArguments], ["--config", str(file)])
    assert args.task == task.name
    assert training.output_dir


@EVERY
def test_its_sources_say_what_its_dataclass_says(task):
    """The command line reads the options out of the sources."""
    assert task_arguments()[task.name] == task.arguments.__name__
    options = {option.name: option for option in options_of_task(task.name)}
    fields = {field.name: field for field in dataclasses.fields(task.arguments)}
    assert list(options) == [field.name for field in task.reading_fields()]
    for name, option in options.items():
        assert (option.default, option.help) == (fields[name].default, fields[name].metadata["help"])


@EVERY
def test_the_shell_shows_it(task, capsys):
    assert main(["tasks"]) == main(["tasks", task.name]) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"\n    task: {task.name}\n") == 2
    for field in task.reading_fields():
        assert f"\n  {field.name} " in printed
    assert [line for line in printed.splitlines() if len(line) > 88] == []


def test_an_unknown_task(capsys):
    assert main(["tasks", "chess"]) == main(["train", "--task", "chess"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all("task='chess' must be one of text-classification" in line for line in errors)


def test_the_task_of_a_model():
    tagged = BertConfig(architectures=["BertForSequenceClassification"])
    assert task_of(tagged, "model").name == "text-classification"
    assert task_of(BertConfig(architectures=["BertModel"]), "model").name == "embedding"
    with pytest.raises(ValueError, match=r"model has no head of a task \(text-classification"):
        task_of(BertConfig(architectures=["BertForMultipleChoice"]), "model")
    with pytest.raises(ValueError, match="model has no head trained for text-classification: fine-tune it first"):
        task_of(BertConfig(architectures=["BertModel"]), "model", "text-classification")


def test_arguments_of_another_task():
    @dataclasses.dataclass
    class Others(task_named("text-classification").arguments.__bases__[0]):
        pass

    with pytest.raises(ValueError, match="needs TextClassificationArguments, but got Others"):
        train_model(Others(), DistillationTrainingArguments("out"))
