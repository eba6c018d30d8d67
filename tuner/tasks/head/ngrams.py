"""A classification without an encoder: logistic regression on how often runs of one to three characters are in a text.

For texts in a script that the encoder does not know, of which it would see nothing but unknown tokens. The counts are
hashed, so that no word of a text is kept, and weighed by TF-IDF; scikit-learn fits. What large weights cost is chosen
by the validation figure, as for a head alone. Source: Wang and Manning, "Baselines and Bigrams" (2012).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner.tasks.data.records import Classified
from tuner.tasks.predictions import Labelled
from tuner.training.memory_budget import peak_bytes

if TYPE_CHECKING:
    import torch

    from tuner.tasks.head.classify import ClassifyTask
    from tuner.tasks.head.training import TaskProgress, TrainedTask
    from tuner.tasks.settings import TaskSettings

RUNS = (1, 3)
"""Characters of the shortest and the longest run."""
BUCKETS = 2**16
LOOSENESS = (1.0, 10.0, 100.0)
"""What logistic regression calls C."""
BETWEEN = "\n\n"
"""Stands between the texts of a pair."""


class NgramModel:
    """The weights of a classification, or zeros where it is yet to be fitted."""

    def __init__(self, task: ClassifyTask, settings: TaskSettings) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer  # type: ignore[import-untyped]

        self.task: Any = task
        self.settings = settings
        self._counter = HashingVectorizer(
            analyzer="char", ngram_range=RUNS, alternate_sign=False, norm=None, n_features=BUCKETS, dtype=np.float32
        )
        self._weight = np.zeros((task.outputs, BUCKETS), dtype=np.float32)
        self._bias = np.zeros(task.outputs, dtype=np.float32)
        self._rarity = np.ones(BUCKETS, dtype=np.float32)

    def predict(self, examples: Sequence[Classified]) -> list[Labelled]:
        scores = self._read(examples) @ self._weight.T + self._bias
        said: list[Labelled] = self.task.predict(examples, (), list(np.asarray(scores, dtype=np.float32)))
        return said

    def fit(
        self,
        train: Sequence[Classified],
        validation: Sequence[Classified],
        tell: Callable[[TaskProgress], None],
    ) -> TrainedTask:
        """Fit to the training examples, as loosely as is best for the validation."""
        from sklearn.feature_extraction.text import TfidfTransformer

        from tuner.tasks.head.training import TaskProgress, TrainedTask

        started = time.monotonic()
        counted = TfidfTransformer(sublinear_tf=True).fit(self._counted(train))
        self._rarity = counted.idf_.astype(np.float32)
        read = self._read(train)
        seen = np.unique(read.indices)
        targets = [self.task.targets(one) for one in train]
        best, kept, best_fit = -1.0, (self._weight, self._bias), -1
        curve: list[tuple[int, float]] = []
        checked: list[tuple[int, float]] = []
        for number, looseness in enumerate(LOOSENESS):
            self._weight = np.zeros_like(self._weight)
            self._weight[:, seen], self._bias, loss = self._fitted(read[:, seen], targets, looseness)
            found = self.task.measure(validation, self.predict(validation), resamples=0)
            curve.append((number + 1, loss))
            checked.append((number + 1, found.value))
            tell(TaskProgress(number + 1, len(LOOSENESS), number, loss, found))
            if found.value > best:
                best, kept, best_fit = found.value, (self._weight, self._bias), number
        self._weight, self._bias = kept
        return TrainedTask(
            steps=len(LOOSENESS),
            epochs=len(LOOSENESS),
            best_epoch=best_fit,
            loss=curve[best_fit][1],
            validation=best,
            parameters=len(seen) * self.task.outputs + self.task.outputs,
            seconds=time.monotonic() - started,
            peak_bytes=peak_bytes(),
            curve=tuple(curve),
            validation_curve=tuple(checked),
        )

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        return {name: torch.from_numpy(one.copy()) for name, one in self._arrays().items()}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what `state` gave. Raises AdapterError where names or shapes are not those of this task."""
        from tuner.tasks.head.model import check_fits

        check_fits(self._arrays(), tensors)
        self._weight, self._bias, self._rarity = (tensors[name].numpy() for name in self._arrays())

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"ngrams.weight": self._weight, "ngrams.bias": self._bias, "ngrams.rarity": self._rarity}

    def _counted(self, examples: Sequence[Classified]) -> Any:
        texts = [one.text if one.pair is None else f"{one.text}{BETWEEN}{one.pair}" for one in examples]
        return self._counter.transform(texts)

    def _read(self, examples: Sequence[Classified]) -> Any:
        """Sparse [N, BUCKETS], rows of length one."""
        from sklearn.preprocessing import normalize  # type: ignore[import-untyped]

        counted = self._counted(examples)
        counted.data = 1 + np.log(counted.data)
        return normalize(counted.multiply(self._rarity).tocsr())

    def _fitted(
        self, read: Any, targets: Sequence[tuple[float, ...]], looseness: float
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Weights [outputs, seen], their bias [outputs], and the mean loss."""
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
        from sklearn.metrics import log_loss  # type: ignore[import-untyped]

        weighing = "balanced" if self.settings.class_weights else None

        def fit(labels: np.ndarray) -> Any:
            return LogisticRegression(C=looseness, max_iter=300, class_weight=weighing).fit(read, labels)

        weight = np.zeros((self.task.outputs, read.shape[1]), dtype=np.float32)
        bias = np.zeros(self.task.outputs, dtype=np.float32)
        losses = []
        if self.task.multi:
            for place, column in enumerate(np.array(targets).T):
                if len(set(column)) < 2:
                    bias[place] = 10.0 if column[0] else -10.0
                    continue
                model = fit(column)
                weight[place], bias[place] = model.coef_[0], model.intercept_[0]
                losses.append(log_loss(column, model.predict_proba(read)))
        else:
            labels = np.array([int(one[0]) for one in targets])
            model = fit(labels)
            if len(model.classes_) == 2:
                weight[model.classes_[1]], bias[model.classes_[1]] = model.coef_[0], model.intercept_[0]
            else:
                weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
            losses.append(log_loss(labels, model.predict_proba(read), labels=model.classes_))
        return weight, bias, float(np.mean(losses)) if losses else 0.0
