"""Trains a LoRA adapter of the sentence encoder on relevance judgements and on labelled tasks.

A query step pulls each query to its passage and away from the other passages of the batch and its own hard negatives;
what is known to fit a query is never a negative. A task step is supervised contrastive learning on the labels. Both
kinds alternate in an order drawn for each epoch. To keep general similarity, query steps also use sentences of the
passages as queries, and hold passages and sentences near their old vectors. The weights of the epoch with the lowest
validation loss are kept. The same dataset, settings and machine give the same tensors.

Source: multiple negatives ranking (Henderson et al., "Efficient Natural Language Response Suggestion for Smart Reply",
2017), with hard negatives as in DPR (Karpukhin et al., 2020); for tasks see `tuner.encoder.contrastive`.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import LivenessError, NotBetterError
from agent.knowledge.chunking import Chunk
from tuner.encoder.contrastive import Example, contrastive_loss, make_batches
from tuner.encoder.dataset import EncoderDataset, RelevanceJudgement
from tuner.encoder.first_calls import contrastive_tasks, with_label_names
from tuner.encoder.ranking import pseudo_query, query_sentences
from tuner.encoder.settings import EncoderProgress, EncoderSettings, TrainedEncoder

if TYPE_CHECKING:
    import torch

OnProgress = Callable[[EncoderProgress], None]

_TEXTS_PER_FORWARD = 16
"""A small number keeps short texts from being padded to the longest of the batch."""
_MAX_VALIDATION = 200
"""Validation queries, and tasks, at most."""
_MAX_COMPARED = 1000
"""Training tasks that the validation tasks are compared with, at most."""


@dataclass(frozen=True)
class QueryExample:
    """A query with one passage that fits it; passages are given by id."""

    query: str
    positive: str
    negatives: tuple[str, ...]
    relevant: frozenset[str]
    """All passages known to fit the query."""


@dataclass(frozen=True)
class _EncoderBatch:
    """The examples of a step, of one kind or the other."""

    queries: Sequence[QueryExample] = ()
    tasks: Sequence[Example] = ()


def train_encoder(
    model: Any,
    dataset: EncoderDataset,
    settings: EncoderSettings,
    *,
    folder: Path,
    documents: Mapping[str, Chunk] | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> TrainedEncoder:
    """Train an adapter of a SentenceTransformer and save it as a PEFT folder. Call it in a thread team of its own.

    Args:
        model: the SentenceTransformer; the adapter stays on it.
        dataset: judgements and tasks.
        settings: how to train.
        folder: where the adapter is saved.
        documents: further passages by id, whose sentences are used as queries as well.
        on_progress: called after every step.

    Raises:
        NotBetterError: the validation loss never fell below what it was before the training.
        LivenessError: the first step has no gradient.
    """
    import torch

    started = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        peft_model = _add_adapter(model, settings)
        parameters = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
        model.max_seq_length = min(model.max_seq_length or settings.max_tokens, settings.max_tokens)
        passages = {**dataset.passages, **(documents or {})}
        trainer = _EncoderTrainer(model, peft_model, dataset, passages, settings)
        first = trainer.validation_loss()
        best, best_epoch, weights, loss = first, -1, None, math.nan
        for epoch in range(trainer.epochs):
            loss, validation_loss = trainer.train_epoch(epoch, parameters, on_progress)
            if validation_loss < best:
                best, best_epoch, weights = validation_loss, epoch, _adapter_weights(peft_model)
            elif epoch - best_epoch >= settings.patience:
                break
    if weights is None:
        raise NotBetterError(
            f"in {epoch + 1} epochs the loss on {len(dataset.judgements_in('validation'))} validation queries and "
            f"{len(dataset.tasks_in('validation'))} validation tasks never fell below the {first:.3f} it was before; "
            "more feedback is needed, or it contradicts itself"
        )
    _save(peft_model, weights, folder)
    return TrainedEncoder(
        steps=trainer.step,
        epochs=epoch + 1,
        best_epoch=best_epoch,
        loss=loss,
        first_validation_loss=first,
        validation_loss=best,
        parameters=sum(parameter.numel() for parameter in parameters),
        seconds=time.monotonic() - started,
    )


def rehearsal_examples(passages: Mapping[str, Chunk]) -> list[QueryExample]:
    """Return the sentences that occur in one passage only, as queries for it; without those that the gate may use."""
    ids_of: dict[str, list[str]] = {}
    for id in sorted(passages):
        for sentence in dict.fromkeys(query_sentences(passages[id].text)):
            ids_of.setdefault(sentence, []).append(id)
    used_by_gate = {pseudo_query(chunk.text) for chunk in passages.values()}
    return [
        QueryExample(sentence, ids[0], (), frozenset(ids))
        for sentence, ids in ids_of.items()
        if len(ids) == 1 and sentence not in used_by_gate
    ]


class _EncoderTrainer:
    """The steps of one training."""

    def __init__(
        self,
        model: Any,
        peft_model: Any,
        dataset: EncoderDataset,
        passages: Mapping[str, Chunk],
        settings: EncoderSettings,
    ) -> None:
        from agent.llm.weights.precision import faster_precision

        self.step = 0
        self._model = model
        self._peft_model = peft_model
        self._vectors_before: dict[str, torch.Tensor] = {}
        """Vectors without the adapter, by text."""
        self._rehearsal = rehearsal_examples(passages)
        self._settings = settings
        self._passages = passages
        self._judgements = dataset.judgements_in("train")
        validation = dataset.judgements_in("validation")[:_MAX_VALIDATION]
        self._validation = [_example(item, 0, item.negatives[: settings.negatives]) for item in validation]
        self._tasks = with_label_names(contrastive_tasks(dataset, "train"))
        labels = {label for _, label in self._tasks}
        self._validation_tasks = [
            (task.text, task.label) for task in contrastive_tasks(dataset, "validation") if task.label in labels
        ][:_MAX_VALIDATION]
        self.epochs = settings.epochs if self._judgements else settings.task_epochs
        steps_per_pass = math.ceil(len(self._tasks) / (settings.labels * settings.texts))
        task_steps = min(settings.task_steps, steps_per_pass * settings.task_epochs)
        self._task_steps = math.ceil(task_steps / max(1, self.epochs))
        """Of an epoch."""
        query_steps = math.ceil(sum(self._positives_per_epoch(item) for item in self._judgements) / settings.batch)
        self._steps = (query_steps + self._task_steps) * self.epochs
        self._mixed = faster_precision("cpu") == "mixed"
        self._optimizer: torch.optim.Optimizer | None = None

    def train_epoch(
        self, number: int, parameters: Sequence[torch.nn.Parameter], on_progress: OnProgress
    ) -> tuple[float, float]:
        """Train on all queries and a part of the tasks. Return the mean loss, and the validation loss afterwards."""
        import torch

        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW(parameters, lr=self._settings.learning_rate, weight_decay=0.0)
        batches = self._batches(number)
        losses, validation_loss = [], None
        for batch in batches:
            loss = self._training_loss(batch, random.Random(f"{self._settings.seed} {self.step}"))
            loss.backward()  # type: ignore[no-untyped-call]
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
            # A loss of zero has no gradient and is no fault.
            if norm == 0 and self.step == 0 and float(loss) > 1e-6:
                raise LivenessError("the first step has no gradient: nothing of the encoder would be trained")
            rate = self._settings.task_learning_rate if batch.tasks else self._settings.learning_rate
            for group in self._optimizer.param_groups:
                group["lr"] = rate * self._schedule()
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.step += 1
            losses.append(float(loss.detach()))
            validation_loss = self.validation_loss() if len(losses) == len(batches) else None
            on_progress(EncoderProgress(self.step, self._steps, losses[-1], validation_loss))
        return sum(losses) / len(losses), math.inf if validation_loss is None else validation_loss

    def validation_loss(self) -> float:
        """Return the mean loss of the validation queries plus that of the validation tasks.

        Each query is ranked among the passages of all of them, each task compared with training tasks.
        """
        import torch

        self._model.eval()
        loss = 0.0
        with torch.no_grad():
            if self._validation:
                ids = _passage_ids(self._validation)
                queries = self._encode([example.query for example in self._validation])
                loss += float(self._ranking_loss(self._validation, queries, ids, self._encode(self._texts(ids))))
            if self._validation_tasks:
                loss += float(self._contrastive_loss(self._validation_tasks, self._tasks[-_MAX_COMPARED:]))
        return loss

    def _training_loss(self, batch: _EncoderBatch, rng: random.Random) -> torch.Tensor:
        """Return the ranking or contrastive loss, with the weighted distance from the old vectors."""
        import torch

        rehearsed = rng.sample(self._rehearsal, min(self._settings.rehearsed, len(self._rehearsal)))
        examples = [*batch.queries, *rehearsed]
        ids = _passage_ids(examples)
        anchored = [*self._texts(ids), *(example.query for example in rehearsed)]
        before = self._encode_without_adapter(anchored) if anchored else None
        self._model.train()
        losses = [self._contrastive_loss(batch.tasks)] if batch.tasks else []
        if before is not None:
            vectors = self._encode(anchored)
            asked = [self._encode([example.query for example in batch.queries])] if batch.queries else []
            queries = torch.cat([*asked, vectors[len(ids) :]])
            distance = 1 - (vectors * before).sum(dim=1).mean()
            ranking = self._ranking_loss(examples, queries, ids, vectors[: len(ids)])
            losses.append(ranking + self._settings.anchor * distance)
        return torch.stack(losses).sum()

    def _contrastive_loss(
        self, anchors: Sequence[Example], candidates: Sequence[Example] | None = None
    ) -> torch.Tensor:
        """Return the contrastive loss among the candidates, or among the anchors themselves."""
        import torch

        compared = anchors if candidates is None else candidates
        vectors = self._encode([text for text, _ in anchors])
        same_label = torch.tensor([[label == other for _, other in compared] for _, label in anchors])
        is_self = torch.eye(len(anchors), dtype=torch.bool) if candidates is None else torch.zeros_like(same_label)
        others = vectors if candidates is None else self._encode([text for text, _ in candidates])
        return contrastive_loss(vectors, others, same_label, is_self, self._settings.temperature)

    def _ranking_loss(
        self, examples: Sequence[QueryExample], queries: torch.Tensor, ids: Sequence[str], passages: torch.Tensor
    ) -> torch.Tensor:
        """Return the cross-entropy of each query's positive among the passages; vectors [n, dimensions] in order."""
        import torch
        from torch.nn.functional import cross_entropy

        places = {id: place for place, id in enumerate(ids)}
        scores = queries @ passages.T * self._settings.scale
        also_right = torch.tensor(
            [[id in example.relevant and id != example.positive for id in ids] for example in examples]
        )
        scores = scores.masked_fill(also_right, float("-inf"))
        return cross_entropy(scores, torch.tensor([places[example.positive] for example in examples]))

    def _texts(self, ids: Sequence[str]) -> list[str]:
        return [self._passages[id].embedded_text for id in ids]

    def _encode_without_adapter(self, texts: Sequence[str]) -> torch.Tensor:
        import torch

        new = [text for text in dict.fromkeys(texts) if text not in self._vectors_before]
        if new:
            self._model.eval()
            with torch.no_grad(), self._peft_model.disable_adapter():
                self._vectors_before.update(zip(new, self._encode(new), strict=True))
        return torch.stack([self._vectors_before[text] for text in texts])

    def _encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit vectors [len(texts), dimensions], float32. Texts of similar length share a forward pass."""
        import torch
        from torch.nn.functional import normalize

        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        parts = []
        for start in range(0, len(order), _TEXTS_PER_FORWARD):
            features = self._model.preprocess([texts[place] for place in order[start : start + _TEXTS_PER_FORWARD]])
            with self._autocast():
                parts.append(self._model(features)["sentence_embedding"].float())
        back = torch.tensor(order).argsort()
        return normalize(torch.cat(parts), dim=-1)[back]

    def _batches(self, epoch: int) -> list[_EncoderBatch]:
        """Return the steps of an epoch in order."""
        examples, size = self._examples(epoch), self._settings.batch
        query_steps = [_EncoderBatch(queries=examples[start : start + size]) for start in range(0, len(examples), size)]
        if not self._tasks:
            return query_steps
        rng = random.Random(f"{self._settings.seed} tasks {epoch}")
        drawn = make_batches(self._tasks, self._settings.labels, self._settings.texts, self._task_steps, rng)
        steps = [*query_steps, *(_EncoderBatch(tasks=tasks) for tasks in drawn)]
        rng.shuffle(steps)
        return steps

    def _examples(self, epoch: int) -> list[QueryExample]:
        """Return the queries of an epoch in order, each with some of its positives, one at a time."""
        rng = random.Random(self._settings.seed * 1_000_003 + epoch)
        examples = []
        for judgement in self._judgements:
            for place in rng.sample(range(len(judgement.positives)), self._positives_per_epoch(judgement)):
                count = min(self._settings.negatives, len(judgement.negatives))
                examples.append(_example(judgement, place, tuple(rng.sample(judgement.negatives, count))))
        rng.shuffle(examples)
        return examples

    def _positives_per_epoch(self, judgement: RelevanceJudgement) -> int:
        return min(self._settings.positives, len(judgement.positives))

    def _schedule(self) -> float:
        """Return the share of the learning rate at this step: linear warm-up, then linear decay to zero."""
        warmup = max(1, round(self._steps * self._settings.warmup))
        if self.step < warmup:
            return (self.step + 1) / warmup
        return max(0.0, (self._steps - self.step) / max(1, self._steps - warmup))

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        import torch

        return torch.autocast("cpu", dtype=torch.bfloat16) if self._mixed else contextlib.nullcontext()


def _passage_ids(examples: Sequence[QueryExample]) -> list[str]:
    return list(dict.fromkeys(id for example in examples for id in (example.positive, *example.negatives)))


def _example(judgement: RelevanceJudgement, place: int, negatives: tuple[str, ...]) -> QueryExample:
    return QueryExample(judgement.query, judgement.positives[place], negatives, frozenset(judgement.positives))


def _add_adapter(model: Any, settings: EncoderSettings) -> Any:
    """Add a fresh LoRA adapter to all linear layers but the pooler, which sentence vectors do not come from."""
    import torch
    from peft import LoraConfig, get_peft_model

    inner = model.transformers_model
    inner.requires_grad_(False)
    names = [
        name for name, module in inner.named_modules() if isinstance(module, torch.nn.Linear) and "pooler" not in name
    ]
    config = LoraConfig(
        r=settings.r, lora_alpha=settings.alpha, target_modules=names, task_type="FEATURE_EXTRACTION", bias="none"
    )
    with warnings.catch_warnings():
        # peft 0.21 uses a name of transformers that is deprecated.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return get_peft_model(inner, config)


def _adapter_weights(peft_model: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(peft_model).items()}


def _save(peft_model: Any, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(peft_model, dict(weights))
    peft_model.eval()
    peft_model.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)
