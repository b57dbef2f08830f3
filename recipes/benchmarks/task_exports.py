"""`python -m recipes.benchmarks.task_exports`: size and latency of teacher, student and exports for every task.

For each task whose students can be exported to ONNX, a teacher, a student with half its layers, and the student as ONNX
and as int8 ONNX. Models of text have the pretrained MiniLM as their body; those of images and recordings, and the
causal one, have the sizes of a known model. Heads and those bodies have random weights, which changes neither size nor
speed. Pairs of texts and rankings have the graph of text classification.

Figures are written after each task. A second run continues from there.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GPT2Config,
    ViTConfig,
    ViTImageProcessorPil,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    set_seed,
)

from hf_distill import Benchmark, benchmark_models, export_model, make_student, quiet_libraries
from recipes.benchmarks._common import (
    PACKAGES,
    add_fetched,
    explains_fetch_errors,
    make_parser,
    print_machine,
    print_versions,
    table,
    write_json,
)
from recipes.quickstart.fetch import fetch

LENGTH = 128
"""Tokens of a text, or of a pair."""

Made = tuple[Any, Any]
"""A model, and what reads its inputs."""


def of_text(auto_class: Any, **options: Any) -> Callable[[Path], Made]:
    """Makes a model of texts with the pretrained body."""
    return lambda body: (auto_class.from_pretrained(body, **options), AutoTokenizer.from_pretrained(body))


def make_causal(body: Path) -> Made:
    """A GPT-2 of the size of the pretrained body, with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(body)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 384, "n_layer": 6, "n_head": 12, "n_positions": 512}
    special = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    return AutoModelForCausalLM.from_config(GPT2Config(**sizes, **special)), tokenizer


def make_vision(body: Path) -> Made:
    """A vision transformer of the size of ViT-Ti/16."""
    config = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=101)
    return AutoModelForImageClassification.from_config(config), ViTImageProcessorPil()


def make_audio(body: Path) -> Made:
    """A wav2vec 2.0 of the base size, for recordings of one second."""
    config = Wav2Vec2Config(num_labels=35, task_options={"task": "audio-classification", "max_seconds": 1.0})
    return AutoModelForAudioClassification.from_config(config), Wav2Vec2FeatureExtractor()


MODELS: dict[str, Callable[[Path], Made]] = {
    "text-classification": of_text(AutoModelForSequenceClassification),
    "token-classification": of_text(AutoModelForTokenClassification, num_labels=9),
    "question-answering": of_text(AutoModelForQuestionAnswering),
    "fill-mask": of_text(AutoModelForMaskedLM),
    "causal-lm": make_causal,
    "image-classification": make_vision,
    "audio-classification": make_audio,
}
FILES = ("image-classification", "audio-classification")
"""Tasks whose inputs have one size."""


def measure(task: str, body: Path, folder: Path, rounds: int) -> Benchmark:
    """Teacher, student and exports side by side."""
    set_seed(0)
    teacher, processor = MODELS[task](body)
    models = {"teacher": folder / "teacher", "student": folder / "student"}
    for name, model in {"teacher": teacher, "student": make_student(teacher)}.items():
        model.save_pretrained(models[name])
        processor.save_pretrained(models[name])
    for format in ("onnx", "onnx-int8"):
        models[format] = folder / format
        # random heads decide at random, so the share of equal decisions says nothing here
        export_model(models["student"], models[format], format, min_agreement=0.0)
    return benchmark_models(models, lengths=None if task in FILES else [LENGTH], rounds=rounds)


def rows_of(task: str, measured: dict[str, dict]) -> list[list[str]]:
    """The lines of a task in the table."""
    rows = []
    for name, own in measured.items():
        (latency,) = own["latency"].values()
        rows.append(
            [
                task if name == "teacher" else "",
                name,
                f"{own['parameters'] / 1e6:.1f}",
                f"{own['bytes_on_disk'] / 1e6:.1f}",
                f"{latency['p50']:.2f}",
                f"{latency['times_as_fast']['median']:.2f}",
                f"{own['throughput']['texts_per_second']:.0f}",
            ]
        )
    return rows


@explains_fetch_errors
def main() -> int:
    parser = make_parser("task_exports", __doc__)
    add_fetched(parser)
    parser.add_argument("--rounds", type=int, default=10, help="measured rounds")
    parser.add_argument("--tasks", nargs="+", choices=MODELS, default=[*MODELS], help="tasks to measure")
    options = parser.parse_args()
    quiet_libraries()
    body, _ = fetch(options.fetched)
    measured: dict[str, dict] = json.loads(options.output.read_text())["tasks"] if options.output.exists() else {}
    on, versions = print_machine("device", "threads"), print_versions([*PACKAGES, "onnxruntime"])
    for task in options.tasks:
        if task in measured:
            continue
        with tempfile.TemporaryDirectory() as folder:
            measured[task] = measure(task, body, Path(folder), options.rounds).models
        write_json(options.output, {"machine": on, "versions": versions, "tasks": measured})
    header = ["task", "", "million parameters", "MB", "ms", "times as fast", "per second"]
    print(table(header, [row for task in options.tasks for row in rows_of(task, measured[task])]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
