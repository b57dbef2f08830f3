"""Compares rerankers of opinions: a teacher, and students of half its layers with and without it.

A query asks for praise of a film, in words that vary, and its documents are ten sentences of film reviews. The
relevance of a sentence is how positive people find it (Hutto and Gilbert, 2014), 0 if it is negative. No sentence of a
test query is in a training query. Random order is measured too.

MiniLM with all six layers is fine-tuned on the relevance: the teacher. A student has every other layer of the
pretrained MiniLM and learns from the relevance alone, or has every other layer of the teacher and learns from both.

    python -m recipes.benchmarks.reranking --seeds 3

Figures are written after each training, and a second run continues from there. Takes about an hour on two cores.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from hf_distill import (
    DistillationTrainingArguments,
    RerankingArguments,
    load_predictor,
    load_rankings,
    make_student,
    ranking_metrics,
    train_model,
)
from recipes.benchmarks._common import (
    PACKAGES,
    add_fetched,
    explains_fetch_errors,
    make_parser,
    print_machine,
    print_versions,
    silence,
    spread,
    table,
    write_json,
)
from recipes.quickstart.data import read_ratings
from recipes.quickstart.fetch import fetch
from recipes.quickstart.train import bf16_is_fast

COLUMNS = {
    "ndcg@10": "NDCG@10",
    "mrr@10": "MRR@10",
    "agreement": "same first document as the teacher",
    "spearmanr_to_teacher": "Spearman with the teacher",
}
RANDOM = "random order"
TEACHER = "6 layers, labels alone: the teacher"

WITH, WITHOUT = "3 layers of the teacher, labels and teacher", "3 layers of the pretrained model, labels alone"
STUDENTS = {WITHOUT: False, WITH: True}
"""Whether a student has a teacher."""

QUERIES = ["a film that people praise", "enthusiastic about the film", "a positive opinion", "recommends it warmly"]
"""Wordings of a query."""

DOCUMENTS = 10
"""Documents of a query."""
STRONGEST = 4
"""The largest rating."""

SCORED = {"documents_column": "documents", "scores_column": "scores"}
SETTINGS = ("queries", "test_queries", "max_length", "epochs", "learning_rate")


@explains_fetch_errors
def main() -> int:
    parser = make_parser("reranking", __doc__)
    add_fetched(parser)
    parser.add_argument("--seeds", type=int, default=3, help="number of trainings of each student")
    parser.add_argument("--queries", type=int, default=400, help="number of training queries")
    parser.add_argument("--test-queries", type=int, default=200, help="number of test queries")
    parser.add_argument("--max-length", type=int, default=48, help="tokens per query and document")
    parser.add_argument("--epochs", type=float, default=3, help="epochs of each training")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="learning rate of each training")
    options = parser.parse_args()
    silence()
    pretrained, sentences = fetch(options.fetched)
    folder = options.output.with_suffix("")
    settings = {name: getattr(options, name) for name in SETTINGS}
    measured: dict[str, list] = {name: [] for name in (TEACHER, *STUDENTS)}
    if options.output.exists() and (earlier := json.loads(options.output.read_text()))["settings"] == settings:
        measured = earlier["measured"]
    else:
        write_data(folder, sentences, options.queries, options.test_queries)
        make_student(AutoModel.from_pretrained(pretrained)).save_pretrained(folder / "pretrained")
        AutoTokenizer.from_pretrained(pretrained).save_pretrained(folder / "pretrained")
    on, versions = print_machine("device", "threads", "training"), print_versions(PACKAGES)

    def keep(name: str, model: Path) -> None:
        measured[name].append(measure(folder, model))
        print(f"{name}: " + ", ".join(f"{own} {measured[name][-1][own]:.3f}" for own in COLUMNS), flush=True)
        content = {"measured": measured, "settings": settings, "machine": on, "versions": versions}
        write_json(options.output, content)

    if not measured[TEACHER]:
        train(options, folder / "teacher", 0, model_name_or_path=str(pretrained))
        keep(TEACHER, folder / "teacher")
    for seed in range(options.seeds):
        for name, has_teacher in STUDENTS.items():
            if len(measured[name]) == seed:
                given = {} if has_teacher else {"model_name_or_path": str(folder / "pretrained")}
                train(options, folder / "student", seed, has_teacher, **given)
                keep(name, folder / "student")
    print(f"\n{table_of({RANDOM: [measure(folder)], **measured})}")
    return 0


def write_data(folder: Path, sentences: Path, num_train: int, num_test: int) -> None:
    """Writes `train.jsonl` and `test.jsonl`: queries with documents and scores."""
    generator = random.Random(0)
    rated = read_ratings(sentences / "movieReviewSnippets_GroundTruth.txt")
    generator.shuffle(rated)
    half = len(rated) // 2
    folder.mkdir(parents=True, exist_ok=True)
    for name, own, number in (("train", rated[:half], num_train), ("test", rated[half:], num_test)):
        lines = []
        for index in range(number):
            documents = generator.sample(own, DOCUMENTS)
            while all(rating < 0 for _, rating in documents):
                documents = generator.sample(own, DOCUMENTS)
            row = {
                "query": f"{generator.choice(QUERIES)}, no. {index}",  # rows with the same query are one group
                "documents": [text for text, _ in documents],
                "scores": [max(0.0, rating) / STRONGEST for _, rating in documents],
            }
            lines.append(f"{json.dumps(row)}\n")
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def train(options: argparse.Namespace, output: Path, seed: int, has_teacher: bool = False, **model: str) -> None:
    losses = {"teacher_model_name_or_path": str(output.parent / "teacher"), "alpha_cos": 0.0} if has_teacher else {}
    training = DistillationTrainingArguments(
        str(output),
        learning_rate=options.learning_rate,
        warmup_steps=0.1,
        per_device_train_batch_size=16,
        num_train_epochs=options.epochs,
        seed=seed,
        bf16=bf16_is_fast(),
        use_cpu=not torch.accelerator.is_available(),
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **losses,
    )
    data = {"train_file": str(output.parent / "train.jsonl"), "max_length": options.max_length, **SCORED}
    train_model(RerankingArguments(overwrite=True, **data, **model), training)


def measure(folder: Path, model: Path | None = None) -> dict[str, float]:
    """Compares a model, or random order, with labels and teacher. The teacher's scores are computed once."""
    rows, file = load_rankings(folder / "test.jsonl", **SCORED), folder / "teacher_scores.json"
    pairs = list(zip(rows["text"], rows["text_pair"], strict=True))
    if model is None:
        scores = random.Random(0).choices(range(len(pairs)), k=len(pairs))
    else:
        scores = load_predictor(model).logits(pairs)[:, 0].tolist()
    if model is not None and model.name == "teacher":
        write_json(file, scores)
    return ranking_metrics(scores, rows["group"][:], rows["labels"][:], json.loads(file.read_text()))


def table_of(measured: dict[str, list[dict[str, float]]]) -> str:
    rows = [
        [name, *(spread([own[metric] for own in runs], ".3f") for metric in COLUMNS)]
        for name, runs in measured.items()
        if runs
    ]
    return table(["", *COLUMNS.values()], rows)


if __name__ == "__main__":
    raise SystemExit(main())
