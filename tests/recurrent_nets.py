"""Small nets of LSTM and GRU as exporters write them, for the tests of several rooms; loaded by path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

GATES = {"LSTM": 4, "GRU": 3}


class Net:
    """Collects nodes over an input x [batch, T, I]."""

    def __init__(self, steps: int, inputs: int, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", steps, inputs])]
        self.outputs: list[onnx.ValueInfoProto] = []

    def const(self, array: np.ndarray) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, operator: str, inputs: Sequence[Any], outputs: Sequence[str] = (), **attributes: Any) -> str:
        names = [value if isinstance(value, str) else self.const(value) for value in inputs]
        made = list(outputs) or [f"v{len(self.nodes)}"]
        self.nodes.append(helper.make_node(operator, names, made, f"{operator.lower()}{len(self.nodes)}", **attributes))
        return made[0]

    def port(self, name: str, shape: Sequence[Any], *, output: bool = False) -> str:
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
        (self.outputs if output else self.inputs).append(made)
        return name

    def weights(self, operator: str, inputs: int, units: int, directions: int = 1, gain: float = 2.0) -> list[str]:
        """W, R and B, uniform within gain / sqrt(units), as PyTorch draws them for gain 1."""
        rows, limit = GATES[operator] * units, gain / np.sqrt(units)
        shapes = [(directions, rows, inputs), (directions, rows, units), (directions, 2 * rows)]
        return [self.const(self.rng.uniform(-limit, limit, shape).astype(np.float32)) for shape in shapes]

    def model(self, opset: int = 17) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def outputs(
    operator: str,
    wanted: Sequence[str],
    *,
    steps: int = 5,
    inputs: int = 3,
    units: int = 4,
    seed: int = 0,
    starts: bool = False,
    direction: str = "forward",
    **attributes: Any,
) -> onnx.ModelProto:
    """One operator whose outputs `wanted` (of Y, Y_h, Y_c), batch first, are the graph's; `starts`: random states."""
    net = Net(steps, inputs, seed)
    directions = 2 if direction == "bidirectional" else 1
    given = [net.node("Transpose", ["x"], perm=[1, 0, 2]), *net.weights(operator, inputs, units, directions)]
    if starts:
        reach = (0.95, 2.0)
        states = [net.rng.uniform(-r, r, (directions, 1, units)).astype(np.float32) for r in reach]
        given += ["", *[net.const(state) for state in states[: 2 if operator == "LSTM" else 1]]]
    known = ["Y", "Y_h", "Y_c"][: 3 if operator == "LSTM" else 2]
    net.node(
        operator, given, [name if name in wanted else "" for name in known],
        hidden_size=units, direction=direction, **attributes,
    )  # fmt: skip
    for name in known:
        if name in wanted:
            order = [2, 0, 1, 3] if name == "Y" else [1, 0, 2]
            shape = [1, steps, directions, units] if name == "Y" else [1, directions, units]
            net.node("Transpose", [name], [net.port(f"{name}_first", shape, output=True)], perm=order)
    return net.model()


def classifier(
    operator: str,
    *,
    steps: int = 20,
    inputs: int = 6,
    units: int = 24,
    layers: int = 1,
    seed: int = 1,
    direction: str = "forward",
    last: str = "Y_h",
    states: bool = False,
    readout: tuple[np.ndarray, np.ndarray] | None = None,
    gain: float = 2.0,
    **attributes: Any,
) -> onnx.ModelProto:
    """Layers of one operator and a dense layer on the last step, which is Y_h or taken from Y by Gather (`last`).

    states: initial states are inputs and what is left outputs. readout: weights [classes, units] and bias.
    """
    net = Net(steps, inputs, seed)
    directions = 2 if direction == "bidirectional" else 1
    value, width = net.node("Transpose", ["x"], perm=[1, 0, 2]), inputs
    for layer in range(layers):
        given = [value, *net.weights(operator, width, units, directions, gain)]
        made = [f"Y{layer}", f"Y_h{layer}"]
        if states:
            names = [f"h{layer}", f"c{layer}"][: 2 if operator == "LSTM" else 1]
            given += ["", *[net.port(name, [1, 1, units]) for name in names]]
            made += [f"Y_c{layer}"] if operator == "LSTM" else []
            for name in made[1:]:
                net.port(name, [1, 1, units], output=True)
        net.node(operator, given, made, hidden_size=units, direction=direction, **attributes)
        width = directions * units
        value = net.node("Reshape", [net.node("Transpose", [made[0]], perm=[0, 2, 1, 3]), np.array([0, 0, width])])
    if last == "Y_h":
        final = net.node("Transpose", [f"Y_h{layers - 1}"], perm=[1, 0, 2])
        final = net.node("Reshape", [final, np.array([0, width])])
    else:
        final = net.node("Gather", [net.node("Transpose", [value], perm=[1, 0, 2]), np.array(-1)], axis=1)
    if readout is None:
        readout = net.rng.normal(0, 1, (5, width)), net.rng.normal(0, 0.1, 5)
    dense = [array.astype(np.float32) for array in readout]
    net.outputs.insert(0, helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", len(dense[1])]))
    net.node("Gemm", [final, *dense], ["y"], transB=1)
    return net.model()


def chirps(count: int, steps: int, inputs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(x [count, steps, inputs], labels): sums of tones in noise whose pitch rises (0), falls (1) or stays (2)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    time = np.linspace(0, 1, steps)
    slope = np.array([1.0, -1.0, 0.0])[labels][:, None] * rng.uniform(1.0, 2.0, (count, 1))
    pitch = rng.uniform(2.5, 3.5, (count, 1)) + slope * (time - 0.5)
    bands = np.linspace(1.0, 5.0, inputs)
    x = np.exp(-((pitch[:, :, None] - bands) ** 2) / 0.3) + rng.normal(0, 0.15, (count, steps, inputs))
    return x.astype(np.float32), labels
