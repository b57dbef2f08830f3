"""`hf-distill export`"""

import argparse
from pathlib import Path

from hf_distill.cli.common import MAX_LENGTH, MODEL, lines_of, show_steps
from hf_distill.deployment.formats import export_formats


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="export a student to ONNX or int8, and check it against the student",
        description="Export a student to ONNX, which runs without PyTorch, or to int8. The export is compared with the "
        "student on real texts, and is saved only if it is close enough.",
    )
    parser.add_argument("student", metavar="STUDENT", help=MODEL)
    parser.add_argument(
        "--format",
        choices=export_formats(),
        default="onnx-int8",
        help="onnx: fp32; onnx-int8: smallest and fastest on a CPU (default); torch-int8: for transformers",
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, required=True, help="folder for the export; it must not exist yet"
    )
    parser.add_argument(
        "--texts",
        metavar="FILE",
        type=Path,
        help="file to compare on, with one text per line, two texts with a tab between them for a model that reads "
        "pairs, or the name of an image file (default: built-in prose or images)",
    )
    parser.add_argument("--max-length", metavar="TOKENS", type=int, help=MAX_LENGTH)
    parser.add_argument(
        "--min-agreement",
        metavar="SHARE",
        type=float,
        default=0.95,
        help="share of texts or tokens on which int8 must predict what the student predicts (default: 0.95)",
    )
    parser.add_argument(
        "--min-cosine",
        metavar="COSINE",
        type=float,
        default=0.995,
        help="lowest cosine between the vectors of an embedding model and of its int8 export (default: 0.995)",
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
        min_cosine=options.min_cosine,
    )
    parity = export.parity
    compared = f"{export.folder}: {export.num_bytes / 1e6:.1f} MB. Compared with the student on {parity.texts} texts, "
    if parity.lowest_cosine is not None:
        print(
            f"{compared}the lowest cosine between their vectors is {parity.lowest_cosine:.5f}; values of vectors of "
            f"length 1 differ by at most {parity.largest_difference:.2g}."
        )
        return
    print(
        f"{compared}alone and in batches: {parity.agreement:.1%} of {parity.decisions} predictions are the same; "
        f"logits differ by at most {parity.largest_difference:.2g} (largest logit: {parity.largest_logit:.3g})."
    )
