"""What the gate of the encoder measures, and when it ships."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest

from agent.encoders.encoder import HashEncoder, Vectors
from agent.errors import TuningError
from agent.knowledge.chunking import Chunk
from tuner.encoder.dataset import FirstCallTask, Part, RelevanceJudgement
from tuner.encoder.gate import (
    EncoderPolicy,
    EncoderReport,
    PairedScore,
    decide,
    first_call_scores,
    measure,
    write_report,
)
from tuner.encoder.ranking import ndcg, pseudo_queries


def scores(before: float, after: float, count: int = 30) -> tuple[PairedScore, ...]:
    return tuple(PairedScore(f"q{number}", before, after) for number in range(count))


def report(**changes: tuple[PairedScore, ...]) -> EncoderReport:
    parts = {"dense": scores(0.4, 0.6), "whole": scores(0.5, 0.6), "general": scores(0.9, 0.9), **changes}
    return EncoderReport("base", "base+new", 99, **parts)


def test_it_ships_where_the_whole_search_gains_and_nothing_is_lost() -> None:
    made = decide(report())
    assert made.ship
    assert (made.whole.gain, made.whole.low) == (pytest.approx(0.1), pytest.approx(0.1))
    assert made.reasons[0].startswith("nDCG@10 of the whole search: 0.500 before, 0.600 after, +10.0 points")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"whole": scores(0.5, 0.5)}, "The gain is not sure"),
        ({"whole": scores(0.2, 0.1, 15) + scores(0.1, 0.21, 15)}, "The gain is not sure"),
        ({"dense": scores(0.6, 0.5)}, "The vectors alone rank worse"),
        ({"general": scores(0.9, 0.88)}, "General similarity lost more than 1.0 points"),
        ({"general": ()}, "General similarity was not measured"),
        ({"whole": scores(0.5, 0.9, 19)}, "Only 19 queries were held out; at least 20"),
    ],
)
def test_each_condition_alone_holds_it_back(changes: dict[str, tuple[PairedScore, ...]], said: str) -> None:
    made = decide(report(**changes))
    assert not made.ship
    assert said.lower() in made.reasons[0].lower()


def test_a_loss_of_just_the_margin_is_allowed_and_the_policy_counts() -> None:
    assert decide(report(general=scores(0.9, 0.89))).ship
    assert not decide(report(general=scores(0.9, 0.89)), EncoderPolicy(margin=0.005)).ship
    assert decide(report(whole=scores(0.5, 0.9, 5)), EncoderPolicy(min_queries=5)).ship


def tasks_alone(before: float, after: float, count: int = 30, **changes: tuple[PairedScore, ...]) -> EncoderReport:
    return report(**{"dense": (), "whole": (), "general": (), "tasks": scores(before, after, count), **changes})


def test_it_ships_where_tasks_alone_gain_and_leaves_out_what_was_not_measured() -> None:
    made = decide(tasks_alone(0.5, 0.8))
    assert made.ship
    assert [one.name for one in made.measured] == ["first calls of tasks"]
    assert made.reasons == (
        "Score of first calls of tasks: 0.500 before, 0.800 after, +30.0 points with a 95 % interval of +30.0 points "
        "to +30.0 points over 30 tasks.",
    )
    page = write_report(tasks_alone(0.5, 0.8), made)["report/gate.md"].decode()
    assert "| first calls of tasks | 30 | 0.500 | 0.800 |" in page
    assert "the whole search" not in page


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (tasks_alone(0.5, 0.5), "The gain is not sure for first calls of tasks"),
        (tasks_alone(0.5, 0.9, 19), "Only 19 tasks were held out; at least 20"),
        (tasks_alone(0.5, 0.9, general=scores(0.9, 0.88)), "General similarity lost more"),
        (tasks_alone(0.0, 0.0, 0), "No query and no task was held out"),
        (report(tasks=scores(0.8, 0.7)), "First calls are predicted worse by more than 1.0 points"),
        (report(tasks=scores(0.5, 0.9), whole=scores(0.5, 0.4)), "The whole search lost more than 1.0 points"),
        (report(tasks=scores(0.5, 0.9), dense=scores(0.5, 0.4)), "The vectors alone rank worse"),
        (report(tasks=scores(0.5, 0.9), general=()), "general similarity was not measured"),
        (report(tasks=scores(0.5, 0.5), whole=scores(0.5, 0.5)), "The gain is not sure for the whole search"),
    ],
)
def test_what_gains_for_sure_does_not_ship_where_another_loses(measured: EncoderReport, said: str) -> None:
    made = decide(measured)
    assert not made.ship
    assert said in made.reasons[0]


def test_one_of_search_and_tasks_is_enough_where_the_other_loses_no_more_than_the_margin() -> None:
    assert decide(report(tasks=scores(0.8, 0.79))).ship
    assert decide(report(tasks=scores(0.5, 0.9), whole=scores(0.5, 0.49), dense=scores(0.5, 0.5))).ship
    assert decide(report(tasks=scores(0.5, 0.9, 3))).ship, "too few to decide, and no loss"


def test_the_gain_counts_what_stands_in_the_first_ten_places() -> None:
    assert ndcg(["a", "b"], ["a"]) == 1
    assert ndcg(["b", "a"], ["a"]) == pytest.approx(1 / math.log2(3))
    assert ndcg([*map(str, range(10)), "a"], ["a"]) == 0
    assert ndcg(["a", "x", "b"], ["a", "b"]) == pytest.approx((1 + 0.5) / (1 + 1 / math.log2(3)))
    assert ndcg([], []) == 0


WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "islet", "jetty", "knoll", "lagoon")
PASSAGES = {
    word: Chunk(word, f"{word}.md", "", 0, f"The {word} house opens at noon. It lies behind the {word} gate by a road.")
    for word in WORDS
}


class Knowing(HashEncoder):
    """Knows what is meant by words that no passage has: "rebma" is "amber"."""

    @property
    def name(self) -> str:
        return "knowing"

    def encode(self, texts: Sequence[str]) -> Vectors:
        return super().encode([" ".join(MEANT.get(word, word) for word in text.split()) for text in texts])


MEANT = {word[::-1]: word for word in WORDS}


def test_all_passages_are_ranked_with_both_encoders() -> None:
    held_out = [RelevanceJudgement(f"{word[::-1]} house", (word,), (), "held_out") for word in WORDS[:8]]
    made = measure(HashEncoder(512), Knowing(512), held_out, PASSAGES)
    assert (made.before, made.after, made.passages) == ("hash-512", "knowing", len(PASSAGES))
    assert [one.query for one in made.dense] == [one.query for one in held_out]
    for found in (made.dense, made.whole):
        assert all(one.after == 1 for one in found)
        assert sum(one.before for one in found) < 4
    assert all(one.after == 1 for one in made.general)
    assert len(made.general) == len(PASSAGES)
    back = measure(Knowing(512), HashEncoder(512), held_out, PASSAGES)
    assert decide(made, EncoderPolicy(min_queries=8)).ship
    assert not decide(back, EncoderPolicy(min_queries=8)).ship


def test_pseudo_queries_are_sentences_of_passages_and_always_the_same() -> None:
    taken = pseudo_queries(PASSAGES)
    assert taken == pseudo_queries(dict(reversed(PASSAGES.items())))
    assert taken["amber"] == "It lies behind the amber gate by a road."
    assert len(pseudo_queries(PASSAGES, 5)) == 5
    single = Chunk("s", "s.md", "", 0, "one two three four five six seven eight nine ten")
    short = Chunk("t", "t.md", "", 0, "too short")
    assert pseudo_queries({"s": single, "t": short}) == {"s": "six seven eight nine ten"}


def labelled(text: str, label: str, part: Part) -> FirstCallTask:
    return FirstCallTask(text, f"route(desk={label})", label, part)


def test_held_out_tasks_are_told_by_the_others_and_by_the_names_of_the_labels() -> None:
    tasks = [
        *(labelled(f"open the amber house {'now ' * number}", "amber", "train") for number in range(8)),
        *(labelled(f"shut the birch gate {'now ' * number}", "birch", "validation") for number in range(8)),
        labelled("rebma", "amber", "held_out"),
        labelled("hcrib", "birch", "held_out"),
        labelled("amber", "birch", "held_out"),
        labelled("radec", "cedar", "held_out"),
    ]
    right, too, wrong, unknown = first_call_scores(Knowing(512), tasks)
    assert min(right, too) > 0.9
    assert max(wrong, unknown) < 0.5, "the last has a label that nothing is known of"
    assert sum(first_call_scores(HashEncoder(512), tasks)) < right + too + wrong + unknown
    made = measure(HashEncoder(512), Knowing(512), [], {}, tasks)
    assert [one.query for one in made.tasks] == ["rebma", "hcrib", "amber", "radec"]
    assert [one.after for one in made.tasks] == [right, too, wrong, unknown]
    assert (made.passages, made.dense, made.whole, made.general) == (0, (), (), ())
    with_documents = measure(HashEncoder(512), Knowing(512), [], PASSAGES, tasks)
    assert len(with_documents.general) == len(PASSAGES)
    assert with_documents.whole == ()


def test_without_held_out_queries_nothing_is_measured() -> None:
    with pytest.raises(TuningError, match="no query is held out"):
        measure(HashEncoder(2), HashEncoder(4), [], PASSAGES)


def test_the_report_says_the_verdict_and_holds_every_score() -> None:
    made = report(whole=scores(0.5, 0.4))
    files = write_report(made, decide(made))
    page = files["report/gate.md"].decode()
    assert page.startswith("# Do not ship: base+new")
    assert "| the whole search | 30 | 0.500 | 0.400 | -10.0 points (-10.0 points to -10.0 points) |" in page
    assert "| first calls of tasks |" not in page
    data = json.loads(files["report/gate.json"])
    assert data["decision"]["ship"] is False
    assert data["report"]["whole"][0] == {"query": "q0", "before": 0.5, "after": 0.4}
