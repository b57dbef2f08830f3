"""`python -m recipes.benchmarks.summaries`: how much a teacher improves a student that writes summaries.

The teacher is made of the pretrained MiniLM (Rothe et al., 2020, https://aclanthology.org/2020.tacl-1.18): every
other of its layers is the encoder, and again the decoder, whose attention to the encoder is new. The students keep its
encoder and one of three layers of its decoder, as in Shleifer and Rush, 2020 (https://arxiv.org/abs/2010.13002). A
student learns in one of three ways: from the targets alone; from the targets and the teacher's probabilities; or from
the texts that the teacher writes (Kim and Rush, 2016, https://aclanthology.org/D16-1139) and its probabilities. All are
measured on other texts, and so is the cut before any training.

The texts are the documentation of NumPy, SciPy and scikit-learn, all under the BSD 3-Clause License, as in
recipes/summarization/smoke_data.py: the target is the first line, the source what follows it.

Figures are written after each training. A second run continues from there.
"""

import sys
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, EncoderDecoderModel, set_seed

from hf_distill import SummarizationArguments, evaluate_model, make_student, quiet_libraries
from recipes.benchmarks._common import add_fetched, explains_fetch_errors, make_parser, spread, table
from recipes.benchmarks._trainings import Trainings
from recipes.quickstart.fetch import fetch
from recipes.summarization.smoke_data import write_data

READING = {"max_length": 64, "max_target_length": 20}

LAYERS = 3
"""Layers of the teacher, in encoder and decoder."""

CUT = {"decoder": 1}
"""Layers of the students' decoder."""

TEACHER, UNTRAINED = "teacher", "the cut without a training"
ALONE, TAUGHT, WRITTEN = "targets alone", "targets and teacher", "the teacher's texts, and teacher"
WAYS = {ALONE: {}, TAUGHT: {"targets": "given"}, WRITTEN: {"targets": "teacher"}}
"""Where the targets of each way come from; the first has no teacher."""

LOSSES = {"alpha_kl": 0.8, "alpha_task": 1.0, "alpha_cos": 0.0, "temperature": 2.0}
"""As Shleifer and Rush combine logits and labels."""

MEASURES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeL_to_teacher": "ROUGE-L with the teacher",
    "words": "words",
}


def save_start(pretrained: Path, folder: Path) -> None:
    """The encoder-decoder that becomes the teacher."""
    set_seed(0)
    half, tokenizer = folder / "half", AutoTokenizer.from_pretrained(pretrained)
    make_student(AutoModel.from_pretrained(pretrained), LAYERS).save_pretrained(half)
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(half, half)
    special = {"decoder_start_token_id": "cls", "bos_token_id": "cls", "eos_token_id": "sep", "pad_token_id": "pad"}
    special = {name: getattr(tokenizer, f"{token}_token_id") for name, token in special.items()}
    model.config.update(special)
    model.generation_config.update(**special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Benchmark(Trainings):
    """The teacher, and the students of each seed."""

    def __init__(self, data: Path, output: Path, epochs: int):
        self.data = data
        super().__init__(output, data / "test.jsonl", epochs, ["datasets", "rouge-score"], "rougeL")
        self.teacher = self.folder / TEACHER

    def run(self, pretrained: Path, seeds: list[int], teacher_epochs: int) -> None:
        start = self.folder / "start"
        if not start.exists():
            save_start(pretrained, start)
        options = {"learning_rate": 3e-4, "num_train_epochs": teacher_epochs}
        self._train(0, TEACHER, {"model_name_or_path": str(start)}, **options)
        cut = self.folder / "cut"
        if not cut.exists():
            make_student(AutoModelForSeq2SeqLM.from_pretrained(self.teacher), CUT).save_pretrained(cut)
            AutoTokenizer.from_pretrained(self.teacher).save_pretrained(cut)
        if UNTRAINED not in self.results:
            self.results[UNTRAINED] = evaluate_model(cut, self.test, teacher=self.teacher)
            self.write()
        for seed in seeds:
            for way, targets in WAYS.items():
                taught = {"teacher_model_name_or_path": str(self.teacher), **LOSSES} if targets else {}
                task = {"model_name_or_path": str(cut), **targets}
                self._train(seed, f"{way} {seed}", task, learning_rate=3e-4, **taught)

    def _train(self, seed: int, name: str, task: dict, **training: Any) -> None:
        args = SummarizationArguments(
            train_file=str(self.data / "train.jsonl"), overwrite=True, source_prefix="", **READING, **task
        )
        self.train(name, args, self.teacher, seed, **training)


def print_table(results: dict[str, dict], seeds: list[int]) -> None:
    """Prints the quality of each model."""
    lines = [[name, *(f"{results[name][own]:.1f}" for own in MEASURES)] for name in (TEACHER, UNTRAINED)]
    for way in WAYS:
        lines.append([way, *(spread([results[f"{way} {seed}"][own] for seed in seeds]) for own in MEASURES)])
    for way in (TAUGHT, WRITTEN):
        gains = [
            [results[f"{way} {seed}"][own] - results[f"{ALONE} {seed}"][own] for seed in seeds] for own in MEASURES
        ]
        lines.append([f"gain by the teacher, seed by seed: {way}", *(spread(own, "+.1f") for own in gains)])
    print(f"\nROUGE from 0 to 100; students: mean ± standard deviation over {len(seeds)} seeds\n")
    print(table(["", *MEASURES.values()], lines))


@explains_fetch_errors
def main() -> int:
    parser = make_parser("summaries", __doc__)
    add_fetched(parser)
    parser.add_argument("--epochs", type=int, default=2, help="epochs of the training of a student")
    parser.add_argument("--teacher-epochs", type=int, default=10, help="epochs of the training of the teacher")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the students")
    parser.add_argument("--rows", type=int, help="number of training texts; default: all")
    parser.add_argument("--test-rows", type=int, default=200, help="number of test texts")
    options = parser.parse_args()
    quiet_libraries()
    pretrained, _ = fetch(options.fetched)
    data = options.output.with_suffix("") / "data"
    write_data(data, options.rows, options.test_rows)
    benchmark = Benchmark(data, options.output, options.epochs)
    benchmark.run(pretrained, options.seeds, options.teacher_epochs)
    print_table(benchmark.results, options.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
