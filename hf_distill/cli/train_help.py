"""The help of `hf-distill train`. It is read out of the sources, since importing them takes seconds."""

from hf_distill.cli.parser import Parser
from hf_distill.cli.task_sources import DEFAULT_TASK, PACKAGE, Option, options_of_task, own_options

USAGE = "hf-distill train [CONFIG.yaml ...] [--key value ...]"
DESCRIPTION = (
    "Fine-tune a model for a task, or distil one from a fine-tuned teacher, and save it to --output_dir. YAML files "
    "and the command line have the same options; later ones win. On several devices: accelerate launch -m "
    "hf_distill.cli train ..."
)

SECTIONS = {
    "Models and data": [("tasks/arguments.py", "TaskArguments")],
    "Distillation": [
        ("training/losses/arguments.py", "LossTrainingArguments"),
        ("training/training_args.py", "DistillationTrainingArguments"),
    ],
    "Evaluation by generation": [("training/losses/generation.py", "GenerationTrainingArguments")],
}
"""The dataclasses whose fields are the options of all tasks, by heading."""

HIDDEN = (
    *("logging_nan_inf_filter", "teacher_mean", "teacher_weights", "teacher_weights_column"),
    "sortish_sampler",  # inherited from `Seq2SeqTrainingArguments`
)
"""Options without an effect here: `hf-distill train` takes one teacher."""

OF_TRAINER = [
    Option("output_dir", "DIR", "trainer_output", "Where the model, its checkpoints and its results are saved."),
    Option("num_train_epochs", "X", 3.0, "Passes over the training data."),
    Option("max_steps", "N", -1, "Optimizer steps, in place of num_train_epochs."),
    Option("learning_rate", "X", 5e-05, "The highest learning rate."),
    Option("per_device_train_batch_size", "N", 8, "Texts per forward on each device."),
    Option("gradient_accumulation_steps", "N", 1, "Forwards per optimizer step."),
    Option("warmup_steps", "N", 0, "Warm-up steps; below 1, a share of all steps."),
    Option("weight_decay", "X", 0.0, "Weight decay of the optimizer."),
    Option("bf16", "[true|false]", False, "Train in bfloat16, where the hardware has it."),
    Option("eval_strategy", "{no,steps,epoch}", "no", "When to evaluate on the validation data."),
    Option("save_strategy", "{no,steps,epoch,best}", "steps", "When to save a checkpoint."),
    Option("save_total_limit", "N", None, "How many checkpoints to keep. By default all."),
    Option("load_best_model_at_end", "[true|false]", False, "Keep the best model instead of the last one."),
    Option("metric_for_best_model", "NAME", None, "What best means, such as accuracy. By default the loss."),
    Option("logging_steps", "N", 500, "Log every N steps (default: 500, or about 20 logs in a short training)."),
    Option("report_to", "NAME", "none", "Services to log to, such as tensorboard or wandb."),
    Option("seed", "N", 42, "Random seed."),
    Option("use_cpu", "[true|false]", False, "Train on the CPU even if there is a GPU."),
    Option("push_to_hub", "[true|false]", False, "Push the model at the end."),
]
"""The options of TrainingArguments that most trainings set. A test compares them with transformers."""


def help_parser(task: str | None = None) -> Parser:
    """A parser for the help only: the options of hf_distill, and the most common ones of transformers.

    `parse_config` reads the options.

    Args:
        task: the task whose options are shown. Default: text classification.
    """
    task = task or DEFAULT_TASK
    parser = Parser(
        prog="hf-distill train",
        usage=USAGE,
        description=DESCRIPTION,
        epilog="Options of another task: `hf-distill train --task NAME --help`; `hf-distill tasks` lists the tasks. "
        "Every other field of transformers.TrainingArguments is an option too: `hf-distill train --help-all`.",
        add_help=False,
    )
    sections = {
        heading: [option for file, name in classes for option in own_options(PACKAGE / file, name, HIDDEN)]
        for heading, classes in SECTIONS.items()
    }
    (of_all, *rest) = sections.items()
    of_task = {f"Data of {task}": options_of_task(task)}
    for heading, options in {of_all[0]: of_all[1], **of_task, **dict(rest), "Training": OF_TRAINER}.items():
        group = parser.add_argument_group(heading)
        for option in options:
            group.add_argument(f"--{option.name}", metavar=option.metavar, help=_help(option))
    general = parser.add_argument_group("Help")
    general.add_argument("-h", "--help", action="store_true", help="Show these options.")
    general.add_argument("--help-all", action="store_true", help="Show all options, those of transformers too.")
    return parser


def _help(option: Option) -> str:
    text = option.help.replace("%", "%%")
    if option.default is None or "default" in text:
        return text
    default = str(option.default).lower() if isinstance(option.default, bool) else option.default
    return f"{text.removesuffix('.')} (default: {default})"
