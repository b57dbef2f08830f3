"""`hf-distill export`"""

import argparse
from pathlib import Path

from hf_distill.cli.common import MAX_LENGTH, lines_of, show_steps
from hf_distill.deployment.formats import export_formats


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="write a student as ONNX or in int8, and prove it beside the student",
        description="Write a student as ONNX, which runs without PyTorch, or in int8, and prove it beside the student "
        "on real texts. Nothing is written that is not near enough.",
    )
    parser.add_argument("student", metavar="STUDENT", help="a name on the Hub or a folder")
    parser.add_argument(
        "--format",
        choices=export_formats(),
        default="onnx-int8",
        help="onnx in fp32; onnx-int8, the smallest and fastest on a CPU (the default); torch-int8 for transformers",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--texts", metavar="FILE", type=Path, help="a text to try per line (default: prose)")
    parser.add_argument("--max-length", metavar="TOKENS", type=int, help=MAX_LENGTH)
    parser.add_argument(
        "--min-agreement",
        metavar="SHARE",
        type=float,
        default=0.95,
        help="of texts or tokens on which int8 has to decide as the student does (default: 0.95)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    show_steps()
    from hf_distill.deployment import export_model

    export = export_model(
        options.student,
        options.output,
        options.format,
        texts=lines_of(options.texts),
        max_length=options.max_length,
        min_agreement=options.min_agreement,
    )
    parity = export.parity
    print(
        f"{export.folder}: {export.num_bytes / 1e6:.1f} MB; beside the student on {parity.texts} texts, alone and in "
        f"batches: logits are off by {parity.largest_difference:.2g} at most (of {parity.largest_logit:.3g}), and "
        f"{parity.agreement:.1%} of {parity.decisions} decisions are the same"
    )
