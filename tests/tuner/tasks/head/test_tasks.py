"""Batches, class weights, settings and what a head reads: the small parts of a training."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import DatasetError
from tests.tuner.tasks.tiny_encoder import save_encoder
from tuner.tasks.data.records import AnswerExample, AnswerSpan, RelateExample
from tuner.tasks.head.answer import READ, AnswerTask
from tuner.tasks.head.bm25 import bm25
from tuner.tasks.head.classify import ClassifyTask
from tuner.tasks.head.relate import RelateTask
from tuner.tasks.head.tag import TagTask
from tuner.tasks.head.token_alignment import IGNORED
from tuner.tasks.head.training import sample_unanswerable
from tuner.tasks.head.windows import Window, balanced_weights, batch_windows, pad_windows
from tuner.tasks.settings import choose

ENCODER = {"hidden": 384, "positions": 512}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder: Path = save_encoder(tmp_path_factory.mktemp("encoder") / "tiny", ["the", "keys", "of", "piano", "fell"])
    return AutoTokenizer.from_pretrained(str(folder))


def window(length: int, *targets: float) -> Window:
    return Window(0, tuple(range(length)), length, targets)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3))
def test_batches_hold_every_window_once_whatever_their_order(lengths: list[int], size: int, seed: int) -> None:
    windows = [window(length) for length in lengths]
    for chance in (None, random.Random(seed)):
        found = list(batch_windows(windows, size, 0, chance=chance))
        assert sorted(number for one in found for number in one.numbers) == list(range(len(lengths)))
        for one in found:
            assert one.ids.shape == one.mask.shape == (len(one.windows), max(len(each.ids) for each in one.windows))
            assert one.mask.sum(dim=1).tolist() == [len(each.ids) for each in one.windows]


def test_balanced_weights_let_each_class_count_the_same() -> None:
    targets = [0.0] * 6 + [1.0] * 2 + [IGNORED] * 9
    weights = balanced_weights(targets, 3)
    assert (6 * weights[0]).item() == pytest.approx((2 * weights[1]).item()) == pytest.approx(4.0)
    assert weights[2] == 1.0


def test_a_rare_label_among_several_weighs_what_its_absence_outnumbers_it_by() -> None:
    task = ClassifyTask(("a", "b"), multi=True)
    weights = task.class_weights([window(3, 1, 0), window(3, 0, 0), window(3, 0, 0), window(3, 1, 1)])
    assert weights.tolist() == [1.0, 3.0]


def test_padding_changes_no_loss() -> None:
    short, long = window(3, IGNORED, 1, IGNORED), window(5, IGNORED, 0, 2, IGNORED, IGNORED)
    task = TagTask(("O", "B-X", "I-X"))
    scores = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    together = task.loss(scores, pad_windows([short, long], 0), None)
    alone = task.loss(scores[:1, :3], pad_windows([short], 0), None)
    other = task.loss(scores[1:], pad_windows([long], 0), None)
    assert together.item() == pytest.approx((alone.item() + 2 * other.item()) / 3)


@pytest.mark.parametrize("room", [64, 24])
def test_a_relation_is_read_at_the_signs_and_the_entities_between_them(tokenizer: Any, room: int) -> None:
    text = f"{'the ' * 30}keys of the piano fell{' of' * 30}"
    first, second = (text.index("piano"), text.index("piano") + 5), (text.index("keys"), text.index("keys") + 4)
    task = RelateTask(("A", "B"))
    (found,) = task.windows([RelateExample(text, first, second, "B")], tokenizer, room)
    tokens = tokenizer.convert_ids_to_tokens(found.ids)
    assert len(tokens) <= room
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    starts, ends = found.marks[::2], found.marks[1::2]
    assert [tokens[start : end + 1] for start, end in zip(starts, ends, strict=True)] == [
        ["@", "piano", "@"],
        ["#", "keys", "#"],
    ]
    assert found.targets == (1,)


@pytest.mark.parametrize("room", [16, 24, 64])
def test_the_answer_is_the_target_of_each_window_that_holds_it_whole(tokenizer: Any, room: int) -> None:
    context = f"{'the of ' * 20}piano keys{' fell' * 20}"
    asked = AnswerExample("the keys", context, (AnswerSpan("piano keys", context.index("piano")),))
    windows = AnswerTask().windows([asked], tokenizer, room)
    held = 0
    for one in windows:
        tokens = tokenizer.convert_ids_to_tokens(one.ids)
        start, end = map(int, one.targets)
        whole = "piano keys" in " ".join(tokens[one.second :])
        assert (tokens[start : end + 1] == ["piano", "keys"]) == whole
        assert whole or (start, end) == (0, 0)
        held += whole
    assert held >= 1


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60), st.integers(0, 4), st.text(max_size=3))
def test_every_window_with_an_answer_is_kept_and_of_each_question_few_others(
    told: list[tuple[int, bool]], most: int, seed: str
) -> None:
    windows = [
        Window(question, (at, 1, 2), 1, (2, 2) if answered else (0, 0)) for at, (question, answered) in enumerate(told)
    ]
    found = sample_unanswerable(windows, most, seed)
    assert found == sample_unanswerable(windows, most, seed)
    assert len({one.ids for one in found}) == len(found)
    for question in range(6):
        of_it = [one for one in windows if one.example == question]
        kept = [one for one in found if one.example == question]
        without = [one for one in of_it if one.targets == (0, 0)]
        assert [one for one in kept if one.targets != (0, 0)] == [one for one in of_it if one.targets != (0, 0)]
        assert sum(one.targets == (0, 0) for one in kept) == min(most, len(without))


def test_of_a_long_context_the_windows_that_share_most_words_with_the_question_are_read(tokenizer: Any) -> None:
    context = f"{'the of ' * 300}the keys of the piano fell {'of the ' * 300}"
    asked = AnswerExample("piano keys", context, (AnswerSpan("fell", context.index("fell")),))
    found = AnswerTask().windows([asked], tokenizer, 24)
    assert len(found) == READ
    assert {"piano", "keys"} <= set(tokenizer.convert_ids_to_tokens(found[0].ids[found[0].second :]))
    assert any(one.targets != (0, 0) for one in found)
    without = replace(asked, answers=())
    assert [one.ids for one in AnswerTask().windows([without], tokenizer, 24)] == [one.ids for one in found]


def test_a_window_leads_by_what_its_rank_was_worth_to_training_questions() -> None:
    import numpy as np

    def ranked(question: int, holding: int) -> list[Window]:
        """Four windows, of which the one of that rank holds the answer."""
        places = [(2, 2) if rank == holding else (0, 0) for rank in range(1, 5)]
        return [Window(question, (1, 2, 3), 1, place, offsets=((0, 3), (4, 6))) for place in places]

    task = AnswerTask()
    task.fit_odds([window for question in range(10) for window in ranked(question, 1 if question < 8 else 4)])
    first, second, third, fourth, *rest = task.odds
    assert first > 0 > third == fourth > second
    assert len(rest) == READ - 4
    short = AnswerTask()
    short.fit_odds([ranked(question, 1)[0] for question in range(10)])
    assert set(short.odds) == {0.0}, "a context of one window says nothing of ranks"
    question = AnswerExample("q", "yes no", ())

    def sure(yes: float, no: float) -> Any:
        return np.array([[0, 0], [yes, yes], [no, no]], dtype=np.float32)

    said = [sure(0.5, 0)] * 4
    assert task.predict([question], ranked(0, 1), said)[0].text == "yes"
    said[3] = sure(0, 1)
    assert AnswerTask().predict([question], ranked(0, 1), said)[0].text == "no"
    assert task.predict([question], ranked(0, 1), said)[0].text == "yes", "a window of the last rank is doubted"
    said[3] = sure(0, 4)
    assert AnswerTask(**task.options()).predict([question], ranked(0, 1), said)[0].text == "no"


@given(st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=9), st.lists(st.integers(0, 9)))
def test_a_text_without_a_word_of_the_query_has_no_score_and_the_others_have_one(
    texts: list[list[int]], query: list[int]
) -> None:
    scores = bm25(query, texts)
    assert [score > 0 for score in scores] == [bool(set(text) & set(query)) for text in texts]
    assert bm25([*query, *query], texts) == scores


def test_a_rare_word_counts_more_than_one_that_all_texts_have() -> None:
    first, second, third = bm25([1, 2], [[1, 3, 3], [2, 3, 3], [1, 3, 4]])
    assert second > first == third


def test_the_margin_is_the_one_with_the_best_figure() -> None:
    import numpy as np

    task = AnswerTask(none=True)
    questions = [
        AnswerExample("q", "yes", (AnswerSpan("yes", 0),)),
        AnswerExample("q", "yes", ()),
        AnswerExample("q", "yes", ()),
    ]
    windows = [Window(at, (1, 2), 1, (0, 0), offsets=((0, 3),)) for at in range(3)]
    scores = [np.array([[0.0, 0.0], [lead, lead]], dtype=np.float32) for lead in (3.0, 1.0, 2.0)]
    task.fit_margin(questions, windows, scores)
    assert 4.0 < task.margin < 6.0
    assert [one.text for one in task.predict(questions, windows, scores)] == ["yes", "", ""]


def test_more_examples_have_fewer_epochs_and_few_texts_a_head_alone() -> None:
    few, many = (choose("tag", count, 40, ENCODER, {}) for count in (200, 15_000))
    assert few.epochs > many.epochs >= 4
    # A day's patience, not a week's.
    assert [choose("classify", count, 40, ENCODER, {}).epochs for count in (25_000, 120_000)] == [2, 1]
    assert choose("classify", 60, 40, ENCODER, {}).method == "head"
    assert choose("classify", 6000, 40, ENCODER, {}).method == "full"
    # A head that is fitted first leaves less to be learnt.
    assert choose("classify", 600, 40, ENCODER, {}).epochs < choose("tag", 600, 40, ENCODER, {}).epochs
    assert choose("answer", 600, 3000, ENCODER, {}).max_tokens == 384


def test_where_a_head_is_fitted_first() -> None:
    first = {
        (task, method): choose(task, 600, 40, ENCODER, {"method": method}).head_first
        for task in ("classify", "tag", "relate", "answer")
        for method in ("full", "lora", "head")
    }
    assert {one for one, fitted in first.items() if fitted} == {
        ("classify", "full"),
        ("classify", "lora"),
        ("tag", "lora"),
        ("answer", "full"),
        ("answer", "lora"),
    }


@pytest.mark.parametrize(
    ("given_settings", "said"),
    [
        ({"method": "lore"}, "there is no method 'lore'; expected one of full, lora, rslora"),
        ({"method": "prefix"}, "method prefix is for a language model, and this is an encoder; name one with --model"),
        ({"epoch": 3}, "there is no setting 'epoch'"),
        ({"epochs": 0}, "epochs is 0; expected 1 or more"),
        ({"learning_rate": 2.0}, "learning_rate is 2.0"),
        ({"max_tokens": 1000}, "this encoder reads 16 to 512"),
        ({"method": "head", "adversarial": "fgm"}, "take method lora or full"),
        ({"adversarial": "typos", "adversarial_size": 1.5}, "expected a share above 0"),
        ({"adversarial": "pgd"}, "expected one of none, fgm, freelb, typos"),
        ({"precision": "int8"}, "expected one of auto, float32, mixed"),
    ],
)
def test_settings_that_cannot_be_are_refused(given_settings: dict[str, Any], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        choose("classify", 500, 40, ENCODER, given_settings)
