"""Prompts of the tasks that return free text: translations, summaries and answers to customers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.llm.prompt.render import Message
from tuner.tasks import text_metrics
from tuner.tasks.data.records import ConverseExample, TaskName, WriteExample
from tuner.tasks.metrics import RESAMPLES, TaskScores
from tuner.tasks.predictions import TextPrediction


class _FreeTextPrompt:
    """The parts that all tasks with free text share."""

    def grammar(self, example: Any) -> None:
        return None

    def parse(self, example: Any, output: str, score: float) -> TextPrediction:
        return TextPrediction(output.strip(), score)

    def options(self) -> dict[str, Any]:
        return {}


class _SingleTextPrompt(_FreeTextPrompt):
    """The parts that tasks on a single text share; the text is the only message."""

    def messages(self, example: WriteExample) -> list[Message]:
        return [Message("user", example.text)]

    def target(self, example: WriteExample) -> str:
        return example.target


@dataclass(frozen=True)
class TranslatePrompt(_SingleTextPrompt):
    """A translation."""

    labels: tuple[str, ...] = ()
    into: str = ""
    """Name of the target language; empty where it is unknown."""
    name: TaskName = "translate"

    @property
    def system(self) -> str:
        into = f" into {self.into}" if self.into else ""
        return f"You translate{into}. Answer with the translation alone."

    def measure(
        self, examples: Sequence[WriteExample], predictions: Sequence[TextPrediction], *, resamples: int = RESAMPLES
    ) -> TaskScores:
        return text_metrics.translations(*_texts(self, examples, predictions), resamples=resamples)

    def options(self) -> dict[str, Any]:
        return {"into": self.into}


@dataclass(frozen=True)
class SummarisePrompt(_SingleTextPrompt):
    """A summary."""

    labels: tuple[str, ...] = ()
    name: TaskName = "summarise"
    system = "You summarise texts in a few plain sentences. Answer with the summary alone."

    def measure(
        self, examples: Sequence[WriteExample], predictions: Sequence[TextPrediction], *, resamples: int = RESAMPLES
    ) -> TaskScores:
        return text_metrics.summaries(*_texts(self, examples, predictions), resamples=resamples)


@dataclass(frozen=True)
class ConversePrompt(_FreeTextPrompt):
    """The next answer to a customer; the chat so far becomes the messages."""

    labels: tuple[str, ...] = ()
    name: TaskName = "converse"
    system = "You answer customers of our service, in their language, briefly and to the point."

    def messages(self, example: ConverseExample) -> list[Message]:
        return [Message("user" if turn.speaker == "customer" else "assistant", turn.text) for turn in example.turns]

    def target(self, example: ConverseExample) -> str:
        return example.answer

    def measure(
        self, examples: Sequence[ConverseExample], predictions: Sequence[TextPrediction], *, resamples: int = RESAMPLES
    ) -> TaskScores:
        return text_metrics.replies(*_texts(self, examples, predictions), resamples=resamples)


def _texts(
    prompt: TranslatePrompt | SummarisePrompt | ConversePrompt,
    examples: Sequence[Any],
    predictions: Sequence[TextPrediction],
) -> tuple[list[str], list[str]]:
    """The texts that are right, and the predicted ones."""
    return [prompt.target(example) for example in examples], [prediction.text for prediction in predictions]
