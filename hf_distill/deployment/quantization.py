"""Quantizes weights to int8: a quarter of the size, and several times faster on a CPU with int8 instructions."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel, TorchAoConfig

from hf_distill.deployment.backends import Arrays
from hf_distill.deployment.quiet import quiet
from hf_distill.optional import optional

if TYPE_CHECKING:
    import onnx_ir as ir

SMOOTHING = 0.8
"""How much of an outlier moves from activations to weights: alpha in Xiao et al., 2022."""

OUTLIER = 8.0
"""An activation is smoothed if its largest channel is at least this many times the median: int8 is then too coarse."""

OUTLIER_OF_VECTORS = 2.0
"""The same for embedding models."""

BLOCK = 32
"""Number of neighbouring values in an embedding that share a scale."""


def quantize_graph(source: Path, target: Path, batches: Sequence[Arrays], for_vectors: bool = False) -> None:
    """Quantizes the matrices and embeddings of an fp32 ONNX graph to int8.

    ONNX Runtime quantizes matrices once, per output channel, and activations dynamically. Before that, this function
    smooths activations that have outliers, and quantizes embeddings in blocks, because ONNX Runtime would use one scale
    for the whole table. Products of two activations, as in attention, stay in fp32.

    Args:
        source: file of the fp32 graph.
        target: output file of the quantized graph.
        batches: sample inputs of the model, used to find outliers.
        for_vectors: be more precise, for vectors, which change more than decisions do. Smaller outliers are smoothed
            too. Matrices stay in fp32 if they make their input narrower, such as the second one of each feed-forward
            block, or act on one vector per text. The file is larger.
    """
    onnx_ir, onnx = optional("onnx_ir", "onnx"), optional("onnx", "onnx")
    quantization = optional("onnxruntime.quantization", "onnx")
    model = onnx_ir.load(source)
    fold_transposes(model.graph)
    ranges = _ranges(source, _products(model.graph), batches)
    smooth(model.graph, ranges, OUTLIER_OF_VECTORS if for_vectors else OUTLIER)
    quantize_embeddings(model.graph)
    spared = [node.name for node in model.graph if for_vectors and _narrows(node)]
    is_large = source.with_name(f"{source.name}.data").exists()
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        prepared = Path(temporary, target.name)
        onnx_ir.save(model, prepared, external_data=f"{target.name}.data" if is_large else None)
        proto = onnx.load(prepared, load_external_data=False)
        del proto.graph.value_info[:]  # with shapes from PyTorch's exporter, the quantizer's shape inference fails
        onnx.save(proto, prepared)
        with quiet():
            quantization.quantize_dynamic(
                prepared,
                target,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                use_external_data_format=is_large,
                nodes_to_exclude=spared,
                extra_options={"MatMulConstBOnly": True},
            )


def smooth(graph: "ir.Graph", ranges: Mapping[str, np.ndarray], outlier: float = OUTLIER) -> None:
    """Moves outliers from activations to the weights that they are multiplied with (SmoothQuant).

    `x @ W` becomes `(x / s) @ (s * W)`, with `s = range of x ** 0.8 / range of W ** 0.2` per channel. The product is
    the same in fp32, and `x` has a smaller range in int8. Only activations with outliers are changed.

    Reference: Xiao et al., 2022, SmoothQuant, https://arxiv.org/abs/2211.10438, equation 4.

    Args:
        graph: ONNX graph. It is changed in place.
        ranges: by activation name, `[channels]`, the largest absolute value of each channel.
        outlier: how many times the median the largest channel of an activation is at least, for it to be changed.
    """
    for value, products in _products(graph).items():
        channels = np.maximum(ranges[value.name], 1e-5)
        if channels.max() < outlier * np.median(channels):
            continue
        weights = [product.inputs[1].const_value.numpy() for product in products]
        rows = np.maximum(np.max([np.abs(weight).max(1) for weight in weights], axis=0), 1e-5)
        scales = channels**SMOOTHING / rows ** (1 - SMOOTHING)
        scales /= np.exp(np.log(scales).mean())
        inverse = _constant(graph, f"{value.name}_smoothing", (1 / scales).astype(np.float32))
        smoothed = _insert(graph, products[0], "Mul", [value, inverse])
        for number, (product, weight) in enumerate(zip(products, weights, strict=True)):
            scaled = (scales[:, None] * weight).astype(np.float32)
            product.replace_input_with(0, smoothed)
            product.replace_input_with(1, _constant(graph, f"{value.name}_smoothed_{number}", scaled))


def quantize_embeddings(graph: "ir.Graph") -> None:
    """Quantizes embedding tables to int8, with one fp16 scale per 32 neighbouring values of a row.

    Scales are looked up like the rows themselves.
    """
    import onnx_ir as ir

    constants: dict[str, list[ir.Value]] = {}  # by table, because one may be looked up several times
    for node in [node for node in graph if node.op_type == "Gather" and _is_table(node)]:
        table, indices = node.inputs
        if table.name not in constants:
            constants[table.name] = _in_blocks(graph, table)
        parts = []
        for constant in constants[table.name]:
            found = _insert(graph, node, "Gather", [constant, indices])
            parts.append(_insert(graph, node, "Cast", [found], to=ir.DataType.FLOAT))
        product = _insert(graph, node, "Mul", parts)
        shape = _constant(graph, f"{node.outputs[0].name}_shape", np.array([0] * len(indices.shape) + [-1], np.int64))
        whole = _insert(graph, node, "Reshape", [product, shape])
        node.outputs[0].replace_all_uses_with(whole)
        graph.remove(node, safe=True)


def _in_blocks(graph: "ir.Graph", table: "ir.Value") -> "list[ir.Value]":
    """An embedding table in int8, `[rows, blocks, block size]`, and the scales of its blocks, as constants."""
    weight = table.const_value.numpy()
    block = BLOCK if weight.shape[1] % BLOCK == 0 else weight.shape[1]
    blocks = weight.reshape(len(weight), -1, block)
    scales = (np.abs(blocks).max(-1, keepdims=True) / 127).astype(np.float16)
    scales[scales == 0] = 1
    quantized = np.clip(np.round(blocks / scales.astype(np.float32)), -127, 127).astype(np.int8)
    return [_constant(graph, f"{table.name}_int8", quantized), _constant(graph, f"{table.name}_scales", scales)]


def fold_transposes(graph: "ir.Graph") -> None:
    """Stores transposed constants as their own matrices, such as the embedding table of a tied head."""
    for node in [node for node in graph if node.op_type == "Transpose" and node.inputs[0].const_value is not None]:
        weight = node.inputs[0].const_value.numpy().transpose(node.attributes.get_ints("perm"))
        node.outputs[0].replace_all_uses_with(_constant(graph, f"{node.outputs[0].name}_folded", weight))
        graph.remove(node, safe=True)


def save_quantized(model: PreTrainedModel, folder: Path) -> None:
    """Saves a model with int8 linear layers, quantized by torchao.

    Plain `from_pretrained` loads it if torchao is installed. Weights are quantized per output channel, activations
    dynamically per token; embeddings stay in fp32. The older `torch.ao.quantization` is deprecated in favour of
    torchao, and its int8 layers cannot be saved without pickle.
    """
    torchao = optional("torchao.quantization", "quant")
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        config = TorchAoConfig(torchao.Int8DynamicActivationInt8WeightConfig())
        quantized = type(model).from_pretrained(temporary, dtype=torch.float32, quantization_config=config)
    _leave_out_zeros(quantized)
    quantized.save_pretrained(folder)


def _leave_out_zeros(model: PreTrainedModel) -> None:
    """Leaves out what torchao 0.18 cannot load, because its name has no dot: BART's bias of the logits, which is 0.

    Raises:
        ValueError: if it is not 0, as in Marian.
    """
    for name, values in list(model.named_buffers(recurse=False)):
        if values.any():
            raise ValueError(f"{type(model).__name__} cannot be saved in int8, because torchao cannot load its {name}.")
        model.register_buffer(name, values, persistent=False)


def _products(graph: "ir.Graph") -> dict["ir.Value", list["ir.Node"]]:
    """Values that are multiplied with constant matrices, each with its matrix products."""
    products: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        if node.op_type == "MatMul" and node.inputs[0].const_value is None:
            weight = node.inputs[1].const_value
            if weight is not None and len(weight.shape) == 2:
                products.setdefault(node.inputs[0], []).append(node)
    return products


def _narrows(node: "ir.Node") -> bool:
    if node.op_type == "Gemm":  # PyTorch's exporter writes it for one vector per text
        return True
    weight = node.inputs[1].const_value if node.op_type == "MatMul" else None
    return weight is not None and len(weight.shape) == 2 and weight.shape[0] > weight.shape[1]


def _ranges(file: Path, values: Mapping["ir.Value", object], batches: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Largest absolute value of each channel over all batches, `[channels]` by value name."""
    onnx_ir, onnxruntime = optional("onnx_ir", "onnx"), optional("onnxruntime", "onnx")
    names = [value.name for value in values]
    model = onnx_ir.load(file)
    by_name = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(by_name[name] for name in names)
    with tempfile.TemporaryDirectory() as temporary:
        probe = Path(temporary, file.name)
        onnx_ir.save(model, probe, external_data=f"{file.name}.data")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(probe), options, providers=["CPUExecutionProvider"])
        ranges: dict[str, np.ndarray] = {}
        for batch in batches:
            for name, array in zip(names, session.run(names, dict(batch)), strict=True):
                own = np.abs(array).reshape(-1, array.shape[-1]).max(0)
                ranges[name] = np.maximum(ranges.get(name, own), own)
    return ranges


def _is_table(node: "ir.Node") -> bool:
    import onnx_ir as ir

    table, indices = node.inputs
    is_constant = table.const_value is not None and indices.const_value is None and indices.shape is not None
    return (
        is_constant
        and node.attributes.get_int("axis", 0) == 0
        and len(table.const_value.shape) == 2
        and table.const_value.dtype == ir.DataType.FLOAT
    )


def _constant(graph: "ir.Graph", name: str, array: np.ndarray) -> "ir.Value":
    import onnx_ir as ir

    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def _insert(
    graph: "ir.Graph", before: "ir.Node", op_type: str, inputs: list["ir.Value"], **attributes: int
) -> "ir.Value":
    import onnx_ir as ir

    node = ir.node(op_type, inputs, attributes=attributes)
    graph.insert_before(before, node)
    return node.outputs[0]
