"""`hf-distill push`"""

import argparse
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "push",
        help="push a student or an export to the Hub",
        description="Push a student or an export to the Hub, in one commit: weights, configs, tokenizer, model card, "
        "report, plots and ONNX files; other files in the folder are not pushed. Uses the token from HF_TOKEN or "
        "`hf auth login`.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of a trained student or of an export")
    parser.add_argument("repo_id", metavar="REPO", help="NAME or ORGANISATION/NAME; created if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="create the repository as private")
    parser.add_argument(
        "--message",
        metavar="TEXT",
        default="Upload with hf_distill",
        help="commit message (default: Upload with hf_distill)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_distill.hub.push import files_to_push, push_folder

    commit = push_folder(options.folder, options.repo_id, private=options.private, message=options.message)
    print("\n".join([*(f"  {name}" for name in files_to_push(options.folder)), str(commit.repo_url)]))
