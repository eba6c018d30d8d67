"""Forgets a person: finds what of the log and the documents is theirs, and takes it out so that nothing is left.

A run is theirs when a fact's value is the ID, or when its task, facts, steps or feedback have the ID as a whole word,
in capitals or not; so are its branches, and runs that were shown a passage of a document of theirs. A document is
theirs when a value of its metadata is the ID; one that only names the ID is listed, for the user to decide. What was
learnt from the runs is found by the tuner, behind `Tuned`. Not promised: that text without the ID is found, such as
a masked address or a misspelt name; nor that weights forget, which only training without the text brings about.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from agent.config.project import Home
from agent.knowledge.document_store import Shelf, StoredDocument
from agent.knowledge.schema import tenant_names
from agent.privacy.subject import Subject
from agent.records.feedback import Arbitration, Correction, OutputCorrection, Rating
from agent.records.run import Recalled, Step, Trajectory
from agent.storage.database import open_engine
from agent.storage.store import Store
from agent.storage.tables import Forgetting
from agent.text.normalise import plain

if TYPE_CHECKING:
    from agent.knowledge.knowledge import Memory

Reason = Literal["fact", "task", "step", "feedback", "passage", "branch"]
"""Where the ID stands in a run. `passage`: the run was shown one of a document that is the subject's. `branch`: it
shares its task with a run that is."""

Feedback = Rating | Correction | OutputCorrection | Arbitration

Place = Literal["owner", "metadata", "name", "text"]
"""Where the ID stands in a document. `owner`: a value of its metadata is the ID, so that it is the subject's."""

_DOCUMENTS = 200
"""Documents whose text is looked through at once."""


@dataclass(frozen=True)
class FoundRuns:
    """What of the log is the subject's."""

    runs: Mapping[str, Reason]
    texts: frozenset[str] = frozenset()
    """What these runs' tasks are shown as where they are recalled, less what a run that stays says as well."""
    recalled: Mapping[str, tuple[Recalled, ...]] = field(default_factory=dict)
    """Runs that stay and were shown such a text, and what is left of what they were shown."""


@dataclass(frozen=True)
class FoundDocument:
    """A document that is the subject's, or names the ID."""

    tenant: str
    name: str
    folder: str
    """Where it was added from; while its file is there, the next `docs sync` adds it again."""
    place: Place


@dataclass(frozen=True)
class Traces:
    """What to look for in what was made of the runs."""

    subject: Subject
    runs: frozenset[str]
    texts: frozenset[str]
    """As in `FoundRuns`."""
    earlier: tuple[Forgetting, ...]
    """What was forgotten before; what an interruption left of it goes too."""
    documents: frozenset[str] = frozenset()
    """Names of documents that are the subject's own: a dataset may show them where no run was."""


@dataclass(frozen=True)
class LearntDataset:
    """A dataset folder with text of the subject."""

    name: str
    examples: tuple[str, ...]
    """Runs of the subject's it has examples of; none where it only shows their words beside others."""
    runs: tuple[str, ...]
    """All runs it has examples of."""


@dataclass(frozen=True)
class LearntAdapter:
    """An adapter that was trained on what is forgotten, may have been, or has pages that name the ID."""

    id: str
    state: str
    served: bool
    runs: int
    """Runs that are forgotten now, of which it or an adapter it goes back to has learnt."""
    earlier: int
    """The same for runs that were forgotten before."""
    through: tuple[str, ...]
    """The adapters it has that from: itself, its parents, what it is merged of."""
    unknown: bool
    """A dataset or an adapter that it goes back to is gone, so that there may be more."""
    pages: tuple[str, ...]
    """Files of its sealed folder that name the ID. They stay unless it is asked for."""


@dataclass(frozen=True)
class LearntTask:
    """A version of a trained classic task that learnt of what is forgotten, may have, or has text that names the ID."""

    folder: Path
    id: str
    tools: tuple[str, ...]
    """Names of the agent's tools that ask the task."""
    served: bool
    """Whether the task's name stands for this version."""
    runs: int
    """Runs that are forgotten now, of which it learnt a corrected output, itself or where it goes on from."""
    earlier: int
    """The same for runs that were forgotten before."""
    data: tuple[Path, ...]
    """Files it was trained on that name the ID. They are the user's own and stay."""
    unknown: bool
    """It does not say what it was trained on, or that is gone, so that there may be more."""
    pages: tuple[str, ...]
    """Files of its sealed folder that name the ID. They stay unless it is asked for."""


@dataclass(frozen=True)
class Learnt:
    """What was made of the runs."""

    datasets: tuple[LearntDataset, ...] = ()
    files: tuple[Path, ...] = ()
    """Files and folders that hold text, or cannot be gone on with: of tunings and of evaluations."""
    adapters: tuple[LearntAdapter, ...] = ()
    tasks: tuple[LearntTask, ...] = ()
    commands: tuple[str, ...] = ()
    """What serves and trains without the forgotten runs."""
    suite: Path | None = None
    """The held-out suite, where it names the ID. It is the user's own file and stays."""

    @property
    def pages(self) -> bool:
        """Whether a sealed folder has pages that name the ID."""
        return any(one.pages for one in self.adapters) or any(one.pages for one in self.tasks)


class Tuned(Protocol):
    """What the tuner knows of. `tuner.privacy.erasure.Made` is the one there is."""

    def alone(self) -> AbstractContextManager[None]:
        """While no tuning runs, and none begins."""
        ...

    def find(self, traces: Traces) -> Learnt: ...

    def remove(self, learnt: Learnt, *, pages: bool) -> None:
        """Delete datasets and files; with `pages`, those of sealed folders too, which are sealed anew."""
        ...


@dataclass(frozen=True)
class Found:
    """All that was found. Nothing is touched yet."""

    runs: FoundRuns
    workspaces: tuple[Path, ...]
    documents: tuple[FoundDocument, ...]
    """Those that go."""
    mentions: tuple[FoundDocument, ...]
    """Those that stay, and name the ID."""
    learnt: Learnt

    def goes(self, *, pages: bool) -> bool:
        """Whether there is anything to remove."""
        sealed = pages and self.learnt.pages
        held = (self.runs.runs, self.runs.recalled, self.workspaces, self.documents)
        return sealed or any(held) or bool(self.learnt.datasets or self.learnt.files)


def find(home: Home, subject: Subject, tuned: Tuned, *, documents: bool = False, own_tenant: str = "") -> Found:
    """Look for everything that is the subject's; with `documents`, those that only name the ID go too.

    `own_tenant` is the one whose documents the runs were shown.
    """
    runs, earlier = FoundRuns({}), tuple[Forgetting, ...]()
    every: list[FoundDocument] = []
    owned: set[str] = set()
    if home.database.is_file():
        every = list(_find_documents(home.database, subject))
        owned = {one.name for one in every if one.place == "owner" and one.tenant == own_tenant}
        with Store(home.database) as store:
            runs, earlier = find_runs(store, subject, owned), store.forgettings()
    goes = [one for one in every if documents or one.place == "owner"]
    traces = Traces(subject, frozenset(runs.runs), runs.texts, earlier, frozenset(owned))
    return Found(
        runs=runs,
        workspaces=tuple(_workspaces(home, [*runs.runs, *(run for one in earlier for run in one.runs)])),
        documents=tuple(goes),
        mentions=tuple(one for one in every if one not in goes),
        learnt=tuned.find(traces),
    )


def forget(
    home: Home,
    found: Found,
    tuned: Tuned,
    *,
    open_memory: Callable[[str], Memory],
    at: str,
    pages: bool = False,
) -> bool:
    """Remove what was found. False where another process kept the database's log from being emptied.

    The log goes first, with the record of it: what is interrupted behind that is found again and removed by the next
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


def find_runs(store: Store, subject: Subject, owned: Collection[str] = ()) -> FoundRuns:
    """What of the log is the subject's; `owned` are names of documents that are."""
    said: dict[str, list[Feedback]] = {}
    every: list[Feedback] = [
        *store.ratings(),
        *store.corrections(),
        *store.output_corrections(),
        *store.arbitrations(),
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
        shown[trajectory.id] = plain(trajectory.task.text)
        if trajectory.provenance.recalled:
            recalled[trajectory.id] = trajectory.provenance.recalled
    runs = with_branches(matched, list(shown), branches)
    texts = {shown[run] for run in runs} - {text for run, text in shown.items() if run not in runs}
    left = {
        run: tuple(one for one in were_shown if one.run not in runs and not is_shown(subject, texts, one))
        for run, were_shown in recalled.items()
        if run not in runs
    }
    changed = {run: kept for run, kept in left.items() if kept != recalled[run]}
    return FoundRuns(runs, frozenset(texts), changed)


def reason_of(
    subject: Subject,
    trajectory: Trajectory,
    *,
    feedback: Sequence[Feedback] = (),
    intents: Sequence[Step] = (),
    owned: Collection[str] = (),
) -> Reason | None:
    """Why a run is the subject's; None when it is not. Who gave feedback is not looked at: that is no text of it."""
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
    """The matched runs and all that share their task: what they left, and what left them. In the order of `runs`."""

    def root(run: str) -> str:
        seen = {run}
        while run in branches and branches[run] not in seen:
            run = branches[run]
            seen.add(run)
        return run

    roots = {root(run) for run in matched}
    return {run: matched.get(run, "branch") for run in runs if root(run) in roots}


def is_shown(subject: Subject, texts: Collection[str], recalled: Recalled) -> bool:
    """Whether a solved task that a run was shown is one of these, or names the ID."""
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
        # A caller may have chosen the id: nothing outside is ever removed.
        if folder.is_dir() and not folder.is_symlink() and folder.resolve().parent == home.workspaces.resolve():
            yield folder


# -- documents -----------------------------------------------------------------------------------------------


def _find_documents(database: Path, subject: Subject) -> Iterator[FoundDocument]:
    """The documents of every tenant that have the ID anywhere."""
    engine = open_engine(database)
    try:
        for tenant in tenant_names(engine):
            shelf = Shelf(engine, tenant=tenant)
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
                        yield FoundDocument(tenant, one.name, one.folder, place)
    finally:
        engine.dispose()


def place_in(subject: Subject, document: StoredDocument, *, in_text: bool) -> Place | None:
    """Where a document has the ID; None when it has not."""
    if any(map(subject.equals, document.metadata.values())):
        return "owner"
    if subject.is_in(document.metadata):
        return "metadata"
    if subject.is_in(document.name):
        return "name"
    return "text" if in_text else None
