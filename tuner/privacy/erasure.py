"""What was learnt from runs that are forgotten: dataset folders, files of tunings and evaluations, adapters.

Datasets and files go: they are made anew from the log. Adapters stay, for what is served is not decided here; each is
named with what it learnt, and the commands that train without it. A sealed folder is changed only where that is asked
for, and sealed anew. Not promised: to say what an adapter was trained on whose dataset was deleted by hand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from agent.config.project import Project
from agent.errors import AdapterError, DatasetError
from agent.privacy.erasure import AdapterTrace, DatasetTrace, Traces, TrainingTraces, is_recalled_text, reason_of
from agent.privacy.subject import Subject
from agent.registry.artifact import remove_documents, verify
from agent.registry.registry import Adapter, Registry
from tuner.data.curate import TrainingRow
from tuner.data.dataset import read_dataset
from tuner.pipeline.run_folder import checkpoints_of, dataset_of, one_at_a_time
from tuner.privacy.task_models import find_tasks, retraining_tasks
from tuner.privacy.tracing import names_subject, pages_of, text_files


@dataclass(frozen=True)
class HomeTraining:
    """What a project's home holds that was made of its runs. An `agent.privacy.erasure.TrainingData`."""

    project: Project
    say: Callable[[str], None] = lambda text: None

    def alone(self) -> AbstractContextManager[None]:
        return one_at_a_time(self.project.home.tunings, self.say)

    def find(self, traces: Traces) -> TrainingTraces:
        home = self.project.home
        known = {one.name: one for one in _datasets(home.datasets, traces)}
        goes = tuple(one for one in known.values() if one.goes)
        gone = {one.name for one in goes} | {name for earlier in traces.earlier for name in earlier.datasets}
        files = [*_tuning_files(home.tunings, gone, traces), *_evaluation_files(home.evaluations, traces.subject)]
        registry = Registry(home.adapters)
        adapters = tuple(_adapters(registry, known, traces))
        tasks = tuple(find_tasks(self.project, traces))
        suite = self.project.resolve(self.project.settings.gate.suite) if self.project.settings.gate.suite else None
        return TrainingTraces(
            datasets=tuple(DatasetTrace(one.name, one.examples, one.runs) for one in goes),
            files=tuple(files),
            adapters=adapters,
            tasks=tasks,
            commands=(*retraining(adapters, [one.id for one in registry.line()]), *retraining_tasks(tasks)),
            suite=suite if suite is not None and names_subject(suite, traces.subject) else None,
        )

    def remove(self, learnt: TrainingTraces, *, pages: bool) -> None:
        for dataset in learnt.datasets:
            shutil.rmtree(self.project.home.datasets / dataset.name)
        for path in learnt.files:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        for adapter in learnt.adapters:
            if pages and adapter.pages:
                remove_documents(self.project.home.adapters / adapter.id, adapter.pages)
        for task in learnt.tasks:
            if pages and task.pages:
                remove_documents(task.folder, task.pages)


def retraining(adapters: Sequence[AdapterTrace], line: Sequence[str]) -> tuple[str, ...]:
    """What serves and trains without the forgotten runs; nothing where no adapter learnt of them.

    `line` is what is served and what each rollback would come to.
    """
    learnt = {one.id for one in adapters if one.runs or one.earlier}
    if not learnt:
        return ()
    back = next((place for place, id in enumerate(line) if id not in learnt), len(line))
    # A tuning may go on from what is served, so that comes first.
    return (*["ratchet rollback"] * back, "ratchet tune --promote")


# -- datasets ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Dataset:
    """A dataset folder that was looked through."""

    name: str
    goes: bool
    examples: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()


def _datasets(folder: Path, traces: Traces) -> Iterator[_Dataset]:
    """Every dataset folder, those that a crash left half written too."""
    runs = traces.runs | {run for one in traces.earlier for run in one.runs}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.is_dir():
            continue
        try:
            dataset = read_dataset(path)
        except DatasetError:
            yield _Dataset(path.name, _broken_is_theirs(path, traces, runs))
            continue
        rows = dataset.train + dataset.held_out
        examples = tuple(dict.fromkeys(row.run for row in rows if row.run in runs or _is_theirs(row, traces.subject)))
        shown = any(
            one.run in traces.runs or is_recalled_text(traces.subject, traces.texts, one)
            for row in rows
            for one in row.trajectory.provenance.recalled
        ) or any(passage.document in traces.documents for row in rows for passage in row.trajectory.passages)
        every = tuple(dict.fromkeys(row.run for row in rows))
        yield _Dataset(path.name, bool(examples) or shown, examples, every)


def _broken_is_theirs(folder: Path, traces: Traces, runs: Collection[str]) -> bool:
    """Of a folder that cannot be read as a dataset its plain text is looked through."""
    for path in text_files(folder):
        text = path.read_bytes().decode("utf-8", "replace")
        # Rows are JSON, in which a text may be spelt otherwise.
        shown = (text.count(json.dumps(one, ensure_ascii=False)[1:-1]) for one in traces.texts)
        if names_subject(path, traces.subject) or any(run in text for run in runs) or any(shown):
            return True
    return False


def _is_theirs(row: TrainingRow, subject: Subject) -> bool:
    return reason_of(subject, row.trajectory, intents=tuple(row.targets.values())) is not None


# -- files ---------------------------------------------------------------------------------------------------


def _tuning_files(folder: Path, datasets: set[str], traces: Traces) -> Iterator[Path]:
    """Of tunings on these datasets the report and what an unfinished one has learnt; of others a report that names
    the ID.

    Figures, plots and what a tuning was begun with stay: they hold no text.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.is_dir():
            continue
        concerned = dataset_of(path) in datasets
        for found in sorted(path.iterdir()):
            if found.name == "report.html" or found.suffix == ".tmp":
                goes = concerned or names_subject(found, traces.subject)
            else:
                goes = concerned and found in (checkpoints_of(path), path / "adapter")
            if goes:
                yield found


def _evaluation_files(folder: Path, subject: Subject) -> Iterator[Path]:
    """Evaluations are kept so that a question is not asked twice, and can be asked again."""
    return (path for path in text_files(folder) if names_subject(path, subject))


# -- adapters ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lessons:
    """The runs that one adapter's own dataset had examples of; None where that is not known."""

    runs: frozenset[str] | None
    before: tuple[str, ...]
    """The adapters it goes back to."""


def _adapters(registry: Registry, datasets: Mapping[str, _Dataset], traces: Traces) -> Iterator[AdapterTrace]:
    """Those that learnt, or may have learnt, of what is forgotten now or was before, or name the ID."""
    earlier = frozenset(run for one in traces.earlier for run in one.runs)
    # What matches now counts, whether its run is in the log still or not.
    now = traces.runs | {run for one in datasets.values() for run in one.examples} - earlier
    known = {name: frozenset(one.runs) for name, one in datasets.items() if one.runs}
    for forgetting in traces.earlier:
        for name, runs in forgetting.datasets.items():
            known.setdefault(name, frozenset(runs))
    lessons = {one.id: _lessons(one, known) for one in registry.list()}
    served = registry.serving().adapter
    for one in registry.list():
        line = _ancestors(one.id, lessons)
        learnt = {id: lessons[id].runs or frozenset[str]() for id in line if id in lessons}
        every = frozenset[str]().union(*learnt.values())
        made = AdapterTrace(
            id=one.id,
            state=one.state,
            served=served is not None and served.id == one.id,
            runs=len(every & now),
            earlier=len(every & earlier),
            through=tuple(id for id, held in learnt.items() if held & (now | earlier)),
            unknown=any(id not in lessons or lessons[id].runs is None for id in line),
            pages=tuple(pages_of(one.folder, traces.subject)),
        )
        if made.runs or made.earlier or made.unknown or made.pages:
            yield made


def _lessons(adapter: Adapter, known: Mapping[str, frozenset[str]]) -> _Lessons:
    if adapter.merged:
        return _Lessons(frozenset(), adapter.merged)
    before = () if adapter.parent is None else (adapter.parent,)
    try:
        return _Lessons(known.get(verify(adapter.folder).dataset_hash[:16]), before)
    except (AdapterError, OSError):
        return _Lessons(None, before)


def _ancestors(id: str, lessons: Mapping[str, _Lessons]) -> tuple[str, ...]:
    """The adapter and all it goes back to or is merged of, those that are gone too."""
    seen: dict[str, None] = {}
    ahead = [id]
    while ahead:
        one = ahead.pop()
        if one not in seen:
            seen[one] = None
            ahead += lessons[one].before if one in lessons else ()
    return tuple(seen)
