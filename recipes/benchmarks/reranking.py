"""Compares rerankers of opinions: a teacher, and students of half its layers with and without its scores.

A query asks for praise of a film, in words that vary, and its documents are ten sentences of film reviews. The
relevance of a sentence is how positive people find it (Hutto and Gilbert, 2014), 0 if it is negative. No sentence of a
test query is in a training query. Random order is measured too.

MiniLM with all six layers is fine-tuned on the relevance: the teacher. A student has every other layer of the
pretrained MiniLM or of the teacher. It learns from the relevance alone, or also from the teacher's scores: one by one
(the KL divergence, or their squared difference), by their margins (MarginMSE, Hofstätter et al., 2020), or by the
softmax over the documents of a query. Each step has 20 documents: 20 pairs, or 2 queries with all their documents.

    python -m recipes.benchmarks.reranking --seeds 3

Figures are written after each training, and a second run continues from there. Takes about two hours on one
core.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

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

STARTS = {
    "3 layers of the pretrained model, labels alone": "pretrained",
    "3 layers of the teacher, labels alone": "cut",
}
"""Students without a teacher, and the folder of the model that their training starts with."""

LOSSES: dict[str, dict[str, Any]] = {
    "3 layers of the teacher, labels and KL": {},
    "3 layers of the teacher, labels and MSE": {"divergence": "mse"},
    "3 layers of the teacher, labels and MarginMSE": {"alpha_kl": 0.0, "alpha_margin": 1.0},
    "3 layers of the teacher, labels and listwise KL": {"alpha_kl": 0.0, "alpha_listwise": 5.0},
}
"""Students with a teacher, and the arguments that say how they learn from its scores."""

QUERIES = ["a film that people praise", "enthusiastic about the film", "a positive opinion", "recommends it warmly"]
"""Wordings of a query."""

DOCUMENTS = 10
"""Documents of a query."""
STRONGEST = 4
"""The largest rating."""
BATCH_SIZE = 20
"""Documents per step."""

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
    measured: dict[str, list] = {name: [] for name in (TEACHER, *STARTS, *LOSSES)}
    earlier = json.loads(options.output.read_text()) if options.output.exists() else {"settings": None}
    if earlier["settings"] == settings and earlier["measured"].keys() == measured.keys():
        measured = earlier["measured"]
    else:
        write_data(folder, sentences, options.queries, options.test_queries)
        cut(AutoModel, pretrained, folder / "pretrained")
    on, versions = print_machine("device", "threads", "training"), print_versions(PACKAGES)

    def keep(name: str, model: Path) -> None:
        measured[name].append(measure(folder, model))
        print(f"{name}: " + ", ".join(f"{own} {measured[name][-1][own]:.3f}" for own in COLUMNS), flush=True)
        content = {"measured": measured, "settings": settings, "machine": on, "versions": versions}
        write_json(options.output, content)

    if not measured[TEACHER]:
        train(options, folder / "teacher", 0, model_name_or_path=str(pretrained))
        cut(AutoModelForSequenceClassification, folder / "teacher", folder / "cut")
        keep(TEACHER, folder / "teacher")
    for seed in range(options.seeds):
        for name in (*STARTS, *LOSSES):
            if len(measured[name]) == seed:
                given = {"model_name_or_path": str(folder / STARTS[name])} if name in STARTS else {}
                train(options, folder / "student", seed, LOSSES.get(name), **given)
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


def cut(kind: type, source: Path, folder: Path) -> None:
    """Writes a model with every other layer of another one, and its tokenizer."""
    make_student(kind.from_pretrained(source)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def train(
    options: argparse.Namespace, output: Path, seed: int, losses: dict[str, Any] | None = None, **model: str
) -> None:
    """Trains a model, with `losses` between its scores and the teacher's, or on labels alone if that is None."""
    distilling = {}
    if losses is not None:
        distilling = {"teacher_model_name_or_path": str(output.parent / "teacher"), "alpha_cos": 0.0, **losses}
    is_grouped = "alpha_margin" in distilling or "alpha_listwise" in distilling
    training = DistillationTrainingArguments(
        str(output),
        learning_rate=options.learning_rate,
        warmup_steps=0.1,
        per_device_train_batch_size=BATCH_SIZE // DOCUMENTS if is_grouped else BATCH_SIZE,
        num_train_epochs=options.epochs,
        seed=seed,
        bf16=bf16_is_fast(),
        use_cpu=not torch.accelerator.is_available(),
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **distilling,
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
