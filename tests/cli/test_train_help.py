"""The help of `hf-distill train` says what the dataclasses say."""

import dataclasses
from dataclasses import MISSING
from enum import Enum
from typing import get_args, get_type_hints

import pytest
from transformers import TrainingArguments

from hf_distill import DistillationTrainingArguments, TextClassificationArguments
from hf_distill.cli.task_sources import PACKAGE, options_of_task, own_options
from hf_distill.cli.train_help import HIDDEN, OF_TRAINER, SECTIONS, help_parser

OWN = {
    option.name: option
    for options in (
        options_of_task("text-classification"),
        *(own_options(PACKAGE / file, name, HIDDEN) for classes in SECTIONS.values() for file, name in classes),
    )
    for option in options
}


def test_our_fields_are_all_there():
    of_task = {field.name: field for field in dataclasses.fields(TextClassificationArguments)}
    of_training = {field.name: field for field in dataclasses.fields(DistillationTrainingArguments)}
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    fields = of_task | {name: field for name, field in of_training.items() if name not in inherited}
    assert OWN.keys() == fields.keys() - set(HIDDEN)
    for name, option in OWN.items():
        assert option.default == fields[name].default
        assert option.help == fields[name].metadata["help"]


@pytest.mark.parametrize("owner", [TextClassificationArguments, DistillationTrainingArguments])
def test_choices_and_types(owner):
    hints = get_type_hints(owner)
    for name in OWN.keys() & hints.keys():
        kinds = [kind for kind in get_args(hints[name]) or [hints[name]] if kind is not type(None)]
        choices = [choice for kind in kinds for choice in get_args(kind) or [kind] if isinstance(choice, str)]
        if choices:
            assert OWN[name].metavar == "{" + ",".join(choices) + "}"
        elif kinds[0] in (int, float, bool):
            assert OWN[name].metavar == {int: "N", float: "X", bool: "[true|false]"}[kinds[0]]


def test_options_of_trainer():
    fields = TrainingArguments.__dataclass_fields__
    made = TrainingArguments(report_to="none", use_cpu=True)
    for option in OF_TRAINER:
        assert fields[option.name].default is not MISSING
        value = getattr(made, option.name) if option.name == "output_dir" else fields[option.name].default
        assert option.default == (value.value if isinstance(value, Enum) else value), option.name


def test_defaults_are_shown():
    shown = " ".join(help_parser().format_help().split())
    assert "(default: 5.0)" in shown
    assert "--max_length N" in shown
    assert "--resume [true|false]" in shown
    assert "None" not in shown
