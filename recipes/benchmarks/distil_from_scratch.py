"""`python -m recipes.benchmarks.distil_from_scratch`: recipes/distilroberta from end to end, in miniature.

A teacher with 6 layers is trained by masked language modelling on real sentences. The recipe's own script then trains a
student with 3 of its layers, once with the teacher and once without, from the same weights and on the same batches.
"""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_distill import DistillationTrainingArguments, parse_config
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
from recipes.distilroberta import train
from recipes.embedding.data import TWEETS, read_tweets
from recipes.quickstart.data import read_ratings
from recipes.quickstart.fetch import SENTENCE_FILES, download, fetch

RECIPE = Path(train.__file__).parent
NO_TEACHER = ("--alpha_kl", "0", "--alpha_cos", "0")
STUDENTS = {"with the teacher": (), "without": NO_TEACHER}
"""Options by way of training the student."""


def write_corpus(file: Path, sentence_folder: Path, tweets: Sequence[str]) -> None:
    """Writes every text once, one per line, in the same random order in every run. The first texts are held out."""
    sentences = [text for name in SENTENCE_FILES for text, _ in read_ratings(sentence_folder / name)]
    texts = sorted({*sentences, *tweets} - {""})
    random.Random(0).shuffle(texts)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(texts), encoding="utf-8")


def recipe_options(teacher: Path, corpus: Path, output: Path, max_steps: int, seed: int) -> list[str]:
    """The command line of recipes/distilroberta/train.py."""
    options = ["--config", RECIPE / "config.yaml", RECIPE / "miniature.yaml", "--teacher", teacher, "--corpus", corpus]
    options += ["--output_dir", output, "--max_steps", max_steps, "--seed", seed, "--report_to", "none"]
    options += ["--use_cpu", not torch.accelerator.is_available()]  # miniature.yaml stays on the CPU by itself
    return [*map(str, options), "--disable_tqdm", "true"]


def trained_teacher(model_folder: Path, corpus: Path, folder: Path, max_steps: int) -> dict[str, float]:
    """Trains and saves the teacher: the pretrained model with a new head. Returns perplexities before and after."""
    recipe, training = parse_config(
        [train.RecipeArguments, DistillationTrainingArguments],
        [*recipe_options(model_folder, corpus, folder, max_steps, seed=0), *NO_TEACHER],
    )
    model = AutoModelForMaskedLM.from_pretrained(model_folder, dtype=torch.float32, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    trainer = train.make_trainer(recipe, training, model, None, tokenizer)
    before = train.evaluate(trainer)["perplexity"]
    trainer.train()
    trainer.save_model()
    return {"before": before, "after": train.evaluate(trainer)["perplexity"]}


def run(
    model_folder: Path, corpus: Path, output: Path, teacher_steps: int, student_steps: int, seeds: Sequence[int]
) -> dict[str, object]:
    """Trains, prints the table, and writes the figures to `output`."""
    folder = output.parent / output.stem
    teacher = trained_teacher(model_folder, corpus, folder / "teacher", teacher_steps)
    print(f"\nHeld-out perplexity of the teacher: {teacher['before']:,.0f}, after training {teacher['after']:.2f}\n")
    students = {name: [] for name in STUDENTS}
    for seed in seeds:
        for name, words in STUDENTS.items():
            student = folder / f"student {name}, seed {seed}"
            options = recipe_options(folder / "teacher", corpus, student, student_steps, seed)
            train.main([*options, *words, "--overwrite"])
            students[name].append(json.loads((student / "eval_results.json").read_text())["perplexity"])
    differences = [first - second for first, second in zip(*students.values(), strict=True)]

    header = ["", "steps", f"held-out perplexity, {len(seeds)} seeds"]
    rows = [["teacher", str(teacher_steps), f"{teacher['after']:.2f}"]]
    rows += [[f"student {name}", str(student_steps), spread(own, ".2f")] for name, own in students.items()]
    rows += [["difference, seed by seed", "", spread(differences, ".2f")]]
    print("\n" + table(header, rows) + "\n")
    measured = {
        "machine": print_machine("device", "threads", "training"),
        "versions": print_versions(PACKAGES),
        "seeds": list(seeds),
        "steps": {"teacher": teacher_steps, "student": student_steps},
        "teacher perplexity": teacher,
        "student perplexity": students,
        "difference": differences,
    }
    write_json(output, measured)
    return measured


@explains_fetch_errors
def main() -> int:
    parser = make_parser("distil_from_scratch", __doc__)
    add_fetched(parser)
    parser.add_argument("--teacher-steps", type=int, default=500)
    parser.add_argument("--student-steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    silence()
    model_folder, sentences = fetch(options.fetched)
    tweets = read_tweets(download(TWEETS, options.fetched / "downloads"))
    corpus = options.output.parent / options.output.stem / "corpus.txt"
    write_corpus(corpus, sentences, tweets)
    run(model_folder, corpus, options.output, options.teacher_steps, options.student_steps, options.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
