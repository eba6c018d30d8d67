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
from agent.knowledge.document_store import DocumentStore
from agent.llm.weights.convert import hide_progress_bars
from agent.llm.weights.load import ModelFolder, encoder_weights
from agent.registry.artifact import WEIGHTS, add_documents, tensors_hash, verify
from agent.registry.registry import Adapter, State
from agent.runtime import Runtime
from agent.storage.database import open_engine
from agent.util.ids import timestamp
from agent.util.threads import give_back_memory, run_in_thread
from tuner.encoder.dataset import PARTS, EncoderDataset, read_encoder_dataset, write_encoder_dataset
from tuner.encoder.gate import EncoderDecision, EncoderPolicy, EncoderReport, decide, measure, write_report
from tuner.encoder.queries import gather_dataset
from tuner.encoder.settings import EncoderProgress, EncoderSettings, TrainedEncoder
from tuner.encoder.trainer import train_encoder
from tuner.pipeline.candidate import CandidateOrigin, take_in
from tuner.pipeline.run_folder import one_at_a_time

Say = Callable[[str], None]

CHECKED_TEXTS = 16
"""Queries, and tasks, by which a saved adapter is seen to act."""


@dataclass(frozen=True)
class EncoderTuning:
    """What one tuning made."""

    adapter: Adapter
    dataset: EncoderDataset
    trained: TrainedEncoder


@dataclass(frozen=True)
class GatedEncoder:
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
        dataset = _gather(runtime, pairs)
        write_encoder_dataset(dataset, runtime.home.datasets, created_at=created_at)
        say(f"dataset encoder-{dataset.hash[:16]}: {_counts(dataset)}")
        tuning = f"encoder-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:6]}"
        folder = runtime.home.tunings / tuning
        try:
            documents = _documents(runtime)
            trained = train_in_team(
                base, dataset, folder / "adapter", settings, documents=documents, on_progress=on_progress
            )
            check_adapter_changes_output(base, folder / "adapter", dataset)
            adapter = take_in(
                runtime.served_encoder.registry,
                folder / "adapter",
                CandidateOrigin(base, dataset.hash, tuning, created_at),
                lambda name: _card(name, base.name, dataset, trained, settings),
                reason=f"tuning {tuning}",
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return EncoderTuning(adapter, dataset, trained)


def train_in_team(
    base: ModelFolder,
    dataset: EncoderDataset,
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

        with hide_progress_bars():
            model: Any = SentenceTransformer(str(base.folder), device="cpu", local_files_only=True)
        return train_encoder(model, dataset, settings, folder=folder, documents=documents, on_progress=tell)

    trained = run_in_thread(work, on_interrupt=stopped.set)
    give_back_memory()
    return trained


def check_adapter_changes_output(base: ModelFolder, folder: Path, dataset: EncoderDataset) -> Encoder:
    """Load what was saved as it will be served: it must be what was trained, and move what it learnt from.

    Returns the encoder. Raises LivenessError.
    """
    texts = [one.query for one in dataset.judgements_in("train")][:CHECKED_TEXTS]
    texts += [one.text for one in dataset.tasks_in("train")][:CHECKED_TEXTS]
    bare = SentenceEncoder(base.folder, name=base.name)
    added = EncoderAdapter("candidate", folder, tensors_hash(folder / WEIGHTS))
    tuned = SentenceEncoder(base.folder, name=base.name, adapter=added)
    if np.allclose(bare.encode(texts), tuned.encode(texts), atol=1e-4):
        raise LivenessError(
            f"the adapter moves none of {len(texts)} queries and tasks that it was trained on; raise the learning rate "
            "or the number of epochs"
        )
    return tuned


def gate_encoder(runtime: Runtime, candidate: Adapter, *, policy: EncoderPolicy | None = None) -> GatedEncoder:
    """Compare a candidate with the encoder that is served; write the report beside it and move it on."""
    chosen = runtime.project.settings.gate
    policy = policy or EncoderPolicy(min_queries=chosen.min_tasks, resamples=chosen.resamples)
    dataset = read_encoder_dataset(runtime.home.datasets / f"encoder-{verify(candidate.folder).dataset_hash[:16]}")
    before = runtime.served_encoder.open(runtime.served_encoder.active_adapter())
    passages = {**dataset.passages, **_documents(runtime)}
    report = measure(
        before, runtime.served_encoder.open(candidate), dataset.judgements_in("held_out"), passages, dataset.tasks
    )
    decision = decide(report, policy)
    add_documents(candidate.folder, write_report(report, decision))
    if decision.ship and candidate.state in (State.TRAINED, State.RETIRED):
        runtime.served_encoder.registry.transition(candidate.id, State.GATED, decision.reasons[0], timestamp())
    elif not decision.ship and candidate.state is not State.RETIRED:
        runtime.served_encoder.registry.reject(candidate.id, decision.reasons[0], timestamp())
    return GatedEncoder(decision, report, candidate.folder / "report", 0)


def promote_encoder(runtime: Runtime, adapter: str, *, policy: EncoderPolicy | None = None) -> GatedEncoder:
    """Gate a candidate; if it ships, embed all documents with it, then make it the one that is served.

    A search in between is answered: by the old encoder and the old vectors, until all are new at once.
    """
    candidate = runtime.served_encoder.registry.get(adapter)
    if candidate.state in (State.ACTIVE, State.REJECTED):
        raise AdapterError(
            f"encoder adapter {candidate.id} is {candidate.state}; only a trained, gated or retired one can be promoted"
        )
    gated = gate_encoder(runtime, candidate, policy=policy)
    if not gated.decision.ship:
        return gated
    embedded = runtime.embed_documents(candidate)
    runtime.served_encoder.registry.promote(candidate.id, gated.decision.reasons[0], timestamp())
    return GatedEncoder(gated.decision, gated.report, gated.folder, embedded)


def rollback_encoder(runtime: Runtime, reason: str) -> tuple[Adapter | None, int]:
    """Serve the encoder that was served before, and embed all documents with it. Also returns how many passages.

    Until they are, searches go on with the vectors and the encoder that there are.
    """
    earlier = runtime.served_encoder.registry.rollback(reason, timestamp())
    return earlier, runtime.embed_documents(earlier)


def _gather(runtime: Runtime, pairs: Path | None) -> EncoderDataset:
    """What is to be learnt; the documents are searched only where there are any."""
    tools = runtime.frame().tools
    if not runtime.home.index.exists():
        return gather_dataset(runtime.store, lambda ids: {}, tools=tools, pairs=pairs)
    with _Shelf(runtime) as shelf:
        known = _all(shelf).values() if pairs is not None else ()
        return gather_dataset(
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

    def __enter__(self) -> DocumentStore:
        return DocumentStore(self._engine, tenant=self._tenant)

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()


def _all(shelf: DocumentStore) -> dict[str, Chunk]:
    return {chunk.id: chunk for chunk in shelf.chunks_of([document.name for document in shelf.documents()])}


def _counts(dataset: EncoderDataset) -> str:
    """How many queries and tasks each part has, those that there are."""
    kinds = {"queries": [one.part for one in dataset.judgements], "tasks": [one.part for one in dataset.tasks]}
    told = {kind: ", ".join(f"{parts.count(part)} {part}" for part in reversed(PARTS)) for kind, parts in kinds.items()}
    return "; ".join(f"{kind} {told[kind]}" for kind, parts in kinds.items() if parts)


def _card(name: str, base: str, dataset: EncoderDataset, trained: TrainedEncoder, settings: EncoderSettings) -> str:
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

- Made from dataset `encoder-{dataset.hash[:16]}`: {_counts(dataset)}. What is held out only the gate sees.
- {trained.steps} steps in {trained.seconds / 60:.1f} minutes. Loss on what the training is watched with:
  {trained.first_validation_loss:.3f} before, {trained.validation_loss:.3f} after; best epoch {trained.best_epoch + 1}
  of {trained.epochs}. Trained parameters: {trained.parameters}.

Whether search or recall finds more with it is the gate's to say: see `report/`. It was made for this project's
documents and tasks, and nothing is known of it outside them.

| setting | value |
|---|---|
{table}
"""
