"""What runs a model: arrays in, arrays out."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hf_distill.deployment.manifest import GRAPH, Manifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Arrays = Mapping[str, np.ndarray]


class Backend(Protocol):
    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """`[texts, tokens]` for each input; `[texts, ...]` in fp32 for each output."""


class OnnxBackend:
    """An exported model in ONNX Runtime, on the CPU.

    Args:
        folder: an export.
        manifest: of that folder.
        threads: by default as many as there are cores for this process.

    Raises:
        ValueError: if ONNX Runtime does not take the model.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None = None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or available_cores()
        options.log_severity_level = 3
        options.add_session_config_entry("session.x64quantprecision", "1")  # without VNNI, sums of int8 would overflow
        file = folder / GRAPH
        try:
            self.session = onnxruntime.InferenceSession(
                str(file),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["SkipLayerNormFusion"],  # as of 1.31 the fused kernel is the slower one
            )
        except Exception as error:  # onnxruntime has a class for each of its codes, and no common one
            raise ValueError(
                f"onnxruntime {onnxruntime.__version__} does not read {file}, which was written for onnxruntime "
                f"{manifest.versions.get('onnxruntime', '(unknown)')} with opset {manifest.opset}: install that or a "
                f"later one, or copy the file again if it was damaged. onnxruntime said: {error}"
            ) from error
        self.outputs = manifest.outputs

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self.session.run(self.outputs, dict(inputs)), strict=True))


class TorchBackend:
    """A transformers model. It stays as it is: its device, its dtype, its attention.

    Args:
        model: in evaluation mode.
        outputs: the names of its outputs that are wanted.
    """

    def __init__(self, model: "PreTrainedModel", outputs: list[str]):
        self.model, self.outputs = model, outputs
        self.options = {"use_cache": False} if hasattr(model.config, "use_cache") else {}

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        import torch

        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array).to(self.model.device) for name, array in inputs.items()}
            outputs = self.model(**tensors, **self.options)
        return {name: outputs[name].float().cpu().numpy() for name in self.outputs}


def set_torch_threads(threads: int | None) -> None:
    """For the whole process; None leaves it as it is."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def available_cores() -> int:
    """For this process, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
