"""`hf-distill evaluate`"""

import argparse
from pathlib import Path

from hf_distill.cli.common import MAX_LENGTH, MODEL, add_data_options, keyword_arguments


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure the quality of a text classifier, and how closely it follows its teacher",
        description="Measure the quality of a text classifier on labelled texts: accuracy, F1, Matthews correlation "
        "and calibration error. With --teacher, also the share of texts on which both predict the same class, and the "
        "KL divergence between them.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_data_options(parser)
    parser.add_argument("--teacher", metavar="MODEL", help=f"compare with a teacher: {MODEL}")
    parser.add_argument("--max-length", metavar="TOKENS", type=int, help=MAX_LENGTH)
    parser.add_argument(
        "--truncation",
        choices=["head", "tail", "head_tail"],
        help="part of a longer text that is read (default: the part that the model was trained on, or head)",
    )
    parser.add_argument("--batch-size", metavar="N", type=int, default=32, help="texts per forward (default: 32)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder for evaluation.json and calibration.png")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_distill.tasks import evaluate_text_classifier

    for name, value in evaluate_text_classifier(**keyword_arguments(options)).items():
        print(f"{name:<28}{value:,}" if isinstance(value, int) else f"{name:<28}{value:.4f}")
