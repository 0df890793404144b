"""Which of a bundle's C entries is exported: the target's choice, a named variant, or what a budget chooses."""

from __future__ import annotations

from dataclasses import dataclass

from edgescale.bundle import Bundle, EntryRecord
from edgescale.bundle.policy import decide, miss_text
from edgescale.core.budget import Budget
from edgescale.core.errors import InfeasibleError, UsageError


@dataclass(frozen=True)
class Choice:
    """The entry to export and why it is this one."""

    entry: EntryRecord
    reason: str


def choose(bundle: Bundle, target: str | None, variant: str | None, budget: Budget | None) -> Choice:
    """The C entry of `target` (by default the bundle's only microcontroller) to export.

    variant: an entry's variant or id; budget: limits it has to meet, or by which the variant is chosen.
    Without both, the choice the bundle was written with. Raises UsageError where target or variant do not
    exist or have no C, InfeasibleError where the limits are not met.
    """
    name = _target(bundle, target)
    entries = {entry.id: entry for entry in bundle.entries_for(name) if entry.kind == "c"}
    figures = {entry_id: entry.quantities() for entry_id, entry in entries.items()}
    if variant is not None:
        entry = _named(bundle, entries, name, variant)
        unmet = budget.unmet(figures[entry.id]) if budget is not None else []
        if unmet:
            misses = ", ".join(miss_text(limit, figures[entry.id]) for limit in unmet)
            raise InfeasibleError(f"{entry.id} does not meet {misses}; nothing was exported")
        return Choice(entry, "named on the command line")
    policy = bundle.policy(name)
    if budget is not None:
        fallback = policy.fallback if policy.fallback in entries else next(iter(entries))
        decision = decide(figures, fallback, budget)
        if not decision.met:
            raise InfeasibleError(f"{decision.reason}. Nothing was exported; export one all the same with --variant")
        return Choice(entries[decision.name], decision.reason)
    if policy.default in entries:
        return Choice(entries[policy.default], "the bundle's choice")
    return Choice(next(iter(entries.values())), "the best of the variants compiled to C")


def _target(bundle: Bundle, wanted: str | None) -> str:
    with_c = [name for name in bundle.target_names() if any(e.kind == "c" for e in bundle.entries_for(name))]
    if wanted is not None:
        bundle.policy(wanted)  # names the targets that exist
        if wanted not in with_c:
            serve = f"; C was made for {', '.join(with_c)}" if with_c else ""
            raise UsageError(f"{wanted} runs ONNX files, there is no C to export for it{serve}")
        return wanted
    if not with_c:
        raise UsageError(
            f"the bundle {bundle.path} holds ONNX models only, no C: compile it for a microcontroller "
            "(`edgescale targets` lists them), or serve it with edgescale.runtime.Session"
        )
    if len(with_c) > 1:
        raise UsageError(f"the bundle {bundle.path} holds C for {', '.join(with_c)}; choose one with --target")
    return with_c[0]


def _named(bundle: Bundle, entries: dict[str, EntryRecord], target: str, wanted: str) -> EntryRecord:
    found = [entry for entry in entries.values() if wanted in (entry.variant, entry.id)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(dict.fromkeys(e.id if found else e.variant for e in found or entries.values()))
    what = "several entries" if found else "no variant"
    raise UsageError(f"the bundle {bundle.path} has {what} {wanted!r} in C for {target}; choose from: {known}")
