"""`hf-distill inspect`"""

import argparse


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show a model's modules, and the students that could be made of it",
        description="Show a model's modules with their parameters, its stacks of layers, and the students that could "
        "be made of it. Only the config is read, no weights.",
    )
    parser.add_argument("model", metavar="MODEL", help="a name on the Hub or a folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_distill.student import describe
    from hf_distill.student.folders import load_skeleton

    print(describe(load_skeleton(options.model)))
