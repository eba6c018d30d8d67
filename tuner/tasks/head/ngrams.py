"""Classification without an encoder: logistic regression on n-grams of one to three characters.

For texts in a script that the encoder does not know, which it reads as unknown tokens. The counts are hashed, so that
no word of a text is stored, and weighted by TF-IDF; scikit-learn fits. The regularisation is chosen by the validation
figure, as for a head alone. Source: Wang and Manning, "Baselines and Bigrams" (2012).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner.tasks.data.records import ClassifyExample
from tuner.tasks.predictions import LabelPrediction
from tuner.training.memory_budget import peak_bytes

if TYPE_CHECKING:
    import torch

    from tuner.tasks.head.classify import ClassifyTask
    from tuner.tasks.head.training import TaskProgress, TrainedTask
    from tuner.tasks.settings import TaskSettings

NGRAM_RANGE = (1, 3)
"""Characters of the shortest and the longest n-gram."""
BUCKETS = 2**16
"""Hash values of n-grams."""
C_VALUES = (1.0, 10.0, 100.0)
"""Inverse regularisation strengths `C` of logistic regression that are tried."""
PAIR_SEPARATOR = "\n\n"


class NgramModel:
    """A linear classifier on hashed n-grams; its weights are zero before it is fitted."""

    def __init__(self, task: ClassifyTask, settings: TaskSettings) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer  # type: ignore[import-untyped]

        self.task: Any = task
        self.settings = settings
        self._vectorizer = HashingVectorizer(
            analyzer="char",
            ngram_range=NGRAM_RANGE,
            alternate_sign=False,
            norm=None,
            n_features=BUCKETS,
            dtype=np.float32,
        )
        self._weight = np.zeros((task.outputs, BUCKETS), dtype=np.float32)
        self._bias = np.zeros(task.outputs, dtype=np.float32)
        self._rarity = np.ones(BUCKETS, dtype=np.float32)

    def predict(self, examples: Sequence[ClassifyExample]) -> list[LabelPrediction]:
        """Return a prediction for each example."""
        scores = self._features(examples) @ self._weight.T + self._bias
        predictions: list[LabelPrediction] = self.task.predict(examples, (), list(np.asarray(scores, dtype=np.float32)))
        return predictions

    def fit(
        self,
        train: Sequence[ClassifyExample],
        validation: Sequence[ClassifyExample],
        on_progress: Callable[[TaskProgress], None],
    ) -> TrainedTask:
        """Fit to the training examples with each of `C_VALUES`, and keep the fit with the best validation figure."""
        from sklearn.feature_extraction.text import TfidfTransformer

        from tuner.tasks.head.training import TaskProgress, TrainedTask

        started = time.monotonic()
        tfidf = TfidfTransformer(sublinear_tf=True).fit(self._counts(train))
        self._rarity = tfidf.idf_.astype(np.float32)
        features = self._features(train)
        seen = np.unique(features.indices)
        targets = [self.task.targets(example) for example in train]
        best, best_weights, best_fit = -1.0, (self._weight, self._bias), -1
        curve: list[tuple[int, float]] = []
        validation_curve: list[tuple[int, float]] = []
        for number, c in enumerate(C_VALUES):
            self._weight = np.zeros_like(self._weight)
            self._weight[:, seen], self._bias, loss = self._fit_once(features[:, seen], targets, c)
            scores = self.task.measure(validation, self.predict(validation), resamples=0)
            curve.append((number + 1, loss))
            validation_curve.append((number + 1, scores.value))
            on_progress(TaskProgress(number + 1, len(C_VALUES), number, loss, scores))
            if scores.value > best:
                best, best_weights, best_fit = scores.value, (self._weight, self._bias), number
        self._weight, self._bias = best_weights
        return TrainedTask(
            steps=len(C_VALUES),
            epochs=len(C_VALUES),
            best_epoch=best_fit,
            loss=curve[best_fit][1],
            validation=best,
            parameters=len(seen) * self.task.outputs + self.task.outputs,
            seconds=time.monotonic() - started,
            peak_bytes=peak_bytes(),
            curve=tuple(curve),
            validation_curve=tuple(validation_curve),
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the fitted tensors by their saved names."""
        import torch

        return {name: torch.from_numpy(array.copy()) for name, array in self._arrays().items()}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load tensors that `state` returned. Raises AdapterError where names or shapes are not those of this task."""
        from tuner.tasks.head.model import check_tensors

        check_tensors(self._arrays(), tensors)
        self._weight, self._bias, self._rarity = (tensors[name].numpy() for name in self._arrays())

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"ngrams.weight": self._weight, "ngrams.bias": self._bias, "ngrams.rarity": self._rarity}

    def _counts(self, examples: Sequence[ClassifyExample]) -> Any:
        texts = [
            example.text if example.pair is None else f"{example.text}{PAIR_SEPARATOR}{example.pair}"
            for example in examples
        ]
        return self._vectorizer.transform(texts)

    def _features(self, examples: Sequence[ClassifyExample]) -> Any:
        """TF-IDF weights, sparse [N, BUCKETS], rows of length 1."""
        from sklearn.preprocessing import normalize  # type: ignore[import-untyped]

        counts = self._counts(examples)
        counts.data = 1 + np.log(counts.data)
        return normalize(counts.multiply(self._rarity).tocsr())

    def _fit_once(
        self, features: Any, targets: Sequence[tuple[float, ...]], c: float
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """The weights [outputs, seen], the bias [outputs] and the mean loss of a fit with one `C`."""
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
        from sklearn.metrics import log_loss  # type: ignore[import-untyped]

        class_weight = "balanced" if self.settings.class_weights else None

        def fit(labels: np.ndarray) -> Any:
            return LogisticRegression(C=c, max_iter=300, class_weight=class_weight).fit(features, labels)

        weight = np.zeros((self.task.outputs, features.shape[1]), dtype=np.float32)
        bias = np.zeros(self.task.outputs, dtype=np.float32)
        losses = []
        if self.task.multi:
            for place, column in enumerate(np.array(targets).T):
                if len(set(column)) < 2:
                    bias[place] = 10.0 if column[0] else -10.0
                    continue
                model = fit(column)
                weight[place], bias[place] = model.coef_[0], model.intercept_[0]
                losses.append(log_loss(column, model.predict_proba(features)))
        else:
            labels = np.array([int(target[0]) for target in targets])
            model = fit(labels)
            if len(model.classes_) == 2:
                weight[model.classes_[1]], bias[model.classes_[1]] = model.coef_[0], model.intercept_[0]
            else:
                weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
            losses.append(log_loss(labels, model.predict_proba(features), labels=model.classes_))
        return weight, bias, float(np.mean(losses)) if losses else 0.0
