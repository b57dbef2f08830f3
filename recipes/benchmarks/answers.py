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

from transformers import AutoModelForQuestionAnswering

from hf_distill import QuestionAnsweringArguments, quiet_libraries
from recipes.benchmarks._common import add_fetched, explains_fetch_errors, make_parser, spread, table
from recipes.benchmarks._trainings import LAYERS, LOSSES, Trainings, gain, percents
from recipes.quickstart.fetch import fetch

NAME = re.compile(r"(?<=[a-z,] )[A-Z][\w.'-]*(?: [A-Z][\w.'-]*)*(?<![.,'])")
"""Capitalised words within a sentence."""

KEPT = 0.6
"""Share of the words of a sentence that its question keeps."""

SENTENCES = 3
"""Sentences of a text."""

READING = {"max_length": 96, "stride": 24, "unanswerable": True, "max_answer_tokens": 12}

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


class Benchmark(Trainings):
    """The teacher, and the students of each seed."""

    def __init__(self, model: Path, data: tuple[Path, Path], output: Path, epochs: int):
        self.model, (self.data, test) = model, data
        super().__init__(output, test, epochs, ["datasets", "torchmetrics"])
        self.teacher = self.folder / TEACHER

    def run(self, seeds: list[int]) -> None:
        self._train(0, TEACHER, {"model_name_or_path": str(self.model)}, layers=6)
        taught = {"teacher_model_name_or_path": str(self.teacher), **LOSSES}
        for seed in seeds:
            for way, start in {TAUGHT: self.teacher, ALONE: self.teacher, PRETRAINED: self.model}.items():
                cut = {"model_name_or_path": str(self.cut(AutoModelForQuestionAnswering, start))}
                task = {"num_layers": LAYERS} if way == TAUGHT else cut
                self._train(seed, f"{way} {seed}", task, **(taught if way == TAUGHT else {}))

    def _train(self, seed: int, name: str, task: dict, layers: int = LAYERS, **training: Any) -> None:
        args = QuestionAnsweringArguments(train_file=str(self.data), overwrite=True, **READING, **task)
        self.train(name, args, self.teacher, seed, layers, **training)


def print_table(results: dict[str, dict], seeds: list[int]) -> None:
    """Prints the quality of each model."""
    lines = [[f"{TEACHER}, 6 layers", *(f"{100 * results[TEACHER][own]:.1f}" for own in MEASURES)]]
    lines += [[f"{LAYERS} {way}", *(spread(percents(results, way, own, seeds)) for own in MEASURES)] for way in WAYS]
    for other in (PRETRAINED, ALONE):
        gains = [gain(results, TAUGHT, other, own, seeds) for own in MEASURES]
        lines.append([f"gain by the teacher, seed by seed, over {other}", *gains])
    print(f"\nPercent; students: mean ± standard deviation over {len(seeds)} seeds\n")
    print(table(["", *MEASURES.values()], lines))


@explains_fetch_errors
def main() -> int:
    parser = make_parser("answers", __doc__)
    add_fetched(parser)
    parser.add_argument("--epochs", type=int, default=3, help="epochs of every training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the students")
    parser.add_argument("--questions", type=int, default=1000, help="number of training questions")
    parser.add_argument("--test-questions", type=int, default=400, help="number of test questions")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of a measurement of latency; 0 for none")
    options = parser.parse_args()
    quiet_libraries()
    model, sentences = fetch(options.fetched)
    editorials = sentences / "nytEditorialSnippets_GroundTruth.txt"
    data = prepare(editorials, options.fetched / "editorials", options.questions, options.test_questions)
    benchmark = Benchmark(model, data, options.output, options.epochs)
    benchmark.run(options.seeds)
    print_table(benchmark.results, options.seeds)
    if options.rounds:
        rows = json.loads(data[0].read_text())[:128]
        pairs = [(row["question"], row["context"]) for row in rows]
        benchmark.measure_speed(TEACHER, f"{TAUGHT} {options.seeds[0]}", pairs, [32, 96], options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
