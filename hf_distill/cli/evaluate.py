"""`hf-distill evaluate`"""

import argparse
from pathlib import Path

from hf_distill.cli.common import MODEL, add_data_options, keyword_arguments


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure the quality of a model, and how closely it follows its teacher",
        description="Measure the quality of a model or an export on labelled rows, such as the accuracy, F1 and "
        "calibration error of a text classifier. With --teacher, also how closely it follows its teacher, such as the "
        "share of texts on which both predict the same class.",
    )
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL}, or an export")
    add_data_options(parser)
    parser.add_argument("--teacher", metavar="MODEL", help=f"compare with a teacher: {MODEL}")
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder for evaluation.json and plots")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_distill.tasks import evaluate_model

    for name, value in evaluate_model(**keyword_arguments(options)).items():
        print(f"{name:<28}{value:,}" if isinstance(value, int) else f"{name:<28}{value:.4f}")
