"""`hf-distill train`"""

import argparse
import os

from hf_distill.cli.train_help import DESCRIPTION, USAGE, help_parser


def add_parser(commands: argparse._SubParsersAction) -> None:
    # Importing the dataclasses of its options takes seconds, so the options stay words here, --help too.
    help = "fine-tune or distil a text classifier, with options from YAML files"
    if "_ARGCOMPLETE" in os.environ:  # the shell asks which options there are
        commands.add_parser("train", help=help, parents=[help_parser()], add_help=False)
        return
    parser = commands.add_parser("train", help=help, prefix_chars="\0", add_help=False)
    parser.add_argument("words", nargs=argparse.REMAINDER)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    words = options.words
    if {"-h", "--help"} & set(words):
        help_parser().print_help()
        raise SystemExit(0)
    from hf_distill.config_files import parse_config
    from hf_distill.tasks import TextClassificationArguments, train_text_classifier
    from hf_distill.training import DistillationTrainingArguments

    words = ["--help" if word in ("--help-all", "--help_all") else word for word in words]
    num_files = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    files, rest = words[:num_files], words[num_files:]
    task, training = parse_config(
        [TextClassificationArguments, DistillationTrainingArguments],
        [*(["--config", *files] if files else []), *rest],
        description=DESCRIPTION,
        usage=USAGE,
    )
    train_text_classifier(task, training)
