"""`hf-distill benchmark`"""

import argparse
from pathlib import Path

from hf_distill.cli.common import add_measuring_options, lines_of


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="say how big and how fast models and exports are, beside each other",
        description="Measure models and exports beside each other on the CPU: parameters, bytes on disk, memory, cold "
        "start, latency of one text for several lengths, and throughput. The first is what the others are compared "
        "with: give the teacher first.",
    )
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", help="folders, or names on the Hub, of models and exports"
    )
    parser.add_argument(
        "--name", metavar="NAME", nargs="+", help="what each is called in the tables (default: as its folder)"
    )
    add_measuring_options(parser)
    parser.add_argument("--texts", metavar="FILE", type=Path, help="a text to read per line (default: prose)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="a folder for benchmark.json and benchmark.md")
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
