"""What every rig of bare-metal images reports alike: options, memory figures, messages about limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgescale.core.errors import RigError, UsageError
from edgescale.core.quantity import Quantity
from edgescale.core.target import Target
from edgescale.core.variant import Artifact
from edgescale.rigs.image import Image, region


def check_options(rig: str, options: Mapping[str, Any], known: set[str]) -> None:
    """Raise UsageError where `options` holds a name that the rig does not know."""
    if unknown := set(options) - known:
        raise UsageError(f"{rig} has no option {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")


def whole_number(options: Mapping[str, Any], name: str) -> int | None:
    """A whole number of at least 0 among the options, None where it is not given."""
    value = options.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise UsageError(f"{name} must be a whole number of at least 0, not {value!r}")
    return value


def kernel_text(layer: Mapping[str, Any]) -> str:
    """A layer's kernel, and in brackets why it is not one of the target's own family."""
    name, reason = layer.get("kernel", ""), layer.get("reason", "")
    return f"{name} ({reason})" if reason else name


def static_figures(layer: Mapping[str, Any]) -> dict[str, Quantity]:
    """Figures of a layer that follow from the program alone."""
    found = {}
    if "bytes" in layer:
        note = "inputs, output and weights, each once a call"
        found["traffic"] = Quantity(int(layer["bytes"]), "B", "modelled", note)
    if "density" in layer:
        found["density"] = Quantity(float(layer["density"]), "1", "measured", layer.get("exploited", ""))
    return found


def instruction_limit(artifact: Artifact) -> int:
    """Far above any kernel, soft-float included (about 200 instructions a MAC), yet ends a runaway in seconds."""
    return 100_000_000 + 1000 * sum(int(layer["macs"]) for layer in artifact.meta["layers"])


def memory_figures(
    artifact: Artifact, image: Image, target: Target, stack: int
) -> tuple[dict[str, Quantity], dict[str, str]]:
    """Metrics flash, ram, stack, weights and arena of a linked image with `stack` bytes used, and what is unavailable.

    Raises RigError where static data and stack together exceed the part's RAM.
    """
    ram = image.static_ram_bytes + stack
    if ram > (room := region(target, "ram").length):
        raise RigError(f"{artifact.variant} on {target.name}: needs {ram:,} B of RAM, the part has {room:,} B")
    metrics = {
        "flash": Quantity(image.flash_bytes, "B", "measured", "code, constants and initial data of the linked image"),
        "ram": Quantity(ram, "B", "emulated", f"static data {image.static_ram_bytes:,} B, stack {stack:,} B"),
        "stack": Quantity(stack, "B", "emulated", "deepest overwritten word of a painted stack, from reset on"),
        "weights": Quantity(artifact.meta["weights_bytes"], "B", "measured", "constants the back end emitted"),
    }  # fmt: skip
    if (arena := image.elf.find(f"es_{artifact.meta['symbol']}_arena")) is None:
        return metrics, {"arena": "the image has no arena symbol"}
    metrics["arena"] = Quantity(arena.size, "B", "measured", "size of the arena in the linked image")
    return metrics, {}


def over_limit(what: str, limit: int, over: int, where: str) -> str:
    """The message about an arena or stack limit that is too small."""
    return f"the {what} limit of {limit:,} B is too small by {over:,} B, first seen near {where}"


def stack_overflow(target: Target, room: int) -> str:
    """The message about a stack that has run into .bss; `room` is what .data and .bss leave to it."""
    return f"the stack overflows on {target.name}: .data and .bss leave {room:,} B of RAM to it"
