"""What emitters work with, and the registry of emitters: one a layer class."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UnsupportedModelError
from edgescale.lower.program import Clamp, Layer, Program, Requant, Tensor
from edgescale_c import requant
from edgescale_c.choice import SCALAR, Choice
from edgescale_c.constants import ConstantPool, Table, float_literal
from edgescale_c.liveness import scratch_name
from edgescale_c.planner import Plan

C_TYPES = {"int8": "int8_t", "int16": "int16_t", "float32": "float"}


@dataclass(frozen=True)
class LayerCode:
    """Statements of a layer's function, the kernel it is built on and the headers that hold it."""

    body: tuple[str, ...]
    kernel: str
    headers: tuple[str, ...]


@dataclass(frozen=True)
class Scope:
    """One layer in its program: where its tensors are and where its constants go."""

    program: Program
    plan: Plan
    pool: ConstantPool
    symbol: str
    """Of the model."""
    layer: Layer
    prefix: str
    """Of the layer's constants."""
    choice: Choice = SCALAR
    """The layer's kernel."""
    index: int = 0
    """Of the layer in the program."""
    prelude: list[str] = field(default_factory=list)
    """Statements that have to come before the layer's body."""
    by_pointer: bool = False
    """Whether the function gets the addresses of its tensors as arguments: in0, in1, ..., out, scratch."""

    @property
    def where(self) -> str:
        """The layer as error messages name it."""
        return f"node {self.layer.name!r} ({self.layer.op})"

    @property
    def family(self) -> str:
        """What names of the family's kernels and headers hold before _s8; empty for the scalar kernel."""
        return f"_{self.choice.family}" if self.choice.name else ""

    def refuse(self, rule: str) -> UnsupportedModelError:
        """The error for a layer that breaks `rule`."""
        return UnsupportedModelError(f"{self.where}: {rule}")

    def source(self, index: int = 0) -> Tensor:
        """An input tensor."""
        return self.program.tensors[self.layer.inputs[index]]

    @property
    def out(self) -> Tensor:
        """The output tensor."""
        return self.program.tensors[self.layer.output]

    @property
    def is_float(self) -> bool:
        """Whether the layer computes in float32. Raises UnsupportedModelError for mixed or other types."""
        kinds = {tensor.dtype for tensor in (*(self.source(i) for i in range(len(self.layer.inputs))), self.out)}
        if len(kinds) != 1 or not kinds <= set(C_TYPES):
            raise self.refuse(f"needs inputs and output of one type, found {', '.join(sorted(kinds))}")
        return kinds == {"float32"}

    def read(self, index: int = 0) -> str:
        """C expression: address of an input."""
        kind = C_TYPES[self.source(index).dtype]
        if self.by_pointer:
            return f"(const {kind} *)in{index}"
        return f"(const {kind} *)(const void *){self._address(self.source(index).name)}"

    def write(self) -> str:
        """C expression: address of the output."""
        kind = C_TYPES[self.out.dtype]
        return f"({kind} *)out" if self.by_pointer else f"({kind} *)(void *){self._address(self.out.name)}"

    def update(self, index: int) -> str:
        """C expression: address of an input that the layer overwrites."""
        return f"({C_TYPES[self.source(index).dtype]} *)(void *){self._address(self.source(index).name)}"

    def write_at(self, offset: int) -> str:
        """C expression, void *: `offset` bytes above the output's start."""
        if self.by_pointer:
            return f"(void *)((uint8_t *)out + {offset})"
        return f"(void *){self._address(self.out.name, offset)}"

    def scratch(self, kind: str) -> str:
        """C expression: address of the layer's scratch as a pointer to `kind`; NULL where it has none."""
        if not self.choice.scratch:
            return "NULL"
        return f"({kind} *){'scratch' if self.by_pointer else '(void *)' + self._address(scratch_name(self.index))}"

    def arguments(self, body: Sequence[str]) -> tuple[tuple[str, int], ...]:
        """(parameter, offset in the arena) of the pointers that a body emitted `by_pointer` mentions, in order."""
        names = [(f"const void *in{k}", name) for k, name in enumerate(self.layer.inputs)]
        names += [("void *out", self.out.name), ("void *scratch", scratch_name(self.index))]
        text = "\n".join(body)
        return tuple(
            (parameter, self.plan.offset(name))
            for parameter, name in names
            if re.search(rf"\b{parameter.rpartition('*')[2]}\b", text)
        )

    def _address(self, name: str, offset: int = 0) -> str:
        return f"&es_{self.symbol}_arena[{self.plan.offset(name) + offset}]"

    def shares_bytes(self, index: int) -> bool:
        """Whether the plan lets the output overlap an input."""
        source, out = self.source(index), self.out
        at, to = self.plan.offset(source.name), self.plan.offset(out.name)
        return at < to + out.nbytes and to < at + source.nbytes

    def constant(self, name: str, values: Table) -> str:
        """C name of a table."""
        return self.pool.add(f"{self.prefix}_{name}", values)

    def weights(self, values: Table, kind: str) -> str:
        """C expression, pointer to `kind`: the layer's table of weights, or its copy in RAM where that is staged."""
        name = self.constant("weights", values)
        if not self.choice.staged:
            return name
        if values.nbytes != self.choice.staged:
            raise ValueError(f"{self.where}: {self.choice.staged} bytes staged for weights of {values.nbytes}")
        place = self._address(scratch_name(self.index), self.choice.scratch - self.choice.staged)
        self.prelude.append(f"__builtin_memcpy({place}, {name}, {values.nbytes});")
        return f"(const {kind} *)(const void *){place}"

    def requant(self, scaling: Requant | None, bound: int, clamp: Clamp, name: str = "q") -> str:
        """Declaration of an `es_requant` called `name`, for accumulators of magnitude at most `bound`."""
        if scaling is None:
            raise self.refuse("integers need a rescaling, found none")
        found = requant.tables(scaling, bound, self.where)
        low, high = requant.clamp_of(clamp, self.out.dtype)
        suffix = "" if name == "q" else f"_{name}"
        multiplier = self.constant(f"multiplier{suffix}", found.multiplier)
        shift = self.constant(f"shift{suffix}", found.shift)
        return (
            f"const es_requant {name} = {{{multiplier}, {shift}, {int(found.per_channel)}, {found.form}, "
            f"{self.out.zero_point}, {low}, {high}}};"
        )

    def clamp_f32(self, clamp: Clamp) -> str:
        """Two float literals."""
        return f"{float_literal(clamp[0])}, {float_literal(clamp[1])}"


Emitter = Callable[[Scope, Any], LayerCode]


@dataclass
class Registry:
    """Emitters by layer class. `int16` holds those that take a layer's place where a tensor of it is int16."""

    emitters: dict[type[Layer], Emitter] = field(default_factory=dict)
    int16: dict[type[Layer], Emitter] = field(default_factory=dict)

    def register(self, *kinds: type[Layer], int16: bool = False) -> Callable[[Emitter], Emitter]:
        """Decorator: the function emits layers of `kinds`, only those that hold int16 where `int16` says so."""

        def add(emitter: Emitter) -> Emitter:
            for kind in kinds:
                (self.int16 if int16 else self.emitters)[kind] = emitter
            return emitter

        return add

    def emit(self, scope: Scope) -> LayerCode:
        """Code of the scope's layer. Raises UnsupportedModelError naming the node and the rule."""
        tensors = (scope.out, *(scope.source(index) for index in range(len(scope.layer.inputs))))
        own = self.int16 if any(tensor.dtype == "int16" for tensor in tensors) else {}
        emitter = own.get(type(scope.layer)) or self.emitters.get(type(scope.layer))
        if emitter is None:
            known = ", ".join(sorted(kind.__name__ for kind in self.emitters))
            raise scope.refuse(f"the C back end has no kernel for it; it has: {known}")
        return emitter(scope, scope.layer)


REGISTRY = Registry()


def wrap_int32(values: Table) -> npt.NDArray[np.int32]:
    """int64 sums reduced modulo 2^32, as the kernels' unsigned accumulators are."""
    return values.astype(np.uint64).astype(np.uint32).view(np.int32)


def folded_bias(scope: Scope, rows: Table, bias: Table) -> npt.NDArray[np.int32]:
    """Bias with the input's zero-point taken off every tap of weights [O, taps]: bias - zero_point * sum of weights."""
    return wrap_int32(bias.astype(np.int64) - scope.source().zero_point * rows.astype(np.int64).sum(axis=1))
