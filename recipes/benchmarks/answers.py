"""`python -m recipes.benchmarks.answers`: how much a teacher improves a student that answers questions.

The teacher is MiniLM with 6 layers, fine-tuned on questions with answers; the students have 3 layers. A student starts
with layers of the pretrained MiniLM or of the teacher, and learns from the labels alone or from labels and teacher. All
are measured on questions about other texts.

The texts are parts of newspaper editorials (Hutto and Gilbert, 2014,
https://ojs.aaai.org/index.php/ICWSM/article/view/14550) from the pip package vaderSentiment, which says that its
licence is MIT. A rule makes the questions: the answer is a name within a sentence, and the question has "who or what"
in its place and lacks some of the other words. One question in three is asked of a text that lacks its sentence, and so
has no answer.

Figures are written after each training. A second run continues from there.
"""

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from hf_distill import (
    DistillationTrainingArguments,
    QuestionAnsweringArguments,
    benchmark_models,
    evaluate_model,
    export_model,
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
    spread,
    table,
    write_json,
)
from recipes.quickstart.fetch import fetch
from recipes.quickstart.train import bf16_is_fast

NAME = re.compile(r"(?<=[a-z,] )[A-Z][\w.'-]*(?: [A-Z][\w.'-]*)*(?<![.,'])")
"""Capitalised words within a sentence."""

KEPT = 0.6
"""Share of the words of a sentence that its question keeps."""

SENTENCES = 3
"""Sentences of a text."""

LAYERS = 3
OPTIONS = {
    "per_device_train_batch_size": 16,
    "train_sampling_strategy": "group_by_length",
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
READING = {"max_length": 96, "stride": 24, "unanswerable": True, "max_answer_tokens": 12}
LEARNING_RATES = {6: 1.5e-4, LAYERS: 3e-4}
"""Learning rate by number of layers, as in `where_distilling_pays`."""

TEACHER = "teacher"
TAUGHT = "layers of the teacher, labels and teacher"
ALONE = "layers of the teacher, labels alone"
PRETRAINED = "layers of the pretrained model, labels alone"
WAYS = [PRETRAINED, ALONE, TAUGHT]
MEASURES = {
    "exact_match": "exact match",
    "f1": "F1",
    "answerable_f1": "F1, answerable",
    "unanswerable_accuracy": "accuracy, unanswerable",
    "agreement": "agreement with the teacher",
}


def make_questions(editorials: list[list[str]], generator: random.Random) -> list[dict[str, Any]]:
    """Questions about parts of editorials, as in the documentation of `load_questions`."""
    rows = []
    for sentences in editorials:
        for index, sentence in enumerate(sentences):
            names = [match for match in NAME.finditer(sentence) if len(match[0]) > 2]
            if not names or not 8 <= len(sentence.split()) <= 40 or len(sentences) <= SENTENCES:
                continue
            name = generator.choice(names)
            first = generator.randrange(max(0, index - SENTENCES + 1), min(index, len(sentences) - SENTENCES) + 1)
            part = sentences[first : first + SENTENCES]
            answers: dict[str, list] = {"text": [], "answer_start": []}
            if generator.randrange(3) == 0:
                others = [own for own in sentences if own != sentence]
                part = others[first : first + SENTENCES] if first + SENTENCES <= len(others) else others[-SENTENCES:]
            else:
                answers["text"].append(name[0])
                answers["answer_start"].append(len(" ".join([*sentences[first:index], ""])) + name.start())
            words = f"{sentence[: name.start()]} {{}} {sentence[name.end() :]}".split()
            kept = [word for word in words if word == "{}" or generator.random() < KEPT]
            question = f"{' '.join(kept).rstrip('.')}?".format("who or what")
            rows.append({"question": question, "context": " ".join(part), "answers": answers})
    return rows


def read_editorials(file: Path) -> list[list[str]]:
    """The sentences of each editorial, without braces."""
    editorials: dict[str, list[str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        place, _, text = line.split("\t")
        editorials.setdefault(place.partition("_")[0], []).append(re.sub(r"[{}]", "", text).strip())
    return list(editorials.values())


def prepare(file: Path, folder: Path, num_train: int, num_test: int) -> tuple[Path, Path]:
    """Writes questions for training and for the test, about different editorials."""
    editorials = read_editorials(file)
    generator = random.Random(0)
    generator.shuffle(editorials)
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "train.json", folder / "test.json"
    half = len(editorials) // 4
    for own, part, number in zip(files, (editorials[half:], editorials[:half]), (num_train, num_test), strict=True):
        rows = make_questions(part, generator)
        generator.shuffle(rows)
        own.write_text(json.dumps(rows[:number]), encoding="utf-8")
    return files


class Benchmark:
    """Trains and measures the models of all seeds that are not yet in the file `output`."""

    def __init__(self, model: Path, data: tuple[Path, Path], output: Path, epochs: int):
        self.model, self.data, self.output, self.epochs = model, data, output, epochs
        self.folder = output.with_suffix("")
        self.teacher = self.folder / TEACHER
        self.results: dict[str, dict] = json.loads(output.read_text())["models"] if output.exists() else {}
        self.on = print_machine("device", "threads", "training")
        self.versions = print_versions([*PACKAGES, "datasets", "torchmetrics"])

    def run(self, seeds: list[int]) -> None:
        self._train(0, TEACHER, self.teacher, {"model_name_or_path": str(self.model)}, layers=6)
        taught = {"teacher_model_name_or_path": str(self.teacher), "alpha_kl": 5.0, "alpha_task": 2.0, "alpha_cos": 0.0}
        for seed in seeds:
            for way, start in {TAUGHT: self.teacher, ALONE: self.teacher, PRETRAINED: self.model}.items():
                task = {"num_layers": LAYERS} if way == TAUGHT else {"model_name_or_path": str(self._cut(start))}
                name = f"{way} {seed}"
                self._train(seed, name, self.folder / name, task, **(taught if way == TAUGHT else {}))

    def _cut(self, start: Path) -> Path:
        """The first model with fewer layers."""
        folder = self.folder / f"{start.name}, {LAYERS} layers"
        if not folder.exists():
            make_student(AutoModelForQuestionAnswering.from_pretrained(start), LAYERS).save_pretrained(folder)
            AutoTokenizer.from_pretrained(start).save_pretrained(folder)
        return folder

    def _train(self, seed: int, name: str, folder: Path, task: dict, layers: int = LAYERS, **training: Any) -> None:
        if name in self.results and folder.exists():
            return
        train, test = self.data
        args = QuestionAnsweringArguments(train_file=str(train), overwrite=True, **READING, **task)
        options = {**OPTIONS, "seed": seed, "num_train_epochs": self.epochs, "learning_rate": LEARNING_RATES[layers]}
        options |= {"bf16": bf16_is_fast(), "use_cpu": not torch.accelerator.is_available()}
        train_model(args, DistillationTrainingArguments(str(folder), **options, **training))
        self.results[name] = evaluate_model(folder, test, teacher=self.teacher)
        self.write()
        print(f"{name}: F1 {self.results[name]['f1']:.1%}", flush=True)

    def write(self, **more: object) -> None:
        measured = {"machine": self.on, "versions": self.versions, "models": self.results, **more}
        write_json(self.output, measured)


def print_table(results: dict[str, dict], seeds: list[int]) -> None:
    """Prints the quality of each model."""

    def values(way: str, measure: str) -> list[float]:
        return [100 * results[f"{way} {seed}"][measure] for seed in seeds]

    lines = [[f"{TEACHER}, 6 layers", *(f"{100 * results[TEACHER][own]:.1f}" for own in MEASURES)]]
    lines += [[f"{LAYERS} {way}", *(spread(values(way, own)) for own in MEASURES)] for way in WAYS]
    for other in (PRETRAINED, ALONE):
        gains = [
            spread([one - two for one, two in zip(values(TAUGHT, own), values(other, own), strict=True)], "+.1f")
            for own in MEASURES
        ]
        lines.append([f"gain by the teacher, seed by seed, over {other}", *gains])
    print(f"\nPercent; students: mean ± standard deviation over {len(seeds)} seeds\n")
    print(table(["", *MEASURES.values()], lines))


def measure_speed(benchmark: Benchmark, seed: int, rounds: int) -> dict:
    """Exports the teacher and a student, measures size and latency of all, and prints them."""
    rows = json.loads(benchmark.data[0].read_text())
    pairs = [(row["question"], row["context"]) for row in rows[:128]]
    models = {"teacher": benchmark.teacher, "student": benchmark.folder / f"{TAUGHT} {seed}"}
    for role, folder in list(models.items()):
        for format in ("onnx", "onnx-int8"):
            models[f"{role}, {format}"] = export = benchmark.folder / f"{role} {format} {seed}"
            if not export.exists():
                export_model(folder, export, format, texts=pairs[:64])
    measured = benchmark_models(models, lengths=[32, 96], texts=pairs[64:], rounds=rounds)
    print(measured.table())
    return {name: {**own, **evaluate_model(models[name], benchmark.data[1])} for name, own in measured.models.items()}


@explains_fetch_errors
def main() -> int:
    parser = make_parser("answers", __doc__)
    add_fetched(parser)
    parser.add_argument("--epochs", type=int, default=3, help="epochs of every training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the students")
    parser.add_argument("--questions", type=int, default=1000, help="number of training questions")
    parser.add_argument("--test-questions", type=int, default=400, help="number of test questions")
    parser.add_argument("--rounds", type=int, default=0, help="also measure latency, in so many rounds")
    options = parser.parse_args()
    quiet_libraries()
    model, sentences = fetch(options.fetched)
    editorials = sentences / "nytEditorialSnippets_GroundTruth.txt"
    data = prepare(editorials, options.fetched / "editorials", options.questions, options.test_questions)
    benchmark = Benchmark(model, data, options.output, options.epochs)
    benchmark.run(options.seeds)
    print_table(benchmark.results, options.seeds)
    if options.rounds:
        benchmark.write(speed=measure_speed(benchmark, options.seeds[0], options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
