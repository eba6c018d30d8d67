"""Forgets a person: finds and removes their data in the log and the documents.

A run belongs to them when a value of its context is the ID, or when its task, context, steps or feedback have the ID as
a whole word, in any case; so do its branches, and runs that found a passage of a document of theirs. A document belongs
to them when a value of its metadata is the ID; one that only names the ID is listed, for the user to decide. Datasets
and adapters made from the runs are found by the tuner, through `TrainingData`. Does not find text without the ID, such
as a masked address or a misspelt name, and does not change weights: only training without the text does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from agent.config.project import Home
from agent.knowledge.document_store import DocumentStore
from agent.knowledge.schema import StoredDocument, tenant_names
from agent.privacy.subject import Subject
from agent.records.feedback import Arbitration, Correction, OutputCorrection, Rating
from agent.records.run import Recalled, Step, Trajectory
from agent.storage.database import open_engine
from agent.storage.store import Store
from agent.storage.tables import Forgetting
from agent.text.normalise import normalise_task

if TYPE_CHECKING:
    from agent.knowledge.knowledge import Knowledge

Reason = Literal["fact", "task", "step", "feedback", "passage", "branch"]
"""Where a run has the ID. `passage`: the run found a passage of a document that belongs to the subject. `branch`: it
shares its task with a run of the subject."""

Feedback = Rating | Correction | OutputCorrection | Arbitration

Place = Literal["owner", "metadata", "name", "text"]
"""Where a document has the ID. `owner`: a value of its metadata is the ID, so that it belongs to the subject."""

_DOCUMENTS = 200
"""Documents whose text is searched at once."""


@dataclass(frozen=True)
class RunMatches:
    """The runs of the subject, and what they left in other runs."""

    runs: Mapping[str, Reason]
    texts: frozenset[str] = frozenset()
    """Texts of these runs' tasks as recall shows them, except those that a remaining run has as well."""
    recalled: Mapping[str, tuple[Recalled, ...]] = field(default_factory=dict)
    """Remaining runs that were given such a text, with the recalled tasks that they keep."""


@dataclass(frozen=True)
class DocumentMatch:
    """A document that belongs to the subject, or names the ID."""

    tenant: str
    name: str
    folder: str
    """The folder it was added from; while its file exists, the next `docs sync` adds it again."""
    place: Place


@dataclass(frozen=True)
class Traces:
    """What to look for in the data made from the runs."""

    subject: Subject
    runs: frozenset[str]
    texts: frozenset[str]
    """As in `RunMatches.texts`."""
    earlier: tuple[Forgetting, ...]
    """Earlier deletions; what an interruption left of them is removed too."""
    documents: frozenset[str] = frozenset()
    """Names of the subject's documents: a dataset may contain them without a run of the subject."""


@dataclass(frozen=True)
class DatasetTrace:
    """A dataset folder with text of the subject."""

    name: str
    examples: tuple[str, ...]
    """Runs of the subject that it has examples of; none where their text is only context of other examples."""
    runs: tuple[str, ...]
    """All runs that it has examples of."""


@dataclass(frozen=True)
class AdapterTrace:
    """An adapter that was or may have been trained on erased data, or has pages that name the ID."""

    id: str
    state: str
    served: bool
    runs: int
    """Number of runs to erase that it, or an adapter it goes back to, was trained on."""
    earlier: int
    """The same for runs that were erased before."""
    through: tuple[str, ...]
    """The adapters that were trained on them: itself, its parents, the parts of a merge."""
    unknown: bool
    """Whether a dataset or an adapter that it goes back to is missing, so that there may be more."""
    pages: tuple[str, ...]
    """Files of its sealed folder that name the ID; removed only with `pages`."""


@dataclass(frozen=True)
class TaskTrace:
    """A version of a trained task that was or may have been trained on erased data, or has text that names the ID."""

    folder: Path
    id: str
    tools: tuple[str, ...]
    """Names of the agent's tools that call the task."""
    served: bool
    """Whether the task's name stands for this version."""
    runs: int
    """Number of runs to erase with a corrected output that it, or its parent, was trained on."""
    earlier: int
    """The same for runs that were erased before."""
    data: tuple[Path, ...]
    """Files it was trained on that name the ID. They belong to the user and are not removed."""
    unknown: bool
    """Whether its training data is not recorded or missing, so that there may be more."""
    pages: tuple[str, ...]
    """Files of its sealed folder that name the ID; removed only with `pages`."""


@dataclass(frozen=True)
class TrainingTraces:
    """The data made from the runs: datasets, adapters, trained tasks and other files."""

    datasets: tuple[DatasetTrace, ...] = ()
    files: tuple[Path, ...] = ()
    """Files and folders of tunings and evaluations that contain text, or cannot be resumed any more."""
    adapters: tuple[AdapterTrace, ...] = ()
    tasks: tuple[TaskTrace, ...] = ()
    commands: tuple[str, ...] = ()
    """Commands that serve and train without the erased runs."""
    suite: Path | None = None
    """The held-out suite, where it names the ID. It belongs to the user and is not removed."""

    @property
    def pages(self) -> bool:
        """Whether a sealed folder has pages that name the ID."""
        return any(one.pages for one in self.adapters) or any(one.pages for one in self.tasks)


class TrainingData(Protocol):
    """Finds and removes what was made from runs; implemented in `tuner.privacy.erasure`."""

    def alone(self) -> AbstractContextManager[None]:
        """Return a context in which no tuning runs or begins."""
        ...

    def find(self, traces: Traces) -> TrainingTraces: ...

    def remove(self, learnt: TrainingTraces, *, pages: bool) -> None:
        """Delete datasets and files; with `pages`, those in sealed folders too, which are sealed again."""
        ...


@dataclass(frozen=True)
class ErasurePlan:
    """All data of a person that was found. Nothing is removed yet."""

    runs: RunMatches
    workspaces: tuple[Path, ...]
    documents: tuple[DocumentMatch, ...]
    """Documents to remove."""
    mentions: tuple[DocumentMatch, ...]
    """Documents that remain and name the ID."""
    learnt: TrainingTraces

    def goes(self, *, pages: bool) -> bool:
        """Return whether there is anything to remove."""
        sealed = pages and self.learnt.pages
        held = (self.runs.runs, self.runs.recalled, self.workspaces, self.documents)
        return sealed or any(held) or bool(self.learnt.datasets or self.learnt.files)


def find(
    home: Home, subject: Subject, tuned: TrainingData, *, documents: bool = False, own_tenant: str = ""
) -> ErasurePlan:
    """Find all data of a person; with `documents`, documents that only name the ID are removed too.

    `own_tenant` is the tenant whose documents the runs search.
    """
    runs, earlier = RunMatches({}), tuple[Forgetting, ...]()
    every: list[DocumentMatch] = []
    owned: set[str] = set()
    if home.database.is_file():
        every = list(_find_documents(home.database, subject))
        owned = {one.name for one in every if one.place == "owner" and one.tenant == own_tenant}
        with Store(home.database) as store:
            runs, earlier = find_runs(store, subject, owned), store.forgettings()
    goes = [one for one in every if documents or one.place == "owner"]
    traces = Traces(subject, frozenset(runs.runs), runs.texts, earlier, frozenset(owned))
    return ErasurePlan(
        runs=runs,
        workspaces=tuple(_workspaces(home, [*runs.runs, *(run for one in earlier for run in one.runs)])),
        documents=tuple(goes),
        mentions=tuple(one for one in every if one not in goes),
        learnt=tuned.find(traces),
    )


def forget(
    home: Home,
    found: ErasurePlan,
    tuned: TrainingData,
    *,
    open_memory: Callable[[str], Knowledge],
    at: str,
    pages: bool = False,
) -> bool:
    """Remove what was found. Returns False where another process kept the database's log from being emptied.

    The log goes first, with the record of it: what is interrupted after that is found again and removed by the next
    call, for datasets and workspaces are known by their runs. `open_memory` opens a tenant's documents.
    """
    record = Forgetting(
        at=at,
        runs=tuple(found.runs.runs),
        documents=len(found.documents),
        datasets={one.name: one.runs for one in found.learnt.datasets},
    )
    with Store(home.database) as store:
        store.forget(record, found.runs.recalled)
        tuned.remove(found.learnt, pages=pages)
        for tenant in dict.fromkeys(one.tenant for one in found.documents):
            memory = open_memory(tenant)
            try:
                memory.remove_all([one.name for one in found.documents if one.tenant == tenant], for_good=True)
            finally:
                memory.close()
        for workspace in found.workspaces:
            shutil.rmtree(workspace)
        return store.scour()


# -- runs ----------------------------------------------------------------------------------------------------


def find_runs(store: Store, subject: Subject, owned: Collection[str] = ()) -> RunMatches:
    """What of the log is the subject's; `owned` are names of documents that are."""
    said: dict[str, list[Feedback]] = {}
    every: list[Feedback] = [
        *store.feedback.ratings(),
        *store.feedback.corrections(),
        *store.feedback.output_corrections(),
        *store.feedback.arbitrations(),
    ]
    for one in every:
        said.setdefault(one.run, []).append(one)
    intended: dict[str, list[Step]] = {}
    for run, step in store.intents():
        if subject.is_in(_texts_of_step(step)):
            intended.setdefault(run, []).append(step)
    matched: dict[str, Reason] = {}
    branches: dict[str, str] = {}
    shown: dict[str, str] = {}
    recalled: dict[str, tuple[Recalled, ...]] = {}
    for trajectory in store.trajectories():
        reason = reason_of(
            subject,
            trajectory,
            feedback=said.get(trajectory.id, ()),
            intents=intended.get(trajectory.id, ()),
            owned=owned,
        )
        if reason is not None:
            matched[trajectory.id] = reason
        if trajectory.branch is not None:
            branches[trajectory.id] = trajectory.branch.run
        shown[trajectory.id] = normalise_task(trajectory.task.text)
        if trajectory.provenance.recalled:
            recalled[trajectory.id] = trajectory.provenance.recalled
    runs = with_branches(matched, list(shown), branches)
    texts = {shown[run] for run in runs} - {text for run, text in shown.items() if run not in runs}
    left = {
        run: tuple(one for one in were_shown if one.run not in runs and not is_recalled_text(subject, texts, one))
        for run, were_shown in recalled.items()
        if run not in runs
    }
    changed = {run: kept for run, kept in left.items() if kept != recalled[run]}
    return RunMatches(runs, frozenset(texts), changed)


def reason_of(
    subject: Subject,
    trajectory: Trajectory,
    *,
    feedback: Sequence[Feedback] = (),
    intents: Sequence[Step] = (),
    owned: Collection[str] = (),
) -> Reason | None:
    """Return where a run has the ID; None where it has not. Names of reviewers do not count."""
    task = trajectory.task
    if any(map(subject.equals, task.facts.values())):
        return "fact"
    if subject.is_in([task.id, task.text, task.facts]):
        return "task"
    if subject.is_in([trajectory.error, *map(_texts_of_step, (*trajectory.steps, *intents))]):
        return "step"
    if any(subject.is_in(_texts_of_feedback(one)) for one in feedback):
        return "feedback"
    return "passage" if any(passage.document in owned for passage in trajectory.passages) else None


def with_branches(matched: Mapping[str, Reason], runs: Sequence[str], branches: Mapping[str, str]) -> dict[str, Reason]:
    """Return the matched runs with their branches and parents, in the order of `runs`."""

    def root(run: str) -> str:
        seen = {run}
        while run in branches and branches[run] not in seen:
            run = branches[run]
            seen.add(run)
        return run

    roots = {root(run) for run in matched}
    return {run: matched.get(run, "branch") for run in runs if root(run) in roots}


def is_recalled_text(subject: Subject, texts: Collection[str], recalled: Recalled) -> bool:
    """Return whether a recalled task is one of these texts, or names the ID."""
    return recalled.text in texts or subject.is_in([recalled.text, recalled.plan])


def _texts_of_step(step: Step) -> list[Any]:
    call = None if step.call is None else step.call.arguments
    passages = [[one.document, one.heading, one.text] for one in step.passages]
    return [call, step.observation, step.thought, step.plan, step.error, step.notice, step.said, passages]


def _texts_of_feedback(feedback: Feedback) -> list[Any]:
    if isinstance(feedback, Correction):
        return [feedback.call.arguments, feedback.thought, feedback.plan, feedback.reason]
    if isinstance(feedback, OutputCorrection):
        return [feedback.output, feedback.reason]
    return [feedback.reason]


def _workspaces(home: Home, runs: Sequence[str]) -> Iterator[Path]:
    for run in dict.fromkeys(runs):
        folder = home.workspaces / run
        # The caller may choose the id: nothing outside the workspaces is ever removed.
        if folder.is_dir() and not folder.is_symlink() and folder.resolve().parent == home.workspaces.resolve():
            yield folder


# -- documents -----------------------------------------------------------------------------------------------


def _find_documents(database: Path, subject: Subject) -> Iterator[DocumentMatch]:
    """Yield the documents of every tenant that have the ID."""
    engine = open_engine(database)
    try:
        for tenant in tenant_names(engine):
            shelf = DocumentStore(engine, tenant=tenant)
            documents = shelf.documents()
            for start in range(0, len(documents), _DOCUMENTS):
                part = documents[start : start + _DOCUMENTS]
                named = {
                    chunk.document
                    for chunk in shelf.chunks_of([one.name for one in part])
                    if subject.is_in([chunk.heading, chunk.text])
                }
                for one in part:
                    place = place_in(subject, one, in_text=one.name in named)
                    if place is not None:
                        yield DocumentMatch(tenant, one.name, one.folder, place)
    finally:
        engine.dispose()


def place_in(subject: Subject, document: StoredDocument, *, in_text: bool) -> Place | None:
    """Return where a document has the ID; None where it has not."""
    if any(map(subject.equals, document.metadata.values())):
        return "owner"
    if subject.is_in(document.metadata):
        return "metadata"
    if subject.is_in(document.name):
        return "name"
    return "text" if in_text else None
