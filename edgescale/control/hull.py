"""The upper hull of quality over cost: what is best at some price, and how a mean budget is shared out over bins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def hull(cost: Sequence[float], quality: Sequence[float]) -> list[int]:
    """Corners, cheapest first: each is the best at some price of cost in quality; of equals the first."""
    corners: list[int] = []
    for index in sorted(range(len(cost)), key=lambda i: (cost[i], -quality[i])):
        if corners and quality[index] <= quality[corners[-1]] + 1e-12:
            continue
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            if (quality[b] - quality[a]) * (cost[index] - cost[a]) > (quality[index] - quality[a]) * (
                cost[b] - cost[a]
            ):
                break
            corners.pop()
        corners.append(index)
    return corners


def front(cost: Sequence[float], quality: Sequence[float]) -> list[int]:
    """What nothing as cheap is better than, cheapest first; of equals the first."""
    kept: list[int] = []
    for index in sorted(range(len(cost)), key=lambda i: (cost[i], -quality[i])):
        if not kept or quality[index] > quality[kept[-1]] + 1e-12:
            kept.append(index)
    return kept


def share_out(
    cost: Sequence[Sequence[float]], quality: Sequence[Sequence[float]], shares: Sequence[float], budget: float
) -> list[int]:
    """The choice of each bin under a mean budget: [bins] indices. cost, quality: [bins][choices]; shares: [bins].

    From everyone's cheapest on, the step that brings most quality for its cost is taken while the mean cost stays
    within the budget: the best there is but for the last step.
    """
    corners = [hull(c, q) for c, q in zip(cost, quality, strict=True)]
    chosen = [c[0] for c in corners]
    spent = sum(share * c[i] for share, c, i in zip(shares, cost, chosen, strict=True))
    steps = []
    for bin_, line in enumerate(corners):
        for before, after in pairwise(line):
            more = cost[bin_][after] - cost[bin_][before]
            steps.append(((quality[bin_][after] - quality[bin_][before]) / max(more, 1e-300), bin_, after, more))
    for _, bin_, after, more in sorted(steps, key=lambda step: -step[0]):
        if spent + shares[bin_] * more > budget:
            break
        spent += shares[bin_] * more
        chosen[bin_] = after
    return chosen
