"""edgescale: compress, compile, measure and adapt neural networks on edge hardware."""

__version__ = "0.1.0"
