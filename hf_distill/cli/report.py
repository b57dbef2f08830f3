"""`hf-distill report`"""

import argparse
from pathlib import Path

from hf_distill.cli.common import add_data_options, add_measuring_options, keyword_arguments


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "report",
        help="put a text classifier and its exports beside the teacher, on one page",
        description="Put a text classifier and its exports beside the teacher: quality on labelled texts and the share "
        "retained, fidelity to the teacher and the texts where both part most, size and speed. Writes report.md, "
        "report.json and plots.",
    )
    parser.add_argument("--teacher", required=True, help="a name on the Hub or a folder")
    parser.add_argument("--student", required=True, help="a name on the Hub or a folder")
    parser.add_argument(
        "--export",
        dest="exports",
        metavar="DIR",
        nargs="+",
        default=[],
        help="what `hf-distill export` wrote; each is called as its folder",
    )
    add_data_options(parser)
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="a folder for the report")
    parser.add_argument(
        "--card", metavar="FILE", type=Path, help="the student's README.md, to put the comparison into as its results"
    )
    parser.add_argument(
        "--examples", dest="num_examples", metavar="N", type=int, default=10, help="texts to show (default: 10)"
    )
    add_measuring_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_distill.evaluation.report import comparison_table
    from hf_distill.tasks import write_report

    report = write_report(**keyword_arguments(options))
    print(f"{comparison_table(report)}\n\nWritten to {options.output}: report.md, report.json and plots")
