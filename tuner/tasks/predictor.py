"""A trained task that can be asked and measured, and what a training made."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import DatasetError
from agent.util.threads import in_own_team
from tuner.tasks.data.columns import Columns
from tuner.tasks.data.marked import related
from tuner.tasks.data.readers import read, read_file
from tuner.tasks.data.records import (
    Asked,
    Classified,
    Conversed,
    Example,
    Related,
    Similar,
    Tagged,
    TaskName,
    Turn,
    Written,
)
from tuner.tasks.data.words import split_words
from tuner.tasks.head.ngrams import NgramModel
from tuner.tasks.language.generation import Generator
from tuner.tasks.metrics import Scores
from tuner.tasks.predictions import Prediction

if TYPE_CHECKING:
    from tuner.tasks.head.model import TaskModel
    from tuner.tasks.head.training import TrainedTask

Say = Callable[[str], None]
Text = str | tuple[str, str] | Example
"""A text, a pair of texts (for `answer` question and context), or a record without labels."""


def silent(_: object) -> None:
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
        return in_own_team(lambda: predict_with(self._model, examples)) if examples else []

    def evaluate(self, examples: Sequence[Example]) -> Scores:
        """Held against the labels of examples, which may not be empty."""
        if not examples:
            raise DatasetError("there are no examples to measure with")
        return in_own_team(lambda: self._model.task.measure(examples, predict_with(self._model, examples)))

    def evaluate_file(
        self,
        path: str | Path,
        columns: Columns | None = None,
        *,
        most: int | None = None,
        seed: int = 0,
        say: Say = silent,
    ) -> Scores:
        """Held against a file, or the test part of a folder; against `most` of it, drawn by seed."""
        path = Path(path)
        if path.is_dir():
            splits = read(self.task, path, columns, say=say).splits
            if "test" not in splits:
                raise DatasetError(f"{path} has the parts {', '.join(splits)}; expected one called test")
            return self.evaluate(drawn(splits["test"], most, seed))
        return self.evaluate(drawn(read_file(self.task, path, columns, say=say), most, seed))


def drawn(examples: Sequence[Example], most: int | None, seed: int) -> Sequence[Example]:
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
    before: Scores
    """On the test, with the head as it was made."""
    scores: Scores
    """On the test, after training."""
    trained: TrainedTask
    notes: tuple[str, ...]
    """What was noticed of the data."""


def predict_with(model: TaskModel | NgramModel | Generator, examples: Sequence[Any]) -> list[Any]:
    """What a model says of examples, in their order."""
    if isinstance(model, Generator | NgramModel):
        return model.predict(examples)
    from tuner.tasks.head.model import score

    windows = model.task.windows(examples, model.tokenizer, model.settings.max_tokens)
    return model.task.predict(examples, windows, score(model, windows))


def as_example(task: TaskName, text: Text) -> Example:
    """A text as the task's record without labels. Raises DatasetError for what is not of the task."""
    if isinstance(text, Classified | Tagged | Related | Asked | Similar | Written | Conversed):
        return text
    first, second = text if isinstance(text, tuple) else (text, None)
    if not first.strip():
        raise DatasetError("the text is empty; expected something to read")
    if task == "answer":
        if second is None:
            raise DatasetError("a question needs its context; give both, the question first")
        return Asked(first, second)
    if task == "classify":
        return Classified(first, pair=second)
    if task == "embed":
        if second is None or not second.strip():
            raise DatasetError("how alike is asked of two texts; give both (--pair)")
        return Similar(first, second)
    if second is not None:
        raise DatasetError(f"task {task} reads one text; two were given")
    if task in ("translate", "summarise"):
        return Written(first)
    if task == "converse":
        return Conversed((Turn("customer", first),))
    if task == "tag":
        return Tagged(first, split_words(first))
    try:
        return related(first, "")
    except ValueError as fault:
        raise DatasetError(f"{fault}; mark them in the text: the <e1>engine</e1> of the <e2>car</e2>") from None
