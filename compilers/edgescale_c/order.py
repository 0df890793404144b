"""The orders in which the layers of a branching program may run, and the one whose fullest moment holds least.

Few orders are all tried. Of many, the best is searched: orders are paths through sets of finished layers; what a
layer needs depends on the set alone. So the best path is found by always going on from the set whose worst moment
so far is mildest (Dijkstra's search with the maximum in the place of the sum). The search gives up, and the given
order stays, where there are too many sets.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

from edgescale.lower.program import Program
from edgescale_c.choice import Choice
from edgescale_c.overlap import distance
from edgescale_c.states import is_view

_MOST_ORDERS = 48
_MOST_SETS = 20_000


def orders(program: Program, choices: Sequence[Choice]) -> list[Program]:
    """Other orders of a program that are worth planning: all where they are few, else the one that seems best.

    Programs with states keep their order, which says when a state may be overwritten; so do those with a layer that
    updates one of its inputs, of which others read what was there before or after.
    """
    if program.states or any(layer.updates for layer in program.layers):
        return []
    needs = _Needs(program, choices)
    found = _all(needs)
    if found is None:
        best = _search(needs)
        found = [] if best is None else [best]
    given = list(range(len(program.layers)))
    return [replace(program, layers=tuple(program.layers[i] for i in order)) for order in found if order != given]


def _all(needs: _Needs) -> list[list[int]] | None:
    """Every order; None where there are too many."""
    found: list[list[int]] = []

    def extend(path: list[int], done: int) -> bool:
        if len(path) == needs.count:
            found.append(path)
            return len(found) <= _MOST_ORDERS
        ready = (i for i in range(needs.count) if not done >> i & 1 and not needs.after[i] & ~done)
        return all(extend([*path, index], done | 1 << index) for index in ready)

    return found if extend([], 0) else None


class _Needs:
    """What each layer needs once some are finished. Sets of layers are bit masks."""

    def __init__(self, program: Program, choices: Sequence[Choice]) -> None:
        self.count = len(program.layers)
        root = {name: name for name in program.sources}
        for layer in program.layers:
            root[layer.output] = root[layer.inputs[0]] if is_view(program, layer) else layer.output
        self.nbytes: dict[str, int] = {}
        for name, owner in root.items():
            self.nbytes[owner] = max(self.nbytes.get(owner, 0), program.tensors[name].nbytes)
        makers = {layer.output: index for index, layer in enumerate(program.layers)}
        self.after = [
            sum(1 << makers[name] for name in set(layer.inputs) if name in makers) for layer in program.layers
        ]
        self.made = [root[layer.output] for layer in program.layers]
        self.read = [{root[name] for name in layer.inputs} for layer in program.layers]
        self.readers = dict.fromkeys(self.nbytes, 0)
        self.makers = dict.fromkeys(self.nbytes, 0)
        for index, layer in enumerate(program.layers):
            for owner in self.read[index]:
                self.readers[owner] |= 1 << index
            if not is_view(program, layer):
                self.makers[self.made[index]] |= 1 << index
        self.kept = {root[name] for name in program.results}
        self.scratch = [choice.scratch for choice in choices]
        self.saved = [self._saved(program, index, root, choices[index]) for index in range(self.count)]

    def _saved(self, program: Program, index: int, root: dict[str, str], choice: Choice) -> dict[str, int]:
        """Input -> bytes of it that the output can take over, should it die."""
        layer = program.layers[index]
        found: dict[str, int] = {}
        for k, name in enumerate(layer.inputs):
            out = program.tensors[layer.output].nbytes
            if choice.order == "plane":
                fits = program.tensors[name].shape[-1] == program.tensors[layer.output].shape[-1]
                found[root[name]] = min(out, self.nbytes[root[name]]) if fits else 0
                continue
            below = distance(program, layer, (k,), choice.order)
            if below is not None:
                found[root[name]] = min(max(0, out - below), self.nbytes[root[name]])
        return found

    def live(self, done: int) -> int:
        """Bytes that are kept between layers."""
        return sum(
            size
            for owner, size in self.nbytes.items()
            if self.makers[owner] & ~done == 0 and (owner in self.kept or self.readers[owner] & ~done)
        )

    def need(self, index: int, done: int, live: int) -> int:
        """Bytes while a layer runs after `done`, of which `live` are kept."""
        made = self.made[index]
        grows = self.nbytes[made] if self.makers[made] & ~done and self.makers[made] >> index & 1 else 0
        later = ~(done | 1 << index)
        dying = [o for o in self.read[index] if o not in self.kept and not self.readers[o] & later]
        taken_over = max((self.saved[index].get(owner, 0) for owner in dying), default=0) if grows else 0
        return live + grows - taken_over + self.scratch[index]


def _search(needs: _Needs) -> list[int] | None:
    """The best order, None where there are too many sets."""
    everything = (1 << needs.count) - 1
    # (worst so far, minus layers done, sequence number, done, path)
    queue: list[tuple[int, int, int, int, tuple[int, ...]]] = [(needs.live(0), 0, 0, 0, ())]
    seen: set[int] = set()
    pushed = 0
    while queue:
        worst, _, _, done, path = heapq.heappop(queue)
        if done == everything:
            return list(path)
        if done in seen:
            continue
        seen.add(done)
        if len(seen) > _MOST_SETS:
            return None
        live = needs.live(done)
        for index in range(needs.count):
            if done >> index & 1 or needs.after[index] & ~done:
                continue
            pushed += 1
            peak = max(worst, needs.need(index, done, live))
            heapq.heappush(queue, (peak, -len(path) - 1, pushed, done | 1 << index, (*path, index)))
    return None
