"""Removes unused work from a classifier's last layer.

BERT's classifiers use only the first token of the last layer, but all tokens go through that layer's output projection
and feed-forward block, nine twelfths of its arithmetic. This pass moves the node that selects the token up, to just
after the attention. The result is the same. It saves one seventh of the work of a student with six layers, and a
quarter with three layers.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

ELEMENTWISE = {"Add", "Div", "Erf", "Gelu", "Mul", "Pow", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh"}


def compute_first_token_alone(model: "ir.Model") -> int:
    """Moves each node that selects the first token up through operators that process tokens independently.

    Args:
        model: ONNX model with shapes. It is changed in place.

    Returns:
        Number of matrix products that now have fewer rows.
    """
    graph = model.graph
    picks = [node for node in graph if node.op_type == "Gather" and _picks_a_token(node)]
    return sum(_move_up(graph, pick) for pick in picks)


def _picks_a_token(node: "ir.Node") -> bool:
    data, index = node.inputs
    if node.attributes.get_int("axis", 0) != 1 or not _is_constant(index) or index.const_value.size != 1:
        return False
    return data.shape is not None and len(data.shape) == 3 and index.const_value.numpy().item() == 0


def _move_up(graph: "ir.Graph", pick: "ir.Node") -> int:
    import onnx_ir as ir

    region = _one_by_one(graph, pick)
    if not any(node.op_type == "MatMul" for node in region):
        return 0
    index = ir.Value(name=f"{pick.inputs[0].name}_first", const_value=ir.tensor([0], ir.DataType.INT64))
    graph.register_initializer(index)
    first: dict[ir.Value, ir.Value] = {}
    for node, values in region.items():
        for value in values:
            if value not in first:  # computed outside the region
                gather = ir.node("Gather", [value, index], attributes={"axis": 1})
                gather.outputs[0].dtype, gather.outputs[0].shape = value.dtype, _one_token(value)
                graph.insert_before(node, gather)
                first[value] = gather.outputs[0]
        for position, value in enumerate(node.inputs):
            if value in values:
                node.replace_input_with(position, first[value])
        output = node.outputs[0]
        first[output], output.shape = output, _one_token(output)
    return sum(node.op_type == "MatMul" for node in region)


def _one_by_one(graph: "ir.Graph", pick: "ir.Node") -> dict["ir.Node", list["ir.Value"]]:
    """The nodes above `pick` that process tokens independently and that nothing else reads, in graph order.

    Each node maps to its inputs that have a token axis.
    """
    nodes = list(graph)
    region: dict[ir.Node, list[ir.Value]] = {}
    wanted = {pick.inputs[0]}
    for node in reversed(nodes[: nodes.index(pick)]):
        output = node.outputs[0]
        if (
            output not in wanted
            or output.is_graph_output()
            or not {use.node for use in output.uses()} <= {pick, *region}
        ):
            continue
        if values := _with_tokens(node):
            region[node] = values
            wanted.update(values)
    return dict(reversed(region.items()))


def _with_tokens(node: "ir.Node") -> list["ir.Value"]:
    """The inputs whose first token alone determines the first token of the output; empty if there are none."""
    inputs = [value for value in node.inputs if value is not None]
    if (node.op_type == "LayerNormalization" and node.attributes.get_int("axis", -1) in (-1, 2)) or (
        node.op_type == "MatMul" and _is_constant(inputs[1]) and len(inputs[1].const_value.shape) == 2
    ):
        tokens, others = inputs[:1], []
    elif node.op_type in ELEMENTWISE:
        tokens = [value for value in inputs if not _is_constant(value)]
        others = [value for value in inputs if _is_constant(value)]
    else:
        return []
    shapes = [value.shape for value in [*tokens, node.outputs[0]]]
    if any(shape is None or len(shape) != 3 for shape in shapes) or len({str(shape[1]) for shape in shapes}) != 1:
        return []
    return tokens if all(len(value.const_value.shape) <= 1 for value in others) else []


def _is_constant(value: "ir.Value") -> bool:
    return value.const_value is not None


def _one_token(value: "ir.Value") -> "ir.Shape":
    import onnx_ir as ir

    return ir.Shape([value.shape[0], 1, value.shape[2]])
