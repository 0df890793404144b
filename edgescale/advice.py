"""What would make an image fit that does not."""

from __future__ import annotations

from edgescale.core.errors import EdgescaleError, InfeasibleError
from edgescale.core.memory import Memory
from edgescale.core.target import Target, load_target, profile_names
from edgescale.core.variant import Variant
from edgescale.sources import LoadedModel, RandomSource
from edgescale.stages import Stages


def with_advice(
    error: InfeasibleError,
    stages: Stages,
    loaded: LoadedModel,
    variant: Variant,
    target: Target,
    backend: str,
    memory: Memory,
) -> InfeasibleError:
    """The error with what helps: the smallest arrangement, tried; a smaller recipe; devices with more room."""
    parts = []
    if memory != "smallest":
        parts.append(_smallest(stages, loaded, variant, target, backend))
    if variant.recipe.is_float:
        parts.append("the recipe w8a8 takes about a quarter of the memory")
    if larger := _larger(target):
        parts.append(f"with more memory: {', '.join(larger)}")
    return InfeasibleError(f"{error}. What would help: {'; '.join(parts)}") if parts else error


def _smallest(stages: Stages, loaded: LoadedModel, variant: Variant, target: Target, backend: str) -> str:
    try:
        artifact = stages.compile(variant, target, backend, "smallest")
        found = stages.profile(artifact, target, RandomSource("random").for_model(loaded), 1)
    except EdgescaleError as error:
        return f"--memory smallest is not enough ({error})"
    ram, flash = (int(found.metrics[name].value) for name in ("ram", "flash"))
    return f"--memory smallest fits: {ram:,} B of RAM, {flash:,} B of flash"


def _larger(target: Target) -> list[str]:
    """Shipped profiles that have at least as much of every memory, and more of one."""
    found = []
    for name in profile_names():
        other = load_target(name)
        if not all(key in other.memory for key in target.memory):
            continue
        rooms = [(other.memory[key].length, part.length) for key, part in target.memory.items()]
        if all(theirs >= ours for theirs, ours in rooms) and any(theirs > ours for theirs, ours in rooms):
            found.append(name)
    return found
