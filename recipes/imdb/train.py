"""Fine-tunes a teacher for sentiment on IMDb reviews, distils students from it, and compares them.

    accelerate launch recipes/imdb/train.py STAGE --config recipes/imdb/config.yaml [more.yaml] [--key value ...]

STAGE is teacher, student, two_step or baseline, which train the model of that section of the config; or compare.
Data: Maas et al., 2011, https://aclanthology.org/P11-1015. To use your own data, see the README.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_distill import (
    DistillationTrainingArguments,
    TextClassificationArguments,
    classification_metrics,
    classify_texts,
    load_labelled_texts,
    parse_config,
    plot_calibration,
    plot_quality_against_latency,
    plot_training_curves,
    train_model,
)

MODELS = ("teacher", "student", "two_step", "baseline")
"""The stages that train a model. Each is a section of the config."""

COLUMNS = {
    "accuracy": ("accuracy", "{:.2%}"),
    "f1": ("F1", "{:.2%}"),
    "agreement": ("agreement with the teacher", "{:.2%}"),
    "kl_to_teacher": ("KL to the teacher", "{:.3f}"),
    "expected_calibration_error": ("calibration error", "{:.3f}"),
    "parameters": ("parameters", "{:,}"),
    "megabytes": ("MB on disk", "{:.1f}"),
    "milliseconds": ("ms per text", "{:.1f}"),
}
"""Columns of the table: metric, title and number format."""


@dataclass
class ComparisonArguments:
    """Options of the stage `compare`, in addition to the sections of the models."""

    comparison_dir: str = field(
        default="outputs/imdb/comparison", metadata={"help": "Folder for the table and plots of the stage `compare`."}
    )
    timed_texts: int = field(default=40, metadata={"help": "How many texts of the test set are timed, one by one."})


@dataclass(frozen=True)
class Run:
    """The options of one model, from its section of the config."""

    comparison: ComparisonArguments
    task: TextClassificationArguments
    training: DistillationTrainingArguments

    @property
    def folder(self) -> Path:
        return Path(self.training.output_dir)


def read(stage: str, words: Sequence[str]) -> Run:
    types = [ComparisonArguments, TextClassificationArguments, DistillationTrainingArguments]
    usage = f"train.py {stage} [--config FILE [FILE ...]] [--key value ...]"
    return Run(*parse_config(types, words, __doc__, sections=MODELS, section=stage, usage=usage))


def trained(words: Sequence[str]) -> dict[str, Run]:
    """The models that have been trained, by stage.

    Raises:
        ValueError: if the teacher is missing, or there is no other model to compare it with.
    """
    runs = {stage: read(stage, words) for stage in MODELS}
    if len({run.folder for run in runs.values()}) < len(runs):
        raise ValueError("Each stage needs its own output_dir: set them in the sections of a config file.")
    there = {stage: run for stage, run in runs.items() if (run.folder / "config.json").is_file()}
    if "teacher" not in there or len(there) < 2:
        missing = "teacher" if "teacher" not in there else "student"
        raise ValueError(f"No model found in {runs[missing].folder}: run the stage {missing} first.")
    return there


def load_test_set(task: TextClassificationArguments, label_names: list[str]) -> Dataset:
    if not (task.test_file or task.test_split):
        raise ValueError("The stage compare needs a test set: give test_file, or dataset_name and test_split.")
    texts, _ = load_labelled_texts(
        task.test_file or task.dataset_name,
        task.text_column,
        task.label_column,
        label_names,
        split=task.test_split or "train",  # the split that `load_dataset` gives for files
        config_name=task.dataset_config_name,
    )
    return texts


def milliseconds_per_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> float:
    """Median time per text, one text at a time, including tokenization, after one warm-up round."""

    @torch.inference_mode()
    def seconds(text: str) -> float:
        start = time.perf_counter()
        inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        model(**inputs.to(model.device)).logits.cpu()
        return time.perf_counter() - start

    return 1000 * statistics.median([[seconds(text) for text in texts] for _ in range(2)][1])


def compare(runs: dict[str, Run]) -> dict[str, dict[str, float]]:
    """Measures the models on the test set, and writes a table, `comparison.json` and plots.

    Returns:
        The metrics of `COLUMNS`, by stage.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    models = {stage: AutoModelForSequenceClassification.from_pretrained(run.folder) for stage, run in runs.items()}
    label_names = list(models["teacher"].config.id2label.values())
    test = load_test_set(runs["teacher"].task, label_names)
    texts, labels = list(test["text"]), list(test["labels"])

    logits, measured = {}, {}
    for stage, run in runs.items():
        model, tokenizer = models[stage].to(device).eval(), AutoTokenizer.from_pretrained(run.folder)
        task, batch_size = run.task, run.training.per_device_eval_batch_size
        logits[stage] = classify_texts(
            model, tokenizer, texts, task.max_length, task.truncation, batch_size, label_names
        )
        max_length = task.max_length or tokenizer.model_max_length
        measured[stage] = {
            **classification_metrics(logits[stage], labels, logits["teacher"]),
            "parameters": model.num_parameters(),
            "megabytes": sum(file.stat().st_size for file in run.folder.glob("*.safetensors")) / 1e6,
            "milliseconds": milliseconds_per_text(model, tokenizer, texts[: run.comparison.timed_texts], max_length),
        }

    folder = Path(runs["teacher"].comparison.comparison_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "comparison.json", json.dumps(measured, indent=2) + "\n")
    write_whole(folder / "comparison.md", table(measured) + "\n")
    plot_calibration({stage: (own.softmax(-1), labels) for stage, own in logits.items()}, folder / "calibration.png")
    plot_quality_against_latency(
        {stage: (own["milliseconds"], own["accuracy"]) for stage, own in measured.items()},
        folder / "quality_against_latency.png",
    )
    for stage, run in runs.items():
        state = json.loads((run.folder / "trainer_state.json").read_text())
        plot_training_curves(state["log_history"], folder / f"training_{stage}.png")
    return measured


def table(measured: dict[str, dict[str, float]]) -> str:
    """Formats a Markdown table with one row per model."""
    lines = [["model", *(title for title, _ in COLUMNS.values())], ["---"] * (len(COLUMNS) + 1)]
    for stage, own in measured.items():
        lines.append([stage, *(text.format(own[name]) for name, (_, text) in COLUMNS.items())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_whole(file: Path, content: str) -> None:
    """Writes a file atomically: if the process is killed, the old file stays."""
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(content)
    unfinished.replace(file)


def main(argv: Sequence[str] | None = None) -> object:
    """Runs one stage.

    Returns:
        The trainer, or for `compare` the measurements.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    stage = words.pop(0) if words and not words[0].startswith("-") else ""
    if stage == "compare":
        measured = compare(trained(words))
        print(table(measured))
        return measured
    run = read(stage, words)  # also handles --help
    if stage not in MODELS:
        raise ValueError(f"The first word must be a stage, {', '.join(MODELS)} or compare, but is {stage!r}.")
    return train_model(run.task, run.training)


if __name__ == "__main__":
    main()
