"""Measures predictions of the classic tasks against their examples; heads and prompts share these functions.

The metrics themselves are in `tuner.tasks.metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tuner.tasks.data.records import AnswerExample, ClassifyExample, RelateExample, TagExample
from tuner.tasks.metrics import RESAMPLES, TaskScores, answers, entities, multi_label, relations, single_label
from tuner.tasks.predictions import AnswerPrediction, EntityPrediction, LabelPrediction


def measure_classify(
    examples: Sequence[ClassifyExample],
    predictions: Sequence[LabelPrediction],
    labels: Sequence[str],
    *,
    multi: bool,
    resamples: int = RESAMPLES,
) -> TaskScores:
    """Measure labels; labels that only the examples or the predictions have count too.

    The prediction of an output that was cut off has the label "" and counts as wrong.
    """
    gold = [example.labels for example in examples]
    predicted = [prediction.labels if multi else (prediction.label,) for prediction in predictions]
    used = sorted({*labels, *(label for part in (*gold, *predicted) for label in part)})
    if multi:
        return multi_label(gold, predicted, used, resamples=resamples)
    return single_label([one[0] for one in gold], [one[0] for one in predicted], used, resamples=resamples)


def measure_tag(
    examples: Sequence[TagExample], predictions: Sequence[EntityPrediction], *, resamples: int = RESAMPLES
) -> TaskScores:
    """Measure entities by the IOB2 tags of the examples' words."""
    return entities([one.tags for one in examples], [one.tags for one in predictions], resamples=resamples)


def measure_relate(
    examples: Sequence[RelateExample],
    predictions: Sequence[LabelPrediction],
    labels: Sequence[str],
    *,
    resamples: int = RESAMPLES,
) -> TaskScores:
    """Measure relations; labels that only the examples or the predictions have count too."""
    gold, predicted = [one.label for one in examples], [one.label for one in predictions]
    return relations(gold, predicted, sorted({*labels, *gold, *predicted}), resamples=resamples)


def measure_answer(
    examples: Sequence[AnswerExample], predictions: Sequence[AnswerPrediction], *, resamples: int = RESAMPLES
) -> TaskScores:
    """Measure the texts of answers against all right answers of their questions."""
    gold = [[answer.text for answer in example.answers] for example in examples]
    return answers(gold, [prediction.text for prediction in predictions], resamples=resamples)
