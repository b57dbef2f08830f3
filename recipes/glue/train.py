"""Fine-tunes a model on the nine GLUE tasks, with or without a teacher, and compares it with published scores.

    accelerate launch recipes/glue/train.py --config recipes/glue/config.yaml [more.yaml] [--key value ...]

Wang et al., 2018, GLUE, https://arxiv.org/abs/1804.07461. Scores are on the development sets, as in the papers, because
the labels of the test sets are not public.
"""

import hashlib
import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from hf_distill import DistillationTrainer, DistillationTrainingArguments, __version__, glue_metric, parse_config


@dataclass(frozen=True)
class Task:
    """One of the nine GLUE tasks.

    Attributes:
        title: its name in papers.
        columns: its one or two text columns.
        labels: class names in the order of their numbers; empty if the label is a score.
        validation: splits for evaluation. The first one selects the best checkpoint.
    """

    title: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    validation: tuple[str, ...] = ("validation",)


MNLI_VALIDATION = ("validation_matched", "validation_mismatched")
TASKS = {
    "cola": Task("CoLA", ("sentence",), ("unacceptable", "acceptable")),
    "sst2": Task("SST-2", ("sentence",), ("negative", "positive")),
    "mrpc": Task("MRPC", ("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qqp": Task("QQP", ("question1", "question2"), ("not_duplicate", "duplicate")),
    "stsb": Task("STS-B", ("sentence1", "sentence2"), ()),
    "mnli": Task("MNLI", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), MNLI_VALIDATION),
    "qnli": Task("QNLI", ("question", "sentence"), ("entailment", "not_entailment")),
    "rte": Task("RTE", ("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "wnli": Task("WNLI", ("sentence1", "sentence2"), ("not_entailment", "entailment")),
}
"""Tasks by their name in the dataset nyu-mll/glue."""

METRICS = {
    "matthews_correlation": "Matthews correlation",
    "f1": "F1",
    "accuracy": "accuracy",
    "pearsonr": "Pearson correlation",
    "spearmanr": "Spearman correlation",
    "mean": "mean of the two",
}
"""Names of the metrics in the table. The GLUE score of a task is the mean of its one or two metrics."""

WITHOUT_EFFECT = {"output_dir", "local_rank", "report_to", "run_name", "disable_tqdm", "hub_token"}
"""Options that do not affect a score."""

PUBLISHED = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))

Scores = dict[str, dict[str, float]]
"""Scores by split, then by metric."""


@dataclass
class GlueArguments:
    """Model, data and tasks."""

    model_name_or_path: str = field(metadata={"help": "The model to fine-tune: a Hub name or a folder."})
    data: str = field(
        default="nyu-mll/glue",
        metadata={"help": "A dataset on the Hub, or a folder with one subfolder per task that contains train.csv etc."},
    )
    tasks: list[str] = field(
        default_factory=lambda: list(TASKS), metadata={"help": "Tasks to fine-tune on. Default: all nine."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [42], metadata={"help": "One training per seed; the table shows the median."}
    )
    compare_with: str | None = field(
        default=None,
        metadata={"help": "Row of published.yaml to compare with. Default: the row of the model, if there is one."},
    )

    def __post_init__(self):
        if unknown := [task for task in self.tasks if task not in TASKS]:
            raise ValueError(f"Unknown GLUE task {', '.join(unknown)}: choose from {', '.join(TASKS)}.")
        if self.compare_with not in (None, *PUBLISHED):
            raise ValueError(f"compare_with={self.compare_with!r} must be one of {', '.join(PUBLISHED)}.")


def load_task(data: str, task: str) -> dict[str, Dataset]:
    """Loads the labelled splits of a task, with its text columns and `label`.

    Args:
        data: Hub name, or a folder. In a folder, each split of a task is one file, such as `mrpc/train.csv`, or
            several, such as `mrpc/train-00000-of-00002.parquet`, in a format that `datasets` loads.
        task: name of the task in `TASKS`.

    Raises:
        ValueError: if the folder lacks the task, a split or a column, or if labels are invalid.
    """
    splits = ["train", *TASKS[task].validation]
    if not Path(data).is_dir():
        loaded = load_dataset(data, task, split=splits)
    else:
        folder = Path(data, task)
        patterns = {split: f"{split}[.-]*" for split in splits}
        if missing := [split for split, pattern in patterns.items() if not [*folder.glob(pattern)]]:
            raise ValueError(f"{folder} has no file for {', '.join(missing)}, such as {missing[0]}.csv or .json.")
        loaded = load_dataset(str(folder), data_files=patterns, split=splits)
    loaded = dict(zip(splits, loaded, strict=True))
    for split, dataset in loaded.items():
        _check(dataset, TASKS[task], f"{data}, {task}, {split}")
    return loaded


def _check(dataset: Dataset, task: Task, name: str) -> None:
    if missing := [column for column in (*task.columns, "label") if column not in dataset.column_names]:
        raise ValueError(f"{name} has no column {', '.join(missing)}, only {', '.join(dataset.column_names)}.")
    labels = dataset.unique("label")
    if task.labels and not set(labels) <= set(range(len(task.labels))):
        numbers = ", ".join(f"{number} for {label}" for number, label in enumerate(task.labels))
        raise ValueError(f"{name} has the labels {labels[:5]}: labels must be {numbers}.")
    if not task.labels and not all(isinstance(label, int | float) for label in labels):
        raise ValueError(f"{name} has the labels {labels[:5]}: labels must be numbers.")


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise ValueError(f"No tokenizer found at {name}, neither as a local folder nor on the Hub: {error}") from error


def encode(dataset: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Tokenizes a split, truncated to the tokenizer's maximum length and without padding, with `labels`."""

    def encode_batch(batch: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(*(batch[column] for column in task.columns), truncation=True)
        labels = batch["label"] if task.labels else [float(label) for label in batch["label"]]
        return {**encoded, "labels": labels}

    return dataset.map(encode_batch, batched=True, remove_columns=dataset.column_names)


def load_model(name: str, task: Task) -> PreTrainedModel:
    """Loads the model with a head for the task. An existing head with the same number of classes is kept."""
    labels = task.labels or ("score",)
    return AutoModelForSequenceClassification.from_pretrained(
        name,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        problem_type="single_label_classification" if task.labels else "regression",
        ignore_mismatched_sizes=True,  # a head for another number of classes is replaced by a new one
        use_safetensors=True,
    )


def compute_metrics_of(task: str) -> Callable[[EvalPrediction], dict[str, float]]:
    """Returns a function that computes a task's metrics and their mean from `[rows, labels]` logits."""
    metric = glue_metric(task, keep_in_memory=True)

    def compute_metrics(evaluated: EvalPrediction) -> dict[str, float]:
        predictions = evaluated.predictions.argmax(-1) if TASKS[task].labels else evaluated.predictions[:, 0]
        scores = metric.compute(predictions=predictions, references=evaluated.label_ids)
        return scores | {"mean": statistics.mean(scores.values())}

    return compute_metrics


def arguments_of(training: DistillationTrainingArguments, task: str, seed: int) -> DistillationTrainingArguments:
    """The arguments of one training: its own folder and seed, and the task filled into the teacher's name."""
    teacher = training.teacher_model_name_or_path
    return replace(
        training,
        output_dir=str(Path(training.output_dir, task, f"seed-{seed}")),
        seed=seed,
        metric_for_best_model="mean",
        greater_is_better=True,
        teacher_model_name_or_path=teacher and teacher.replace("{task}", task),
    )


def settings_of(glue: GlueArguments, task: str, args: DistillationTrainingArguments) -> dict[str, object]:
    """Everything that affects the scores of a training."""
    options = {name: value for name, value in args.to_dict().items() if name not in WITHOUT_EFFECT}
    teacher = args.teacher_model_name_or_path
    settings = {
        "model": identity(glue.model_name_or_path),
        "teacher": teacher and identity(teacher),
        "data": identity(Path(glue.data, task)) if Path(glue.data).is_dir() else glue.data,
        "processes": args.world_size,
        "hf_distill": __version__,
        "options": options,
    }
    return json.loads(json.dumps(settings, default=str))  # the form in which they are read back and compared


def identity(name: str | Path) -> str:
    """The Hub name, or for a folder a digest of its files, which changes when it is trained again."""
    if not Path(name).is_dir():
        return str(name)
    digest = hashlib.sha256()
    for file in sorted(path for path in Path(name).iterdir() if path.is_file()):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def begin(folder: Path, settings: dict[str, object]) -> dict[str, object]:
    """Reads the record of a training from `result.json`: its settings, and its scores if it is finished.

    If the settings have changed, the old record and its checkpoints are removed.
    """
    file = folder / "result.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    if record.get("settings") != settings:
        remove_checkpoints(folder)
        record = {"settings": settings}
        write_whole(file, record)
    return record


def fine_tune(
    glue: GlueArguments,
    args: DistillationTrainingArguments,
    task: str,
    data: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
) -> Scores:
    """Trains and evaluates on one task. Continues a stopped training, and reads the scores of a finished one."""
    folder = Path(args.output_dir)
    name = f"{TASKS[task].title}, seed {args.seed}"
    settings = settings_of(glue, task, args)
    with args.main_process_first():  # the first process updates the record that the others read
        record = begin(folder, settings)
        if "scores" not in record:
            data = {split: encode(dataset, TASKS[task], tokenizer) for split, dataset in data.items()}
    is_first = args.process_index == 0
    if "scores" in record:
        if is_first:
            print(f"{name}: already finished in {folder}")
        return record["scores"]

    set_seed(args.seed)  # a new head is drawn at random
    trainer = DistillationTrainer(
        model=load_model(glue.model_name_or_path, TASKS[task]),
        args=args,
        train_dataset=data["train"],
        eval_dataset=data[TASKS[task].validation[0]],
        processing_class=tokenizer,  # pads each batch to its longest row
        compute_metrics=compute_metrics_of(task),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder))
    scores = {}
    for split in TASKS[task].validation:
        evaluated = trainer.evaluate(data[split], metric_key_prefix=split)
        keys = {metric: f"{split}_{metric}" for metric in METRICS}
        scores[split] = {metric: evaluated[key] for metric, key in keys.items() if key in evaluated}
    trainer.save_model()
    if is_first:
        write_whole(folder / "result.json", {"settings": settings, "scores": scores})
        remove_checkpoints(folder)
        print(f"{name}: {scores}")
    return scores


def remove_checkpoints(folder: Path) -> None:
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def write_whole(file: Path, content: dict[str, object]) -> None:
    """Writes JSON atomically: if the process is killed, the old file stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    unfinished.replace(file)


def figures(results: dict[str, list[Scores]]) -> Iterator[tuple[str, str, str, list[float]]]:
    """Yields task, split, metric, and the scores of all seeds in percent. The mean of a single metric is left out."""
    for task, of_seeds in results.items():
        for split, metrics in of_seeds[0].items():
            for metric in metrics:
                if metric != "mean" or len(metrics) > 2:
                    yield task, split, metric, [100 * scores[split][metric] for scores in of_seeds]


def results_table(results: dict[str, list[Scores]], compare_with: str | None) -> str:
    """Formats a Markdown table of the median over the seeds, in percent, next to published scores.

    Args:
        results: scores of each seed, by task.
        compare_with: row of published.yaml, or None for no comparison.
    """
    published = PUBLISHED.get(compare_with, {})
    header = ["task", "metric", "ours"] + ([compare_with, "difference"] if published else [])
    lines, compared = [header, ["---"] * len(header)], []
    for task, split, metric, values in figures(results):
        ours = statistics.median(values)
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        which = f", {split.removeprefix('validation_')}" if split in MNLI_VALIDATION else ""
        line = [TASKS[task].title, METRICS[metric] + which, f"{ours:.1f}{spread}"]
        theirs = published.get(task, {}).get(metric) if split == TASKS[task].validation[0] else None
        if theirs is not None:
            compared.append((ours, theirs))
            mark = " ?" if task in published["uncertain"] else ""
            line += [f"{theirs:.1f}{mark}", f"{ours - theirs:+.1f}"]
        lines.append(line + [""] * (len(header) - len(line)))
    if len(compared) > 1:
        ours, theirs = (statistics.mean(column) for column in zip(*compared, strict=True))
        name = f"of the {len(compared)} compared"
        lines.append(["mean", name, f"{ours:.1f}", f"{theirs:.1f}", f"{ours - theirs:+.1f}"])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    if published:
        table += f"\n\n{compare_with}: {published['source']}. ?: see recipes/glue/published.yaml."
    return table


def main(argv: Sequence[str] | None = None) -> dict[str, list[Scores]]:
    glue, training = parse_config([GlueArguments, DistillationTrainingArguments], argv, description=__doc__)
    training.check_losses()
    if training.seed != DistillationTrainingArguments.seed:
        raise ValueError(f"seed={training.seed} has no effect: use --seeds {training.seed}.")
    arguments = {task: [arguments_of(training, task, seed) for seed in glue.seeds] for task in glue.tasks}
    # All data is loaded first, so that a missing file is reported before the first training.
    data = {task: load_task(glue.data, task) for task in glue.tasks}
    for teacher in {args.teacher_model_name_or_path for of_task in arguments.values() for args in of_task} - {None}:
        load_tokenizer(teacher)
    tokenizer = load_tokenizer(glue.model_name_or_path)

    results = {
        task: [fine_tune(glue, args, task, data[task], tokenizer) for args in of_task]
        for task, of_task in arguments.items()
    }
    if training.process_index == 0:
        own_name = Path(glue.model_name_or_path).name
        compare_with = glue.compare_with or (own_name if own_name in PUBLISHED else None)
        print(f"\n{results_table(results, compare_with)}")
    return results


if __name__ == "__main__":
    main()
