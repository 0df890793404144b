"""Views of an image: the same one mirrored, shifted or at another scale, whose answers are averaged.

Which changes leave the answer as it is only the application knows, so it declares them: `mirror`, `shift:DX,DY` (pixels
to the right and down, the border repeated), `zoom:F` (F > 1: the middle part enlarged; F < 1: all of it smaller, the
border repeated). Zooms are the scales of S2 (arXiv:2403.13043) for a model of fixed input size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError

Array = npt.NDArray[np.generic]
_CHANNELS = (1, 3, 4)
MOST = 15
"""Views that may be declared."""


@dataclass(frozen=True)
class View:
    """One change of an image, as it was declared."""

    text: str
    kind: str
    values: tuple[float, ...] = ()

    def apply(self, x: Array, shape: Sequence[int]) -> Array:
        """The view of images `x`, [..., *sample]; `shape`: of a sample (see `image_axes`). Keeps shape and dtype."""
        rows, columns = image_axes(shape)
        if self.kind == "mirror":
            return np.ascontiguousarray(np.flip(x, columns))
        for axis, places in ((rows, self._places(x.shape[rows], 1)), (columns, self._places(x.shape[columns], 0))):
            x = _resampled(x, axis, places)
        return x

    def _places(self, count: int, which: int) -> npt.NDArray[np.float64]:
        """Where along an axis of `count` pixels each pixel of the view is taken from; `which` value shifts it."""
        at = np.arange(count, dtype=np.float64)
        if self.kind == "shift":
            return at - self.values[which]
        middle = (count - 1) / 2
        return (at - middle) / self.values[0] + middle


def parse_views(texts: Sequence[str]) -> tuple[View, ...]:
    """Views as declared, in order. Raises UsageError naming one that is none, or is there twice."""
    if len(set(texts)) < len(texts) or len(texts) > MOST:
        raise UsageError(f"up to {MOST} different views can be declared, not {' '.join(texts)}")
    return tuple(_parse(text) for text in texts)


def image_axes(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of a sample of `shape`, counted from its end.

    [rows, columns], channels first, or channels last where only the last axis is 1, 3 or 4 long. Raises UsageError.
    """
    if len(shape) == 2:
        return -2, -1
    if len(shape) == 3 and (shape[0] in _CHANNELS or shape[-1] in _CHANNELS):
        return (-2, -1) if shape[0] in _CHANNELS else (-3, -2)
    raise UsageError(f"views are of images; an input of shape {tuple(shape)} is none with 1, 3 or 4 channels")


def _parse(text: str) -> View:
    kind, _, rest = text.partition(":")
    try:
        values = tuple(float(part) for part in rest.split(",")) if rest else ()
    except ValueError:
        values = (np.nan,)
    fits = {
        "mirror": not rest,
        "shift": len(values) == 2 and any(values),
        "zoom": len(values) == 1 and 0.25 <= values[0] <= 4 and values[0] != 1,
    }
    if not fits.get(kind, False) or not np.isfinite(values).all():
        raise UsageError(f"{text!r} is no view: mirror, shift:DX,DY (pixels, not both 0) or zoom:F (0.25 to 4, not 1)")
    return View(text, kind, values)


def _resampled(x: Array, axis: int, places: npt.NDArray[np.float64]) -> Array:
    """`x` at `places` along an axis, linear between pixels, the border repeated beyond."""
    if (places == np.arange(len(places))).all():
        return x
    places = np.clip(places, 0, x.shape[axis] - 1)
    below = np.floor(places).astype(np.int64)
    above = np.minimum(below + 1, x.shape[axis] - 1)
    part = (places - below).reshape(-1, *(1,) * (-1 - axis))
    if not part.any():
        return np.take(x, below, axis)
    mixed = np.take(x, below, axis).astype(np.float64) * (1 - part) + np.take(x, above, axis).astype(np.float64) * part
    return np.asarray((np.rint(mixed) if x.dtype.kind in "iu" else mixed).astype(x.dtype))
