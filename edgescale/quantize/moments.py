"""Second moments of a layer's input and output: all that reconstruction needs of the activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Summary:
    """Of rows x and outputs y: means, and covariances (second moments about zero where not `centred`).

    mean_x [groups, terms]; mean_y [outputs]; xx [groups, terms, terms]; yx [outputs, terms].
    """

    mean_x: Real
    mean_y: Real
    xx: Real
    yx: Real


class Moments:
    """Sums over chunks of rows; memory is groups * terms^2, whatever the number of samples."""

    def __init__(self) -> None:
        self.count = 0
        self._shift_x: Single | None = None
        self._shift_y: Single | None = None

    def update(self, x: Single, y: Single) -> None:
        """Add rows: x [groups, rows, terms], y [outputs, rows]."""
        if self._shift_x is None or self._shift_y is None:
            # Sums about the first chunk's mean do not cancel in float32 when the mean is taken out.
            self._shift_x, self._shift_y = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
            groups, _, terms = x.shape
            self._x, self._y = np.zeros((groups, terms)), np.zeros(len(y))
            self._xx, self._yx = np.zeros((groups, terms, terms)), np.zeros((len(y), terms))
        x, y = x - self._shift_x, y - self._shift_y
        self.count += x.shape[1]
        self._x += x.sum(axis=1)
        self._y += y.sum(axis=1)
        self._xx += np.matmul(x.transpose(0, 2, 1), x)
        self._yx += np.matmul(y.reshape(x.shape[0], -1, y.shape[1]), x).reshape(len(y), -1)

    def summary(self, *, centred: bool) -> Summary:
        """Means and (central) second moments of all rows seen; at least one chunk."""
        if self._shift_x is None or self._shift_y is None:
            raise ValueError("no rows were added")
        n, groups = self.count, self._x.shape[0]
        mx, my = self._x / n, self._y / n
        xx = self._xx / n - mx[:, :, None] * mx[:, None, :]
        own = np.repeat(mx, len(my) // groups, axis=0)
        yx = self._yx / n - my[:, None] * own
        mean_x = mx + self._shift_x[:, 0]
        mean_y = my + self._shift_y[:, 0]
        if not centred:
            xx = xx + mean_x[:, :, None] * mean_x[:, None, :]
            yx = yx + mean_y[:, None] * np.repeat(mean_x, len(my) // groups, axis=0)
        return Summary(mean_x, mean_y, xx, yx)
