"""The formats of a model: how each is written, loaded and run. Add a format as a row in `FORMATS`.

This file imports nothing slow, so that the command line can list the formats quickly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hf_distill.deployment.manifest import GRAPH, OPSET, Manifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_distill.deployment.backends import Arrays, Backend

PYTORCH = "pytorch"
"""A model folder written by `save_pretrained`. It has no manifest; transformers writes and loads it."""


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        write: `(model, inputs, outputs, folder, batches)` writes the model's files: the model in fp32, the names of its
            inputs and outputs, an empty folder, and sample inputs. None for `"pytorch"`.
        load: `(folder, manifest, threads)` returns the backend of an export. None for `"pytorch"`.
        batch_size: largest number of texts that are run together.
        is_exact: True if the logits must match the student's; else only its decisions must.
        opset: ONNX opset; None if the format is not ONNX.
        packages: optional modules that `load` needs.
        extra: extra of hf_distill that installs those modules.
        generates: True if a model that generates text can be exported to it.
    """

    write: "Callable[[PreTrainedModel, list[str], list[str], Path, Sequence[Arrays]], None] | None" = None
    load: "Callable[[Path, Manifest, int | None], Backend] | None" = None
    batch_size: int = 32
    is_exact: bool = True
    opset: int | None = None
    packages: Sequence[str] = ()
    extra: str | None = None
    generates: bool = False


def export_formats() -> list[str]:
    """Names of the formats that a model can be exported to."""
    return sorted(name for name, format in FORMATS.items() if format.write is not None)


def _write_onnx(
    model: "PreTrainedModel", inputs: list[str], outputs: list[str], folder: Path, batches: "Sequence[Arrays]"
) -> None:
    from hf_distill.deployment.onnx import write_graph

    write_graph(model, inputs, outputs, folder / GRAPH, _example(batches))


def _write_onnx_int8(
    model: "PreTrainedModel", inputs: list[str], outputs: list[str], folder: Path, batches: "Sequence[Arrays]"
) -> None:
    from hf_distill.deployment.embeddings import EMBEDDING
    from hf_distill.deployment.heads import PREDICTION_HEADS
    from hf_distill.deployment.onnx import write_graph
    from hf_distill.deployment.quantization import quantize_graph

    with TemporaryDirectory(dir=folder) as temporary:
        write_graph(model, inputs, outputs, Path(temporary, GRAPH), _example(batches))
        gives_vectors = outputs == PREDICTION_HEADS[EMBEDDING].outputs
        quantize_graph(Path(temporary, GRAPH), folder / GRAPH, batches, for_vectors=gives_vectors)


def _example(batches: "Sequence[Arrays]") -> "Arrays | None":
    """Inputs of a model that does not read tokens; None for one that does."""
    return None if "input_ids" in batches[0] else batches[0]


def _write_torch_int8(
    model: "PreTrainedModel", inputs: list[str], outputs: list[str], folder: Path, batches: "Sequence[Arrays]"
) -> None:
    from hf_distill.deployment.quantization import save_quantized

    save_quantized(model, folder)


def _load_onnx(folder: Path, manifest: Manifest, threads: int | None) -> "Backend":
    from hf_distill.deployment.backends import OnnxBackend

    return OnnxBackend(folder, manifest, threads)


def _load_torch(folder: Path, manifest: Manifest, threads: int | None) -> "Backend":
    from hf_distill.deployment.backends import set_torch_threads, torch_backend
    from hf_distill.deployment.heads import PREDICTION_HEADS
    from hf_distill.deployment.transformers_model import load_model

    set_torch_threads(threads)
    head = PREDICTION_HEADS[manifest.head]
    return torch_backend(load_model(folder, head.auto_class), manifest.outputs, head.generates)


FORMATS = {
    "onnx-int8": Format(
        write=_write_onnx_int8,
        load=_load_onnx,
        # ONNX Runtime quantizes the activations of a whole batch with one scale, so the result for a text would depend
        # on the other texts. On a CPU, one text at a time takes no longer (docs/deployment.md).
        batch_size=1,
        is_exact=False,
        opset=OPSET,
        packages=["onnxruntime"],
        extra="onnx",
    ),
    "onnx": Format(write=_write_onnx, load=_load_onnx, opset=OPSET, packages=["onnxruntime"], extra="onnx"),
    PYTORCH: Format(generates=True),
    "torch-int8": Format(
        write=_write_torch_int8, load=_load_torch, is_exact=False, packages=["torchao"], extra="quant", generates=True
    ),
}
"""Formats by name, in order of preference: if a folder has several, `load_predictor` loads the first."""
