"""Exports: a bundle's C for one microcontroller as a folder that the user's build system takes as it is."""

from edgescale.export.choose import Choice, choose
from edgescale.export.layouts import LAYOUTS
from edgescale.export.write import RECORD_NAME, Exported, export

__all__ = ["LAYOUTS", "RECORD_NAME", "Choice", "Exported", "choose", "export"]
