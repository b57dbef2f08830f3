"""Distils all-MiniLM-L6-v2 into a student with 3 layers and one of half the width, from texts without labels.

    python -m recipes.embedding

downloads the teacher and 60,852 sentences and tweets, runs the teacher over them once, trains both students, and
compares them with their teacher on 10,000 texts that they were not trained on. The students are folders of
sentence-transformers.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_distill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    EmbeddingModel,
    add_teacher_targets,
    agreement_metrics,
    fit_dense,
    make_student,
    quiet_libraries,
    show_progress,
)
from recipes.embedding.data import NUM_HELD_OUT, load_teacher, load_texts
from recipes.embedding.judged import load_judged, spearman
from recipes.quickstart.fetch import FetchError

MAX_LENGTH = 64
"""Tokens per text in training."""
NUM_FITTED = 4000
"""Texts that the Dense module of the narrow student is fitted on before it is trained."""
NUM_SEEN = 2000
"""Training texts on which a student is compared too: where it is nearer to its teacher there, more texts would help."""

LOSSES = {"alpha_kl": 0.0, "alpha_task": 0.0, "alpha_cos": 0.0, "alpha_embedding": 1.0}

STUDENTS = {
    "3 layers": lambda teacher, texts: make_student(teacher, 3, "spread"),
    "half the width": lambda teacher, texts: fit_dense(
        make_student(teacher, hidden_size=192, num_attention_heads=6, intermediate_size=768), teacher, texts
    ),
}
"""The students. The narrow one has a Dense module that gives its vectors the teacher's width."""


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    quiet_libraries()
    try:
        teacher, judged = load_teacher(args.fetched), load_judged(args.fetched)
        texts = load_texts(args.fetched, args.held_out)
    except FetchError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    rows = teach(teacher, texts.train[: args.texts], args.output / "targets")
    seen = texts.train[: args.texts][:NUM_SEEN]
    expected, expected_of_seen = vectors_of(teacher, texts.held_out), vectors_of(teacher, seen)
    results = {}
    for name, make in STUDENTS.items():
        student = make(teacher, texts.train[:NUM_FITTED])
        untrained = agreement_metrics(vectors_of(student, texts.held_out), expected)
        folder = args.output / name.replace(" ", "-")
        seconds = distil(student, rows, folder, args)
        trained = agreement_metrics(vectors_of(student, texts.held_out), expected)
        of_seen = agreement_metrics(vectors_of(student, seen), expected_of_seen)
        results[name] = {"untrained": untrained, "trained": trained, "training_texts": of_seen, "seconds": seconds}
        results[name] |= {"parameters": student.num_parameters(), "folder": str(folder)}
        results[name]["spearman_with_people"] = spearman(student, judged)
    print(f"\n{table(results, teacher, spearman(teacher, judged))}\n")
    (args.output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print("\n".join(f"{name}: {own['folder']}" for name, own in results.items()))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.embedding", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/embedding"), help="folder for students and results"
    )
    parser.add_argument("--fetched", type=Path, default=Path("outputs/quickstart-fetched"), help="folder for downloads")
    parser.add_argument("--epochs", type=float, default=3.0, help="passes over the texts (default: 3)")
    parser.add_argument("--batch-size", type=int, default=64, help="texts per step (default: 64)")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="largest learning rate (default: 5e-4)")
    parser.add_argument("--texts", type=int, help="number of training texts (default: all)")
    parser.add_argument("--held-out", type=int, default=NUM_HELD_OUT, help="number of other texts (default: 10,000)")
    parser.add_argument("--bf16", action="store_true", help="train in bf16, on CPUs and GPUs that have it")
    parser.add_argument("--seed", type=int, default=42, help="seed of the training (default: 42)")
    return parser.parse_args(arguments)


def teach(teacher: EmbeddingModel, texts: Sequence[str], folder: Path) -> Dataset:
    """Encoded texts with the teacher's vectors, which are computed once and stored in `folder`."""
    encoded = teacher.tokenizer(list(texts), truncation=True, max_length=MAX_LENGTH)
    return add_teacher_targets(Dataset.from_dict(dict(encoded)), teacher, teacher.tokenizer, output_dir=folder)


def distil(student: EmbeddingModel, rows: Dataset, folder: Path, args: argparse.Namespace, **losses: float) -> float:
    """Trains a student and saves it. Returns the seconds that the training took."""
    training = DistillationTrainingArguments(
        str(folder),
        **(LOSSES | losses),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        warmup_steps=0.05,
        lr_scheduler_type="cosine",
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        report_to="none",
        logging_steps=50,
        seed=args.seed,
        bf16=args.bf16,
    )
    trainer = DistillationTrainer(student, training, train_dataset=rows, processing_class=student.tokenizer)
    show_progress(trainer)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_model()
    return seconds


def vectors_of(model: EmbeddingModel, texts: Sequence[str]) -> np.ndarray:
    """`[texts, width]`, from sentence-transformers."""
    return model.to_sentence_transformer().encode(list(texts), batch_size=64, show_progress_bar=False)


def table(results: dict[str, dict], teacher: EmbeddingModel, of_teacher: float) -> str:
    header = ["student", "parameters", "trained for", "mean cosine with the teacher", "on training texts"]
    header += ["overlap of the ten nearest texts", "Spearman with people"]
    million = f"{teacher.num_parameters() / 1e6:.1f} M"
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    rows += [["the teacher itself", million, "-", "1.000", "1.000", "1.000", f"{of_teacher:.3f}"]]
    for name, own in results.items():
        million = f"{own['parameters'] / 1e6:.1f} M"
        before, after, seen = own["untrained"], own["trained"], own["training_texts"]["cosine_to_teacher"]
        cosine, overlap = f"{before['cosine_to_teacher']:.3f}", f"{before['overlap@10']:.3f}"
        rows += [[f"{name}, untrained", million, "-", cosine, "-", overlap, "-"]]
        cosine, overlap = f"{after['cosine_to_teacher']:.3f}", f"{after['overlap@10']:.3f}"
        spearman_with_people = f"{own['spearman_with_people']:.3f}"
        rows += [[name, million, f"{own['seconds']:.0f} s", cosine, f"{seen:.3f}", overlap, spearman_with_people]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
