"""`train_model`: trains a model of a task from data, as `hf-distill train` does."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import get_peft_model
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import find_adapter_config_file, logging

from hf_distill.lengths import length_of_rows
from hf_distill.loading import load_config
from hf_distill.progress.training import show_progress
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.cuts import Cut, check_widths, cut_student, split_cuts, try_later_cuts
from hf_distill.tasks.data import MAX_LENGTH, load_data, name_of_part, note_reading
from hf_distill.tasks.logs import LogsOfShortTraining
from hf_distill.tasks.models import load_model, lora_config
from hf_distill.tasks.registry import check_head, task_named
from hf_distill.tasks.rows import clear_teacher, encoded_rows, labelled_by_teacher, rows_with_targets
from hf_distill.tasks.task import Reading, Task
from hf_distill.training import (
    DistillationTrainer,
    DistillationTrainingArguments,
    TrainingRun,
    model_identity,
)
from hf_distill.training.checkpoints.runs import data_identity
from hf_distill.training.checkpoints.stages import Stage, errors_of, make_stages

logger = logging.get_logger(__name__)


def train_model(args: TaskArguments, training: DistillationTrainingArguments) -> DistillationTrainer | None:
    """Fine-tunes a model for a task, or distils one from a fine-tuned teacher, and saves it with its tokenizer.

    Without `teacher_model_name_or_path`, the model learns from the labels alone. With it, the student is either cut
    from the teacher's layers, or is `model_name_or_path`, for example a general student that was distilled before (the
    two steps of Sanh et al., 2019, https://arxiv.org/abs/1910.01108). If no hidden states are compared
    (`alpha_cos=0`), the teacher reads each row once and is released before training starts.

    With `args.stages`, such as TinyBERT's two steps (Jiao et al., 2020, https://arxiv.org/abs/1909.10351), each stage
    continues with the student of the stage before. See `make_stages`. A stage with `cut`, which has arguments of
    `make_student`, first cuts that student.

    `output_dir` receives the model, the tokenizer, `train_results.json`, and with validation or test data
    `eval_results.json` or `test_results.json`.

    Progress is shown on stderr. If `logging_steps` is left at its default, a short training logs about 20 times.

    A stopped training continues from the last checkpoint in `output_dir`, and a finished one is not repeated. A
    training counts as the same if the task's options, the training arguments that affect the result, and the content
    of models and data are the same; names, logging, saving and pushing may differ. Otherwise set `args.resume` or
    `args.overwrite`.

    Args:
        args: model, teacher and data: the arguments of one of the `TASKS`, such as `TextClassificationArguments`.
        training: everything else. The caller's object is not changed. Without a teacher, the loss weights must be the
            defaults, or both 0.

    Returns:
        The trainer with the trained model, or None if `output_dir` already holds that model.

    Raises:
        ValueError: before the first step, if options, data and models are invalid or do not match, or if `output_dir`
            holds another training.
        ImportError: if there is validation or test data and a package for the metrics is missing.

    Example:
        >>> args = TextClassificationArguments(train_file="train.csv", test_file="test.csv")
        >>> training = DistillationTrainingArguments("student", teacher_model_name_or_path="outputs/teacher")
        >>> trainer = train_model(args, training)
    """
    task = task_named(args.task)
    if not isinstance(args, task.arguments):
        raise ValueError(f"task={args.task!r} needs {task.arguments.__name__}, but got {type(args).__name__}.")
    training = task.with_default_weights(training)
    without_cuts, cuts = split_cuts(args.stages)
    stages = make_stages(training, without_cuts)
    options = [(stage, _options_of_stage(args, stage), copy.copy(stage.args)) for stage in stages]
    for stage, own, of_stage in options:
        with errors_of(stage.name):
            _check(task, own, of_stage)
    if cuts[0] is not None and (args.num_layers is not None or args.layers is not None):
        raise ValueError("num_layers and layers have no effect if the first stage has a cut: set them in the cut.")
    check_widths(stages, cuts)
    named_cuts = [(stage.name, cut) for stage, cut in zip(stages, cuts, strict=True)]
    trainer = None
    for number, (stage, own, of_stage) in enumerate(options):
        trainer = None  # frees the memory of the stage before
        trainer = _train_stage(task, own, of_stage, stage, named_cuts[number:])
    return trainer


def _options_of_stage(args: TaskArguments, stage: Stage) -> TaskArguments:
    """The options of a stage: it starts with the student of the stage before, and only the last one is tested."""
    changes: dict[str, Any] = {}
    if stage.student is not None:
        changes |= {"model_name_or_path": stage.student, "num_layers": None, "layers": None}
    if stage.later:
        changes |= {"test_file": None, "test_split": None}
        if not (args.train_split or args.validation_split or args.unlabelled_split):
            changes |= {"dataset_name": None, "dataset_config_name": None}
    if stage.name is not None and not stage.args.reads_teacher:
        changes["store_teacher_targets"] = None
    return replace(args, **changes)


def _train_stage(
    task: Task,
    args: TaskArguments,
    training: DistillationTrainingArguments,
    stage: Stage,
    cuts: list[tuple[str | None, Cut | None]],
) -> DistillationTrainer | None:
    """Trains, saves and evaluates a model, unless its folder already holds it. The options are checked.

    Args:
        cuts: the cut of this stage, and those of the later stages, each with the name of its stage. None for a stage
            without a cut.
    """
    (_, cut), *later_cuts = cuts
    teacher = training.teacher_model_name_or_path
    if teacher is not None and find_adapter_config_file(teacher) is None:
        check_head(task, load_config(teacher), teacher)
    reading = task.complete(task.reading_of(args), _configs(args, training))
    with training.main_process_first():  # the other processes then find its datasets in the cache
        data, classes = load_data(task, args, reading, teacher)
    settings = _settings(args, training, reading, data, classes) | {"cut": cut}
    run = TrainingRun.begin(training, settings, resume=args.resume, overwrite=args.overwrite, stage=stage)
    if run is None:
        return None
    set_seed(training.seed)  # a new head is drawn at random
    model, processor = load_model(task, args, reading, teacher, classes, is_whole=cut is not None)
    if MAX_LENGTH in reading:
        reading[MAX_LENGTH] = _max_length(reading[MAX_LENGTH], training, model, processor)
    note_reading(task, reading, model, processor)
    model = task.prepare_model(model, processor, reading, training)
    if task.is_labelled_by_teacher(reading, _has_unlabelled(args)):
        data["train"] = labelled_by_teacher(task, training, reading, data["train"], model)
    if _stores_targets(task, args, training):
        rows = rows_with_targets(task, training, reading, data, model, processor)
    else:
        if teacher is not None and training.reads_teacher:
            task.check_live_teacher(processor, teacher)
        rows = encoded_rows(task, training, reading, data, processor)
    if cut is not None:
        with errors_of(stage.name):
            collate = task.collator(processor, model)
            model = cut_student(model, cut, rows["train"], collate, is_first=stage.student is None)
    try_later_cuts(model, later_cuts)
    if args.lora_rank is not None:
        model = get_peft_model(model, lora_config(task, model, args.lora_rank))
    trainer = DistillationTrainer(
        model,
        training,
        train_dataset=rows["train"],
        eval_dataset=rows.get("validation"),
        data_collator=task.collator(processor, model),
        processing_class=processor,
    )
    trainer.pipeline_tag = task.pipeline_tag
    trainer.add_callback(LogsOfShortTraining())
    show_progress(trainer)

    task.prepare(trainer, reading)

    def evaluate_on(part: str) -> None:
        """Sets the rows that the metrics of the next evaluations are of."""
        if task.computes_metrics:
            trainer.compute_metrics = lambda evaluated: task.compute_metrics(evaluated, data[part], processor, reading)

    _run(task, run, trainer, rows.get("test"), evaluate_on)
    trainer.accelerator.wait_for_everyone()  # the next stage reads what the main process wrote
    return trainer


def _check(task: Task, args: TaskArguments, training: DistillationTrainingArguments) -> None:
    """Checks the options before any file is read. Without a teacher, switches off the losses that need one."""
    if training.teacher_model_name_or_path is None:
        if args.model_name_or_path is None:
            raise ValueError(
                "No model is given: set model_name_or_path to fine-tune it, teacher_model_name_or_path to distil that "
                "teacher, or both."
            )
        if _has_unlabelled(args):
            raise ValueError("Unlabelled texts need a teacher: set teacher_model_name_or_path.")
        training.leave_out_teacher()
    is_labelled = task.is_labelled_by_teacher(task.reading_of(args), _has_unlabelled(args))
    if is_labelled and training.teacher_model_name_or_path is None:
        raise ValueError("Labels by a teacher need one: set teacher_model_name_or_path.")
    checked = copy.copy(training)
    if is_labelled and not training.reads_teacher:
        clear_teacher(checked)  # it only labels rows
    checked.check_losses()
    task.check(args, training)
    for name in filter(None, (args.model_name_or_path, training.teacher_model_name_or_path)):
        if Path(name).resolve() == Path(training.output_dir).resolve():
            raise ValueError(
                f"output_dir={training.output_dir} is also the folder of the model or teacher: choose another folder."
            )
    labelled = args.train_file or args.train_split
    if not labelled and not _has_unlabelled(args):
        raise ValueError("No training data: give train_file, or dataset_name and train_split.")
    if not labelled and not is_labelled and training.alpha_kl and training.divergence == "dkd":
        raise ValueError(
            "There are no labels without train_file or train_split, but divergence='dkd' needs them: choose another "
            "divergence."
        )
    reads_labels = training.reads_labels and not is_labelled
    if not labelled and (reads_labels or args.validation_share is not None):
        raise ValueError(
            f"There are no labels without train_file or train_split, but alpha_task={training.alpha_task} and "
            f"validation_share={args.validation_share} need them: set alpha_task=0 and leave validation_share out to "
            f"learn from the teacher alone."
        )
    has_validation = args.validation_file or args.validation_split or args.validation_share
    if training.eval_strategy != "no" and not has_validation:
        raise ValueError(
            f"eval_strategy={training.eval_strategy.value!r} needs validation data: give validation_file, "
            f"validation_split or validation_share."
        )
    if args.lora_rank is not None and training.push_to_hub:
        raise ValueError(
            "push_to_hub with lora_rank would push the adapters, not the merged model: leave push_to_hub out, and run "
            "`hf-distill push` on output_dir after training."
        )
    if has_validation or args.test_file or args.test_split:
        task.check_packages()  # a missing package should fail now, not after hours of training


def _has_unlabelled(args: TaskArguments) -> bool:
    return bool(args.unlabelled_file or args.unlabelled_split)


def _stores_targets(task: Task, args: TaskArguments, training: DistillationTrainingArguments) -> bool:
    if training.teacher_model_name_or_path is None or not training.reads_teacher:
        if args.store_teacher_targets is not None:
            raise ValueError("store_teacher_targets has no effect without a teacher: leave it out.")
        return False
    if not task.takes_stored_targets:
        if args.store_teacher_targets:
            raise ValueError(f"store_teacher_targets=True does not work with {task.name}: leave it out.")
        return False
    if args.store_teacher_targets is None:
        return task.stores_targets and not (training.reads_hidden_states or training.reads_layers)
    if args.store_teacher_targets and training.reads_layers:
        raise ValueError(
            "store_teacher_targets=True does not work with losses over layers, such as alpha_hidden, which need the "
            "teacher in every step: leave it out."
        )
    return args.store_teacher_targets


def _configs(args: TaskArguments, training: DistillationTrainingArguments) -> list[PreTrainedConfig]:
    """Configs of the model and of the teacher, as far as they are given. An adapter has none."""
    names = filter(None, (args.model_name_or_path, training.teacher_model_name_or_path))
    return [load_config(name) for name in names if find_adapter_config_file(name) is None]


def _max_length(
    given: int | None,
    training: DistillationTrainingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> int:
    """Tokens per row. By default the most that the model, and a teacher with the same tokenizer, was trained with."""
    max_length = length_of_rows(given, tokenizer, model)
    if given is None and training.teacher_model_name_or_path is not None and training.reads_teacher:
        teacher_tokenizer = AutoTokenizer.from_pretrained(training.teacher_model_name_or_path)
        if teacher_tokenizer.get_vocab() == tokenizer.get_vocab():
            max_length = min(max_length, teacher_tokenizer.model_max_length)
    return max_length


def _settings(
    args: TaskArguments,
    training: DistillationTrainingArguments,
    reading: Reading,
    data: dict[str, Dataset],
    classes: list[str] | None,
) -> dict[str, object]:
    """Everything, apart from the training arguments, that affects the trained model."""
    settings = {name: getattr(args, name) for name in ("task", "num_layers", "layers", "lora_rank")} | reading
    settings["model_name_or_path"] = model_identity(args.model_name_or_path)
    settings["store_teacher_targets"] = _stores_targets(task_named(args.task), args, training)
    settings["classes"] = classes
    return settings | {f"{part}_data": data_identity(name_of_part(args, part), rows) for part, rows in data.items()}


def _run(
    task: Task,
    run: TrainingRun,
    trainer: DistillationTrainer,
    test_rows: Dataset | None,
    evaluate_on: Callable[[str], None],
) -> None:
    """Trains (from the last checkpoint if there is one), evaluates and saves."""
    args = trainer.args
    evaluate_on("validation")
    trained = run.train(trainer).metrics
    metrics = {"train": trained} if trainer.steps_made else {}
    if trainer.eval_dataset is not None:
        metrics["eval"] = trainer.evaluate()
    if test_rows is not None:
        evaluate_on("test")
        metrics["test"] = trainer.evaluate(test_rows, metric_key_prefix="test")
    if hasattr(trainer.model, "peft_config"):
        trainer.save_merged_model(args.output_dir)
    else:
        trainer.save_model(_internal_call=True)  # does not push: pushing comes last, after everything is saved
    trainer.save_state()
    for part, of_part in metrics.items():
        losses = {name.removeprefix(f"{part}_"): value for name, value in of_part.items()}
        of_part |= {f"{part}_{name}": value for name, value in task.metrics_of_losses(losses).items()}
        trainer.log_metrics(part, of_part)
        trainer.save_metrics(part, of_part)
    run.finish()
    if args.push_to_hub:
        trainer.push_to_hub()
