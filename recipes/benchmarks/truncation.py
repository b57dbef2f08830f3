"""`python -m recipes.benchmarks.truncation`: accuracy of each truncation: head, tail, or head and tail.

The quickstart's MiniLM is fine-tuned on its 5,000 sentences, and tested on 2,000 others that are truncated to several
numbers of tokens (including special tokens), with several seeds.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from hf_distill import (
    DistillationTrainingArguments,
    TextClassificationArguments,
    evaluate_model,
    train_model,
)
from recipes.benchmarks._common import (
    PACKAGES,
    add_fetched,
    all_exist,
    make_parser,
    print_versions,
    silence,
    spread,
    table,
    write_json,
)
from recipes.quickstart.data import LABELS, Corpus, load_corpus
from recipes.quickstart.students import TEACHER_OPTIONS
from recipes.quickstart.train import common_options

LENGTHS = [12, 24]
KINDS = ("head", "tail", "head_tail")
WHOLE = 128
"""Length in tokens that no sentence exceeds."""


def fine_tuned(model_folder: Path, train_file: Path, output: Path, seed: int, options: dict[str, object]) -> None:
    """Fine-tunes the model on whole sentences, and saves it in `output`."""
    task = TextClassificationArguments(
        model_name_or_path=str(model_folder), train_file=str(train_file), max_length=WHOLE
    )
    training = {**common_options(seed), **TEACHER_OPTIONS, "disable_tqdm": True, **options}
    train_model(task, DistillationTrainingArguments(str(output), **training))


def run(
    model_folder: Path, corpus: Corpus, lengths: list[int], seeds: list[int], output: Path, **options: object
) -> dict[str, dict[str, object]]:
    """Measures the accuracies, prints a table, and writes them to `output`.

    Args:
        model_folder: the pretrained model and its tokenizer.
        corpus: the sentences.
        lengths: maximum lengths in tokens.
        seeds: seeds; one training each.
        output: JSON file to write.
        options: options for `DistillationTrainingArguments` that override those of the quickstart's teacher.

    Returns:
        By length and truncation, such as `"12 head"`: the share of truncated test sentences, and the accuracies.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokens = [len(ids) for ids in tokenizer(list(corpus.test["text"]))["input_ids"]]
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in {"train": corpus.train, "test": corpus.test}.items():
            named = rows.map(lambda row: {"label": LABELS[row["labels"]]}, remove_columns="labels")
            named.to_csv(Path(folder, f"{name}.csv"))
        models = [Path(folder, f"seed-{seed}") for seed in seeds]
        for seed, model in zip(seeds, models, strict=True):
            fine_tuned(model_folder, Path(folder, "train.csv"), model, seed, options)
        for max_length, kind in [(WHOLE, "head"), *((length, kind) for length in lengths for kind in KINDS)]:
            cutting = {"max_length": max_length, "truncation": kind}
            tested = [evaluate_model(str(model), str(Path(folder, "test.csv")), **cutting) for model in models]
            cut = statistics.mean(length > max_length for length in tokens)
            measured[f"{max_length} {kind}"] = {"cut": cut, "accuracy": [own["accuracy"] for own in tested]}
    print(table(["tokens", "kept", "truncated texts", "accuracy"], [_row(*item) for item in measured.items()]))
    write_json(output, {"versions": print_versions(PACKAGES), "measured": measured})
    return measured


def _row(name: str, figures: dict[str, object]) -> list[str]:
    max_length, kind = name.split()
    kept = "all" if figures["cut"] == 0 else kind
    return [max_length, kept, f"{figures['cut']:.0%}", spread([100 * score for score in figures["accuracy"]])]


def main() -> int:
    parser = make_parser("truncation", __doc__)
    add_fetched(parser)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="maximum lengths in tokens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; one training each")
    options = parser.parse_args()
    if not all_exist(options.fetched / "minilm", options.fetched / "sentences"):
        return 1
    silence()
    corpus = load_corpus(options.fetched / "sentences")
    run(options.fetched / "minilm", corpus, options.lengths, options.seeds, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
