"""The forms by name."""

from __future__ import annotations

from edgescale.laws.errors import FitError
from edgescale.laws.form import Form
from edgescale.laws.forms import compression, curves, scaling
from edgescale.laws.forms.curves import shared_slopes
from edgescale.laws.forms.family import FAMILY

FORMS: dict[str, Form] = {form.name: form for form in (*scaling.FORMS, *compression.FORMS, *curves.FORMS, FAMILY)}


def form_named(name: str) -> Form:
    """The form called `name`; "shared-slopes:a,b" makes the one of families a and b."""
    kind, _, rest = name.partition(":")
    if kind == "shared-slopes" and rest:
        return shared_slopes(rest.split(","))
    if name not in FORMS:
        raise FitError(f"unknown law {name!r}; known: {', '.join(FORMS)}, shared-slopes:FAMILY,FAMILY,...")
    return FORMS[name]


__all__ = ["FORMS", "form_named", "shared_slopes"]
