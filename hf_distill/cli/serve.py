"""`hf-distill serve`"""

import argparse
import logging
from pathlib import Path

from hf_distill.deployment.formats import FORMATS
from hf_distill.serving.limits import Limits


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve the predictions of a model over HTTP",
        description="Serve the predictions of a student or an export over HTTP: POST /predict, a page to try it at /, "
        "the API at /docs, and /health, /ready and /metrics. On SIGTERM the service answers the requests that it has "
        "accepted, then stops.",
    )
    parser.add_argument("model", metavar="MODEL", help="student or export: a folder or a name on the Hub")
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only)",
    )
    parser.add_argument(
        "--port", metavar="N", type=int, default=8000, help="port to listen on; 0 chooses a free one (default: 8000)"
    )
    parser.add_argument(
        "--format",
        choices=["auto", *FORMATS],
        default="auto",
        help="format to load (default: onnx-int8 if it is there, else onnx, else pytorch)",
    )
    parser.add_argument(
        "--teacher", metavar="MODEL", help="teacher to compare with, at /predict/teacher and on the page"
    )
    parser.add_argument("--workers", metavar="N", type=int, help="processes that run the model (default: one per core)")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="CPU threads of each worker (default: 1)")
    parser.add_argument(
        "--token-file", metavar="FILE", type=Path, help="file with the bearer token that clients must send"
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
