"""Compares rerankers on the documentation of NumPy, SciPy and scikit-learn: a teacher, and students of half its layers.

MiniLM with all six layers is fine-tuned on the labels. Students have every other layer of the pretrained MiniLM, or of that
teacher. They are trained on the labels alone, or on labels and teacher, with several seeds. Each is measured on test
queries with 16 documents, one of them relevant.

    python -m recipes.benchmarks.reranking --seeds 3

Takes about an hour on two cores.
"""

import shutil
from pathlib import Path

import torch

from hf_distill import (
    DistillationTrainingArguments,
    RerankingArguments,
    evaluate_model,
    make_student,
    quiet_libraries,
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
from recipes.quickstart.fetch import fetch
from recipes.quickstart.train import bf16_is_fast
from recipes.rerank.data import write

METRICS = ("ndcg@10", "mrr@10", "agreement", "spearmanr_to_teacher")

STUDENTS = {
    "3 layers of the pretrained model, labels alone": {"start": "pretrained", "teacher": False},
    "3 layers of the pretrained model, labels and teacher": {"start": "pretrained", "teacher": True},
    "3 layers of the teacher, labels and teacher": {"start": "teacher", "teacher": True},
}


@explains_fetch_errors
def main() -> int:
    parser = make_parser("reranking", __doc__)
    add_fetched(parser)
    parser.add_argument("--seeds", type=int, default=3, help="number of trainings of each student")
    parser.add_argument("--queries", type=int, help="number of training queries; default: all")
    parser.add_argument("--test-queries", type=int, default=250, help="number of test queries")
    parser.add_argument("--max-length", type=int, default=64, help="tokens per query and document")
    parser.add_argument("--epochs", type=float, default=3, help="epochs of each training")
    options = parser.parse_args()
    silence()
    quiet_libraries()
    pretrained, _ = fetch(options.fetched)
    folder = options.output.with_suffix("")
    write(folder, options.queries, options.test_queries)
    on, versions = print_machine("device", "threads", "training"), print_versions(PACKAGES)
    shortened(pretrained, folder / "pretrained")
    train(folder, options, "teacher", {"model_name_or_path": str(pretrained)}, seed=0)
    measured = {"MiniLM, 6 layers: the teacher": [measure(folder, "teacher")]}
    for name, student in STUDENTS.items():
        measured[name] = []
        for seed in range(options.seeds):
            given = {"model_name_or_path": str(folder / "pretrained")} if student["start"] == "pretrained" else {}
            teacher = str(folder / "teacher") if student["teacher"] else None
            train(folder, options, "student", given, seed, teacher)
            measured[name].append(measure(folder, "student"))
            print(f"{name}, seed {seed}: " + ", ".join(f"{own} {measured[name][-1][own]:.3f}" for own in METRICS))
    print(f"\n{table_of(measured)}")
    settings = {name: getattr(options, name) for name in ("seeds", "queries", "test_queries", "max_length", "epochs")}
    write_json(options.output, {"measured": measured, "settings": settings, "machine": on, "versions": versions})
    return 0


def shortened(pretrained: Path, folder: Path) -> None:
    """Saves every other layer of the pretrained model, with its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    make_student(AutoModel.from_pretrained(pretrained)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(pretrained).save_pretrained(folder)


def train(folder: Path, options, output: str, given: dict, seed: int, teacher: str | None = None) -> None:
    args = RerankingArguments(
        train_file=str(folder / "train.jsonl"), max_length=options.max_length, overwrite=True, **given
    )
    losses = {} if teacher is None else {"alpha_cos": 0.0}
    training = DistillationTrainingArguments(
        str(folder / output),
        teacher_model_name_or_path=teacher,
        learning_rate=2e-4,
        warmup_steps=0.1,
        per_device_train_batch_size=32,
        num_train_epochs=options.epochs,
        seed=seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=bf16_is_fast(),
        use_cpu=not torch.accelerator.is_available(),
        **losses,
    )
    train_model(args, training)


def measure(folder: Path, model: str) -> dict[str, float]:
    return evaluate_model(folder / model, folder / "test.jsonl", teacher=folder / "teacher")


def table_of(measured: dict[str, list[dict[str, float]]]) -> str:
    rows = [
        [name, *(spread([own[metric] for own in runs], ".3f") for metric in METRICS)] for name, runs in measured.items()
    ]
    return table(["", "NDCG@10", "MRR@10", "same first document", "Spearman with the teacher"], rows)


if __name__ == "__main__":
    raise SystemExit(main())
