"""Distils SmolLM2-135M into a student with half of its layers and one with half of its feed-forward width.

    python -m recipes.smollm

downloads the teacher and 23,239 sentences of reviews, newspapers and tweets, and cuts both students. Each is trained
three times from the same weights on the same batches: on the teacher and the labels, on the teacher, and on the labels.
It prints perplexity and agreement on held-out sentences, tokens per second, and how well the student that was trained
on the teacher works as its draft model.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_distill import (
    CausalLMArguments,
    DistillationTrainingArguments,
    draft_metrics,
    evaluate_model,
    make_student,
    quiet_libraries,
    train_model,
)
from recipes.quickstart.fetch import FetchError
from recipes.quickstart.train import bf16_is_fast
from recipes.smollm.data import fetch_teacher, write_texts

MAX_LENGTH = 128
NUM_CALIBRATION = 200
"""Sentences that choose what is cut."""
NUM_PROMPTS, PROMPT_WORDS = 10, 6

STUDENTS = {
    "15 layers": {"num_layers": 15, "layers": "influence"},
    "half of the feed-forward width": {"intermediate_size": 768, "width": "activation"},
}
"""The arguments of `make_student`."""

WAYS: dict[str, dict[str, Any]] = {
    "teacher and labels": {},  # the defaults of causal models
    "teacher": {"temperature": 1.0, "alpha_kl": 1.0, "alpha_task": 0.1, "alpha_cos": 0.0},
    "labels": {"teacher_model_name_or_path": None},
}
"""The training arguments of each way. A little of the labels' loss gives the perplexity during the training."""


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    quiet_libraries()
    try:
        teacher_folder = fetch_teacher(args.fetched)
        train_file, test_file = write_texts(args.fetched, args.output)
    except FetchError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    teacher, tokenizer = load(teacher_folder)
    lines = train_file.read_text(encoding="utf-8").splitlines()
    calibration = batches_of(lines[:NUM_CALIBRATION], tokenizer)
    held_out = test_file.read_text(encoding="utf-8").splitlines()
    long_texts = [text.split() for text in held_out if len(text.split()) > 2 * PROMPT_WORDS]
    prompts = [" ".join(words[:PROMPT_WORDS]) for words in long_texts[:NUM_PROMPTS]]
    results: dict[str, Any] = {"teacher": evaluate_model(teacher_folder, test_file)}
    for name in args.students:
        cut = args.output / name.replace(" ", "-") / "cut"
        if not (cut / "config.json").is_file():
            student = make_student(teacher, **STUDENTS[name], calibration_data=calibration)
            student.save_pretrained(cut)
            tokenizer.save_pretrained(cut)
        results[name] = {
            "parameters": load(cut)[0].num_parameters(),
            "untrained": evaluate_model(cut, test_file, teacher=teacher_folder),
        }
        for way, options in WAYS.items():
            folders = [cut.parent / f"{way.replace(' ', '-')}-{seed}" for seed in args.seeds]
            for seed, folder in zip(args.seeds, folders, strict=True):
                train(folder, cut, teacher_folder, train_file, args.steps, seed, options)
            results[name][way] = [evaluate_model(own, test_file, teacher=teacher_folder) for own in folders]
        student, _ = load(cut.parent / f"teacher-{args.seeds[0]}")
        results[name]["draft"] = draft_metrics(student, teacher, tokenizer, prompts)
        (args.output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{tables(results, args)}\n")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.smollm", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/smollm"), help="folder for students and results")
    parser.add_argument("--fetched", type=Path, default=Path("outputs/quickstart-fetched"), help="folder for downloads")
    parser.add_argument("--steps", type=int, default=100, help="training steps of 4 rows of 128 tokens (default: 100)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the trainings (default: 0)")
    parser.add_argument("--students", nargs="+", choices=list(STUDENTS), default=list(STUDENTS), help="default: all")
    return parser.parse_args(arguments)


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def batches_of(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, torch.Tensor]]:
    """Sentences in rows of `MAX_LENGTH` tokens, 8 in a batch, without padding."""
    ids = [id_ for text in texts for id_ in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    rows = torch.tensor(ids[: len(ids) // MAX_LENGTH * MAX_LENGTH]).reshape(-1, MAX_LENGTH)
    return [{"input_ids": own, "attention_mask": torch.ones_like(own)} for own in rows.split(8)]


def train(
    folder: Path, cut: Path, teacher: Path, train_file: Path, steps: int, seed: int, options: dict[str, Any]
) -> None:
    """Trains a student, unless its folder has it."""
    arguments: dict[str, Any] = {"teacher_model_name_or_path": str(teacher)} | options
    train_model(
        CausalLMArguments(model_name_or_path=str(cut), train_file=str(train_file), max_length=MAX_LENGTH),
        DistillationTrainingArguments(
            str(folder),
            **arguments,
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=5e-4,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.01,
            bf16=bf16_is_fast(),
            save_strategy="no",
            report_to="none",
            seed=seed,
        ),
    )


def tables(results: dict[str, Any], args: argparse.Namespace) -> str:
    lines = [
        f"| student | parameters | perplexity | agreement with the teacher, {args.steps} steps |",
        "| --- | ---: | ---: | ---: |",
        f"| the teacher | 134.5 M | {results['teacher']['perplexity']:.1f} | |",
    ]
    for name in args.students:
        own = results[name]
        untrained, size = own["untrained"], f"{own['parameters'] / 1e6:.1f} M"
        lines.append(f"| {name}, untrained | {size} | {untrained['perplexity']:,.0f} | {untrained['agreement']:.1%} |")
        for way in WAYS:
            perplexity, agreement = ([one[metric] for one in own[way]] for metric in ("perplexity", "agreement"))
            lines.append(f"| {name}, {way} | {size} | {spread(perplexity, '.1f')} | {spread(agreement, '.1%')} |")
    lines += [
        "",
        "| draft model | tokens accepted, greedy | sampled | tokens per second | of the teacher | with it | speed-up |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in args.students:
        own = results[name]["draft"]
        speeds = [own[f"{which}tokens_per_second"] for which in ("draft_", "", "assisted_")]
        lines.append(
            f"| {name} | {own['greedy_acceptance_rate']:.1%} | {own['acceptance_rate']:.1%} | "
            f"{' | '.join(f'{speed:.1f}' for speed in speeds)} | {own['speedup']:.2f} |"
        )
    return "\n".join(lines)


def spread(values: Sequence[float], how: str) -> str:
    """Mean and standard deviation over the seeds."""
    mean = format(statistics.fmean(values), how)
    return mean if len(values) == 1 else f"{mean} ± {format(statistics.stdev(values), how)}"


if __name__ == "__main__":
    sys.exit(main())
