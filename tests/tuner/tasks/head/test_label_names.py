"""What labels are called is learnt where it says something, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config.project import find_project
from agent.llm.weights.load import encoder_weights
from tuner.tasks.data.records import ClassifyExample
from tuner.tasks.fit.zero_shot import open_untrained
from tuner.tasks.head.label_names import label_name_windows, label_words, unreadable_labels
from tuner.tasks.head.model import LoadedEncoder, TaskModel, load_encoder
from tuner.tasks.head.tasks import learn_task
from tuner.tasks.head.windows import NO_EXAMPLE
from tuner.tasks.predictions import LabelPrediction
from tuner.tasks.settings import choose

MEANT = {
    "cancelOrder": ["please cancel what I ordered", "I do not want the order any more, cancel it"],
    "late_delivery": ["my parcel should have been delivered last week", "the delivery is late"],
    "Rückzahlung/refund": ["I want my money back", "when will you refund me"],
}


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("cancel_order", "cancel order"),
        ("cancelOrder", "cancel order"),
        ("Sci/Tech", "sci tech"),
        ("订单", "订单"),
        ("LABEL_7", "label 7"),
        ("3", ""),
        ("-", ""),
        ("B", ""),
    ],
)
def test_a_label_is_read_as_words_and_a_number_is_none(label: str, words: str) -> None:
    assert label_words(label) == words


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> LoadedEncoder:
    project = find_project(tmp_path_factory.mktemp("project"), {})
    return load_encoder(encoder_weights(project.settings.model.encoder, project.home.models))


def model(encoder: LoadedEncoder, examples: list[ClassifyExample]) -> TaskModel:
    settings = choose("classify", len(examples), 32, encoder.sizes, {"method": "head"})
    return TaskModel(encoder, learn_task("classify", examples), settings)


def test_names_that_tell_the_texts_apart_are_windows_of_no_example(encoder: LoadedEncoder) -> None:
    examples = [ClassifyExample(text, (label,)) for label, texts in MEANT.items() for text in texts]
    names, right = label_name_windows(model(encoder, examples), examples)
    assert right > 0.8
    assert [one.example for one in names] == [NO_EXAMPLE] * 3
    assert sorted(one.targets for one in names) == [(0,), (1,), (2,)]


def test_names_that_tell_nothing_or_belong_to_several_labels_are_left_out(encoder: LoadedEncoder) -> None:
    turned = dict(zip(MEANT, [*list(MEANT.values())[1:], next(iter(MEANT.values()))], strict=True))
    examples = [ClassifyExample(text, (label,)) for label, texts in turned.items() for text in texts]
    names, right = label_name_windows(model(encoder, examples), examples)
    assert names == []
    assert right < 0.2
    numbers = [ClassifyExample(text, (str(at),)) for at, texts in enumerate(MEANT.values()) for text in texts]
    assert label_name_windows(model(encoder, numbers), numbers) == ([], 0.0)
    several = [ClassifyExample(text, (label, "all")) for label, texts in MEANT.items() for text in texts]
    assert label_name_windows(model(encoder, several), several) == ([], 0.0)


def test_without_examples_a_text_gets_the_label_whose_name_is_nearest(tmp_path: Path) -> None:
    told: list[str] = []
    project = find_project(tmp_path, {})
    asked = open_untrained("classify", labels=list(MEANT), project=project, say=told.append)
    for label, texts in MEANT.items():
        for one in asked.predict(texts):
            assert isinstance(one, LabelPrediction)
            assert one.label == label
            assert sum(one.scores.values()) == pytest.approx(1.0)
    assert told == [
        "untrained: a text gets the label of 3 whose name is nearest by all-minilm-l6-v2; give --shots or a language "
        "model as --model to ask that one"
    ]


def test_names_that_are_no_words_to_the_encoder_are_left_to_the_language_model(encoder: LoadedEncoder) -> None:
    assert unreadable_labels(encoder, ["cancel_order", "7", "B", "订单查询退款"]) == ["7", "B", "订单查询退款"]
