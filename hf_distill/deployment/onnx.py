"""Exports a transformers model as an ONNX graph."""

import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_distill.deployment.backends import Arrays
from hf_distill.deployment.first_token import compute_first_token_alone
from hf_distill.deployment.manifest import OPSET
from hf_distill.deployment.quiet import quiet
from hf_distill.embedding import EmbeddingModel
from hf_distill.optional import optional

LARGEST_FILE = 1_800_000_000
"""Bytes of weights above which they get their own file, because a protocol buffer is limited to 2 GiB."""


class Exportable(nn.Module):
    """Wraps a model so that its inputs and the chosen outputs are positional."""

    def __init__(self, model: PreTrainedModel, inputs: list[str], outputs: list[str]):
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs
        self.options = {"use_cache": False} if hasattr(model.config, "use_cache") else {}

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = self.model(**dict(zip(self.inputs, tensors, strict=True)), **self.options)
        return tuple(given[name] for name in self.outputs)


class _Alone(nn.Module):
    """One of the modules after the transformer of an embedding model."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.module(dict(features))["sentence_embedding"]


def write_graph(
    model: PreTrainedModel, inputs: list[str], outputs: list[str], file: Path, example: Arrays | None = None
) -> None:
    """Writes a model as an ONNX graph for any number of texts and tokens, or any number of images of one size.

    Args:
        model: model in evaluation mode, in fp32 and on the CPU. It does not change.
        inputs: names of its inputs, each `[texts, tokens]` in int64 if there is no example.
        outputs: names of the outputs to export.
        file: output file. Weights that do not fit into it are saved as `<file>.data`.
        example: inputs of a model that does not read tokens, with any number of rows. The rows of the graph's inputs
            have the same size.

    Raises:
        ImportError: if onnx or onnxscript is missing.
        ValueError: if PyTorch cannot export the model.
    """
    onnx_ir = optional("onnx_ir", "onnx")
    optional("onnxscript", "onnx")
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")  # faster in ONNX Runtime's int8 than the many operators of SDPA
    if example is None:
        tensors = [torch.full((2, 8), int(name != "token_type_ids"), dtype=torch.int64) for name in inputs]
    else:
        tensors = [torch.from_numpy(np.repeat(example[name][:1], 2, axis=0)) for name in inputs]
    any_size = dict.fromkeys(range(2 if example is None else 1), torch.export.Dim.DYNAMIC)
    with quiet():
        try:
            program = torch.onnx.export(
                Exportable(model, inputs, outputs).eval(),
                tuple(tensors),
                dynamic_shapes={"tensors": (any_size,) * len(inputs)},
                input_names=inputs,
                output_names=outputs,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(
                f"PyTorch {torch.__version__} cannot export {_culprit(model, inputs, tensors)}: "
                f"{error.__cause__ or error}"
            ) from error
    assert program is not None  # always true with dynamo=True
    graph = program.model
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()  # stack traces contain local paths
    compute_first_token_alone(graph)
    bytes_of_weights = sum(value.const_value.nbytes for value in graph.graph.initializers.values())
    external = f"{file.name}.data" if bytes_of_weights > LARGEST_FILE else None
    onnx_ir.save(graph, file, external_data=external)


def _culprit(model: PreTrainedModel, inputs: list[str], tensors: list[torch.Tensor]) -> str:
    """What cannot be exported: a model, or one of the modules after the transformer of an embedding model."""
    if not isinstance(model, EmbeddingModel):
        return type(model).__name__
    first, *head = model.modules_in_order
    with torch.no_grad():
        features = first(dict(zip(inputs, tensors, strict=True)))
        for number, module in enumerate(head, 1):
            given = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
            try:
                torch.onnx.export(
                    _Alone(module), kwargs={"features": given}, opset_version=OPSET, dynamo=True, verbose=False
                )
            except torch.onnx.errors.OnnxExporterError:
                kind = type(module).__name__
                return (
                    f"the module {kind} ({number}) after the transformer {type(model.transformer).__name__} (remove or "
                    f"replace it; poolings, Normalize, LayerNorm and Dense with an activation of torch.nn work)"
                )
            features = module(features)
    return f"the transformer {type(model.transformer).__name__}"
