"""From feedback to a better sentence encoder: gather, train, check that it lives, gate, embed the documents, serve.

An adapter of the encoder lives in a registry of its own, `encoders/`, with the states of any adapter. The vectors of
the documents name the encoder they are of, which is why documents and encoder can change one after the other.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from agent.encoders.encoder import Encoder, EncoderAdapter, SentenceEncoder
from agent.errors import AdapterError, LivenessError
from agent.knowledge.chunking import Chunk
from agent.knowledge.document_store import Shelf
from agent.llm.weights.convert import quiet
from agent.llm.weights.load import ModelFolder, encoder_weights
from agent.registry.artifact import WEIGHTS, add_documents, tensors_hash, verify
from agent.registry.registry import Adapter, State
from agent.runtime import Runtime
from agent.storage.database import open_engine
from agent.util.ids import timestamp
from agent.util.threads import give_back_memory, in_own_team
from tuner.encoder.dataset import PARTS, Lessons, read_lessons, write_lessons
from tuner.encoder.gate import EncoderDecision, EncoderPolicy, EncoderReport, decide, measure, write_report
from tuner.encoder.queries import gather
from tuner.encoder.trainer import EncoderProgress, EncoderSettings, TrainedEncoder, train_encoder
from tuner.pipeline.candidate import Origin, take_in
from tuner.pipeline.run_folder import one_at_a_time

Say = Callable[[str], None]

LOOKED_AT = 16
"""Queries, and tasks, by which a saved adapter is seen to act."""


@dataclass(frozen=True)
class EncoderTuning:
    """What one tuning made."""

    adapter: Adapter
    lessons: Lessons
    trained: TrainedEncoder


@dataclass(frozen=True)
class EncoderGated:
    """What the gate said, and what it measured."""

    decision: EncoderDecision
    report: EncoderReport
    folder: Path
    embedded: int
    """Passages that were embedded anew; 0 where it does not ship."""


def tune_encoder(
    runtime: Runtime,
    *,
    pairs: Path | None = None,
    settings: EncoderSettings | None = None,
    on_progress: Callable[[EncoderProgress], None] | None = None,
    say: Say = lambda text: None,
) -> EncoderTuning:
    """Train an adapter of the encoder from all feedback in the store and a file of pairs; it starts from the base.

    Waits while another process tunes in the same home. Raises DatasetError where there is too little to learn from,
    NotBetterError where nothing was learnt.
    """
    project, settings = runtime.project, settings or EncoderSettings()
    with one_at_a_time(runtime.home.tunings, say):
        created_at = timestamp()
        base = encoder_weights(project.named(project.settings.model.encoder), project.home.models, progress=say)
        lessons = _lessons(runtime, pairs)
        write_lessons(lessons, runtime.home.datasets, created_at=created_at)
        say(f"dataset encoder-{lessons.hash[:16]}: {_counts(lessons)}")
        tuning = f"encoder-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:6]}"
        folder = runtime.home.tunings / tuning
        try:
            documents = _documents(runtime)
            trained = train_on(
                base, lessons, folder / "adapter", settings, documents=documents, on_progress=on_progress
            )
            check_acts(base, folder / "adapter", lessons)
            adapter = take_in(
                runtime.encoders,
                folder / "adapter",
                Origin(base, lessons.hash, tuning, created_at),
                lambda name: _card(name, base.name, lessons, trained, settings),
                reason=f"tuning {tuning}",
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return EncoderTuning(adapter, lessons, trained)


def train_on(
    base: ModelFolder,
    lessons: Lessons,
    folder: Path,
    settings: EncoderSettings,
    *,
    documents: Mapping[str, Chunk] | None = None,
    on_progress: Callable[[EncoderProgress], None] | None = None,
) -> TrainedEncoder:
    """Train on weights of its own, in a team of threads of its own. Ctrl-C ends it behind the step it is in."""
    stopped = threading.Event()

    def tell(progress: EncoderProgress) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        if on_progress is not None:
            on_progress(progress)

    def work() -> TrainedEncoder:
        from sentence_transformers import SentenceTransformer

        with quiet():
            model: Any = SentenceTransformer(str(base.folder), device="cpu", local_files_only=True)
        return train_encoder(model, lessons, settings, folder=folder, documents=documents, on_progress=tell)

    trained = in_own_team(work, on_interrupt=stopped.set)
    give_back_memory()
    return trained


def check_acts(base: ModelFolder, folder: Path, lessons: Lessons) -> Encoder:
    """Load what was saved as it will be served: it must be what was trained, and move what it learnt from.

    Returns the encoder. Raises LivenessError.
    """
    texts = [one.query for one in lessons.of("train")][:LOOKED_AT]
    texts += [one.text for one in lessons.tasks_of("train")][:LOOKED_AT]
    bare = SentenceEncoder(base.folder, name=base.name)
    added = EncoderAdapter("candidate", folder, tensors_hash(folder / WEIGHTS))
    tuned = SentenceEncoder(base.folder, name=base.name, adapter=added)
    if np.allclose(bare.encode(texts), tuned.encode(texts), atol=1e-4):
        raise LivenessError(
            f"the adapter moves none of {len(texts)} queries and tasks that it was trained on; raise the learning rate "
            "or the number of epochs"
        )
    return tuned


def gate_encoder(runtime: Runtime, candidate: Adapter, *, policy: EncoderPolicy | None = None) -> EncoderGated:
    """Compare a candidate with the encoder that is served; write the report beside it and move it on."""
    chosen = runtime.project.settings.gate
    policy = policy or EncoderPolicy(min_queries=chosen.min_tasks, resamples=chosen.resamples)
    lessons = read_lessons(runtime.home.datasets / f"encoder-{verify(candidate.folder).dataset_hash[:16]}")
    before = runtime.encoder_under(runtime.serving_encoder())
    passages = {**lessons.passages, **_documents(runtime)}
    report = measure(before, runtime.encoder_under(candidate), lessons.of("held_out"), passages, lessons.tasks)
    decision = decide(report, policy)
    add_documents(candidate.folder, write_report(report, decision))
    if decision.ship and candidate.state in (State.TRAINED, State.RETIRED):
        runtime.encoders.transition(candidate.id, State.GATED, decision.reasons[0], timestamp())
    elif not decision.ship and candidate.state is not State.RETIRED:
        runtime.encoders.reject(candidate.id, decision.reasons[0], timestamp())
    return EncoderGated(decision, report, candidate.folder / "report", 0)


def promote_encoder(runtime: Runtime, adapter: str, *, policy: EncoderPolicy | None = None) -> EncoderGated:
    """Gate a candidate; if it ships, embed all documents with it, then make it the one that is served.

    A search in between is answered: by the old encoder and the old vectors, until all are new at once.
    """
    candidate = runtime.encoders.get(adapter)
    if candidate.state in (State.ACTIVE, State.REJECTED):
        raise AdapterError(
            f"encoder adapter {candidate.id} is {candidate.state}; only a trained, gated or retired one can be promoted"
        )
    gated = gate_encoder(runtime, candidate, policy=policy)
    if not gated.decision.ship:
        return gated
    embedded = runtime.embed_documents(candidate)
    runtime.encoders.promote(candidate.id, gated.decision.reasons[0], timestamp())
    return EncoderGated(gated.decision, gated.report, gated.folder, embedded)


def rollback_encoder(runtime: Runtime, reason: str) -> tuple[Adapter | None, int]:
    """Serve the encoder that was served before, and embed all documents with it. Also returns how many passages.

    Until they are, searches go on with the vectors and the encoder that there are.
    """
    earlier = runtime.encoders.rollback(reason, timestamp())
    return earlier, runtime.embed_documents(earlier)


def _lessons(runtime: Runtime, pairs: Path | None) -> Lessons:
    """What is to be learnt; the documents are searched only where there are any."""
    # What the rule says now, before anything is made of it.
    runtime.arbitrate()
    tools = runtime.frame().tools
    if not runtime.home.index.exists():
        return gather(runtime.store, lambda ids: {}, tools=tools, pairs=pairs)
    with _Shelf(runtime) as shelf:
        known = _all(shelf).values() if pairs is not None else ()
        return gather(
            runtime.store,
            shelf.chunks,
            tools=tools,
            pairs=pairs,
            known=known,
            search=lambda query, k: runtime.memory.search(query, k, join=False),
        )


def _documents(runtime: Runtime) -> Mapping[str, Chunk]:
    """All chunks of the documents, by id."""
    if not runtime.home.index.exists():
        return {}
    with _Shelf(runtime) as shelf:
        return _all(shelf)


class _Shelf:
    """The shelf of the project's documents, for as long as it is looked at."""

    def __init__(self, runtime: Runtime) -> None:
        self._engine = open_engine(runtime.home.database)
        self._tenant = runtime.project.settings.memory.tenant

    def __enter__(self) -> Shelf:
        return Shelf(self._engine, tenant=self._tenant)

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()


def _all(shelf: Shelf) -> dict[str, Chunk]:
    return {chunk.id: chunk for chunk in shelf.chunks_of([document.name for document in shelf.documents()])}


def _counts(lessons: Lessons) -> str:
    """How many queries and tasks each part has, those that there are."""
    kinds = {"queries": [one.part for one in lessons.judged], "tasks": [one.part for one in lessons.tasks]}
    told = {kind: ", ".join(f"{parts.count(part)} {part}" for part in reversed(PARTS)) for kind, parts in kinds.items()}
    return "; ".join(f"{kind} {told[kind]}" for kind, parts in kinds.items() if parts)


def _card(name: str, base: str, lessons: Lessons, trained: TrainedEncoder, settings: EncoderSettings) -> str:
    """Markdown, with the front matter that PEFT folders carry."""
    table = "\n".join(f"| {key} | {value} |" for key, value in asdict(settings).items())
    return f"""---
base_model: {base}
library_name: peft
tags: [lora, sentence-similarity]
---

# {name}

A LoRA adapter of the sentence encoder {base}, trained by Ratchet from the passages that reviewers cited and rejected,
and from how they would have runs begin.

- Made from dataset `encoder-{lessons.hash[:16]}`: {_counts(lessons)}. What is held out only the gate sees.
- {trained.steps} steps in {trained.seconds / 60:.1f} minutes. Loss on what the training is watched with:
  {trained.first_validation_loss:.3f} before, {trained.validation_loss:.3f} after; best epoch {trained.best_epoch + 1}
  of {trained.epochs}. Trained parameters: {trained.parameters}.

Whether search or recall finds more with it is the gate's to say: see `report/`. It was made for this project's
documents and tasks, and nothing is known of it outside them.

| setting | value |
|---|---|
{table}
"""
