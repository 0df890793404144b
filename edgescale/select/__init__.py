"""Choosing among measured variants: the non-dominated set, and selection under a budget. Pure functions."""

from edgescale.bundle.policy import smallest
from edgescale.select.pareto import OBJECTIVES, Objective, pareto, pareto_names
from edgescale.select.select import (
    Candidate,
    Row,
    Selection,
    Verdict,
    candidate,
    judge,
    select,
)

__all__ = [
    "OBJECTIVES",
    "Candidate",
    "Objective",
    "Row",
    "Selection",
    "Verdict",
    "candidate",
    "judge",
    "pareto",
    "pareto_names",
    "select",
    "smallest",
]
