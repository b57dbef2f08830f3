"""`hf-distill report`"""

import argparse
from pathlib import Path

from hf_distill.cli.common import MODEL, add_data_options, add_measuring_options, keyword_arguments


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "report",
        help="compare a model and its exports with the teacher, on one page",
        description="Compare a model and its exports with the teacher: quality on labelled rows and the share "
        "retained, agreement with the teacher and the rows on which they differ most, size and speed. Writes "
        "report.md, report.json and plots.",
    )
    parser.add_argument("--teacher", metavar="MODEL", required=True, help=MODEL)
    parser.add_argument("--student", metavar="MODEL", required=True, help=MODEL)
    parser.add_argument(
        "--export",
        dest="exports",
        metavar="DIR",
        nargs="+",
        default=[],
        help="folders that `hf-distill export` wrote; their names are used in the tables",
    )
    add_data_options(parser)
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder for the report")
    parser.add_argument(
        "--card", metavar="FILE", type=Path, help="README.md of the student; the comparison becomes its results"
    )
    parser.add_argument(
        "--examples",
        dest="num_examples",
        metavar="N",
        type=int,
        default=10,
        help="number of rows to show (default: 10)",
    )
    add_measuring_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_distill.evaluation.report import comparison_table
    from hf_distill.tasks import write_report

    report = write_report(**keyword_arguments(options))
    print(f"{comparison_table(report)}\n\nWritten to {options.output}: report.md, report.json and plots")
