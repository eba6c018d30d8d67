"""Trains a LoRA adapter of a sentence encoder: a query is to be nearer to its passage than to all others of its batch.

The others are the passages of the other queries and each query's own hard negatives. What is known to fit a query is
never taken for wrong. Tasks that are no queries are to be nearer to those whose runs began alike than to others; a step
is either of queries or of tasks, in an order drawn for each epoch. So that the rest of the language stays where it was,
sentences of the passages are asked for in every step, and they and all passages are held near their old vectors; tasks
are not. The epoch whose loss on the validation queries and tasks is lowest is kept; where none is lower than before the
training, it stops with an error. With the same lessons, settings and machine the tensors are the same.

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
from tuner.encoder.beginnings import told_apart, with_names
from tuner.encoder.contrastive import Example, batches, contrastive_loss
from tuner.encoder.dataset import Judged, Lessons
from tuner.encoder.ranking import pseudo_query, sentences

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class EncoderSettings:
    """How the encoder is trained."""

    r: int = 16
    alpha: int = 32
    learning_rate: float = 1e-3
    """Of steps of queries."""
    epochs: int = 10
    """Times that the queries are gone through; where there are none, `task_epochs` is the number of epochs."""
    patience: int = 3
    """Epochs without a lower validation loss, behind which it stops."""
    batch: int = 16
    """Queries of a step; each brings one right passage."""
    negatives: int = 2
    """Hard negatives that each query brings, at most."""
    positives: int = 3
    """Right passages of a query that an epoch goes through, at most."""
    anchor: float = 4.0
    """What the distance (1 - cosine) of passages and sentences from their old vectors weighs."""
    rehearsed: int = 8
    """Sentences of passages that are asked for in each step; none that the gate may ask for."""
    scale: float = 20.0
    """What cosines are multiplied with before the softmax."""
    max_tokens: int = 192
    """Longer texts are cut in training."""
    task_learning_rate: float = 5e-4
    """Of steps of tasks."""
    task_epochs: int = 6
    """Times that the tasks are gone through, spread over all epochs."""
    task_steps: int = 240
    """Steps of tasks, at most: many tasks are gone through fewer times."""
    labels: int = 16
    """Labels of a step of tasks."""
    texts: int = 4
    """Texts of each label in it."""
    temperature: float = 0.07
    """What the cosines of tasks are divided by before the softmax."""
    warmup: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class EncoderProgress:
    """Told behind every step."""

    step: int
    steps: int
    loss: float
    """Of this step's queries or tasks."""
    validation_loss: float | None
    """At the end of an epoch."""


@dataclass(frozen=True)
class TrainedEncoder:
    """What a training did."""

    steps: int
    epochs: int
    best_epoch: int
    loss: float
    """Mean over the last epoch."""
    first_validation_loss: float
    validation_loss: float
    """Of the epoch that was kept."""
    parameters: int
    seconds: float


@dataclass(frozen=True)
class _Example:
    query: str
    positive: str
    """Id of a passage, as are the others."""
    negatives: tuple[str, ...]
    fits: frozenset[str]
    """All that fit the query."""


@dataclass(frozen=True)
class _Batch:
    """What a step learns from: one kind or the other."""

    queries: Sequence[_Example] = ()
    tasks: Sequence[Example] = ()


Tell = Callable[[EncoderProgress], None]


def train_encoder(
    model: Any,
    lessons: Lessons,
    settings: EncoderSettings,
    *,
    folder: Path,
    documents: Mapping[str, Chunk] | None = None,
    on_progress: Tell = lambda progress: None,
) -> TrainedEncoder:
    """Train a SentenceTransformer and save the adapter as a PEFT folder; the model is left with the adapter on it.

    Sentences that are asked for as well are of the lessons' passages and of `documents`, by id.

    To be called in a team of threads of its own, see `agent.util.threads`. Raises NotBetterError, LivenessError.
    """
    import torch

    started = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        peft_model = _with_adapter(model, settings)
        trained = [one for one in peft_model.parameters() if one.requires_grad]
        model.max_seq_length = min(model.max_seq_length or settings.max_tokens, settings.max_tokens)
        run = _Run(model, peft_model, lessons, {**lessons.passages, **(documents or {})}, settings)
        first = run.validation_loss()
        best, best_epoch, kept, loss = first, -1, None, math.nan
        for epoch in range(run.epochs):
            loss, lowest = run.epoch(epoch, trained, on_progress)
            if lowest < best:
                best, best_epoch, kept = lowest, epoch, _state(peft_model)
            elif epoch - best_epoch >= settings.patience:
                break
    if kept is None:
        raise NotBetterError(
            f"in {epoch + 1} epochs the loss on {len(lessons.of('validation'))} validation queries and "
            f"{len(lessons.tasks_of('validation'))} validation tasks never fell below the {first:.3f} it was before; "
            "more feedback is needed, or it contradicts itself"
        )
    _save(peft_model, kept, folder)
    return TrainedEncoder(
        steps=run.step,
        epochs=epoch + 1,
        best_epoch=best_epoch,
        loss=loss,
        first_validation_loss=first,
        validation_loss=best,
        parameters=sum(one.numel() for one in trained),
        seconds=time.monotonic() - started,
    )


class _Run:
    """The steps of one training."""

    def __init__(
        self, model: Any, peft_model: Any, lessons: Lessons, passages: Mapping[str, Chunk], settings: EncoderSettings
    ) -> None:
        from agent.llm.weights.precision import faster_precision

        self.step = 0
        self._model = model
        self._peft_model = peft_model
        self._old: dict[str, torch.Tensor] = {}
        """Vectors without the adapter, by text."""
        self._sentences = rehearsals(passages)
        self._settings = settings
        self._passages = passages
        self._judged = lessons.of("train")
        watched = lessons.of("validation")[:_WATCHED]
        self._validation = [_example(one, 0, one.negatives[: settings.negatives]) for one in watched]
        self._tasks = with_names(told_apart(lessons, "train"))
        known = {label for _, label in self._tasks}
        self._validation_tasks = [
            (one.text, one.label) for one in told_apart(lessons, "validation") if one.label in known
        ][:_WATCHED]
        self.epochs = settings.epochs if self._judged else settings.task_epochs
        once = math.ceil(len(self._tasks) / (settings.labels * settings.texts))
        self._task_steps = math.ceil(min(settings.task_steps, once * settings.task_epochs) / max(1, self.epochs))
        """Of an epoch."""
        per_epoch = math.ceil(sum(self._rights(one) for one in self._judged) / settings.batch)
        self._steps = (per_epoch + self._task_steps) * self.epochs
        self._mixed = faster_precision("cpu") == "mixed"
        self._optimizer: torch.optim.Optimizer | None = None

    def epoch(self, number: int, trained: Sequence[torch.nn.Parameter], tell: Tell) -> tuple[float, float]:
        """One pass over all queries and part of the tasks. Returns its mean loss and the validation loss behind it."""
        import torch

        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW(trained, lr=self._settings.learning_rate, weight_decay=0.0)
        todo = self._batches(number)
        losses, after = [], None
        for batch in todo:
            loss = self._training_loss(batch, random.Random(f"{self._settings.seed} {self.step}"))
            loss.backward()  # type: ignore[no-untyped-call]
            norm = float(torch.nn.utils.clip_grad_norm_(trained, 1.0))
            # A loss of zero has no gradient and is no fault.
            if norm == 0 and self.step == 0 and float(loss) > 1e-6:
                raise LivenessError("the first step has no gradient: nothing of the encoder would be trained")
            rate = self._settings.task_learning_rate if batch.tasks else self._settings.learning_rate
            for group in self._optimizer.param_groups:
                group["lr"] = rate * self._rate()
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.step += 1
            losses.append(float(loss.detach()))
            after = self.validation_loss() if len(losses) == len(todo) else None
            tell(EncoderProgress(self.step, self._steps, losses[-1], after))
        return sum(losses) / len(losses), math.inf if after is None else after

    def validation_loss(self) -> float:
        """Mean loss of the validation queries, each among the passages of all of them, plus that of the validation
        tasks, each among those that are trained on."""
        import torch

        self._model.eval()
        loss = 0.0
        with torch.no_grad():
            if self._validation:
                ids = _named(self._validation)
                queries = self._vectors([one.query for one in self._validation])
                loss += float(self._ranking_loss(self._validation, queries, ids, self._vectors(self._texts(ids))))
            if self._validation_tasks:
                loss += float(self._contrastive_loss(self._validation_tasks, self._tasks[-_AMONG:]))
        return loss

    def _training_loss(self, batch: _Batch, chance: random.Random) -> torch.Tensor:
        """What is ranked wrong or not told apart, and how far passages and sentences went from where they were."""
        import torch

        rehearsed = chance.sample(self._sentences, min(self._settings.rehearsed, len(self._sentences)))
        every = [*batch.queries, *rehearsed]
        ids = _named(every)
        held = [*self._texts(ids), *(one.query for one in rehearsed)]
        before = self._old_vectors(held) if held else None
        self._model.train()
        losses = [self._contrastive_loss(batch.tasks)] if batch.tasks else []
        if before is not None:
            vectors = self._vectors(held)
            asked = [self._vectors([one.query for one in batch.queries])] if batch.queries else []
            queries = torch.cat([*asked, vectors[len(ids) :]])
            away = 1 - (vectors * before).sum(dim=1).mean()
            losses.append(self._ranking_loss(every, queries, ids, vectors[: len(ids)]) + self._settings.anchor * away)
        return torch.stack(losses).sum()

    def _contrastive_loss(self, asked: Sequence[Example], others: Sequence[Example] | None = None) -> torch.Tensor:
        """How unlikely those of the same label are among the others, or among the asked themselves."""
        import torch

        among = asked if others is None else others
        vectors = self._vectors([text for text, _ in asked])
        alike = torch.tensor([[label == other for _, other in among] for _, label in asked])
        itself = torch.eye(len(asked), dtype=torch.bool) if others is None else torch.zeros_like(alike)
        compared = vectors if others is None else self._vectors([text for text, _ in others])
        return contrastive_loss(vectors, compared, alike, itself, self._settings.temperature)

    def _ranking_loss(
        self, asked: Sequence[_Example], queries: torch.Tensor, ids: Sequence[str], passages: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy of each query's right passage among these; vectors [n, dimensions] in the order given."""
        import torch
        from torch.nn.functional import cross_entropy

        places = {id: place for place, id in enumerate(ids)}
        scores = queries @ passages.T * self._settings.scale
        known = torch.tensor([[id in one.fits and id != one.positive for id in ids] for one in asked])
        scores = scores.masked_fill(known, float("-inf"))
        return cross_entropy(scores, torch.tensor([places[one.positive] for one in asked]))

    def _texts(self, ids: Sequence[str]) -> list[str]:
        return [self._passages[id].embedded_text for id in ids]

    def _old_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        import torch

        fresh = [text for text in dict.fromkeys(texts) if text not in self._old]
        if fresh:
            self._model.eval()
            with torch.no_grad(), self._peft_model.disable_adapter():
                self._old.update(zip(fresh, self._vectors(fresh), strict=True))
        return torch.stack([self._old[text] for text in texts])

    def _vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """[len(texts), dimensions], of length one, float32. Texts of like length share a pass."""
        import torch
        from torch.nn.functional import normalize

        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        parts = []
        for start in range(0, len(order), _PASS):
            features = self._model.preprocess([texts[place] for place in order[start : start + _PASS]])
            with self._products():
                parts.append(self._model(features)["sentence_embedding"].float())
        back = torch.tensor(order).argsort()
        return normalize(torch.cat(parts), dim=-1)[back]

    def _batches(self, epoch: int) -> list[_Batch]:
        """The steps of an epoch in its order."""
        examples, size = self._examples(epoch), self._settings.batch
        asked = [_Batch(queries=examples[start : start + size]) for start in range(0, len(examples), size)]
        if not self._tasks:
            return asked
        chance = random.Random(f"{self._settings.seed} tasks {epoch}")
        told = batches(self._tasks, self._settings.labels, self._settings.texts, self._task_steps, chance)
        every = [*asked, *(_Batch(tasks=one) for one in told)]
        chance.shuffle(every)
        return every

    def _examples(self, epoch: int) -> list[_Example]:
        """The queries of an epoch in its order, each once for some of its right passages."""
        chance = random.Random(self._settings.seed * 1_000_003 + epoch)
        examples = []
        for one in self._judged:
            rights = self._rights(one)
            chosen = chance.sample(range(len(one.positives)), rights)
            for place in chosen:
                count = min(self._settings.negatives, len(one.negatives))
                examples.append(_example(one, place, tuple(chance.sample(one.negatives, count))))
        chance.shuffle(examples)
        return examples

    def _rights(self, one: Judged) -> int:
        return min(self._settings.positives, len(one.positives))

    def _rate(self) -> float:
        """The learning rate's share at this step: up in the first tenth, then down to nothing."""
        warm = max(1, round(self._steps * self._settings.warmup))
        if self.step < warm:
            return (self.step + 1) / warm
        return max(0.0, (self._steps - self.step) / max(1, self._steps - warm))

    def _products(self) -> contextlib.AbstractContextManager[Any]:
        import torch

        return torch.autocast("cpu", dtype=torch.bfloat16) if self._mixed else contextlib.nullcontext()


_PASS = 16
"""Texts of one pass: short ones are not padded to the longest of the batch."""
_WATCHED = 200
"""Validation queries, and tasks, at most."""
_AMONG = 1000
"""Tasks that these are compared with, at most."""


def rehearsals(passages: Mapping[str, Chunk]) -> list[_Example]:
    """Sentences of passages with the one that each is of, but for those that the gate may ask for."""
    found: dict[str, list[str]] = {}
    for id in sorted(passages):
        for part in dict.fromkeys(sentences(passages[id].text)):
            found.setdefault(part, []).append(id)
    asked = {pseudo_query(one.text) for one in passages.values()}
    return [
        _Example(text, ids[0], (), frozenset(ids)) for text, ids in found.items() if len(ids) == 1 and text not in asked
    ]


def _named(examples: Sequence[_Example]) -> list[str]:
    return list(dict.fromkeys(id for one in examples for id in (one.positive, *one.negatives)))


def _example(one: Judged, place: int, negatives: tuple[str, ...]) -> _Example:
    return _Example(one.query, one.positives[place], negatives, frozenset(one.positives))


def _with_adapter(model: Any, settings: EncoderSettings) -> Any:
    """A fresh LoRA adapter on all linear layers but the pooler, which sentence vectors do not come from."""
    import torch
    from peft import LoraConfig, get_peft_model

    inner = model.transformers_model
    inner.requires_grad_(False)
    names = [name for name, one in inner.named_modules() if isinstance(one, torch.nn.Linear) and "pooler" not in name]
    config = LoraConfig(
        r=settings.r, lora_alpha=settings.alpha, target_modules=names, task_type="FEATURE_EXTRACTION", bias="none"
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers by a name that is going away.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return get_peft_model(inner, config)


def _state(peft_model: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(peft_model).items()}


def _save(peft_model: Any, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(peft_model, dict(state))
    peft_model.eval()
    peft_model.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)
