"""A transformers model as an ONNX graph."""

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_distill.deployment.first_token import compute_first_token_alone
from hf_distill.deployment.manifest import OPSET
from hf_distill.deployment.quiet import quiet
from hf_distill.optional import optional

LARGEST_FILE = 1_800_000_000
"""In bytes of weights. Protocol buffers end at 2 GiB: weights beyond that are in a file beside the graph."""


class Exportable(nn.Module):
    """A model that takes its inputs by order and gives the outputs that are wanted, by order."""

    def __init__(self, model: PreTrainedModel, inputs: list[str], outputs: list[str]):
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs
        self.options = {"use_cache": False} if hasattr(model.config, "use_cache") else {}

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = self.model(**dict(zip(self.inputs, tensors, strict=True)), **self.options)
        return tuple(given[name] for name in self.outputs)


def write_graph(model: PreTrainedModel, inputs: list[str], outputs: list[str], file: Path) -> None:
    """Writes a model for any number of texts and tokens.

    Args:
        model: in evaluation mode, in fp32 and on the CPU; stays as it is.
        inputs: the names of its inputs, each `[texts, tokens]` in int64.
        outputs: the names of its outputs.
        file: the graph; its weights, where there are too many for one file, are in `<file>.data`.

    Raises:
        ImportError: without onnx and onnxscript.
        ValueError: if PyTorch cannot export the model.
    """
    onnx_ir = optional("onnx_ir", "onnx")
    optional("onnxscript", "onnx")
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")  # of which ONNX Runtime's int8 is faster than of SDPA's many operators
    example = [torch.full((2, 8), int(name != "token_type_ids"), dtype=torch.int64) for name in inputs]
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with quiet():
        try:
            program = torch.onnx.export(
                Exportable(model, inputs, outputs).eval(),
                tuple(example),
                dynamic_shapes={"tensors": (any_size,) * len(inputs)},
                input_names=inputs,
                output_names=outputs,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(
                f"PyTorch {torch.__version__} cannot export {type(model).__name__}: {error.__cause__ or error}"
            ) from error
    assert program is not None  # as with dynamo=True it always is
    graph = program.model
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    compute_first_token_alone(graph)
    bytes_of_weights = sum(value.const_value.nbytes for value in graph.graph.initializers.values())
    external = f"{file.name}.data" if bytes_of_weights > LARGEST_FILE else None
    onnx_ir.save(graph, file, external_data=external)
