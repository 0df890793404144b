"""Samples in, one array per model input, with labels where there are any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError


@dataclass(frozen=True)
class Dataset:
    """Samples for one-input models.

    x: [count, *sample_shape], the model's input dtype; y: [count, ...] labels or None.
    `sha256` identifies the content for caching.
    """

    name: str
    x: npt.NDArray[np.generic]
    y: npt.NDArray[np.generic] | None
    sha256: str

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
        return Dataset(self.name, self.x[:count], labels, f"{self.sha256}:{count}")
