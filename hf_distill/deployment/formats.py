"""The formats of a model: how each is written, loaded and run. A row in `FORMATS` adds one.

This file imports nothing that takes long, so that the command line can list the formats.
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
"""A model folder that `save_pretrained` wrote. It has no manifest, so transformers writes and loads it."""


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        write: writes the model's files, from `(model, inputs, outputs, folder, batches)`: the model in fp32, the names
            of its inputs and outputs, an empty folder, and inputs to try the model on. None for `"pytorch"`.
        load: makes the backend of an export, from `(folder, manifest, threads)`. None for `"pytorch"`.
        batch_size: how many texts are run together, at most.
        is_exact: whether the logits have to be those of the student; else only its decisions.
        opset: of ONNX; None if it is not ONNX.
        packages: optional modules that `load` needs.
        extra: the extra of hf_distill that installs them.
    """

    write: "Callable[[PreTrainedModel, list[str], list[str], Path, Sequence[Arrays]], None] | None" = None
    load: "Callable[[Path, Manifest, int | None], Backend] | None" = None
    batch_size: int = 32
    is_exact: bool = True
    opset: int | None = None
    packages: Sequence[str] = ()
    extra: str | None = None


def export_formats() -> list[str]:
    """The names of the formats that a model can be exported to."""
    return sorted(name for name, format in FORMATS.items() if format.write is not None)


def _write_onnx(
    model: "PreTrainedModel", inputs: list[str], outputs: list[str], folder: Path, batches: "Sequence[Arrays]"
) -> None:
    from hf_distill.deployment.onnx import write_graph

    write_graph(model, inputs, outputs, folder / GRAPH)


def _write_onnx_int8(
    model: "PreTrainedModel", inputs: list[str], outputs: list[str], folder: Path, batches: "Sequence[Arrays]"
) -> None:
    from hf_distill.deployment.onnx import write_graph
    from hf_distill.deployment.quantization import quantize_graph

    with TemporaryDirectory(dir=folder) as temporary:
        write_graph(model, inputs, outputs, Path(temporary, GRAPH))
        quantize_graph(Path(temporary, GRAPH), folder / GRAPH, batches)


def _write_torch_int8(
    model: "PreTrainedModel", inputs: list[str], outputs: list[str], folder: Path, batches: "Sequence[Arrays]"
) -> None:
    from hf_distill.deployment.quantization import save_quantized

    save_quantized(model, folder)


def _load_onnx(folder: Path, manifest: Manifest, threads: int | None) -> "Backend":
    from hf_distill.deployment.backends import OnnxBackend

    return OnnxBackend(folder, manifest, threads)


def _load_torch(folder: Path, manifest: Manifest, threads: int | None) -> "Backend":
    from hf_distill.deployment.backends import TorchBackend, set_torch_threads
    from hf_distill.deployment.heads import PREDICTION_HEADS
    from hf_distill.deployment.transformers_model import load_model

    set_torch_threads(threads)
    return TorchBackend(load_model(folder, PREDICTION_HEADS[manifest.head].auto_class), manifest.outputs)


FORMATS = {
    "onnx-int8": Format(
        write=_write_onnx_int8,
        load=_load_onnx,
        # ONNX Runtime quantises the activations of a batch with one scale, so the result for a text would depend on
        # the others. On a CPU, one text at a time takes no longer (docs/deployment.md).
        batch_size=1,
        is_exact=False,
        opset=OPSET,
        packages=["onnxruntime"],
        extra="onnx",
    ),
    "onnx": Format(write=_write_onnx, load=_load_onnx, opset=OPSET, packages=["onnxruntime"], extra="onnx"),
    PYTORCH: Format(),
    "torch-int8": Format(
        write=_write_torch_int8, load=_load_torch, is_exact=False, packages=["torchao"], extra="quant"
    ),
}
"""By name, in order of preference: of several formats in one folder, `load_predictor` takes the first."""
