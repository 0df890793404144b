"""Back end for LiteRT (TensorFlow Lite): the integer program as a .tflite file that computes the same bits.

Multipliers of the program become the scales that LiteRT derives them from, and only where it derives the very same
(`scales.py`). What no activation or padding of LiteRT says becomes operators of its own around the layer.
"""

from __future__ import annotations

from edgescale_tflite.backend import BACKEND, TfliteBackend

__all__ = ["BACKEND", "TfliteBackend"]
