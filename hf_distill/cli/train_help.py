"""The help of `hf-distill train`. It is read out of the sources, since importing them takes seconds."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_distill.cli.parser import Parser

PACKAGE = Path(__file__).parents[1]

USAGE = "hf-distill train [CONFIG.yaml ...] [--key value ...]"
DESCRIPTION = (
    "Fine-tune a text classifier, or distil one from a fine-tuned teacher, and save it to --output_dir. YAML files and "
    "the command line have the same options; later ones win. On several devices: accelerate launch -m hf_distill.cli "
    "train ..."
)

SECTIONS = {
    "Models, data and texts": [
        ("tasks/arguments.py", "TaskArguments"),
        ("tasks/text_classification.py", "TextClassificationArguments"),
    ],
    "Distillation": [
        ("training/losses/arguments.py", "LossTrainingArguments"),
        ("training/training_args.py", "DistillationTrainingArguments"),
    ],
}
"""The dataclasses whose fields are the options, by heading."""

HIDDEN = ("logging_nan_inf_filter", "teacher_mean", "teacher_weights", "teacher_weights_column")
"""Options without an effect here: `hf-distill train` takes one teacher."""

METAVARS = {
    "model_name_or_path": "MODEL",
    "teacher_model_name_or_path": "MODEL",
    "layers": "WHICH",
    "layer_map": "PAIRS",
    "stages": "YAML",
    **{f"{part}_file": "PATH" for part in ("train", "validation", "test", "unlabelled")},
    **{f"{part}_split": "SPLIT" for part in ("train", "validation", "test", "unlabelled")},
}
METAVARS_OF_TYPES = {"int": "N", "float": "X", "Scheduled": "X|SCHEDULE", "str": "NAME", "bool": "[true|false]"}


@dataclass(frozen=True)
class Option:
    """A field of a dataclass as an option."""

    name: str
    metavar: str
    default: Any
    help: str


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


def help_parser() -> Parser:
    """A parser for the help only: the options of hf_distill, and the most common ones of transformers.

    `parse_config` reads the options.
    """
    parser = Parser(
        prog="hf-distill train",
        usage=USAGE,
        description=DESCRIPTION,
        epilog="Every other field of transformers.TrainingArguments is an option too: `hf-distill train --help-all`.",
        add_help=False,
    )
    sections = {
        heading: [option for file, name in classes for option in own_options(PACKAGE / file, name)]
        for heading, classes in SECTIONS.items()
    }
    for heading, options in {**sections, "Training": OF_TRAINER}.items():
        group = parser.add_argument_group(heading)
        for option in options:
            group.add_argument(f"--{option.name}", metavar=option.metavar, help=_help(option))
    general = parser.add_argument_group("Help")
    general.add_argument("-h", "--help", action="store_true", help="Show these options.")
    general.add_argument("--help-all", action="store_true", help="Show all options, those of transformers too.")
    return parser


def own_options(file: Path, class_name: str) -> list[Option]:
    """The fields of a dataclass of ours."""
    module = ast.parse(file.read_text(encoding="utf-8"))
    (body,) = (node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    choices = _choices(module) | _choices(ast.parse((PACKAGE / "lengths.py").read_text(encoding="utf-8")))
    options = []
    for node in body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.target.id in HIDDEN:
            continue
        assert isinstance(node.value, ast.Call)  # field(default=..., metadata={"help": ...})
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.value.keywords}
        kind = ast.unparse(node.annotation).removesuffix(" | None")
        metavar = METAVARS.get(node.target.id) or choices.get(kind) or METAVARS_OF_TYPES[kind]
        options.append(Option(node.target.id, metavar, given["default"], given["metadata"]["help"]))
    return options


def _choices(module: ast.Module) -> dict[str, str]:
    """By the name of each `X = Literal["a", "b"]`, `{a,b}`."""
    found = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Literal["):
            assert isinstance(node.value, ast.Subscript)
            values = ",".join(ast.literal_eval(node.value.slice))
            found[ast.unparse(node.targets[0])] = f"{{{values}}}"
    return found


def _help(option: Option) -> str:
    text = option.help.replace("%", "%%")
    if option.default is None or "default" in text:
        return text
    default = str(option.default).lower() if isinstance(option.default, bool) else option.default
    return f"{text.removesuffix('.')} (default: {default})"
