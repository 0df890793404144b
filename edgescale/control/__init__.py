"""The controller: size, precision and samples chosen live, call by call, within budgets.

Usable on its own: imports nothing but msgspec. The C body is firmware/controller; docs/controller.md the
specification of both.
"""

from edgescale.control.battery import Battery
from edgescale.control.controller import Controller
from edgescale.control.policy import Option, Policy, PolicyVariant, Step, decode_policy, encode_policy
from edgescale.control.request import Decision, Limit, Request

__all__ = [
    "Battery",
    "Controller",
    "Decision",
    "Limit",
    "Option",
    "Policy",
    "PolicyVariant",
    "Request",
    "Step",
    "decode_policy",
    "encode_policy",
]
