"""What an application on a Linux-class device imports: `Session` runs a bundle under a budget.

Imports NumPy and msgspec only; ONNX Runtime is imported when a variant is first run, no compiler ever.
"""

from edgescale.runtime.adaptive import AdaptiveResult, AdaptiveSession
from edgescale.runtime.results import BudgetWarning, Choice, RunResult
from edgescale.runtime.session import Session

__all__ = ["AdaptiveResult", "AdaptiveSession", "BudgetWarning", "Choice", "RunResult", "Session"]
