"""A trained task learns from corrections of its output: trained anew with them, gated, and served if it is better.

A correction is a text with what the task should have made of it, as people said of a run's step. Every third text is
held out, and stays so; only the gate sees it. The version before stays in its folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agent.config.project import Project
from agent.errors import DatasetError, StoreError
from agent.records.feedback import OutputCorrection
from agent.registry.artifact import add_documents, verify
from agent.registry.registry import Adapter, Registry, State
from agent.registry.task_models import project_tasks, served_folder, versions
from agent.storage.store import Store
from agent.util.ids import timestamp
from tuner.pipeline.run_folder import one_at_a_time
from tuner.tasks.data.records import TaskExample, example_key
from tuner.tasks.data.splits import Splits
from tuner.tasks.feedback.corrections import as_example
from tuner.tasks.feedback.gate import TaskDecision, TaskPolicy, decide, write_report
from tuner.tasks.origin import Origin
from tuner.tasks.predictor import Say, ignore

if TYPE_CHECKING:
    from tuner.tasks.head.training import TaskProgress

EVERY = 3
"""Of so many corrected texts one is held out."""


@dataclass(frozen=True)
class CorrectedExample:
    """A correction as an example."""

    id: str
    run: str
    example: TaskExample
    held_out: bool


@dataclass(frozen=True)
class TaskTuning:
    """What one tuning of a task made."""

    version: Adapter
    decision: TaskDecision
    learnt: int
    """Corrections that it was trained on; those of the decision were held out."""


def tune_task(
    project: Project,
    folder: Path,
    *,
    data: Path | None = None,
    policy: TaskPolicy | None = None,
    say: Say = ignore,
    on_progress: Callable[[TaskProgress], None] = ignore,
) -> TaskTuning:
    """Train a task anew with the corrections of its output, and serve the new version if the gate lets it.

    `data` takes the place of the file it was trained on. Raises DatasetError where there is nothing new to learn or
    too little to decide by, AdapterError, WeightsError, LivenessError.
    """
    from tuner.tasks.artifact import read_task

    policy = policy or TaskPolicy()
    served = served_folder(folder)
    told = read_task(served)
    found = _found(project, folder, told, say)
    _check(found, told, policy)
    origin = _origin(folder, told, data, project)
    with one_at_a_time(project.home.tunings, say):
        return _tune(project, folder, served, told, origin, found, policy, say, on_progress)


def corrected_examples(
    corrections: Iterable[OutputCorrection], told: Mapping[str, Any], store: Store, say: Say
) -> list[CorrectedExample]:
    """Corrections, oldest first, as examples, the newest of a step and of a text; told are those that do not fit.

    A text that the version in `told` has learnt, or was held out from it, stays so.
    """
    before = {one["id"]: not one["learnt"] for one in told.get("corrections", ())}
    newest = {(one.run, one.step): one for one in corrections}
    by_text: dict[str, CorrectedExample] = {}
    for one in newest.values():
        step = store.get(one.run).steps[one.step]
        arguments: Mapping[str, Any] = {} if step.call is None else step.call.arguments
        try:
            example = replace(as_example(told, arguments, one.output), source=f"run {one.run}, step {one.step}")
        except (ValueError, KeyError, TypeError, DatasetError) as fault:
            say(f"left out: the correction of step {one.step} of run {one.run} does not fit the task ({fault})")
            continue
        earlier = by_text.get(example_key(example))
        held = sum(other.held_out for other in by_text.values())
        held_out = before.get(one.id, EVERY * held < len(by_text) if earlier is None else earlier.held_out)
        by_text[example_key(example)] = CorrectedExample(one.id, one.run, example, held_out)
    return list(by_text.values())


def with_corrections(
    splits: Splits, found: Sequence[CorrectedExample]
) -> tuple[Splits, tuple[CorrectedExample, ...], tuple[CorrectedExample, ...]]:
    """The splits with what is to be learnt; of the corrections those that are, and those to decide by.

    A correction takes the place of a training example with its text. Of a text in validation or test, where nothing is
    learnt from, it is held out.
    """
    watched = {example_key(one) for one in (*splits.validation, *splits.test)}
    held = tuple(one for one in found if one.held_out or example_key(one.example) in watched)
    learnt = tuple(one for one in found if one not in held)
    corrected = {example_key(one.example) for one in found}
    kept = [one for one in splits.train if example_key(one) not in corrected]
    note = f"{len(learnt)} corrections are learnt, {len(held)} are held out to decide by"
    train = [*kept, *(one.example for one in learnt)]
    return replace(splits, train=train, notes=(*splits.notes, note)), learnt, held


def _tune(
    project: Project,
    folder: Path,
    served: Path,
    told: Mapping[str, Any],
    origin: Origin,
    found: Sequence[CorrectedExample],
    policy: TaskPolicy,
    say: Say,
    on_progress: Callable[[TaskProgress], None],
) -> TaskTuning:
    registry = versions(folder)
    staged = registry.folder / f".{uuid4().hex}"
    registry.folder.mkdir(parents=True, exist_ok=True)
    try:
        decision, learnt = _trained(project, staged, served, told, origin, found, policy, say, on_progress)
        return TaskTuning(_take_in(registry, staged, served, decision), decision, learnt)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _trained(
    project: Project,
    staged: Path,
    served: Path,
    told: Mapping[str, Any],
    origin: Origin,
    found: Sequence[CorrectedExample],
    policy: TaskPolicy,
    say: Say,
    on_progress: Callable[[TaskProgress], None],
) -> tuple[TaskDecision, int]:
    """Train into a folder and hold it against what is served. Returns how many corrections it learnt, too."""
    from tuner.tasks.api import fit_in_team, load_version, read_splits

    splits, learnt, held = with_corrections(read_splits(told["task"], origin, project, say), found)
    before = load_version(served, project=project)
    made = fit_in_team(
        told["task"],
        splits,
        verify(served).base,
        staged,
        f"tune-{staged.name[1:9]}",
        project,
        origin,
        say,
        on_progress,
        told["settings"],
        kept={"corrections": _kept(learnt, held)},
        way=told.get("way", "head"),
        into=told["options"].get("into", ""),
    )
    corrected = [one.example for one in held]
    decision = decide(
        (before.evaluate(splits.test).right, made.scores.right),
        (before.evaluate(corrected).right, made.predictor.evaluate(corrected).right),
        policy,
    )
    return decision, len(learnt)


def _take_in(registry: Registry, staged: Path, served: Path, decision: TaskDecision) -> Adapter:
    """The trained folder as a version, with the gate's word on it; served where that is to ship."""
    id = verify(staged).id
    add_documents(staged, write_report(decision, verify(served).id, id))
    staged.rename(registry.folder / id)
    version = registry.add(registry.folder / id)
    if not decision.ship:
        return registry.reject(version.id, decision.reasons[0], timestamp())
    registry.transition(version.id, State.GATED, decision.reasons[0], timestamp())
    return registry.promote(version.id, decision.reasons[0], timestamp())


def _found(project: Project, folder: Path, told: Mapping[str, Any], say: Say) -> list[CorrectedExample]:
    tools = project_tasks(project).get(folder.resolve(), ())
    if not tools:
        raise DatasetError(
            f"no tool is named for {folder}, so nobody corrected it; add it to [tools] tasks in ratchet.toml, or train "
            "on new examples with `ratchet task train --from`"
        )
    if not project.home.database.is_file():
        raise StoreError(f"there are no runs yet in {project.home.root}; start one with `ratchet run`")
    with Store(project.home.database) as store:
        return corrected_examples(
            (one for one in store.feedback.output_corrections() if one.tool in tools), told, store, say
        )


def _check(found: Sequence[CorrectedExample], told: Mapping[str, Any], policy: TaskPolicy) -> None:
    """Refuse what nothing could come of, before anything is trained."""
    if {one.id for one in found} == {one["id"] for one in told.get("corrections", ())}:
        raise DatasetError(
            f"all {len(found)} corrections are learnt already; correct more with `ratchet correct RUN STEP --output`"
            if found
            else "no output of this task was corrected yet; correct some with `ratchet correct RUN STEP --output`"
        )
    held = sum(one.held_out for one in found)
    if held < policy.min_corrected or held == len(found):
        raise DatasetError(
            f"of {len(found)} corrections {held} are held out to decide by and {len(found) - held} can be learnt; "
            f"expected at least {policy.min_corrected} and 1 (every third is held out): correct more"
        )


def _origin(folder: Path, told: Mapping[str, Any], data: Path | None, project: Project) -> Origin:
    noted = told.get("origin")
    if data is not None:
        fresh = Origin.of(project, data)
        return replace(Origin.from_dict(noted), data=fresh.data, test=None, validation=None) if noted else fresh
    if noted is None:
        raise DatasetError(f"{folder} does not say what it was trained on; name the file with --data")
    origin = Origin.from_dict(noted)
    for path, mend in (
        *((path, "name it with --data") for path in (origin.data, origin.test, origin.validation)),
        *((path, "train anew with `ratchet task train`") for path in (origin.start, origin.replay)),
    ):
        if path is not None and not project.resolve(path).exists():
            raise DatasetError(f"{project.resolve(path)}, which {folder} was trained on, is gone; {mend}")
    return origin


def _kept(learnt: Sequence[CorrectedExample], held: Sequence[CorrectedExample]) -> list[dict[str, Any]]:
    """What `task.json` says of the corrections: whose they were, and not what they say."""
    return [{"id": one.id, "run": one.run, "learnt": one in learnt} for one in (*learnt, *held)]
