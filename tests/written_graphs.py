"""Caches exported graphs during a run of the tests: PyTorch's exporter takes seconds, a copy takes no time."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from hf_distill.deployment import onnx


def written_once(write_graph: Callable, folder: Path) -> Callable:
    """A `write_graph` that keeps graphs in `folder`, and reuses them for the same model, inputs and outputs."""
    exporter = (onnx.LARGEST_FILE, onnx.compute_first_token_alone)

    def write(model: PreTrainedModel, inputs: list[str], outputs: list[str], file: Path, example=None) -> None:
        known = folder / _key(model, inputs, outputs, example)
        if exporter != (onnx.LARGEST_FILE, onnx.compute_first_token_alone):  # a test has changed it
            write_graph(model, inputs, outputs, file, example)
        elif known.exists():
            shutil.copyfile(known, file)
        else:
            write_graph(model, inputs, outputs, file, example)
            unfinished = known.with_suffix(f".{os.getpid()}")
            shutil.copyfile(file, unfinished)
            unfinished.rename(known)  # as other processes look for it too

    return write


def _key(model: PreTrainedModel, inputs: list[str], outputs: list[str], example) -> str:
    shapes = None if example is None else {name: array.shape[1:] for name, array in example.items()}
    key = hashlib.sha256(f"{model} {inputs} {outputs} {shapes} {model.config.to_json_string(use_diff=False)}".encode())
    for name, tensor in model.state_dict().items():
        key.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        key.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return key.hexdigest()
