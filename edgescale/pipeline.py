"""The line through the house: model + data -> load -> compress -> compile -> profile -> select -> bundle.

`compile_models` is that line as code; each step is a cached stage of `edgescale.stages`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgescale.advice import with_advice
from edgescale.backends import load_backend, tunes
from edgescale.bundle.manifest import DatasetRecord
from edgescale.bundle.pack import Context, Entry, check_destination, tool_versions, write_bundle
from edgescale.cache import StageStore
from edgescale.compress import Training
from edgescale.core.budget import Budgets
from edgescale.core.errors import EdgescaleError, InfeasibleError, UsageError
from edgescale.core.measurement import Measurement
from edgescale.core.memory import PACKING, Memory
from edgescale.core.progress import SILENT, Progress
from edgescale.core.target import Target
from edgescale.core.variant import Artifact, Recipe, Variant
from edgescale.evaluation import Evaluation, evaluation_of, without_cost
from edgescale.finetune import Settings, need_torch
from edgescale.frontend.metrics import load_metric
from edgescale.guided import Exploration, Figure, explore
from edgescale.runtime.views import parse_views
from edgescale.select import Candidate, Selection, candidate, pareto_names, select
from edgescale.sources import DataSource, LoadedModel, ModelSource, Samples
from edgescale.stages import Stages


@dataclass(frozen=True)
class Request:
    """What the user asked for. `calibration`, `training` and `evaluation` are dataset specifications or None.

    `epochs` is how long recipes that train do so (None: as `finetune.Settings` says). `samples` is the number of
    inputs a device's cost is measured on; `memory` what back ends that plan memory are to be good at; `command`
    reproduces the run. `compare`: outputs are also compared with the reference where nothing depends on it.
    `measure`: at most this share of the variants is made and measured, a law predicts the rest (`edgescale.guided`).
    `views`: changes of an image that leave its class as it is (see `runtime.views`).
    `tune`: candidates that back ends which tune may time for each artifact.
    """

    models: tuple[Path, ...]
    targets: tuple[Target, ...]
    recipes: tuple[Recipe, ...]
    budgets: Budgets = field(default_factory=Budgets)
    calibration: str | None = None
    training: str | None = None
    epochs: int | None = None
    evaluation: str | None = None
    metric: str | None = None
    samples: int = 4
    memory: Memory = "balanced"
    out: Path = Path("edgescale-out/bundle")
    command: str = ""
    compare: bool = False
    measure: float = 1.0
    views: tuple[str, ...] = ()
    tune: int = 0


@dataclass(frozen=True)
class Failure:
    """A variant that could not be made or measured for a target, and why."""

    variant: str
    target: str
    error: EdgescaleError


@dataclass(frozen=True)
class CompileResult:
    """What a compile made: the measured entries, what failed, the choice for each target that has entries.

    `bundle` is the directory written, None where nothing could be packed. `exploration`: what was predicted instead of
    measured, None where all was measured.
    """

    request: Request
    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...]
    selections: Mapping[str, Selection]
    bundle: Path | None
    exploration: Exploration | None = None

    @property
    def exit_code(self) -> int:
        """0 when every target has a variant within the budget, else the code of the gravest trouble.

        A variant that does not fit a device is no failure as long as another one does; one that is
        unsupported or whose device failed is, even if others went well.
        """
        codes = {f.error.exit_code for f in self.failures if not isinstance(f.error, InfeasibleError)}
        if any(t.name not in self.selections or not self.selections[t.name].feasible for t in self.request.targets):
            codes.add(InfeasibleError.exit_code)
        return max(codes, default=0)


def compile_models(request: Request, store: StageStore, progress: Progress = SILENT) -> CompileResult:
    """Run the whole line.

    Raises EdgescaleError where the request itself is wrong or a model cannot be read. A variant that
    fails on a target is recorded in the result, and the others go on.
    """
    _check(request)
    stages = Stages(store, progress)
    calibration = DataSource(request.calibration) if request.calibration else None
    training = _training(request)
    evaluation = evaluation_of(request.evaluation, calibration, request.metric, parse_views(request.views))

    entries: list[Entry] = []
    failures: list[Failure] = []
    models = [stages.load(ModelSource(path)) for path in request.models]
    if training is not None and all(loaded.quantized for loaded in models):
        raise UsageError(
            "--train: every model given arrived quantized, and such are taken as they are; give float ones"
        )

    def make(loaded: LoadedModel, recipe: Recipe) -> Figure | None:
        made, lost = _entries(stages, request, loaded, recipe, calibration, training, evaluation)
        entries.extend(made)
        failures.extend(lost)
        return next(filter(None, map(_quality, made)), None)

    candidates = [
        (loaded, recipe)
        for loaded in models
        for recipe in ([loaded.variant.recipe] if loaded.quantized else request.recipes)
    ]
    exploration = None
    if request.measure < 1:
        floats = [each for each in candidates if not each[0].quantized]
        exploration = explore(floats, make, request.measure, evaluation.counted(models[0]))
        for loaded, recipe in [each for each in candidates if each[0].quantized]:
            make(loaded, recipe)
        asked = {f"{loaded.variant.model}-{recipe}": place for place, (loaded, recipe) in enumerate(candidates)}
        entries.sort(key=lambda entry: asked.get(entry.variant.name, len(asked)))
    else:
        for loaded, recipe in candidates:
            make(loaded, recipe)

    selections = {
        target.name: select(found, request.budgets.of(target.name))
        for target in request.targets
        if (found := [_candidate(e) for e in entries if e.target.name == target.name])
    }
    marked = _mark(entries, selections)
    bundle = (
        write_bundle(request.out, marked, _context(request, calibration, training, evaluation, entries))
        if marked
        else None
    )
    return CompileResult(request, tuple(marked), tuple(failures), selections, bundle, exploration)


def _entries(
    stages: Stages,
    request: Request,
    loaded: LoadedModel,
    recipe: Recipe,
    calibration: DataSource | None,
    training: Training | None,
    evaluation: Evaluation,
) -> tuple[list[Entry], list[Failure]]:
    """One model under one recipe, for every target and back end of the request."""
    entries: list[Entry] = []
    failures: list[Failure] = []
    counted = any(part.of == "instructions" for part in recipe.sparsity)
    prices = stages.prices(loaded, _only(request.targets, recipe), calibration) if counted else None
    variant = stages.compress(loaded, recipe, calibration, training, prices)
    for target in request.targets:
        for backend in target.backends:
            try:
                entries.append(_measured(stages, request, loaded, variant, target, backend, evaluation))
            except UsageError:
                raise
            except InfeasibleError as error:
                better = with_advice(error, stages, loaded, variant, target, backend, request.memory)
                failures.append(Failure(variant.name, target.name, better))
            except EdgescaleError as error:
                failures.append(Failure(variant.name, target.name, error))
    return entries, failures


def _quality(entry: Entry) -> Figure | None:
    """What the law of a family learns from: accuracy, or error."""
    for name in ("accuracy", "error"):
        if (figure := entry.measurement.metrics.get(name)) is not None:
            return name, figure.value
    return None


def _only(targets: tuple[Target, ...], recipe: Recipe) -> Target:
    """The target whose instructions a recipe keeps a share of."""
    if len(targets) != 1:
        raise UsageError(
            f"recipe {recipe} keeps a share of one target's instructions; name one target, not {len(targets)}"
        )
    return targets[0]


def _measured(
    stages: Stages,
    request: Request,
    loaded: LoadedModel,
    variant: Variant,
    target: Target,
    backend: str,
    evaluation: Evaluation,
) -> Entry:
    """Compile one variant for one target, prove it equal to the reference, measure and score it."""
    inputs = evaluation.data.for_model(loaded)
    artifact, measurement = _compiled(stages, request, variant, target, backend, inputs)
    environment = dict(measurement.environment)
    if stages.comparable(artifact, target):
        environment |= {f"verified_{k}": str(v) for k, v in stages.verify(variant, artifact, target, inputs).items()}
    elif request.compare:
        found = stages.difference(variant, artifact, target, inputs)
        environment |= {f"compared_{k}": str(v) for k, v in found.items()}
    measurement = replace(measurement, environment=environment)
    scored = evaluation.add_score(measurement, stages, loaded, artifact, target)
    answers = evaluation.answers(stages, loaded, artifact, target)
    return Entry(variant, target, artifact, without_cost(scored, variant.recipe), answers=answers)


def _compiled(
    stages: Stages, request: Request, variant: Variant, target: Target, backend: str, inputs: Samples
) -> tuple[Artifact, Measurement]:
    """The artifact and its cost; with packed weights where those keep a flash budget that it breaks without."""
    artifact = stages.compile(variant, target, backend, request.memory, request.tune)
    measurement = stages.profile(artifact, target, inputs, request.samples)
    limits = [limit for limit in request.budgets.of(target.name).constraints if limit.metric == "flash"]
    taken = measurement.metrics.get("flash")
    able = artifact.meta.get("packing") is not None and request.memory not in PACKING
    if able and taken is not None and not all(limit.holds(taken.value) for limit in limits):
        packed = stages.compile(variant, target, backend, "packed")
        found = stages.profile(packed, target, inputs, request.samples)
        if all(limit.holds(found.metrics["flash"].value) for limit in limits):
            return packed, found
    return artifact, measurement


def _candidate(entry: Entry) -> Candidate:
    """The entry as `select` sees it; named after its variant, and its back end where the target has several."""
    found = candidate(entry.variant, entry.measurement)
    return found if len(entry.target.backends) == 1 else replace(found, name=f"{found.name}:{entry.artifact.backend}")


def _mark(entries: list[Entry], selections: Mapping[str, Selection]) -> list[Entry]:
    """The entries with their place in the choice: on the Pareto front of their target, selected or not."""
    fronts = {
        target: pareto_names(
            {
                verdict.name: verdict.candidate.figures
                for verdict in selection.ranking
                if not verdict.candidate.simulated
            }
        )
        for target, selection in selections.items()
    }
    marked = []
    for entry in entries:
        name, target = _candidate(entry).name, entry.target.name
        marked.append(replace(entry, pareto=name in fronts[target], selected=name == selections[target].best.name))
    return marked


def _context(
    request: Request,
    calibration: DataSource | None,
    training: Training | None,
    evaluation: Evaluation,
    entries: list[Entry],
) -> Context:
    """What the manifest says of the bundle as a whole."""
    trained = training.data if training is not None else None
    sources = {"calibration": calibration, "training": trained, evaluation.role: evaluation.data}
    datasets = [
        DatasetRecord(role=role, name=Path(source.spec).name, sha256=source.fingerprint)
        for role, source in sources.items()
        if source is not None and role != "random"
    ]
    scored = entries[0].measurement
    return Context(
        command=request.command,
        budgets=request.budgets,
        metric=scored.environment.get("metric"),
        direction="min" if "error" in scored.metrics else "max",
        datasets=datasets,
        tools=tool_versions(),
        views=request.views,
    )


def _training(request: Request) -> Training | None:
    """What recipes that train are given. Raises UsageError where they lack it, or nothing would read it."""
    trained = [recipe for recipe in request.recipes if recipe.needs_training]
    if request.training is None:
        if trained:
            raise UsageError(
                f"recipe {trained[0]} is trained: give --train DATA.npz with samples x and labels y (without y the "
                "float model's own answers are learned)"
            )
        if request.epochs is not None:
            raise UsageError("--epochs goes with --train")
        return None
    if not trained:
        raise UsageError("--train serves recipes that train, such as w4a8-qat or w8a8+ch0.5-ft; name one with --recipe")
    need_torch()
    settings = Settings() if request.epochs is None else Settings(epochs=request.epochs)
    return Training(DataSource(request.training), settings.checked())


def _check(request: Request) -> None:
    """Refuse early what would fail late."""
    check_destination(request.out)
    if request.metric is not None:
        load_metric(request.metric)
    stems = [path.stem for path in request.models]
    if len(set(stems)) != len(stems):
        raise UsageError("two models share a file name; variants are named after it, so rename one")
    backends = [load_backend(name) for target in request.targets for name in target.backends]
    used = ", ".join(dict.fromkeys(backend.name for backend in backends))
    if request.memory != "balanced" and not any(backend.plans_memory for backend in backends):
        raise UsageError(
            f"--memory {request.memory} shapes generated C; the back ends used ({used}) leave memory to their run times"
        )
    if request.measure < 1 and not (request.evaluation or request.calibration):
        raise UsageError("--measure predicts quality, which needs data to measure it on: give --eval (or --calib)")
    if request.tune and not any(tunes(backend) for backend in backends):
        raise UsageError(f"--tune {request.tune}: none of the back ends used ({used}) times candidates")
    names = [target.name for target in request.targets]
    if len(set(names)) != len(names):
        raise UsageError("two target profiles share a name; change `name` in one of them")
