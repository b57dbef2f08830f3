"""`hf-distill train`"""

import argparse


def add_parser(commands: argparse._SubParsersAction) -> None:
    # Its options are the fields of dataclasses that take seconds to import. So here they are words, also --help.
    parser = commands.add_parser(
        "train",
        help="fine-tune or distil a text classifier, with options from YAML files",
        prefix_chars="\0",
        add_help=False,
    )
    parser.add_argument("words", nargs=argparse.REMAINDER)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_distill.config_files import parse_config
    from hf_distill.tasks import TextClassificationArguments, train_text_classifier
    from hf_distill.training import DistillationTrainingArguments

    words = options.words
    num_files = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    files, rest = words[:num_files], words[num_files:]
    task, training = parse_config(
        [TextClassificationArguments, DistillationTrainingArguments],
        [*(["--config", *files] if files else []), *rest],
        description="Fine-tune a text classifier, or distil one from a teacher that was fine-tuned before, and save it "
        "to --output_dir. Files and command line have the same options, the later ones winning. With --push_to_hub it "
        "is pushed at the end. On several devices: accelerate launch -m hf_distill.cli train ...",
        usage="hf-distill train [CONFIG.yaml ...] [--key value ...]",
    )
    train_text_classifier(task, training)
