"""What a trained task says of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuner.tasks.data.records import Span


@dataclass(frozen=True)
class LabelPrediction:
    """Labels of a text or of a pair of entities."""

    labels: tuple[str, ...]
    """One, or those above the threshold in a multi-label task."""
    score: float
    """Probability of the likeliest."""
    scores: Mapping[str, float]
    """Probability by label."""

    @property
    def label(self) -> str:
        return self.labels[0] if self.labels else ""

    def to_dict(self, *, most: int = 5) -> dict[str, Any]:
        best = sorted(self.scores.items(), key=lambda item: -item[1])[:most]
        return {
            "labels": list(self.labels),
            "score": round(self.score, 4),
            "scores": {name: round(value, 4) for name, value in best},
        }


@dataclass(frozen=True)
class EntityPrediction:
    """Stretches of a text, in its own characters."""

    text: str
    spans: tuple[Span, ...]
    tags: tuple[str, ...]
    """IOB2, one a word."""
    score: float
    """Mean probability of the words' tags; of a language model, of the tokens it chose."""
    dropped: int = 0
    """Entities that a language model said and the text does not hold."""

    def to_dict(self) -> dict[str, Any]:
        found = [
            {"start": one.start, "end": one.end, "label": one.label, "text": self.text[one.start : one.end]}
            for one in self.spans
        ]
        return {"entities": found, "score": round(self.score, 4)}


@dataclass(frozen=True)
class AnswerPrediction:
    """A stretch of the context, or none."""

    text: str
    """Empty where the context does not say."""
    start: int
    end: int
    score: float
    """Sum of the logits of both ends, above that of no answer."""

    def to_dict(self) -> dict[str, Any]:
        return {"answer": self.text, "start": self.start, "end": self.end, "score": round(self.score, 4)}


@dataclass(frozen=True)
class SimilarityPrediction:
    """How alike two texts are."""

    score: float
    """Cosine of their vectors, -1 to 1."""
    rank: int = 0
    """Of pairs without scores that were asked about together: the place of this one's other among all, from 1."""

    def to_dict(self) -> dict[str, Any]:
        return {"cosine": round(self.score, 4)}


@dataclass(frozen=True)
class TextPrediction:
    """A text that a language model wrote."""

    text: str
    score: float
    """Mean probability of its tokens, the geometric one."""

    def to_dict(self) -> dict[str, Any]:
        return {"said": self.text, "score": round(self.score, 4)}


Prediction = LabelPrediction | EntityPrediction | AnswerPrediction | SimilarityPrediction | TextPrediction
