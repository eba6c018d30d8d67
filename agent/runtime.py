"""Puts the parts of one project together: model, tools, documents, store, adapters; each opened when needed.

One runtime serves many runs at once, from many threads. Each run looks up the active adapter as it begins and
stays on it; a promotion therefore acts from the next run on.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast
from uuid import uuid4

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool

from agent.config.project import Project
from agent.errors import AdapterError, LivenessError, StoreError, ToolsError
from agent.feedback.approved import judged_runs
from agent.grounding.check import Mode
from agent.llm.prompt.render import Frame, Renderer
from agent.llm.step_model import Stepper, as_stepper
from agent.privacy.redaction import Scrubber
from agent.records.feedback import Correction
from agent.records.run import Branch, Grounding, Recalled, Step, Task, ToolCall, Trajectory
from agent.registry.artifact import verify
from agent.registry.registry import Adapter, Registry
from agent.run.limits import Budget
from agent.run.loop import advance, provenance_of, run
from agent.run.state import Event, Options, Recorder, Run
from agent.run.tools import call_tool, effect_of, make_frame
from agent.storage.store import Store
from agent.util.ids import new_id, timestamp
from tools.context import Passage, ToolContext
from tools.loading import ToolsLoadError, load_tools

if TYPE_CHECKING:
    from agent.encoders.encoder import Encoder
    from agent.encoders.reranker import Reranker
    from agent.feedback.recall import Recall
    from agent.knowledge.chunking import TokenCounter
    from agent.knowledge.knowledge import Memory

ACTIVE = "active"
"""Stands for whatever adapter the registry serves when a run begins."""

RIGHT_RUNS = 256
"""Judged runs whose steps the engine guesses from when an adapter is loaded."""

FACT_PASSAGES = 5
"""Passages that are looked into for what a corrected answer says."""

INTERRUPTED = "The program was stopped during this call; whether it was done is not known. Check before trying again."


class TrainedTasks(Protocol):
    """The trained classic tasks that a project's settings name. `tuner.tasks.feedback.agent_tools.TaskTools` is the one there is."""

    def tools(self) -> Sequence[BaseTool]:
        """A tool for each, of the version that is served now. Raises AdapterError where one is missing or changed."""
        ...

    def right_output(self, tool: str, arguments: Mapping[str, Any], said: str) -> Mapping[str, Any]:
        """What a call should have given, as the tool gives it. Raises FeedbackError for what it cannot give."""
        ...


class Runtime:
    """A project at work. Use as a context manager, or call `close`."""

    def __init__(
        self,
        project: Project,
        *,
        model: BaseChatModel | Stepper | None = None,
        encoder: Encoder | None = None,
        tasks: TrainedTasks | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """`model` and `encoder` stand in for the project's own; adapters act on a `LocalModel` alone.

        `tasks` are needed where the settings name some.
        """
        self.project = project
        self.home = project.home
        self.registry = Registry(project.home.adapters)
        self.encoders = Registry(project.home.encoders, listed_by="ratchet encoder list")
        """The adapters of the sentence encoder."""
        self.warnings: list[str] = []
        """What the user should know, such as that the active adapter was broken and another is served."""
        self._progress = progress or (lambda text: None)
        self._model = model
        self._tasks = tasks
        self._encoder = encoder
        self._stand_in = encoder
        self._opened: dict[str, Encoder] = {}
        """The project's encoder, bare and under adapters, by name."""
        self._store: Store | None = None
        self._memory: Memory | None = None
        self._recall: Recall | None = None
        self._reranker: Reranker | None = None
        self._renderer: Renderer | None = None
        self._lock = threading.RLock()
        self._scrubbers: OrderedDict[str, Scrubber] = OrderedDict()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine and close what is open on disk."""
        with self._lock:
            close = getattr(self._model, "close", None)
            if close is not None:
                close()
            if self._memory is not None:
                self._memory.close()
            if self._store is not None:
                self._store.close()
            self._model = self._memory = self._store = self._recall = None

    @property
    def store(self) -> Store:
        with self._lock:
            if self._store is None:
                self.home.root.mkdir(parents=True, exist_ok=True)
                self._store = Store(self.home.database)
            return self._store

    @property
    def model(self) -> BaseChatModel | Stepper:
        """The model on its base; `on_adapter` gives it under an adapter."""
        with self._lock:
            if self._model is None:
                from agent.llm.chat_model import LocalModel

                chosen = self.project.settings.model
                self._model = LocalModel.load(
                    self.project.named(chosen.base),
                    self.home.models,
                    device=chosen.device,
                    dtype=chosen.dtype,
                    threads=chosen.threads,
                    max_sessions=chosen.max_sessions,
                    cache_tokens=chosen.cache_tokens,
                    progress=self._progress,
                )
            return self._model

    @property
    def memory(self) -> Memory:
        """The documents, opened with the project's encoder."""
        with self._lock:
            if self._memory is None:
                self._memory = self.open_memory(self.project.settings.memory.tenant)
            return self._memory

    def open_memory(self, tenant: str) -> Memory:
        """A tenant's documents, opened with the project's encoder; whoever asks closes it."""
        from agent.knowledge.knowledge import Memory

        chosen = self.project.settings.memory
        self.home.root.mkdir(parents=True, exist_ok=True)
        return Memory.open(
            self.home.database,
            self.home.index,
            self.encoder,
            tenant=tenant,
            server=chosen.server,
            chunk_tokens=chosen.chunk_tokens,
            neighbours=chosen.neighbours,
            reranker=self._load_reranker if chosen.reranker else None,
            encoder_named=self._encoder_named,
        )

    def _load_reranker(self) -> Reranker:
        """The project's cross-encoder, loaded once."""
        from agent.encoders.reranker import CrossEncoderReranker
        from agent.llm.weights.load import resolve_reranker

        with self._lock:
            if self._reranker is None:
                name = self.project.named(self.project.settings.memory.reranker)
                self._reranker = CrossEncoderReranker(resolve_reranker(name, progress=self._progress))
            return self._reranker

    @property
    def encoder(self) -> Encoder:
        """The sentence encoder under its active adapter, which is looked up once; see `Memory` for the documents."""
        with self._lock:
            if self._encoder is None:
                self._encoder = self.encoder_under(self.serving_encoder())
            return self._encoder

    def serving_encoder(self) -> Adapter | None:
        """The encoder's adapter that what is opened next will use; None is the bare encoder."""
        return self._served_by(self.encoders)

    def encoder_under(self, adapter: Adapter | None) -> Encoder:
        """The project's encoder under an adapter of it, or bare. What is loaded is checked."""
        from agent.encoders.encoder import EncoderAdapter, SentenceEncoder, tuned_name
        from agent.llm.weights.load import encoder_weights, resolve_encoder

        if self._stand_in is not None:
            if adapter is not None:
                raise AdapterError(
                    f"adapter {adapter.id} needs the project's encoder; this runtime has {self._stand_in.name}"
                )
            return self._stand_in
        base = self.project.settings.model.encoder
        name = base if adapter is None else tuned_name(base, adapter.id)
        with self._lock:
            if name in self._opened:
                return self._opened[name]
            if adapter is None:
                folder = resolve_encoder(self.project.named(base), self.home.models, progress=self._progress)
                self._opened[name] = SentenceEncoder(folder, name=base)
                return self._opened[name]
            weights = encoder_weights(self.project.named(base), self.home.models, progress=self._progress)
            if adapter.base_revision != weights.revision:
                raise AdapterError(
                    f"encoder adapter {adapter.id} was trained on {adapter.base} ({adapter.base_revision[:12]}), this "
                    f"is {base} ({weights.revision[:12]}); run `ratchet encoder rollback`, or switch the encoder"
                )
            verify(adapter.folder)
            added = EncoderAdapter(adapter.id, adapter.folder, adapter.tensors_sha256)
            self._opened[name] = SentenceEncoder(weights.folder, name=base, adapter=added)
            return self._opened[name]

    def embed_documents(self, adapter: Adapter | None) -> int:
        """Embed all tenants' documents with the encoder under this adapter. Returns how many passages were.

        Searches are answered meanwhile; see `Memory.rebuild`.
        """
        from agent.knowledge.schema import tenant_names
        from agent.storage.database import open_engine

        encoder = self.encoder_under(adapter)
        embedded = 0
        if self._retriever() is not None:
            engine = open_engine(self.home.database)
            try:
                names = tenant_names(engine)
            finally:
                engine.dispose()
            for name in names:
                if name == self.project.settings.memory.tenant:
                    embedded += self.memory.rebuild(encoder)
                    continue
                memory = self.open_memory(name)
                try:
                    embedded += memory.rebuild(encoder)
                finally:
                    memory.close()
        with self._lock:
            # What was recalled so far lies in vectors of the encoder before.
            self._encoder, self._recall = encoder, None
        return embedded

    def _encoder_named(self, name: str) -> Encoder | None:
        """The encoder that vectors of this name are of; None where it is none of this project's, or is broken."""
        base = self.project.settings.model.encoder
        if self._stand_in is not None or not (name == base or name.startswith(f"{base}+")):
            return None
        id = name.removeprefix(base).removeprefix("+")
        known = {one.id: one for one in self.encoders.list()}
        if id and id not in known:
            return None
        try:
            return self.encoder_under(known.get(id))
        except (AdapterError, LivenessError) as fault:
            self._progress(str(fault))
            return None

    @property
    def recall(self) -> Recall:
        """The solved tasks of this project's log."""
        with self._lock:
            if self._recall is None:
                from agent.feedback.recall import Recall

                self._recall = Recall(self.store, lambda: self.encoder)
            return self._recall

    def recalled(self, task: Task, *, same_wording: bool = True) -> tuple[Recalled, ...]:
        """What a run of this task is shown of solved tasks; nothing when the settings say so. See `Recall.search`."""
        from agent.feedback.recall import capped

        chosen = self.project.settings.memory
        if not chosen.recall:
            return ()
        tools = () if chosen.recall_as == "text" else self.frame().tools
        found = self.recall.search(task.text, chosen.recall, tools=tools, leave_out=task.id, same_wording=same_wording)
        if chosen.recall_as == "odds":
            return tuple(replace(one, shown=False) for one in found)
        if chosen.recall_as == "text":
            found = tuple(replace(one, share=0.0) for one in found)
        return capped(found, chosen.recall_tokens, self._token_counter)

    def recall_version(self) -> int:
        """Changes whenever other tasks could be recalled."""
        return self.recall.version if self.project.settings.memory.recall else 0

    def arbitrate(self) -> int:
        """Let the rule say where each correction belongs; returns how many it says something new of.

        With `memory.recall` at 0 the encoder stays away, and only tasks of equal wording are held against each other.
        """
        from agent.feedback.arbitration import by_wording, settle

        if not self.store.corrections():
            return 0
        has_documents = self._memory is not None or self.home.index.exists()
        return settle(
            self.store,
            embed=(lambda texts: self.encoder.encode(texts)) if self.project.settings.memory.recall else by_wording,
            search=(lambda text: self.memory.search(text, FACT_PASSAGES)) if has_documents else None,
            new_id=lambda: uuid4().hex,
            at=timestamp(),
        )

    def _token_counter(self) -> TokenCounter:
        """Counts as the model reads; estimates for a model that is not ours."""
        from agent.knowledge.chunking import estimate_tokens

        with self._lock:
            if self._renderer is None and self._model is None:
                from agent.llm.weights import load as weights

                base = weights.resolve_model(
                    self.project.named(self.project.settings.model.base), self.home.models, progress=self._progress
                )
                self._renderer = Renderer(weights.load_tokenizer(base))
            renderer = self._renderer or getattr(self._model, "renderer", None)
        return estimate_tokens if renderer is None else lambda text: len(renderer.encode(text))

    # -- what a run works with -----------------------------------------------------------------------------

    @property
    def options(self) -> Options:
        """How runs are done, from the settings."""
        chosen = self.project.settings.agent
        return Options(
            budget=Budget(chosen.max_steps, chosen.max_tokens, chosen.max_seconds),
            temperature=chosen.temperature,
            seed=chosen.seed,
            plan=chosen.plan,
            thought=chosen.thought,
            instructions=chosen.instructions,
            grounded=cast(Mode, chosen.grounded),
        )

    def tools(self, context: ToolContext, names: Sequence[str] | None = None) -> list[BaseTool]:
        """The tools of one run: the built-in and the project's, or of these the named and those that end it."""
        chosen, memory = self.project.settings.tools, self.project.settings.memory
        files = [self.project.resolve(name) if name.endswith(".py") else name for name in chosen.files]
        try:
            return load_tools(
                files,
                context,
                enabled=chosen.enabled if names is None else tuple(names),
                passages=memory.passages,
                min_score=memory.min_score,
                copied_queries=memory.copied_queries,
                task_in_queries=memory.task_in_queries,
                quoted_answers=self.project.settings.agent.quoted_answers,
                given=self.tasks.tools() if chosen.tasks else (),
                trusted=self.project.trusted,
            )
        except ToolsLoadError as fault:
            raise ToolsError(str(fault)) from fault

    @property
    def tasks(self) -> TrainedTasks:
        """The trained tasks that the settings name."""
        if self._tasks is None:
            raise ToolsError("this runtime was opened without the trained tasks; open it with `tuner.api`")
        return self._tasks

    def frame(self, names: Sequence[str] | None = None) -> Frame:
        """What the model is told, without a run: for training and for checking corrections."""
        context = ToolContext(self.home.workspaces / "none", self.project.folder, retriever=_NoDocuments())
        return make_frame(self.tools(context, names), self.options)

    @contextmanager
    def checking_tools(self, task: Task) -> Iterator[list[BaseTool]]:
        """The tools as a run of this task has them, to look at and not to call."""
        with tempfile.TemporaryDirectory(prefix="ratchet-") as scratch:
            facts = dict(task.facts)
            yield self.tools(ToolContext(Path(scratch), self.project.folder, facts=facts, retriever=_NoDocuments()))

    def loaded(self) -> dict[str, Any] | None:
        """The base in memory and the registry's adapters on it, by the hashes of their tensors there.

        None before the model is loaded; asking loads nothing.
        """
        from agent.llm.chat_model import LocalModel

        model = self._model
        if model is None:
            return None
        if not isinstance(model, LocalModel):
            return {"base": as_stepper(model).provenance().base, "revision": "", "adapters": {}}
        bank = model.engine.adapters
        return {
            "base": model.base,
            "revision": model.revision,
            "adapters": {one.id: bank.hash(one.id) for one in self.registry.list() if one.id in bank},
        }

    def serving(self) -> Adapter | None:
        """The adapter that the next run will use; None is the base."""
        return self._served_by(self.registry)

    def _served_by(self, registry: Registry) -> Adapter | None:
        found = registry.serving()
        if found.warning is not None and found.warning not in self.warnings:
            self.warnings.append(found.warning)
            self._progress(found.warning)
        return found.adapter

    def stepper(self, adapter: str | None = ACTIVE) -> Stepper:
        """The model under an adapter: its id, `ACTIVE`, or None for the base. What is loaded is checked."""
        from agent.llm.chat_model import LocalModel

        model = self.model
        if not isinstance(model, LocalModel):
            if adapter not in (None, ACTIVE):
                raise AdapterError(
                    f"adapter {adapter!r} needs the local model; this runtime has {type(model).__name__}"
                )
            return as_stepper(model)
        entry = self.serving() if adapter == ACTIVE else None if adapter is None else self.registry.get(adapter)
        if entry is None:
            return model.on_adapter(None)
        if entry.base_revision != model.revision:
            raise AdapterError(
                f"adapter {entry.id} was trained on base {entry.base} ({entry.base_revision[:12]}), this is "
                f"{model.base} ({model.revision[:12]}); retrain, or switch the base"
            )
        fresh = entry.id not in model.engine.adapters
        chosen = model.on_adapter(entry.id, folder=entry.folder, tensors_sha256=entry.tensors_sha256)
        if fresh:
            # What it learnt to say it will say, so the engine need not wait to hear it.
            chosen.remember(self.right_steps())
        return chosen

    def right_steps(self) -> Iterator[Step]:
        """The steps of the runs judged last that people stand behind: corrections, and all of an accepted run."""
        _, judged = self.store.judged_since(0)
        for one in judged_runs(self.store, judged[-RIGHT_RUNS:]):
            yield from one.backed().values()

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
        on_event: Callable[[Event], None] | None = None,
        options: Options | None = None,
        recall: bool = True,
    ) -> Trajectory:
        """Do a task and record it in the store, unless another recorder is given; without `recall`, from nothing."""
        run_id = run_id or new_id()
        scrubber = self._scrubber(run_id)
        # Tools first: what is wrong with them is told before a model is loaded.
        known = self.tools(self._context(run_id, task, workspace), tools)
        return run(
            task,
            self.stepper(adapter),
            known,
            options=options or self.options,
            run_id=run_id,
            recorder=self.store if recorder is None else recorder,
            scrubber=scrubber,
            recall=self.recalled if recall else None,
            cancelled=cancelled,
            on_event=on_event,
            encoder=lambda: self.encoder,
        )

    def resume(
        self,
        run_id: str,
        *,
        cancelled: threading.Event | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> Trajectory:
        """Go on with a run that was cut off; or, behind its first corrected step, take it up as a new run.

        A call that was interrupted is made again if it could do no harm, else shown to the model as unknown.
        Raises StoreError for a run that ended and has no correction.
        """
        trajectory = self.store.get(run_id)
        corrections = self.store.newest_corrections(trajectory.id)
        if corrections:
            return self._branch(trajectory, corrections[min(corrections)], cancelled, on_event)
        if trajectory.outcome is not None:
            how = "correct one of its steps to take it up from there" if trajectory.steps else "start the task again"
            raise StoreError(
                f"run {trajectory.id} has ended ({trajectory.outcome}): {trajectory.outcome.meaning}; {how}"
            )
        self.scrubber_of(trajectory)
        going = self._going(trajectory, self.home.workspaces / trajectory.id, cancelled, on_event)
        intent = self.store.open_intent(trajectory.id)
        if intent is not None and intent.call is not None:
            if self._effect(going, intent.call) != "world":
                return advance(going, intent)
            done = replace(intent, error=INTERRUPTED, effect_unknown=True)
            self.store.add_step(trajectory.id, len(trajectory.steps), done)
            going.trajectory = trajectory.with_step(done)
            going.tell("observed", step=done)
        return advance(going)

    def reveal(self, trajectory: Trajectory) -> Trajectory:
        """The run with what was scrubbed put back into its calls and its answer, for who asked. Not for the log."""
        scrubber = self._scrubbers.get(trajectory.id)
        if scrubber is None:
            return trajectory
        steps = []
        for step in trajectory.steps:
            if step.call is not None:
                step = replace(step, call=ToolCall(step.call.name, scrubber.unmask(dict(step.call.arguments))))
            if step.grounding is not None:
                step = replace(step, grounding=_unmasked(step.grounding, scrubber))
            steps.append(step)
        return replace(trajectory, steps=tuple(steps))

    def scrubber_of(self, trajectory: Trajectory) -> Scrubber | None:
        """Return the scrubber for feedback on a recorded run; None where the settings say that nothing is masked.

        As long as this process did the run, a value has the placeholder it has there. What an earlier process masked
        is not known any more; then, and for a value that is new, it is a placeholder that stands neither in the run
        nor in the feedback on it.
        """
        scrubber = self._scrubber(trajectory.id)
        if scrubber is not None:
            store, run = self.store, trajectory.id
            record = [asdict(trajectory), *(asdict(one) for one in store.corrections(run))]
            record += [asdict(one) for one in store.output_corrections(run)]
            record += [asdict(one) for one in store.ratings(run)]
            record += [asdict(one) for one in store.arbitrations() if one.run == run]
            scrubber.reserve(json.dumps(record, ensure_ascii=False))
        return scrubber

    def _branch(
        self,
        parent: Trajectory,
        correction: Correction,
        cancelled: threading.Event | None,
        on_event: Callable[[Event], None] | None,
    ) -> Trajectory:
        """A new run that shares the steps before the corrected one, makes the corrected call, and goes on."""
        run_id = new_id()
        scrubber = self.scrubber_of(parent)
        if scrubber is not None:
            self._scrubbers[run_id] = scrubber
        shared = replace(
            parent,
            id=run_id,
            steps=parent.steps[: correction.step],
            started_at=timestamp(),
            outcome=None,
            error=None,
            ended_at=None,
            branch=Branch(parent.id, correction.step),
        )
        going = self._going(shared, self.home.workspaces / run_id, cancelled, on_event)
        made_by = provenance_of(going.stepper, going.frame, going.options)
        made_by = replace(made_by, recalled=parent.provenance.recalled)
        going.trajectory = shared = replace(shared, provenance=made_by)
        self._replay(going)
        self.store.begin(shared)
        going.tell("started")
        return advance(going, correction.without_copies(parent.steps[correction.step]).as_step())

    def _replay(self, going: Run) -> None:
        """Bring a fresh workspace to where the shared steps had left the old one.

        Raises ToolsError for a call that succeeded in the run and fails now.
        """
        for index, step in enumerate(going.trajectory.steps):
            if step.call is not None and step.error is None and self._effect(going, step.call) == "workspace":
                arguments: Any = dict(step.call.arguments)
                if going.scrubber is not None:
                    arguments = going.scrubber.unmask(arguments)
                try:
                    call_tool(going.tools[step.call.name], ToolCall(step.call.name, arguments))
                except (Exception, SystemExit, asyncio.CancelledError) as fault:
                    raise ToolsError(
                        f"step {index} ({step.call.name}) succeeded in the run and fails when it is repeated for its "
                        f"branch ({type(fault).__name__}: {fault}); correct the tool, or this step"
                    ) from fault

    def _effect(self, going: Run, call: ToolCall) -> str:
        return effect_of(going.tools.get(call.name))

    def _going(
        self,
        trajectory: Trajectory,
        workspace: Path,
        cancelled: threading.Event | None,
        on_event: Callable[[Event], None] | None,
    ) -> Run:
        known = set(trajectory.provenance.tools)
        context = self._context(trajectory.id, trajectory.task, workspace, trajectory.passages)
        every = self.tools(context)
        tools = [tool for tool in every if tool.name in known] or every
        return Run(
            trajectory,
            self._stepper_of(trajectory),
            {tool.name: tool for tool in tools},
            make_frame(tools, self.options),
            self.options,
            self.store,
            self._scrubber(trajectory.id),
            cancelled or threading.Event(),
            on_event or (lambda event: None),
            lambda: self.encoder,
        )

    def _stepper_of(self, trajectory: Trajectory) -> Stepper:
        """A resumed run ends on the adapter it began with, as long as that is there."""
        if trajectory.branch is None and trajectory.provenance.adapter is not None:
            with suppress(AdapterError):
                return self.stepper(trajectory.provenance.adapter)
        return self.stepper(None if trajectory.branch is None and trajectory.steps else ACTIVE)

    def _context(self, run_id: str, task: Task, workspace: Path | None, seen: Sequence[Passage] = ()) -> ToolContext:
        folder = workspace or self.home.workspaces / run_id
        folder.mkdir(parents=True, exist_ok=True)
        return ToolContext(
            folder,
            self.project.folder,
            facts=dict(task.facts),
            task=task.text,
            retriever=self._retriever(),
            seen=list(seen),
        )

    def _retriever(self) -> Memory | None:
        """The documents, if any were ever added: the encoder is not loaded for nothing."""
        with self._lock:
            if self._memory is None and not self.home.index.exists():
                return None
            return self.memory

    def _scrubber(self, run_id: str) -> Scrubber | None:
        if not self.project.settings.privacy.scrub:
            return None
        with self._lock:
            scrubber = self._scrubbers.setdefault(run_id, Scrubber())
            while len(self._scrubbers) > 4096:
                self._scrubbers.popitem(last=False)
            return scrubber

    def documents_version(self) -> str:
        """Changes whenever the documents do."""
        return "none" if self._retriever() is None else self.memory.version

    def clear_workspace(self, run_id: str) -> None:
        """Remove what a run's tools left in its workspace."""
        shutil.rmtree(self.home.workspaces / run_id, ignore_errors=True)


def _unmasked(grounding: Grounding, scrubber: Scrubber) -> Grounding:
    texts = scrubber.unmask({"reply": grounding.reply, "said": [one.text for one in grounding.sentences]})
    said = zip(grounding.sentences, texts["said"], strict=True)
    return replace(grounding, reply=texts["reply"], sentences=tuple(replace(one, text=text) for one, text in said))


class _NoDocuments:
    """For asking what the tools are without opening the documents."""

    def search(self, query: str, k: int) -> Sequence[Passage]:
        return ()
