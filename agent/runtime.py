"""The parts of one project: store, adapter registry, documents, encoder, model and tools, each opened when needed.

One runtime serves many runs at once, from many threads. Each run looks up the active adapter as it begins and
stays on it; a promotion therefore acts from the next run on.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool

from agent.config.project import Project
from agent.encoders.served import ServedEncoder
from agent.errors import ToolsError
from agent.feedback.approved import newest_approved_steps
from agent.knowledge.served import ServedDocuments
from agent.llm.prompt.render import Frame
from agent.llm.served import ACTIVE, ServedModel
from agent.llm.step_model import Stepper
from agent.privacy.redaction import Scrubber
from agent.records.run import Recalled, Task, Trajectory
from agent.registry.registry import Adapter
from agent.run.limits import Budget
from agent.run.masking import RunScrubbers
from agent.run.resume import OnEvent, resume_run, start_run
from agent.run.state import Options, Recorder
from agent.run.tools import make_frame
from agent.storage.store import Store
from tools.context import Passage, ToolContext
from tools.errors import ToolsLoadError
from tools.functions import Tool
from tools.loading import load_tools

if TYPE_CHECKING:
    from agent.encoders.encoder import Encoder
    from agent.feedback.recall import Recall
    from agent.knowledge.knowledge import Knowledge


class TrainedTasks(Protocol):
    """The trained classic tasks that a project's settings name; implemented by `tuner.tasks.feedback.agent_tools`."""

    def tools(self) -> Sequence[BaseTool]:
        """Return a tool for each task, of its served version. Raises AdapterError where one is missing or changed."""
        ...

    def right_output(self, tool: str, arguments: Mapping[str, Any], said: str) -> Mapping[str, Any]:
        """Return a corrected output in the form of the tool's own. Raises FeedbackError for one it cannot give."""
        ...


class Runtime:
    """The parts of a project, and runs on them. Use as a context manager, or call `close`."""

    def __init__(
        self,
        project: Project,
        *,
        model: BaseChatModel | Stepper | None = None,
        encoder: Encoder | None = None,
        tasks: TrainedTasks | None = None,
        functions: Sequence[Tool] = (),
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            project: settings and home folder.
            model: used in place of the project's model; adapters act on a `LocalModel` alone.
            encoder: used in place of the project's encoder.
            tasks: needed where the settings name trained tasks.
            functions: functions and tools of the program, besides those that the settings name.
            progress: receives what takes long, and warnings.
        """
        self.project = project
        self.home = project.home
        self.warnings: list[str] = []
        """For the user: for example that the active adapter does not verify and another is served."""
        self._progress = progress or (lambda text: None)
        self.served_model = ServedModel(project, replacement=model, on_warning=self._warn, progress=self._progress)
        self.served_encoder = ServedEncoder(
            project, replacement=encoder, on_warning=self._warn, progress=self._progress
        )
        self.documents = ServedDocuments(project, self.served_encoder, progress=self._progress)
        self.registry = self.served_model.registry
        self.functions = tuple(functions)
        """The program's own tools."""
        self._tasks = tasks
        self._store: Store | None = None
        self._recall: Recall | None = None
        self._scrubbers = RunScrubbers()
        self._lock = threading.RLock()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine and close what is open on disk."""
        with self._lock:
            self.served_model.close()
            self.documents.close()
            if self._store is not None:
                self._store.close()
            self._store = self._recall = None

    # -- parts ---------------------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The log of runs and feedback."""
        with self._lock:
            if self._store is None:
                self.home.root.mkdir(parents=True, exist_ok=True)
                self._store = Store(self.home.database)
            return self._store

    @property
    def model(self) -> BaseChatModel | Stepper:
        """The model without an adapter; see `stepper`."""
        return self.served_model.base

    @property
    def encoder(self) -> Encoder:
        """The sentence encoder under the adapter that was active when it was first needed."""
        return self.served_encoder.current

    @property
    def memory(self) -> Knowledge:
        """The documents of the project's tenant."""
        return self.documents.own

    @property
    def recall(self) -> Recall:
        """The search over solved tasks."""
        with self._lock:
            if self._recall is None:
                from agent.feedback.recall import Recall

                self._recall = Recall(self.store, lambda: self.encoder)
            return self._recall

    @property
    def tasks(self) -> TrainedTasks:
        """The trained tasks that the settings name. Raises ToolsError for a runtime that was opened without them."""
        if self._tasks is None:
            raise ToolsError("this runtime was opened without the trained tasks; open it with `tuner.api`")
        return self._tasks

    @property
    def scrubbers(self) -> RunScrubbers | None:
        """The scrubbers of this process's runs; None where the settings switch masking off."""
        return self._scrubbers if self.project.settings.privacy.scrub else None

    @property
    def options(self) -> Options:
        """How runs are done, from the settings."""
        settings = self.project.settings.agent
        return Options(
            budget=Budget(settings.max_steps, settings.max_tokens, settings.max_seconds),
            temperature=settings.temperature,
            seed=settings.seed,
            plan=settings.plan,
            thought=settings.thought,
            instructions=settings.instructions,
            grounded=settings.grounded,
        )

    # -- runs ----------------------------------------------------------------------------------------------

    def run(
        self,
        task: Task,
        *,
        adapter: str | None = ACTIVE,
        tools: Sequence[str] | None = None,
        workspace: Path | None = None,
        run_id: str | None = None,
        recorder: Recorder | None = None,
        cancelled: threading.Event | None = None,
        on_event: OnEvent | None = None,
        options: Options | None = None,
        recall: bool = True,
    ) -> Trajectory:
        """Do a task and record it.

        Args:
            task: what is to be done.
            adapter: id of an adapter, `ACTIVE`, or None for the base.
            tools: names of the tools the run may use, besides those that end it; None for all.
            workspace: the folder of its tools; None for one of its own in the home.
            run_id: None for a new id.
            recorder: used in place of the store.
            cancelled: ends the run within a step.
            on_event: receives each event of the run.
            options: used in place of those of the settings.
            recall: whether the run is given solved tasks like its own.
        """
        return start_run(
            self,
            task,
            adapter=adapter,
            tools=tools,
            workspace=workspace,
            run_id=run_id,
            recorder=recorder,
            cancelled=cancelled,
            on_event=on_event,
            options=options,
            recall=recall,
        )

    def resume(
        self, run_id: str, *, cancelled: threading.Event | None = None, on_event: OnEvent | None = None
    ) -> Trajectory:
        """Continue an interrupted run; a run with corrections is branched at the first corrected step.

        A call that was interrupted is repeated if it could do no harm; otherwise the model is told that its effect is
        unknown.

        Raises:
            StoreError: the run has ended and has no correction.
        """
        return resume_run(self, run_id, cancelled=cancelled, on_event=on_event)

    def reveal(self, trajectory: Trajectory) -> Trajectory:
        """Put masked values back into a run's calls and its answer, for the caller. Not for the log."""
        return self._scrubbers.reveal(trajectory)

    def scrubber_of(self, trajectory: Trajectory) -> Scrubber | None:
        """Return the scrubber for feedback on a recorded run; see `RunScrubbers.for_record`."""
        return None if self.scrubbers is None else self.scrubbers.for_record(trajectory, self.store)

    def recalled(self, task: Task, *, same_wording: bool = True) -> tuple[Recalled, ...]:
        """Return the solved tasks that a run of this task is given; see `Recall.search`."""
        from agent.feedback.recall import recall_for
        from agent.knowledge.chunking import estimate_tokens

        settings = self.project.settings.memory
        if not settings.recall:
            return ()
        return recall_for(
            task,
            self.recall,
            settings,
            tools=lambda: self.frame().tools,
            token_counter=lambda: self.served_model.token_counter() or estimate_tokens,
            same_wording=same_wording,
        )

    def recall_version(self) -> int:
        """Return a number that changes whenever other tasks could be recalled."""
        return self.recall.version if self.project.settings.memory.recall else 0

    def clear_workspace(self, run_id: str) -> None:
        """Remove what a run's tools left in its workspace."""
        shutil.rmtree(self.home.workspaces / run_id, ignore_errors=True)

    # -- the model -----------------------------------------------------------------------------------------

    def serving(self) -> Adapter | None:
        """Return the adapter that the next run will use; None is the base."""
        return self.served_model.active_adapter()

    def stepper(self, adapter: str | None = ACTIVE) -> Stepper:
        """Return the model under an adapter; see `ServedModel.stepper`."""
        # The model will generate what it was trained on, so speculative decoding drafts from that at once.
        return self.served_model.stepper(adapter, drafts=lambda: newest_approved_steps(self.store))

    def loaded(self) -> dict[str, Any] | None:
        """Return what is in memory; see `ServedModel.loaded`."""
        return self.served_model.loaded()

    # -- tools ---------------------------------------------------------------------------------------------

    def tool_context(self, task: Task, workspace: Path, seen: Sequence[Passage] = ()) -> ToolContext:
        """Return what the tools of one run are given; `seen` are the passages that the run has already."""
        return ToolContext(
            workspace,
            self.project.folder,
            facts=dict(task.facts),
            task=task.text,
            retriever=self.documents.existing(),
            seen=list(seen),
        )

    def tools(self, context: ToolContext, names: Sequence[str] | None = None) -> list[BaseTool]:
        """Load the tools of one run: the built-in ones and the project's, or of these the named and those that end it.

        Raises:
            ToolsError: a tool file does not load.
        """
        tools, memory = self.project.settings.tools, self.project.settings.memory
        files = [self.project.resolve(name) if name.endswith(".py") else name for name in tools.files]
        try:
            return load_tools(
                files,
                context,
                enabled=tools.enabled if names is None else tuple(names),
                passages=memory.passages,
                min_score=memory.min_score,
                copied_queries=memory.copied_queries,
                task_in_queries=memory.task_in_queries,
                quoted_answers=self.project.settings.agent.quoted_answers,
                given=self.tasks.tools() if tools.tasks else (),
                functions=self.functions,
                trusted=self.project.trusted,
            )
        except ToolsLoadError as fault:
            raise ToolsError(str(fault)) from fault

    def frame(self, names: Sequence[str] | None = None) -> Frame:
        """Return the instructions and tool specifications of the prompt, without a run."""
        context = ToolContext(self.home.workspaces / "none", self.project.folder, retriever=_NoDocuments())
        return make_frame(self.tools(context, names), self.options)

    @contextmanager
    def checking_tools(self, task: Task) -> Iterator[list[BaseTool]]:
        """Yield the tools as a run of this task has them, to read their schemas and not to call them."""
        with tempfile.TemporaryDirectory(prefix="ratchet-") as scratch:
            facts = dict(task.facts)
            yield self.tools(ToolContext(Path(scratch), self.project.folder, facts=facts, retriever=_NoDocuments()))

    # -- documents -----------------------------------------------------------------------------------------

    def open_memory(self, tenant: str) -> Knowledge:
        """Open a tenant's documents with the project's encoder. The caller closes them."""
        return self.documents.open(tenant)

    def documents_version(self) -> str:
        """Return a text that changes whenever the documents do."""
        return self.documents.version()

    def embed_documents(self, adapter: Adapter | None) -> int:
        """Embed all documents with the encoder under this adapter and serve it; see `ServedDocuments.embed`."""
        embedded = self.documents.embed(adapter)
        with self._lock:
            # Recall keeps vectors of the encoder before.
            self._recall = None
        return embedded

    def _warn(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)
            self._progress(warning)


class _NoDocuments:
    """A retriever that finds nothing: the tools can be listed without opening the documents."""

    def search(self, query: str, k: int) -> Sequence[Passage]:
        return ()
