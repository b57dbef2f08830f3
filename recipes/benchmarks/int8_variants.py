"""`python -m recipes.benchmarks.int8_variants STUDENT`: quality and speed of different int8 quantizations.

A student of `make quickstart` is exported in fp32 and quantized in four ways: by ONNX Runtime alone, dynamically and
statically (calibrated on 128 training sentences), and by `export_model` to `onnx-int8` and to `torch-int8`. All models
classify the 2,000 test sentences one by one, in turns.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import quantization

from hf_distill import Predictor, export_model, load_predictor
from recipes.benchmarks._common import (
    PACKAGES,
    add_fetched,
    make_parser,
    median_ratio,
    print_versions,
    silence,
    table,
    write_json,
)
from recipes.quickstart.data import Corpus, load_corpus
from recipes.quickstart.fetch import fetch

TYPES = {"op_types_to_quantize": ["MatMul", "Gemm"], "per_channel": True}
CALIBRATION_TEXTS = 128
BURST = 50
"""Sentences per turn of a model."""


class Calibration(quantization.CalibrationDataReader):
    def __init__(self, predictor: Predictor, texts: list[str]):
        encodings = predictor.encoder.encode(texts)
        self.batches = iter([predictor.encoder.pad([encoding]) for encoding in encodings])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def quantised_by_onnxruntime(export: Path, folder: Path, calibration_texts: list[str] | None) -> None:
    """Copies an fp32 export to `folder` and quantizes its graph: statically if texts for calibration are given."""
    shutil.copytree(export, folder)
    graph = onnx.load(export / "model.onnx")
    del graph.graph.value_info[:]
    if calibration_texts is None:
        quantization.quantize_dynamic(
            graph,
            folder / "model.onnx",
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            extra_options={"MatMulConstBOnly": True},
        )
    else:
        with tempfile.TemporaryDirectory() as temporary:
            prepared = Path(temporary, "model.onnx")
            onnx.save(graph, prepared)
            calibration = Calibration(load_predictor(export), calibration_texts)
            weights = [own.name for own in graph.graph.initializer]
            nodes = [node.name for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
            quantization.quantize_static(
                prepared,
                folder / "model.onnx",
                calibration,
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_quantize=nodes,
                per_channel=True,
            )
    manifest = json.loads((folder / "export.json").read_text())
    manifest |= {"format": "onnx-int8", "files": {"model.onnx": (folder / "model.onnx").stat().st_size}}
    (folder / "export.json").write_text(json.dumps(manifest))


def run(student: Path, corpus: Corpus, threads: int, output: Path, num_texts: int | None = None) -> dict[str, dict]:
    """Prints a table, and writes size, accuracy, agreement, error and speed of each variant."""
    texts, labels = list(corpus.test["text"])[:num_texts], np.array(corpus.test["labels"])[:num_texts]
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: Path(folder, name) for name in ("fp32", "dynamic", "static", "onnx-int8", "torch-int8")}
        export_model(student, folders["fp32"], "onnx")
        quantised_by_onnxruntime(folders["fp32"], folders["dynamic"], None)
        quantised_by_onnxruntime(folders["fp32"], folders["static"], list(corpus.train["text"])[:CALIBRATION_TEXTS])
        for name in ("onnx-int8", "torch-int8"):
            export_model(student, folders[name], name, min_agreement=0)
        predictors = {name: load_predictor(own, threads=threads) for name, own in folders.items()}
        seconds = {name: [] for name in predictors}
        logits = {name: [] for name in predictors}
        for start in range(0, len(texts), BURST):
            for name, predictor in predictors.items():
                predictor.logits(texts[:2])  # not timed: threads of the other runtime may still be spinning
                begin = time.perf_counter()
                logits[name] += [predictor.logits([text])[0] for text in texts[start : start + BURST]]
                seconds[name].append(time.perf_counter() - begin)
        num_bytes = {name: _num_bytes(own) for name, own in folders.items()}
    reference = np.stack(logits["fp32"])
    measured = {}
    for name, own in logits.items():
        own = np.stack(own)
        measured[name] = {
            "bytes": num_bytes[name],
            "accuracy": float((own.argmax(-1) == labels).mean()),
            "agreement": float((own.argmax(-1) == reference.argmax(-1)).mean()),
            "root_mean_square_error": float(np.sqrt(((own - reference) ** 2).mean())),
            "milliseconds": 1000 * statistics.median(seconds[name]) / BURST,
            "times_as_fast": median_ratio(seconds["fp32"], seconds[name]),
        }
    heading = ["", "MB", "accuracy", "same decision as fp32", "error of a logit", "ms", "times as fast"]
    print(table(heading, [_row(*item) for item in measured.items()]))
    write_json(output, {"versions": print_versions([*PACKAGES, "onnxruntime", "torchao"]), "measured": measured})
    return measured


def _num_bytes(export: Path) -> int:
    return sum(json.loads((export / "export.json").read_text())["files"].values())


def _row(name: str, own: dict[str, float]) -> list[str]:
    return [
        name,
        f"{own['bytes'] / 1e6:.1f}",
        f"{own['accuracy']:.2%}",
        f"{own['agreement']:.2%}",
        f"{own['root_mean_square_error']:.3f}",
        f"{own['milliseconds']:.2f}",
        f"{own['times_as_fast']:.2f}",
    ]


def main() -> int:
    parser = make_parser("int8_variants", __doc__)
    parser.add_argument("student", type=Path, help="such as outputs/quickstart/student")
    add_fetched(parser)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    silence()
    _, sentences = fetch(options.fetched)
    run(options.student, load_corpus(sentences), options.threads, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
