"""`hf-distill serve`"""

import argparse
import logging
from pathlib import Path

from hf_distill.deployment.formats import FORMATS
from hf_distill.serving.limits import Limits


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "serve",
        help="answer over HTTP what a model makes of texts",
        description="Answer over HTTP what a student or an export makes of texts: POST /predict, a page to try it at "
        "/, the interface at /docs, and /health, /ready and /metrics. SIGTERM stops it, once it has answered what it "
        "has accepted.",
    )
    parser.add_argument("model", metavar="MODEL", help="a folder of a student or of an export, or a name on the Hub")
    parser.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1", help="default: 127.0.0.1, for this machine alone"
    )
    parser.add_argument("--port", metavar="N", type=int, default=8000, help="default: 8000; 0 takes one that is free")
    parser.add_argument(
        "--format",
        choices=["auto", *FORMATS],
        default="auto",
        help="default: ONNX in int8 where it is there, else ONNX, else PyTorch",
    )
    parser.add_argument("--teacher", metavar="MODEL", help="to compare with, at /predict/teacher and on the page")
    parser.add_argument(
        "--workers", metavar="N", type=int, help="processes with the model (default: one for each core)"
    )
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="of each worker (default: 1)")
    parser.add_argument(
        "--token-file", metavar="FILE", type=Path, help="a file with the bearer token that clients have to show"
    )
    Limits.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_distill.serving.packages import check_packages

    check_packages()
    from hf_distill.serving import serve
    from hf_distill.serving.predict import read_token

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    limits = Limits.from_options(options)
    token = None if options.token_file is None else read_token(options.token_file)
    names = ("model", "host", "port", "format", "teacher", "workers", "threads")
    serve(**{name: getattr(options, name) for name in names}, token=token, limits=limits)
