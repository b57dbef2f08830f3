"""Students of all-MiniLM-L6-v2 with 3 layers, each trained for the same time on the same texts without labels.

    python -m recipes.benchmarks.embedding --minutes 10

compares, on 10,000 texts that no student was trained on: the student before training; trained here with
`alpha_embedding`, with and without `alpha_similarity`; and the same layers trained by sentence-transformers with its
`MSELoss` on the teacher's vectors. All have the same layers, batch size and learning rate. The teacher's vectors are
computed once before, and their time is not counted. An interrupted run resumes with the next training.
"""

import json
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback

from hf_distill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    EmbeddingModel,
    agreement_metrics,
    make_student,
)
from recipes.benchmarks._common import (
    PACKAGES,
    QUIET,
    add_fetched,
    explains_fetch_errors,
    make_parser,
    print_machine,
    print_versions,
    silence,
    spread,
    table,
    train_quietly,
)
from recipes.embedding.__main__ import LOSSES, MAX_LENGTH, teach, vectors_of
from recipes.embedding.data import NUM_HELD_OUT, Texts, load_teacher, load_texts

UNTRAINED = "before training"
PEER = "sentence-transformers, `MSELoss`"
OURS = {
    "`alpha_embedding`": {},
    "`alpha_embedding` and `alpha_similarity`": {"alpha_similarity": 0.1},
}
METRICS = {
    "cosine_to_teacher": "mean cosine with the teacher",
    "overlap@10": "overlap of the ten nearest texts",
    "spearmanr_to_teacher": "Spearman of the similarities",
}


class StopAfter(TrainerCallback):
    """Ends a training after some seconds, at the end of a step."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = time.perf_counter() - self.start > self.seconds


@explains_fetch_errors
def main() -> int:
    parser = make_parser("embedding", __doc__)
    add_fetched(parser)
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of each training (default: 10)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the trainings (default: 0)")
    parser.add_argument("--texts", type=int, help="number of training texts (default: all)")
    parser.add_argument("--held-out", type=int, default=NUM_HELD_OUT, help="number of other texts (default: 10,000)")
    options = parser.parse_args()
    silence()
    versions = print_versions([*PACKAGES, "sentence-transformers"])
    on = print_machine("device", "threads")

    teacher, texts = load_teacher(options.fetched), load_texts(options.fetched, options.held_out)
    texts = Texts(texts.train[: options.texts], texts.held_out)
    rows = teach(teacher, texts.train, options.output.parent / "embedding-targets")
    expected = vectors_of(teacher, texts.held_out)

    settings = {"minutes": options.minutes, "texts": len(texts.train), "held_out": len(texts.held_out)}
    results = _earlier(options.output, settings)
    for seed in options.seeds:
        for name in (UNTRAINED, *OURS, PEER):
            if name in results and (name == UNTRAINED or str(seed) in results[name]):
                continue
            student = make_student(teacher, 3, "spread")
            steps = _train(name, student, rows, texts, options, seed)
            measured = agreement_metrics(vectors_of(student, texts.held_out), expected)
            results.setdefault(name, {})[str(seed)] = {"steps": steps, **measured}
            options.output.parent.mkdir(parents=True, exist_ok=True)
            content = {"versions": versions, "machine": on, "settings": settings, "results": results}
            options.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"\n{_table(results)}")
    return 0


def _earlier(file: Path, settings: dict) -> dict[str, dict]:
    """The results of an earlier run with the same settings."""
    if not file.exists():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    return content["results"] if content["settings"] == settings else {}


def _train(name: str, student: EmbeddingModel, rows: Dataset, texts: Texts, options: Namespace, seed: int) -> int:
    """Trains a student for the given time. Returns the number of steps."""
    if name == UNTRAINED:
        return 0
    shared = {
        **QUIET,
        "per_device_train_batch_size": 64,
        "learning_rate": 5e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 50,
        "num_train_epochs": 1000,
        "seed": seed,
    }
    output, stop = str(options.output.parent / "embedding-student"), StopAfter(60 * options.minutes)
    make: Callable = _peer if name == PEER else _ours
    trainer = make(student, rows, texts, output, shared, OURS.get(name, {}))
    trainer.add_callback(stop)
    train_quietly(trainer)
    return trainer.state.global_step


def _ours(student, rows, texts, output, shared, losses) -> DistillationTrainer:
    arguments = DistillationTrainingArguments(output, **LOSSES, **losses, **shared)
    return DistillationTrainer(student, arguments, train_dataset=rows, processing_class=student.tokenizer)


def _peer(student, rows, texts, output, shared, losses):
    """sentence-transformers trains the modules of `student`, so these are the same layers and the same start."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MSELoss

    model = student.to_sentence_transformer()
    model.max_seq_length = MAX_LENGTH
    vectors = np.array(rows["teacher_embeddings"][:], dtype=np.float32)
    dataset = Dataset.from_dict({"text": texts.train, "label": vectors})
    arguments = SentenceTransformerTrainingArguments(output, **shared)
    return SentenceTransformerTrainer(model, arguments, train_dataset=dataset, loss=MSELoss(model))


def _table(results: dict[str, dict]) -> str:
    rows = []
    for name, of_seeds in results.items():
        values = [[own[metric] for own in of_seeds.values()] for metric in METRICS]
        steps = [own["steps"] for own in of_seeds.values()]
        rows.append([name, spread(steps, ".0f"), *(spread(own, ".3f") for own in values)])
    return table(["3 layers", "steps", *METRICS.values()], rows)


if __name__ == "__main__":
    raise SystemExit(main())
