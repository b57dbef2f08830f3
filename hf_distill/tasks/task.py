"""The definition of a task: everything that training, evaluation and report need to know about it."""

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
        auto_class: auto class that loads a model with the task's head, such as `AutoModelForSequenceClassification`.
        head: name of that head in `hf_distill.deployment`.
        problem_type: `problem_type` in the config of a new head.
        lora_task_type: name of the task in PEFT.
        purpose: what a model is trained to do, for error messages.
        models: what its models are called, for error messages.
        columns: default column name by command-line option, such as `text_column`.
        text_columns: columns of the loaded rows that a teacher with a different tokenizer reads.
        load: `(source, split=, config_name=, label_names=, **columns)` returns rows with a column `labels`, and the
            names of the classes.
        load_unlabelled: `(source, split=, config_name=, **columns)` returns the same rows with labels of -100.
        encode: `(rows, tokenizer, max_length, truncation)` returns rows of model inputs.
        collator: `(tokenizer)` returns the collator for those rows.
        predict: `(model, tokenizer, rows, max_length=, truncation=, batch_size=, label_names=)` returns logits
            `[rows, labels]` in fp32 on the CPU, with the columns in the order of `label_names`.
        metrics: `(logits, labels, teacher_logits)` returns numbers by name; `teacher_logits` may be None.
        metric_packages: packages of the extra `evaluation` that `metrics` imports.
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
        """Column name by option, as set in the arguments."""
        return {option: getattr(arguments, option) for option in self.columns}

    def has_head(self, config: PreTrainedConfig) -> bool:
        """True if the config's model class has the task's head."""
        suffix = self.auto_class.__name__.removeprefix("AutoModel")
        return any(suffix in name for name in config.architectures or [])

    def check_packages(self, *others: str) -> None:
        """Fails early if a package is missing.

        Raises:
            ImportError: if a package that the metrics need, or one of `others`, is not installed.
        """
        for module in (*self.metric_packages, *others):
            optional(module, "evaluation")
