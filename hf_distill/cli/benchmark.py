"""`hf-distill benchmark`"""

import argparse
from pathlib import Path

from hf_distill.cli.common import add_measuring_options, lines_of


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="compare the size and speed of models and exports",
        description="Compare the size and speed of models and exports on the CPU: parameters, bytes on disk, memory, "
        "cold start, latency of one text at several lengths, and throughput. Ratios are to the first model, so give "
        "the teacher first.",
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", help="model or export: a folder or a name on the Hub")
    parser.add_argument(
        "--name", metavar="NAME", nargs="+", help="name of each model in the tables (default: its folder)"
    )
    add_measuring_options(parser)
    parser.add_argument(
        "--texts",
        metavar="FILE",
        type=Path,
        help="file with one text per line, two with a tab between them, or the name of an image file (default: "
        "built-in prose or images)",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder for benchmark.json and benchmark.md")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_distill.evaluation import benchmark_models
    from hf_distill.evaluation.benchmark import name_models

    models = name_models(options.models, options.name)
    texts = lines_of(options.texts)
    measured = benchmark_models(
        models,
        lengths=options.lengths,
        threads=options.threads,
        rounds=options.rounds,
        **({} if texts is None else {"texts": texts}),
    )
    print(measured.table())
    if options.output is not None:
        measured.write(options.output)
