"""`hf-distill inspect`"""

import argparse


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show a model's modules and sizes, and the students that can be cut from it",
        description="Show a model's modules with their parameters, its stacks of layers, its sizes, and the students "
        "that can be cut from it, with their size and their expected latency on this machine. Reads only the config, "
        "no weights.",
    )
    parser.add_argument("model", metavar="MODEL", help="a folder or a name on the Hub")
    parser.add_argument(
        "--no-latency", action="store_true", help="do not measure on this machine, which takes about two seconds"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_distill.student import describe
    from hf_distill.student.folders import load_skeleton

    print(describe(load_skeleton(options.model), latency=not options.no_latency))
