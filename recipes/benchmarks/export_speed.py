"""`python -m recipes.benchmarks.export_speed`: speed of exports compared with their student and its teacher.

Measures a classifier of RoBERTa-base's size, its student with 6 layers, and the student's exports, on the CPU, one text
of 128 tokens at a time. Weights are random, with outliers as in pretrained models, because smoothing outliers in int8
takes time; nothing else about the weights affects the speed. The tokenizer is that of the quickstart's MiniLM, and the
texts are the quickstart's sentences. The models take turns, so a machine that slows down affects all of them.

`--real outputs/quickstart` also measures the accuracy lost in int8: it compares exports of the quickstart's student
with the student, on the 2,000 sentences that it was not trained on.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedConfig, RobertaConfig

from hf_distill import (
    Benchmark,
    benchmark_models,
    classification_metrics,
    export_model,
    load_predictor,
    make_student,
)
from recipes.benchmarks._common import (
    PACKAGES,
    add_fetched,
    all_exist,
    make_parser,
    print_versions,
    silence,
    table,
    write_json,
)
from recipes.quickstart.data import Corpus, load_corpus

LENGTH = 128
FORMATS = ["onnx", "onnx-int8", "torch-int8"]
NUM_TEXTS = 32
OUTLIER = 30.0
"""Size of the outlier in one channel: Kovaleva et al., 2021, BERT Busters, https://arxiv.org/abs/2105.06990."""
ROBERTA = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, pad_token_id=0)

COLUMNS = ["", "ms", "times as fast", "MB", "of the student", "cold start, s", "of the student", "memory, MB"]
COLUMNS += ["of the student"]

Figures = dict[str, float]


def save_models(folder: Path, config: PreTrainedConfig, tokenizer_folder: Path, formats: Sequence[str]) -> None:
    """Saves a teacher with random weights, its student and the student's exports, each in a folder of its name."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, model_input_names=["input_ids", "attention_mask"])
    torch.manual_seed(0)
    teacher = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if name.endswith(("LayerNorm.weight", "intermediate.dense.bias")):
                parameter[0] = OUTLIER
    for name, model in {"teacher": teacher, "student": make_student(teacher)}.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for format in formats:  # agreement means nothing with random weights
        export_model(folder / "student", folder / format, format, min_agreement=0.0)


def shares_of_student(measured: Benchmark) -> dict[str, Figures]:
    """Size, cold start and memory of each model, relative to the student."""
    student = measured.models["student"]
    return {
        name: {figure: own[figure] / student[figure] for figure in ("bytes_on_disk", "cold_start", "peak_memory")}
        for name, own in measured.models.items()
    }


def measure_speed(
    config: PreTrainedConfig,
    tokenizer_folder: Path,
    texts: Sequence[str],
    formats: Sequence[str],
    length: int,
    rounds: int,
    threads: int | None,
) -> tuple[Benchmark, dict[str, Figures]]:
    """Measures the models and their ratios to the student, and prints both."""
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder), config, tokenizer_folder, formats)
        models = {name: Path(folder, name) for name in ["teacher", "student", *formats]}
        measured = benchmark_models(models, lengths=[length], texts=texts, rounds=rounds, threads=threads)
    shares = shares_of_student(measured)
    print(measured.table())
    print(f"\nOne text of {length} tokens; times as fast as the teacher\n")
    print(table(COLUMNS, [_cells(name, own, shares[name], length) for name, own in measured.models.items()]))
    return measured, shares


def measure_quality(student: Path, corpus: Corpus, formats: Sequence[str]) -> dict[str, Figures]:
    """Measures the accuracy of a real student and of its exports, and how often each export agrees with the student."""
    texts, labels = list(corpus.test["text"]), list(corpus.test["labels"])
    expected = load_predictor(student, "pytorch").logits(texts)
    measured = {"student": classification_metrics(expected, labels, expected)}
    sizes = {"student": sum(file.stat().st_size for file in student.glob("*.safetensors"))}
    with tempfile.TemporaryDirectory() as folder:
        for format in formats:
            sizes[format] = export_model(student, Path(folder, format), format, min_agreement=0.0).num_bytes
            logits = load_predictor(Path(folder, format)).logits(texts)
            measured[format] = classification_metrics(logits, labels, expected)
    rows = [
        [name, f"{own['accuracy']:.2%}", f"{own['agreement']:.2%}", f"{own['kl_to_teacher']:.5f}", f"{size / 1e6:.1f}"]
        for (name, own), size in zip(measured.items(), sizes.values(), strict=True)
    ]
    print(f"\nThe quickstart's student on {len(texts):,} sentences\n")
    print(table(["", "accuracy", "agreement with the student", "KL to the student", "MB"], rows))
    return {
        name: {
            "accuracy": own["accuracy"],
            "agreement_with_student": own["agreement"],
            "kl_to_student": own["kl_to_teacher"],
            "bytes_on_disk": sizes[name],
        }
        for name, own in measured.items()
    }


def run(
    fetched: Path,
    output: Path,
    config: PreTrainedConfig = ROBERTA,
    formats: Sequence[str] = FORMATS,
    length: int = LENGTH,
    rounds: int = 20,
    threads: int | None = None,
    real: Path | None = None,
    corpus: Corpus | None = None,
) -> dict[str, object]:
    """Measures, prints the tables, and writes the figures to `output`.

    Args:
        fetched: the quickstart's downloads: `minilm` and `sentences`.
        output: JSON file to write.
        config: config of the teacher.
        formats: formats to export the student to.
        length: length of a text in tokens.
        rounds: measured rounds, as in `benchmark_models`.
        threads: threads per forward pass, as in `benchmark_models`.
        real: output folder of the quickstart, with `student`. Default: only speed is measured.
        corpus: the sentences. Default: read from `fetched`.
    """
    corpus = corpus or load_corpus(fetched / "sentences")
    texts = list(corpus.test["text"][:NUM_TEXTS])
    measured, shares = measure_speed(config, fetched / "minilm", texts, formats, length, rounds, threads)
    figures = {"speed": dataclasses.asdict(measured), "shares_of_student": shares}
    if real is not None:
        figures["quality"] = measure_quality(real / "student", corpus, formats)
    write_json(output, {**figures, "versions": print_versions([*PACKAGES, "onnxruntime"])})
    return figures


def _cells(name: str, own: Mapping[str, object], shares: Figures, length: int) -> list[str]:
    latency = own["latency"][str(length)]
    ratio = latency["times_as_fast"]
    return [
        name,
        f"{latency['p50']:.1f}",
        f"{ratio['median']:.2f} ({ratio['lowest']:.2f}-{ratio['highest']:.2f})",
        f"{own['bytes_on_disk'] / 1e6:.1f}",
        f"{shares['bytes_on_disk']:.3f}",
        f"{own['cold_start']:.2f}",
        f"{shares['cold_start']:.2f}",
        f"{own['peak_memory'] / 1e6:,.0f}",
        f"{shares['peak_memory']:.2f}",
    ]


def main() -> int:
    parser = make_parser("export_speed", __doc__)
    add_fetched(parser)
    parser.add_argument(
        "--real", metavar="FOLDER", type=Path, help="output folder of the quickstart, to measure accuracy"
    )
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, help="threads per model (default: all cores)")
    options = parser.parse_args()
    needed = [options.fetched / "minilm", options.fetched / "sentences"]
    needed += [options.real / "student"] if options.real else []
    if not all_exist(*needed):
        return 1
    silence()
    given = {name: getattr(options, name) for name in ("fetched", "output", "formats", "rounds", "threads", "real")}
    run(**given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
