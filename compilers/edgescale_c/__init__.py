"""Back end that generates self-contained C99 for microcontrollers. `BACKEND` is its entry point."""

from edgescale_c.backend import BACKEND

__all__ = ["BACKEND"]
