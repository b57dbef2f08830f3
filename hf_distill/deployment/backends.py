"""Backends that run a model: arrays in, arrays out."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hf_distill.deployment.manifest import GRAPH, Manifest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Arrays = Mapping[str, np.ndarray]


class Backend(Protocol):
    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs a batch: inputs `[texts, tokens]`, outputs `[texts, ...]` in fp32."""


class OnnxBackend:
    """An exported model in ONNX Runtime, on the CPU.

    Args:
        folder: folder of an export.
        manifest: manifest of that export.
        threads: threads per forward pass. Default: all cores available to this process.

    Raises:
        ValueError: if ONNX Runtime cannot load the model.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None = None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or available_cores()
        options.log_severity_level = 3
        options.add_session_config_entry("session.x64quantprecision", "1")  # int8 sums overflow on CPUs without VNNI
        file = folder / GRAPH
        try:
            self.session = onnxruntime.InferenceSession(
                str(file),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["SkipLayerNormFusion"],  # the fused kernel is slower as of 1.31
            )
        except Exception as error:  # the exceptions of onnxruntime have no common base class
            raise ValueError(
                f"onnxruntime {onnxruntime.__version__} cannot read {file}, which was written for onnxruntime "
                f"{manifest.versions.get('onnxruntime', '(unknown)')} with opset {manifest.opset}: install that "
                f"version or a later one, or copy the file again if it is damaged. Error of onnxruntime: {error}"
            ) from error
        self.outputs = manifest.outputs

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self.session.run(self.outputs, dict(inputs)), strict=True))


class TorchBackend:
    """A transformers model, run on its own device, with its own dtype and attention implementation.

    Args:
        model: model in evaluation mode.
        outputs: names of the outputs to return.
    """

    def __init__(self, model: "PreTrainedModel", outputs: list[str]):
        self.model, self.outputs = model, outputs
        self.options = {"use_cache": False} if hasattr(model.config, "use_cache") else {}

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        import torch

        with torch.inference_mode():
            outputs = self.model(**self._tensors(inputs), **self.options)
        return {name: outputs[name].float().cpu().numpy() for name in self.outputs}

    def _tensors(self, inputs: Arrays) -> "dict[str, torch.Tensor]":
        import torch

        return {name: torch.from_numpy(array).to(self.model.device) for name, array in inputs.items()}


class GeneratingBackend(TorchBackend):
    """An encoder-decoder that generates a text for each input, as its generation config says."""

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs a batch: inputs `[texts, tokens]`, and as `sequences` the generated tokens `[texts, tokens]`."""
        import torch

        with torch.inference_mode():
            generated = self.model.generate(**self._tensors(inputs))
        return {"sequences": generated.cpu().numpy()}

    def next_logits(self, inputs: Arrays, sequences: np.ndarray) -> np.ndarray:
        """The logits after each token of given sequences, `[texts, tokens - 1, vocabulary]`, in fp32."""
        import torch

        with torch.inference_mode():
            decoder_input_ids = torch.from_numpy(sequences[:, :-1]).to(self.model.device)
            outputs = self.model(**self._tensors(inputs), decoder_input_ids=decoder_input_ids, **self.options)
        return outputs.logits.float().cpu().numpy()


def torch_backend(model: "PreTrainedModel", outputs: list[str], generates: bool) -> TorchBackend:
    """The backend of a transformers model, depending on whether its head generates text."""
    return GeneratingBackend(model, outputs) if generates else TorchBackend(model, outputs)


def set_torch_threads(threads: int | None) -> None:
    """Sets the number of PyTorch threads of the whole process. None changes nothing."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def available_cores() -> int:
    """Number of cores available to this process, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
