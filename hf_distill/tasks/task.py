"""What training, evaluation and report know of a task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peft import TaskType
from transformers import PreTrainedConfig

from hf_distill.optional import optional


@dataclass(frozen=True)
class Task:
    """A row of `TASKS`.

    Attributes:
        auto_class: loads a model with the task's head, as `AutoModelForSequenceClassification` does.
        head: what `hf_distill.deployment` calls that head.
        problem_type: of the config of a new head.
        lora_task_type: what PEFT calls the task.
        purpose: what a model is trained to do, for errors.
        models: what its models are called, for errors.
        columns: by option of the command line, such as `text_column`, the column's name by default.
        text_columns: of the rows that `load` gives, those that a teacher with another tokenizer reads.
        load: `(source, split=, config_name=, label_names=, **columns)` gives rows, with the column `labels`, and the
            names of the classes.
        load_unlabelled: `(source, split=, config_name=, **columns)` gives such rows with labels of -100.
        encode: `(rows, tokenizer, max_length, truncation)` gives rows of the model's inputs.
        collator: `(tokenizer)` gives what makes batches of those.
        predict: `(model, tokenizer, rows, max_length=, truncation=, batch_size=, label_names=)` gives logits
            `[rows, labels]` in fp32 on the CPU, with the columns in the order of `label_names`.
        metrics: `(logits, labels, teacher_logits)` gives numbers by name, without a teacher too.
        metric_packages: what `metrics` imports, of the extra `evaluation`.
        plot: `(logits by model, labels, folder)` writes plots.
    """

    auto_class: type[Any]
    head: str
    problem_type: str
    lora_task_type: TaskType
    purpose: str
    models: str
    columns: Mapping[str, str]
    text_columns: list[str]
    load: Callable
    load_unlabelled: Callable
    encode: Callable
    collator: Callable
    predict: Callable
    metrics: Callable
    metric_packages: tuple[str, ...]
    plot: Callable

    def columns_of(self, arguments: object) -> dict[str, str]:
        """By option, the columns that the arguments name."""
        return {option: getattr(arguments, option) for option in self.columns}

    def has_head(self, config: PreTrainedConfig) -> bool:
        """Whether a model has the task's head."""
        suffix = self.auto_class.__name__.removeprefix("AutoModel")
        return any(suffix in name for name in config.architectures or [])

    def check_packages(self, *others: str) -> None:
        """Says what is missing before the work.

        Raises:
            ImportError: if a package that the metrics need is not installed, or one of the others.
        """
        for module in (*self.metric_packages, *others):
            optional(module, "evaluation")
