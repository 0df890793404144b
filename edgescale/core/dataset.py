"""Samples in, one array per model input, with labels where there are any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError

Fed = npt.NDArray[np.generic] | Mapping[str, npt.NDArray[np.generic]]
"""Samples of a model's only input, [n, *sample_shape], or {input: such an array} of several."""


@dataclass(frozen=True)
class Dataset:
    """Samples, one array an input of the model.

    x: [count, *sample_shape] of the first input, in its dtype; y: [count, ...] labels or None; more: those of the
    other inputs by name, empty for one-input models, with `port` the first one's name. `sha256` identifies the
    content for caching.
    """

    name: str
    x: npt.NDArray[np.generic]
    y: npt.NDArray[np.generic] | None
    sha256: str
    more: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    port: str = ""

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def batches(self, size: int = 1) -> Iterator[npt.NDArray[np.generic]]:
        """Yield x in slices of at most `size` samples, shape [n, *sample_shape]."""
        for start in range(0, len(self), size):
            yield self.x[start : start + size]

    def head(self, count: int) -> Dataset:
        """The first `count` samples (all, where there are fewer)."""
        if count < 1:
            raise UsageError("a dataset needs at least one sample")
        labels = None if self.y is None else self.y[:count]
        more = {name: array[:count] for name, array in self.more.items()}
        return Dataset(self.name, self.x[:count], labels, f"{self.sha256}:{count}", more, self.port)

    def fed(self) -> Fed:
        """x, or for models of several inputs every array by its input's name."""
        return {self.port: self.x, **self.more} if self.more else self.x

    def parts(self, size: int) -> Iterator[Fed]:
        """What `fed` returns, in slices of at most `size` samples."""
        for start in range(0, len(self), size):
            cut = slice(start, start + size)
            if self.more:
                yield {self.port: self.x[cut], **{name: array[cut] for name, array in self.more.items()}}
            else:
                yield self.x[cut]
