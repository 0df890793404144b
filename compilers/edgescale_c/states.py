"""Where states live: one buffer each, alive always, and updated in place wherever that is safe.

A streaming layer keeps its last inputs: joined = Concat(state, new), next = Slice(joined). The buffer then holds
`joined`: the state lies at its place in it, the new part is computed straight into the rest, and the update is a
shift of the whole buffer, once nobody reads `joined` any more. A next value that is computed when nobody reads the
old one any more goes straight to its place. Every other state is copied at the end of the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgescale.lower.program import ITEM_BYTES, Concat, Layer, Program, Reshape, Slice, State, Transpose

Place = tuple[str, int]
"""Owner of a buffer and bytes from the buffer's start."""


def slice_start(program: Program, layer: Slice) -> int | None:
    """Bytes from the input's start to a slice whose elements lie side by side; None where they do not."""
    shape, wanted = program.tensors[layer.inputs[0]].shape, program.tensors[layer.output].shape
    inside = False
    start = 0
    for axis, (size, count, begin, step) in enumerate(zip(shape, wanted, layer.begin, layer.step, strict=True)):
        if (inside and count != size) or (count > 1 and step != 1):
            return None
        inside = inside or count > 1
        start += begin * math.prod(shape[axis + 1 :])
    return start * ITEM_BYTES[program.tensors[layer.output].dtype]


def is_view(program: Program, layer: Layer) -> bool:
    """Whether the output's bytes are the input's, or some of them, at the same place."""
    if isinstance(layer, Reshape):
        return True
    if isinstance(layer, Transpose):
        shape = program.tensors[layer.inputs[0]].shape
        moved = [axis for axis in layer.permutation if shape[axis] != 1]
        return moved == sorted(moved)
    if not isinstance(layer, Slice) or slice_start(program, layer) is None:
        return False
    # The whole input sliced is a copy that was asked for; a state's next value has to be moved, and what is taken
    # from a state must outlive its update.
    whole = program.tensors[layer.inputs[0]].shape == program.tensors[layer.output].shape
    held = {name for state in program.states for name in (state.input, state.output)}
    return not whole and layer.output not in held and not held & set(_chain(program, layer.inputs[0]))


def view_start(program: Program, layer: Layer) -> int:
    """Bytes from the input's start to the output's, of a layer that `is_view`."""
    return (slice_start(program, layer) or 0) if isinstance(layer, Slice) else 0


def places(program: Program) -> dict[str, Place]:
    """Tensors that have their place in a state's buffer, which is named after the state's input."""
    found: dict[str, Place] = {}
    joined: set[str] = set()
    for state in program.states:
        found[state.input] = (state.input, 0)
    for state in program.states:
        if state.input == state.output:
            continue
        index = next(i for i, layer in enumerate(program.layers) if layer.output == state.output)
        shifted = _shifted(program, state, index)
        if shifted is not None and shifted.output not in joined:
            joined.add(shifted.output)
            found |= _parts(program, state, shifted, index, found)
        elif not is_view(program, program.layers[index]) and (
            _unread_from(program, state.input, index) or _becomes(program, state, index)
        ):
            found[state.output] = (state.input, 0)
    return found


def copied(program: Program, offsets: Mapping[str, int]) -> tuple[State, ...]:
    """States whose next value the plan did not put at their own place."""
    return tuple(state for state in program.states if offsets[state.input] != offsets[state.output])


def _becomes(program: Program, state: State, index: int) -> bool:
    """Whether layer `index`, a copy of the whole state, is the last to read it: the copy may be the state itself."""
    copy = program.layers[index]
    whole = isinstance(copy, Slice) and copy.inputs[0] == state.input and slice_start(program, copy) == 0
    return whole and _read_before(program, state.input, index, copy)


def _shifted(program: Program, state: State, update: int) -> Concat | None:
    """The Concat whose buffer can hold the state."""
    slicing = program.layers[update]
    readers = [layer for layer in program.layers if state.input in layer.inputs]
    if not isinstance(slicing, Slice) or slice_start(program, slicing) is None or len(readers) != 1:
        return None
    joined = readers[0]
    if not isinstance(joined, Concat) or not _is_plain(program, joined, state.input):
        return None
    views = _views(program, joined.output)
    alone = state.input not in program.results and joined.inputs.count(state.input) == 1
    if not alone or slicing.inputs[0] not in views or not _read_before(program, joined.output, update, slicing):
        return None
    return joined


def _is_plain(program: Program, joined: Concat, name: str) -> bool:
    """Whether the Concat copies its input `name` as one piece, unchanged."""
    pieces = math.prod(program.tensors[joined.output].shape[: joined.axis])
    return pieces == 1 and joined.rescale[joined.inputs.index(name)] is None


def _parts(program: Program, state: State, joined: Concat, update: int, taken: Mapping[str, Place]) -> dict[str, Place]:
    """Places of the state, its next value, the Concat's output and those of its inputs that can be made in it."""
    found: dict[str, Place] = {joined.output: (state.input, 0)}
    makers = {layer.output: layer for layer in program.layers}
    at = 0
    for name in joined.inputs:
        if name == state.input:
            found |= {name: (state.input, at), state.output: (state.input, at)}
        # What only renames bytes is placed by whoever made them.
        root = name
        while root in makers and isinstance(makers[root], (Reshape, Transpose)) and is_view(program, makers[root]):
            root = makers[root].inputs[0]
        free = root in makers and root not in taken and root not in found and joined.inputs.count(name) == 1
        free = free and not is_view(program, makers[root]) and _is_plain(program, joined, name)
        if free and _read_before(program, root, update, None):
            found[root] = (state.input, at)
        at += program.tensors[name].nbytes
    return found


def _views(program: Program, name: str) -> set[str]:
    """The tensor and all that share its bytes by being views of it."""
    found = {name}
    for layer in program.layers:
        if layer.inputs and layer.inputs[0] in found and is_view(program, layer):
            found.add(layer.output)
    return found


def _chain(program: Program, name: str) -> list[str]:
    """The tensor, and those whose bytes it has through layers that only rename them."""
    makers = {layer.output: layer for layer in program.layers}
    found = [name]
    while found[-1] in makers and is_view(program, makers[found[-1]]):
        found.append(makers[found[-1]].inputs[0])
    return found


def _read_before(program: Program, name: str, index: int, last: Layer | None) -> bool:
    """Whether nobody needs the tensor or a view of it from layer `index` on, which may be the `last` to read it."""
    views = _views(program, name)
    if views & set(program.results):
        return False
    return all(not views & set(layer.inputs) or layer is last for layer in program.layers[index:])


def _unread_from(program: Program, name: str, index: int) -> bool:
    return _read_before(program, name, index, None)
