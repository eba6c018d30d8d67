"""A trained task that can be asked and measured, and what a training made."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import DatasetError
from tuner.tasks.data.columns import Columns
from tuner.tasks.data.marked import parse_marked_text
from tuner.tasks.data.readers import read_examples, read_file
from tuner.tasks.data.records import (
    AnswerExample,
    ChatTurn,
    ClassifyExample,
    ConverseExample,
    EmbedExample,
    RelateExample,
    TagExample,
    TaskExample,
    TaskName,
    WriteExample,
)
from tuner.tasks.data.words import split_words
from tuner.tasks.head.ngrams import NgramModel
from tuner.tasks.language.generation import Generator
from tuner.tasks.metrics import TaskScores
from tuner.tasks.predictions import Prediction

if TYPE_CHECKING:
    from tuner.tasks.head.model import TaskModel
    from tuner.tasks.head.training import TrainedTask

Say = Callable[[str], None]
Text = str | tuple[str, str] | TaskExample
"""A text, a pair of texts (for `answer` question and context), or a record without labels."""


def ignore(_: object) -> None:
    """Tells nobody."""


class TaskPredictor:
    """A trained task, ready to be asked."""

    def __init__(self, model: TaskModel | NgramModel | Generator, folder: Path | None) -> None:
        """`folder` is None for a language model that is asked without having been trained."""
        self._model = model
        self.folder = folder

    @property
    def generator(self) -> Generator | None:
        """The language model's way; None for a head."""
        return self._model if isinstance(self._model, Generator) else None

    @property
    def task(self) -> TaskName:
        return self._model.task.name

    @property
    def labels(self) -> tuple[str, ...]:
        return self._model.task.labels

    def predict(self, texts: Sequence[Text]) -> list[Prediction]:
        """A prediction for each text. For `relate` a text has `<e1>…</e1>` and `<e2>…</e2>`; raises DatasetError."""
        examples = [as_example(self.task, one) for one in texts]
        return predict_with(self._model, examples) if examples else []

    def evaluate(self, examples: Sequence[TaskExample]) -> TaskScores:
        """Held against the labels of examples, which may not be empty."""
        if not examples:
            raise DatasetError("there are no examples to measure with")
        return self._model.task.measure(examples, predict_with(self._model, examples))

    def evaluate_file(
        self,
        path: str | Path,
        columns: Columns | None = None,
        *,
        most: int | None = None,
        seed: int = 0,
        say: Say = ignore,
    ) -> TaskScores:
        """Held against a file, or the test part of a folder; against `most` of it, drawn by seed."""
        path = Path(path)
        if path.is_dir():
            splits = read_examples(self.task, path, columns, say=say).splits
            if "test" not in splits:
                raise DatasetError(f"{path} has the parts {', '.join(splits)}; expected one called test")
            return self.evaluate(draw_examples(splits["test"], most, seed))
        return self.evaluate(draw_examples(read_file(self.task, path, columns, say=say), most, seed))


def draw_examples(examples: Sequence[TaskExample], most: int | None, seed: int) -> Sequence[TaskExample]:
    """All examples, or `most` of them by seed. Raises DatasetError for a number below 1."""
    if most is None or most >= len(examples):
        return examples
    if most < 1:
        raise DatasetError(f"{most} examples are to be measured with; expected 1 or more")
    return random.Random(f"{seed} test").sample(examples, most)


@dataclass(frozen=True)
class TaskResult:
    """What a training made."""

    predictor: TaskPredictor
    folder: Path
    before: TaskScores
    """On the test, with the head as it was made."""
    scores: TaskScores
    """On the test, after training."""
    trained: TrainedTask
    notes: tuple[str, ...]
    """What was noticed of the data."""


def predict_with(model: TaskModel | NgramModel | Generator, examples: Sequence[Any]) -> list[Any]:
    """What a model says of examples, in their order."""
    if isinstance(model, Generator | NgramModel):
        return model.predict(examples)
    from tuner.tasks.head.model import score_windows

    windows = model.task.windows(examples, model.tokenizer, model.settings.max_tokens)
    return model.task.predict(examples, windows, score_windows(model, windows))


def as_example(task: TaskName, text: Text) -> TaskExample:
    """A text as the task's record without labels. Raises DatasetError for what is not of the task."""
    if isinstance(
        text,
        ClassifyExample | TagExample | RelateExample | AnswerExample | EmbedExample | WriteExample | ConverseExample,
    ):
        return text
    first, second = text if isinstance(text, tuple) else (text, None)
    if not first.strip():
        raise DatasetError("the text is empty; expected something to read")
    if task == "answer":
        if second is None:
            raise DatasetError("a question needs its context; give both, the question first")
        return AnswerExample(first, second)
    if task == "classify":
        return ClassifyExample(first, pair=second)
    if task == "embed":
        if second is None or not second.strip():
            raise DatasetError("how alike is asked of two texts; give both (--pair)")
        return EmbedExample(first, second)
    if second is not None:
        raise DatasetError(f"task {task} reads one text; two were given")
    if task in ("translate", "summarise"):
        return WriteExample(first)
    if task == "converse":
        return ConverseExample((ChatTurn("customer", first),))
    if task == "tag":
        return TagExample(first, split_words(first))
    try:
        return parse_marked_text(first, "")
    except ValueError as fault:
        raise DatasetError(f"{fault}; mark them in the text: the <e1>engine</e1> of the <e2>car</e2>") from None
