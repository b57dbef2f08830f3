"""Cuts a text classifier a little and distils it a little, again and again, down to a target.

    accelerate launch recipes/progressive/train.py --config recipes/progressive/config.yaml [more.yaml] [--key value]

Each stage of the config cuts the student of the stage before, and trains it with the original teacher. The student of
the last stage is the target.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoModelForSequenceClassification

from hf_distill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    TextClassificationArguments,
    make_stages,
    parse_config,
    train_model,
)


def main(argv: Sequence[str] | None = None) -> DistillationTrainer | None:
    """Trains the stages that are not finished, and prints a table of all students.

    Returns:
        The trainer of the last stage, or None if its student was already there.

    Raises:
        ValueError: before the first step, if there are no stages, or if options, data and models do not match.
    """
    task, training = parse_config([TextClassificationArguments, DistillationTrainingArguments], argv, __doc__)
    if not task.stages:
        raise ValueError("There are no stages: give a YAML file with some, such as recipes/progressive/config.yaml.")
    trainer = train_model(task, training)
    if training.process_index == 0:
        print(table(folders(task, training)))
    return trainer


def folders(task: TextClassificationArguments, training: DistillationTrainingArguments) -> dict[str, str]:
    """The folder of the teacher, and of the student of each stage by its name."""
    without_cuts = [{name: value for name, value in stage.items() if name != "cut"} for stage in task.stages]
    students = {stage.name: stage.args.output_dir for stage in make_stages(training, without_cuts)}
    return {"the teacher": training.teacher_model_name_or_path, **students}


def table(models: dict[str, str]) -> str:
    """Formats a Markdown table with one row per model."""
    lines = [["", "layers", "width", "parameters", "share", "validation accuracy"], ["---"] * 6]
    of_teacher = None
    for name, folder in models.items():
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        parameters, config = model.num_parameters(), model.config
        of_teacher = of_teacher or parameters
        lines.append(
            [
                *(name, str(config.num_hidden_layers), str(config.hidden_size)),
                *(f"{parameters:,}", f"{parameters / of_teacher:.0%}", validation_accuracy(Path(folder))),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def validation_accuracy(folder: Path) -> str:
    results = folder / "eval_results.json"
    return f"{json.loads(results.read_text())['eval_accuracy']:.2%}" if results.is_file() else ""


if __name__ == "__main__":
    main()
