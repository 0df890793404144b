"""From the bytes of a .tflite file to ONNX: ports, operators one by one, every refusal in one error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
from onnx import helper

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.model import PORTS_AS_GIVEN
from edgescale.core.state import encode_states
from edgescale.frontend.tflite import elementwise, movement, recurrent, reductions, slices, variables, weighted
from edgescale.frontend.tflite.graph import ELEMENTS, Graph, Refusal
from edgescale.frontend.tflite.reader import File, Operator, Tensor, read
from edgescale.frontend.tflite.registry import HANDLERS, STATE, rule_of

OPSET, IR_VERSION = 21, 10

_ROOMS = (elementwise, movement, recurrent, reductions, slices, variables, weighted)  # importing them fills HANDLERS


def operators() -> list[tuple[str, str]]:
    """TensorFlow Lite operators that are read, each with the rule it must meet, sorted."""
    return sorted((kind, rule_of(kind)) for kind in HANDLERS)


def translate(data: bytes, where: str) -> onnx.ModelProto:
    """The main graph of a .tflite file as an ONNX model; `where` names the file in errors.

    Inputs and outputs keep name, shape (an open batch is 1) and dtype; other tensors and the operators are named
    after the file's tensors. Quantized tensors become Q/DQ pairs with the file's integers, scales and
    zero-points, 8-bit weights of float operators are dequantized. A variable becomes an input and an output
    more, which the metadata pair up (`core.state`).

    Raises UnsupportedModelError: one sentence for a damaged file, one line an operator that is not supported;
    MissingDependencyError without the extra `tflite`.
    """
    file = read(data, where)
    _check_ports(file, where)
    graph = Graph(file)
    for index in file.inputs:
        with _port_refusal(where, f"input {file.tensors[index].name!r}"):
            graph.feed(index)
    problems = _operators(file, graph)
    if problems:
        raise UnsupportedModelError("\n".join(f"{where}: {problem}" for problem in problems))
    _outputs(file, graph, where)
    states = variables.finish_states(graph)
    made = helper.make_graph(
        graph.nodes,
        "tflite",
        [*(_port(graph, index) for index in file.inputs), *(variables.port(state, state.input) for state in states)],
        [*(_port(graph, index) for index in file.outputs), *(variables.port(state, state.output) for state in states)],
        graph.constants,
    )
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="edgescale"
    )
    helper.set_model_props(model, dict([PORTS_AS_GIVEN]) | encode_states(states))
    return model


@contextmanager
def _port_refusal(where: str, port: str) -> Iterator[None]:
    try:
        yield
    except Refusal as refusal:
        raise UnsupportedModelError(f"{where}: the {port}: {refusal}") from None


def _check_ports(file: File, where: str) -> None:
    if not file.operators or not file.outputs:
        raise UnsupportedModelError(f"{where} holds a graph without {'outputs' if file.operators else 'operators'}")
    for index in file.inputs:
        tensor = file.tensors[index]
        if tensor.kind not in ELEMENTS or (tensor.kind != "FLOAT32" and not tensor.quantized):
            what = "" if tensor.kind not in ELEMENTS else " without a scale"
            raise UnsupportedModelError(
                f"{where}: the input {tensor.name!r} is {tensor.kind.lower()}{what}; supported: float32, and int8, "
                "uint8 or int16 with a scale"
            )
        open_axes = [axis for axis in tensor.dynamic if axis]
        if open_axes:
            raise UnsupportedModelError(
                f"{where}: dimension {open_axes[0]} of the input {tensor.name!r} is dynamic; only the batch, dimension "
                "0, may be. Convert the model with a fixed size there"
            )
        if not tensor.shape or min(tensor.shape) < 1 or (len(file.inputs) == 1 and tensor.shape[0] != 1):
            raise UnsupportedModelError(
                f"{where}: the input {tensor.name!r} has the shape {list(tensor.shape)}, whose first dimension must be "
                "the batch, 1 or dynamic. Convert the model with batch 1"
            )
    for ports, what in ((file.inputs, "input"), (file.outputs, "output")):
        if len(set(ports)) != len(ports):
            raise UnsupportedModelError(f"{where} lists one tensor twice as its {what}")


def _operators(file: File, graph: Graph) -> list[str]:
    """Translate all operators; what is wrong, a sentence each. What reads a failed one is checked by name only."""
    problems: list[str] = []
    unknown: set[int] = set()
    names: set[str] = set()
    for op in file.operators:
        name = graph.readable(op.outputs[0]) if op.outputs else f"{op.kind}_{op.index}"
        graph.operator = name
        count = 0
        while graph.operator in names:
            count += 1
            graph.operator = f"{name}_{count}"
        names.add(graph.operator)
        problem = _refusal(op)
        if problem is None and not unknown & set(op.inputs):
            try:
                HANDLERS[op.kind](graph, op)
                continue
            except Refusal as refusal:
                problem = str(refusal)
        unknown.update(op.outputs)
        if problem is not None:
            problems.append(f"operator {name!r} ({op.kind}): {problem}")
    return problems


def _refusal(op: Operator) -> str | None:
    """Why an operator is not translated, whatever it reads; None for a known one."""
    if op.kind in HANDLERS:
        return None
    if op.kind in STATE:
        return (
            "it keeps state from one inference to the next, which is not supported yet; export the model without "
            "state, its memory as an input and an output"
        )
    if op.kind == "MIRROR_PAD":
        return "rule: padding is constant (PAD, PADV2); found mirrored padding"
    return f"rule: the operator is one of {', '.join(sorted(HANDLERS))}"


def _outputs(file: File, graph: Graph, where: str) -> None:
    """Every output exists under the file's own name, in the file's layout."""
    for index in file.outputs:
        tensor = file.tensors[index]
        if not graph.known(index) or tensor.data is not None:
            what = "never changes" if tensor.data is not None else "is made by no operator"
            raise UnsupportedModelError(f"{where}: the output {tensor.name!r} {what}")
        if index in file.inputs:
            raise UnsupportedModelError(f"{where}: the output {tensor.name!r} is an input as well")
        with _port_refusal(where, f"output {tensor.name!r}"):
            graph.output(index)


def _port(graph: Graph, index: int) -> onnx.ValueInfoProto:
    tensor: Tensor = graph.tensor(index)
    return helper.make_tensor_value_info(graph.name(index), ELEMENTS[tensor.kind], list(tensor.shape))
