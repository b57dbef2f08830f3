"""`hf-distill compress`"""

import argparse
from pathlib import Path

from hf_distill.cli.common import MODEL, add_reading_options, show_steps

NOT_MET = 3
"""Exit code if no student does what was asked for."""

OF_DATA = {"train": "train_file", "validation": "validation_file", "test": "test_file", "unlabelled": "unlabelled_file"}
"""The options that name data, and the fields of the task's arguments that they set."""

PASSED = ("output", "keep", "metric", "max_ms", "max_mb", "budget", "formats", "workers", "threads", "storage", "seed")
"""Options that are arguments of `compress`."""

OF_HUB = ("dataset_name", "dataset_config_name", "train_split", "validation_split", "test_split", "unlabelled_split")


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "compress",
        help="find the fastest student that keeps a share of the teacher's quality",
        description="Find the fastest student that keeps a share of the teacher's quality on your data: cut, train, "
        "export and measure students until the budget is used, choose one on validation rows, and show on test rows "
        "how much it keeps. An interrupted search goes on with the same command. Exit code 3: no student does what was "
        "asked for, and the nearest is written.",
    )
    parser.add_argument("teacher", metavar="TEACHER", nargs="?", help=MODEL)
    parser.add_argument("--train", metavar="PATH", help="labelled rows to learn from")
    parser.add_argument("--unlabelled", metavar="PATH", help="rows without labels, on which the teacher alone teaches")
    parser.add_argument(
        "--validation", metavar="PATH", help="labelled rows that choose the student (default: two fifths of --test)"
    )
    parser.add_argument("--test", metavar="PATH", help="labelled rows that the teacher was not trained on")
    for name in OF_HUB:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="NAME", help="as in hf-distill train")
    parser.add_argument(
        "--keep", metavar="SHARE", type=float, help="share of the teacher's quality to keep, such as 0.97"
    )
    parser.add_argument("--metric", metavar="NAME", help="the quality (default: the first metric of the task)")
    parser.add_argument("--max-ms", metavar="X", type=float, help="most milliseconds for one input")
    parser.add_argument("--max-mb", metavar="X", type=float, help="most megabytes of the model's files")
    parser.add_argument("--budget", metavar="TIME", default="1h", help="such as 30m or 2h (default: 1h)")
    parser.add_argument("--format", dest="formats", metavar="FORMAT", nargs="+", help="formats to measure")
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="students trained at the same time")
    parser.add_argument("--threads", metavar="N", type=int, help="threads of the measured models (default: all cores)")
    parser.add_argument(
        "--storage", metavar="URL", help="database of the search, for several machines (default: a file in --output)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the search (default: 0)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder for the model, the page and the search")
    parser.add_argument("--join", metavar="DIR", type=Path, help="take part in the search that runs in this folder")
    add_reading_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    needed = ("teacher", "keep", "output")
    if options.join is None and (missing := [name for name in needed if getattr(options, name) is None]):
        raise ValueError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: hf-distill compress TEACHER --train "
            f"FILE --test FILE --keep 0.97 --output DIR."
        )
    from hf_distill.compression import compress, join
    from hf_distill.loading import load_config
    from hf_distill.tasks.registry import task_of

    show_steps()
    if options.join is not None:
        join(options.join)
        return
    task = task_of(load_config(options.teacher), options.teacher, options.task)
    given = vars(options)
    data = {field: given[name] for name, field in OF_DATA.items()} | {name: given[name] for name in OF_HUB}
    own = {name: value for name, value in given.items() if name in task.reading_defaults()}
    result = compress(
        options.teacher,
        task.arguments(task=task.name, **data, **own),
        **{name: given[name] for name in PASSED},
    )
    page = result.folder.parent / "compression.md"
    print(f"\n{result.answer}\n\n{page} shows the front and every student.\n\n  hf-distill serve {result.folder}")
    if not result.is_met:
        raise SystemExit(NOT_MET)
