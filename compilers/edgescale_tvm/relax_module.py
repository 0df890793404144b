"""A program becomes a Relax module: `main` takes stored inputs, one tensor a port, and returns stored outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgescale.core.errors import UnsupportedModelError
from edgescale.lower.program import (
    Add,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    Dequantize,
    FullyConnected,
    Layer,
    Lut,
    Mean,
    Mul,
    Pad,
    Pool2D,
    Program,
    Quantize,
    Rescale,
    Reshape,
    Slice,
    Softmax,
    Tensor,
    Transpose,
    Unary,
)
from edgescale_tvm import elementwise, reduction
from edgescale_tvm.packing import Call, add_call, call_of, mean_call, pool_call, softmax_call

_EXPRESSIONS: dict[type[Layer], Callable[[Any, list[Any], list[Tensor], Tensor], Any]] = {
    Add: elementwise.add,
    Mul: elementwise.mul,
    Lut: elementwise.lut,
    Rescale: elementwise.rescale,
    Quantize: elementwise.quantize,
    Dequantize: elementwise.dequantize,
    Unary: elementwise.unary,
    Concat: elementwise.concat,
    Pad: elementwise.pad,
    Transpose: elementwise.transpose,
    Slice: elementwise.cut,
    Pool2D: reduction.pool,
    Mean: reduction.mean,
    Softmax: reduction.softmax,
}
_WEIGHTED = (Conv2D, DepthwiseConv2D, FullyConnected)


@dataclass(frozen=True)
class Built:
    """The module, the kernels it calls and the bytes of weights and parameters it holds."""

    module: Any
    kernels: tuple[str, ...]
    weights_bytes: int


def check(program: Program) -> None:
    """Raises UnsupportedModelError naming the first layer, tensor or state that this back end cannot compute."""
    if program.states:
        raise UnsupportedModelError(
            f"{program.name}: state {program.states[0].name!r}; the TVM back end runs models without state"
        )
    for layer in program.layers:
        if type(layer) not in _EXPRESSIONS and not isinstance(layer, (*_WEIGHTED, Reshape)):
            raise UnsupportedModelError(f"node {layer.name!r}: the TVM back end has no kernel for {layer.op}")
        _kernel_call(program, layer, 0)


def build_module(program: Program, offset: int) -> Built:
    """Relax of `program`. offset: as in `packing.call_of`. Raises as `check`."""
    from tvm import relax

    check(program)
    builder = relax.BlockBuilder()
    inputs = [_variable(relax, program.tensors[port.tensor], i) for i, port in enumerate(program.inputs)]
    values = {port.tensor: variable for port, variable in zip(program.inputs, inputs, strict=True)}
    kernels: set[str] = set()
    weights_bytes = 0
    with builder.function("main", inputs):
        with builder.dataflow():
            for layer in program.layers:
                sources = [program.tensors[name] for name in layer.inputs]
                out = program.tensors[layer.output]
                given = [values[name] for name in layer.inputs]
                if (call := _kernel_call(program, layer, offset)) is not None:
                    kernels.add(call.kernel)
                    weights_bytes += call.nbytes
                    constants = [call.parameters] if call.weights is None else [call.weights, call.parameters]
                    arguments = [*given, *(relax.const(value) for value in constants)]
                    made = relax.call_dps_packed(call.kernel, arguments, relax.TensorType(out.shape, out.dtype))
                elif isinstance(layer, Reshape):
                    made = relax.op.reshape(given[0], out.shape)
                else:
                    made = _expression(builder, relax, layer, given, sources, out)
                values[layer.output] = builder.emit(made)
            ends = [values[port.tensor] for port in program.outputs]
            result = builder.emit_output(ends[0] if len(ends) == 1 else relax.Tuple(ends))
        builder.emit_func_output(result)
    return Built(builder.get(), tuple(sorted(kernels)), weights_bytes)


def _kernel_call(program: Program, layer: Layer, offset: int) -> Call | None:
    """The kernel that computes a layer; None where a tensor expression does."""
    out = program.tensors[layer.output]
    if isinstance(layer, _WEIGHTED):
        return call_of(layer, program.tensors[layer.inputs[0]], out, offset)
    sources = [program.tensors[name] for name in layer.inputs]
    if isinstance(layer, Add):
        return add_call(layer, sources, out)
    if isinstance(layer, Pool2D):
        return pool_call(layer, sources[0], out)
    if isinstance(layer, Mean):
        return mean_call(layer, sources[0], out)
    if isinstance(layer, Softmax) and out.dtype != "float32":
        return softmax_call(layer, out)
    return None


def _variable(relax: Any, tensor: Tensor, index: int) -> Any:
    return relax.Var(f"input{index}", relax.TensorType(tensor.shape, tensor.dtype))


def _expression(builder: Any, relax: Any, layer: Layer, given: list[Any], sources: list[Tensor], out: Tensor) -> Any:
    """A call of the layer's tensor expression; its constants are its last arguments."""
    arguments = [*given, *(relax.const(value) for value in elementwise.constants(layer))]
    compute = _EXPRESSIONS[type(layer)]

    def expression(*inputs: Any) -> Any:
        return compute(layer, list(inputs), sources, out)

    return builder.call_te(expression, *arguments, primfunc_name_hint=layer.op.lower())
