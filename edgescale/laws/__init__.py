"""Laws: predict quality and cost from few measurements, with honest intervals. NumPy and SciPy only."""
