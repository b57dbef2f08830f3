"""`hf-distill evaluate`"""

import argparse
from pathlib import Path

from hf_distill.cli.common import MAX_LENGTH, add_data_options, keyword_arguments


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="say how good a text classifier is, and how near to its teacher",
        description="Say how good a text classifier is on labelled texts: accuracy, F1, Matthews correlation and "
        "calibration error; and, with its teacher, on how many texts both say the same, and how far apart they are.",
    )
    parser.add_argument("model", metavar="MODEL", help="a name on the Hub or a folder")
    add_data_options(parser)
    parser.add_argument("--teacher", help="a name on the Hub or a folder")
    parser.add_argument("--max-length", metavar="TOKENS", type=int, help=MAX_LENGTH)
    parser.add_argument(
        "--truncation",
        choices=["head", "tail", "head_tail"],
        help="what is kept of longer texts (default: as the model was trained, or head)",
    )
    parser.add_argument("--batch-size", metavar="N", type=int, default=32, help="default: 32")
    parser.add_argument("--output", metavar="DIR", type=Path, help="a folder for evaluation.json and calibration.png")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_distill.tasks import evaluate_text_classifier

    for name, value in evaluate_text_classifier(**keyword_arguments(options)).items():
        print(f"{name:<28}{value:,}" if isinstance(value, int) else f"{name:<28}{value:.4f}")
