"""`Agent`: the whole loop (run, correct, train, gate, serve) as one Python object."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.api.adapters import Adapters, Candidate, EncoderAdapters, OnTasks, Suites, evaluate_with
from agent.api.arguments import existing_folders, make_task, open_project, open_trained_tasks, with_changes
from agent.api.documents import Documents
from agent.api.progress import show_progress
from agent.api.runs import RunHandle, Runs
from agent.api.shadowing import check_not_hidden
from agent.api.tasks import Tasks

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from agent.encoders.encoder import Encoder
    from agent.llm.step_model import Stepper
    from agent.privacy.erasure import ErasurePlan
    from agent.run.state import Event
    from agent.runtime import Runtime
    from tools.functions import Tool
    from tuner.evaluation.evaluate import Evaluation
    from tuner.evaluation.suite import Suite
    from tuner.training.hyperparameter_search import SearchResult
    from tuner.training.results import Progress

BASE = "base"
"""Names the model without an adapter."""

_log = logging.getLogger("ratchet.api")


class Agent:
    """An agent over a project: it does tasks with tools and documents, and learns from corrections.

    Use it as a context manager, or call `close`. It may be used from several threads at once. Ids and times are made
    inside. What takes long (the model, the documents) is loaded when it is first needed.
    """

    def __init__(
        self,
        tools: Sequence[Tool] = (),
        documents: str | Path | Sequence[str | Path] | None = None,
        *,
        project: str | Path | None = None,
        home: str | Path | None = None,
        model: BaseChatModel | Stepper | str | None = None,
        encoder: Encoder | str | None = None,
        instructions: str | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Read the project's settings and check the tools.

        Args:
            tools: Functions, sync or async, and langchain-core tools, besides those that `ratchet.toml` names.
            documents: Folders of documents, relative to the current folder. They are read before the first run.
            project: The project's folder; left out, that of the nearest `ratchet.toml` from the current folder up, else
                the current folder.
            home: The folder for runs, adapters and models; left out, `.ratchet` in the project.
            model: A chat model, such as `ScriptedModel`, or the name of a base model. Adapters need a local model.
            encoder: A sentence encoder or its name.
            instructions: The agent's instructions, first in the prompt.
            settings: Other settings by section, such as `{"agent": {"max_steps": 4}}`; they go before `ratchet.toml`.

        Raises:
            SettingsError: `ratchet.toml` or an argument does not hold.
            ToolsError: A tool cannot work; names it and its argument.
            MemoryIndexError: A folder of documents does not exist.
        """
        check_not_hidden("tuner")
        from agent.runtime import Runtime

        changes = {section: dict(values) for section, values in (settings or {}).items()}
        for section, key, value in (
            ("agent", "instructions", instructions),
            ("model", "base", model if isinstance(model, str) else None),
            ("model", "encoder", encoder if isinstance(encoder, str) else None),
        ):
            if value is not None:
                changes.setdefault(section, {})[key] = value
        self.project = open_project(project, home, changes)
        """The folder, the home and the settings."""
        self._folders = existing_folders(documents)
        self._encoder = None if isinstance(encoder, str) else encoder
        self._runtime = Runtime(
            self.project,
            model=None if isinstance(model, str) else model,
            encoder=self._encoder,
            tasks=open_trained_tasks(self.project, _log.info),
            functions=tools,
            progress=_log.info,
        )
        self._lock = threading.Lock()
        self._check_tools()
        self.runs = Runs(self._open)
        self.documents = Documents(self._open)
        self.adapters = Adapters(self._open)
        self.encoder_adapters = EncoderAdapters(self._open)
        self.suites = Suites(self._open)
        self.tasks = Tasks(self.project)

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the model and close what is open on disk."""
        self._runtime.close()

    def __repr__(self) -> str:
        return f"Agent(project={str(self.project.folder)!r}, home={str(self.project.home.root)!r})"

    @property
    def runtime(self) -> Runtime:
        """The parts that the agent is made of, for what this class does not offer."""
        return self._open()

    # -- runs ----------------------------------------------------------------------------------------------

    def run(
        self,
        task: str,
        *,
        context: Mapping[str, str] | None = None,
        adapter: str = "active",
        tools: Sequence[str] | None = None,
        on_event: Callable[[Event], None] | None = None,
        cancelled: threading.Event | None = None,
    ) -> RunHandle:
        """Do a task and record the run.

        Args:
            task: What is to be done.
            context: What the caller knows of the task's sender and vouches for, such as a customer's id.
            adapter: An adapter's id, "active" for the one that is served, or "base".
            tools: Names of the tools that the run may use, besides those that end it; None for all.
            on_event: Receives each event of the run in the thread that the run goes on in.
            cancelled: Ends the run within a step when it is set.

        Raises:
            TaskError: The task is empty, or the context is not made of texts.
        """
        made = make_task(task, context)
        runtime = self._open()
        trajectory = runtime.run(
            made,
            run_id=made.id,
            adapter=None if adapter == BASE else adapter,
            tools=tools,
            on_event=on_event,
            cancelled=cancelled,
        )
        return RunHandle(runtime.reveal(trajectory), self._open)

    def stream(self, task: str, **options: Any) -> Iterator[Event]:
        """Do a task and yield its events, the last of them "ended".

        The run goes on in a thread of its own; a reader that stops early cancels it. `agent.runs.get()` returns the
        newest run, and `agent.runs.get(event.trajectory.id)` this one.

        Args:
            task: What is to be done.
            **options: Those of `run`, but `on_event`.
        """
        from agent.run.loop import stream_events

        cancelled = options.pop("cancelled", None) or threading.Event()
        yield from stream_events(lambda on_event: self._run_with_events(task, options, cancelled, on_event), cancelled)

    async def arun(self, task: str, **options: Any) -> RunHandle:
        """Do a task in a thread, for asyncio; cancelling the call cancels the run.

        Args:
            task: What is to be done.
            **options: Those of `run`.
        """
        cancelled = options.pop("cancelled", None) or threading.Event()
        try:
            return await asyncio.to_thread(self.run, task, cancelled=cancelled, **options)
        finally:
            cancelled.set()

    async def astream(self, task: str, **options: Any) -> AsyncIterator[Event]:
        """Do a task and yield its events, for asyncio; as `stream`.

        Args:
            task: What is to be done.
            **options: Those of `run`, but `on_event`.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        cancelled = options.pop("cancelled", None) or threading.Event()

        def put(event: Event | BaseException | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def produce() -> None:
            try:
                self._run_with_events(task, options, cancelled, put)
            except BaseException as fault:
                put(fault)
            else:
                put(None)

        worker = asyncio.create_task(asyncio.to_thread(produce))
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            cancelled.set()
            await worker

    def _run_with_events(
        self, task: str, options: Mapping[str, Any], cancelled: threading.Event, on_event: Callable[[Event], None]
    ) -> None:
        """Do a task and pass on its events; the last one holds the values that the log masks."""

        def reveal(event: Event) -> None:
            is_last = event.kind == "ended"
            on_event(replace(event, trajectory=self._runtime.reveal(event.trajectory)) if is_last else event)

        self.run(task, on_event=reveal, cancelled=cancelled, **options)

    # -- learning ------------------------------------------------------------------------------------------

    def tune(
        self,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        method: str | None = None,
        resume: str | None = None,
    ) -> Candidate:
        """Train a candidate adapter from all feedback. It is served only after `Candidate.promote`.

        Args:
            on_progress: Receives the progress after each step; left out, a bar is shown in a terminal and lines in a
                notebook.
            method: What is trained, such as "lora"; left out, `tuning.method` of the settings.
            resume: The id of an unfinished tuning to continue, or "" for the newest.

        Raises:
            DatasetError: There is no feedback to train on.
            TuningError: Training failed.
        """
        from tuner.pipeline.pipeline import tune

        with self._tuning_runtime(method) as runtime, show_progress() as show:
            made = tune(
                runtime,
                resume=resume,
                on_progress=on_progress or (lambda one: show("training", one.step, one.steps, f"loss {one.loss:.3f}")),
                say=_log.info,
            )
        return Candidate(made.adapter, self._open, made.trained, made.folder / "report.html")

    def search_settings(
        self,
        trials: int,
        *,
        minutes: float | None = None,
        on_progress: Callable[[int, Progress], None] | None = None,
    ) -> SearchResult:
        """Search for better training settings on the present feedback; makes no adapter.

        Args:
            trials: How many trainings to try; called again, the search goes on.
            minutes: End the search after so many.
            on_progress: Receives the trial's number and its progress.
        """
        from tuner.pipeline.pipeline import search_settings

        return search_settings(self._open(), trials=trials, minutes=minutes, on_progress=on_progress, say=_log.info)

    def evaluate(
        self,
        suite: Suite | str | Path | None = None,
        *,
        adapter: str = "active",
        fresh: bool = False,
        on_progress: OnTasks | None = None,
    ) -> Evaluation:
        """Run a suite of tasks with checks.

        Args:
            suite: The suite or its file; left out, `gate.suite` of the settings.
            adapter: An adapter's id, "active" for the one that is served, or "base".
            fresh: Run again even if the same was evaluated before.
            on_progress: Receives the progress; left out, a bar is shown in a terminal and lines in a notebook.
        """
        active = self._open().serving()
        id = (None if active is None else active.id) if adapter == "active" else adapter
        return evaluate_with(self._open, suite, None if id == BASE else id, fresh=fresh, on_progress=on_progress)

    def forget(
        self, subject: str, *, dry_run: bool = False, documents: bool = False, pages: bool = False
    ) -> ErasurePlan:
        """Remove a person's runs and documents, and the datasets and reports made of them; return what was found.

        Adapters that were trained on them stay, and are listed.

        Args:
            subject: The person's id, address or name.
            dry_run: Only look.
            documents: Remove documents that only name the person, too.
            pages: Remove pages that name the person from adapter folders, too.
        """
        from agent.privacy.erasure import find, forget
        from agent.privacy.subject import Subject
        from agent.util.ids import timestamp
        from tuner.privacy.erasure import HomeTraining

        made = HomeTraining(self.project, _log.info)
        home, tenant = self.project.home, self.project.settings.memory.tenant
        # Else a tuning could write a dataset of what is about to go.
        with nullcontext() if dry_run or not home.root.is_dir() else made.alone():
            found = find(home, Subject(subject), made, documents=documents, own_tenant=tenant)
            if found.goes(pages=pages) and not dry_run:
                forget(home, found, made, open_memory=self._open().open_memory, at=timestamp(), pages=pages)
        return found

    # -- parts ---------------------------------------------------------------------------------------------

    def _open(self) -> Runtime:
        """The runtime, the agent's documents read."""
        with self._lock:
            while self._folders:
                self._runtime.memory.add_folder(self._folders[0])
                self._folders.pop(0)
        return self._runtime

    def _tuning_runtime(self, method: str | None) -> Any:
        """The runtime to tune on, in a context that closes what was opened for another method."""
        runtime = self._open()
        if method is None:
            return nullcontext(runtime)
        from agent.runtime import Runtime

        settings = with_changes(self.project.settings, {"tuning": {"method": method}})
        project = replace(self.project, settings=settings)
        tasks = open_trained_tasks(project, _log.info)
        return closing(Runtime(project, encoder=self._encoder, tasks=tasks, functions=runtime.functions))

    def _check_tools(self) -> None:
        """Refuse tools that cannot be loaded, and arguments that cannot be generated."""
        from agent.errors import GrammarError, ToolsError
        from agent.llm.prompt.json_grammar import value_grammar

        for spec in self._runtime.frame().tools:
            try:
                value_grammar(spec.parameters, f"tool {spec.name}")
            except GrammarError as fault:
                raise ToolsError(str(fault)) from fault
