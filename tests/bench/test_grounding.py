"""The bench of grounded answers, on questions of our own and, where it is there, on the public set."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from agent.encoders.encoder import HashEncoder
from agent.grounding.check import FITTED
from tests.bench.grounding import RgbQuestion, evidence, holds, measured, meets, model_metrics, questions, rgb
from tests.bench.grounding_fit import fitted, negated, other_number, shorter, stated, threshold_for, turned

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CLEAR = RgbQuestion(
    "What does the blue kayak cost?",
    (("40 euros", "forty euros"),),
    ("Welcome. The blue kayak costs 40 euros.", "For 40 euros the blue kayak is yours, it costs no more."),
    ("Tents are dry.", "Ropes are long.", "Maps fold.", "Lamps burn oil.", "Stoves hiss."),
    ("The blue kayak costs 50 euros.", "For 50 euros the blue kayak is yours, it costs no more."),
)


def test_what_stands_there_is_answered_and_what_does_not_is_refused() -> None:
    made = measured([CLEAR], HashEncoder(), "en", "counterfactual")
    assert made["rejection_rate"] == 1.0
    assert made["false_rejection_rate"] == 0.0
    assert made["gold_share"] == made["citation_precision"] == made["citation_recall"] == 1.0
    assert made["findable_share"] == 1.0
    assert made["false_supported_share"] == 0.0


def test_a_sentence_without_the_answer_costs_precision_and_its_passage_may_still_hold_it() -> None:
    apart = RgbQuestion("What does the blue kayak cost?", (("40",),), ("It is 40. The blue kayak cost.",), ("Maps.",))
    made = measured([apart], HashEncoder(), "en", "counterfactual")
    assert (made["citation_precision"], made["citation_recall"]) == (0.0, 1.0)


def test_what_a_set_does_not_have_is_not_measured() -> None:
    made = measured([], HashEncoder(), "zh", "noise")
    assert made["questions"] == 0
    assert made["rejection_rate"] is made["supported_share"] is None


def test_questions_are_read_in_all_forms_of_the_set(tmp_path: Path) -> None:
    plain = {"query": "q", "answer": "a", "positive": ["p"], "negative": ["n"], "positive_wrong": ["w"]}
    parts = {"query": "q", "answer": ["a", ["b", "c"]], "positive": [["p1", "p2"], ["q1"]], "negative": []}
    path = tmp_path / "set.json"
    path.write_text(f"{json.dumps(plain)}\n{json.dumps(parts)}\n")
    assert list(questions(path)) == [
        RgbQuestion("q", (("a",),), ("p",), ("n",), ("w",)),
        RgbQuestion("q", (("a",), ("b", "c")), ("p1", "q1", "p2"), ()),
    ]


def test_an_answer_is_met_by_each_of_its_parts_in_any_wording() -> None:
    gold = (("a b",), ("c", "d"))
    assert meets("A  B and d", gold)
    assert not meets("A B", gold)
    assert holds("A B", gold)
    assert [one.label for one in evidence(["One. Two.", "Three."])] == [1, 1, 2]


def test_the_models_answers_are_counted_with_and_without_the_check() -> None:
    row = {"answerable": True, "answered": True, "relevant": True, "precise": [True, False]}
    missed = {"answerable": True, "answered": False, "relevant": False, "precise": []}
    made_up = {"answerable": False, "answered": True, "relevant": False, "precise": []}
    made = model_metrics([row, missed, made_up])
    assert (made["en_model_rejection_rate"], made["en_checked_rejection_rate"]) == (0.0, 1.0)
    assert made["en_model_false_rejection_rate"] == made["en_checked_false_rejection_rate"] == 0.5
    assert made["en_checked_citation_precision"] == 0.5


def test_claims_are_changed_by_rule() -> None:
    sentence = "In May, the ferry is full, and 20 wait."
    assert shorter(sentence, "20") == "the ferry is full, and 20 wait."
    assert turned(sentence) == "and 20 wait, In May, the ferry is full"
    assert stated("How many wait?", "20") == "20 wait."
    assert other_number(sentence, random.Random(0)) != sentence
    assert negated(sentence) == "In May, the ferry is not full, and 20 wait."
    assert negated("It is not far.") == "It is far."
    assert negated("船是满的。") == "船不是满的。"
    assert stated("谁在等\uff1f", "船长") == "船长在等。"
    assert shorter("It rains.", "rains") == turned("It rains.") == other_number("It rains.", random.Random(0)) == ""


def test_the_fit_finds_what_tells_and_the_threshold_lets_few_pass() -> None:
    chance = np.random.default_rng(0)
    matrix = chance.normal(size=(400, 2))
    wanted = matrix[:, 0] + 0.1 * chance.normal(size=400) > 0
    bias, telling, idle = fitted(matrix, wanted)
    assert telling > 3 > abs(bias) + abs(idle)
    scores = matrix[:, 0]
    threshold = threshold_for(scores, wanted)
    assert 0.0 < (scores[~wanted] >= threshold).mean() <= 0.05


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "rgb_zh_en").is_dir(), reason="the data folder has no rgb_zh_en")
def test_the_public_set_is_measured_by_language_and_part() -> None:
    made = rgb(DATA, HashEncoder(), limit=3)
    assert [(row["language"], row["part"], row["questions"]) for row in made["rows"]] == [
        ("en", "counterfactual", 3),
        ("zh", "counterfactual", 3),
        ("zh", "noise", 3),
        ("zh", "integration", 3),
    ]
    assert FITTED.chinese.nearness == 0.0
    assert all(0.0 <= value <= 1.0 for value in made["metrics"].values() if value is not None)
