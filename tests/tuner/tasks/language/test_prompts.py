"""What a language model is asked, what its grammar lets it say, and how that is read back."""

from __future__ import annotations

from typing import Any

import pytest

from agent.encoders.encoder import HashEncoder
from agent.errors import DatasetError
from agent.llm.prompt.render import Renderer
from tests.tuner.tiny import tiny_tokenizer
from tuner.data.examples import choices
from tuner.tasks.data.records import Answer, Asked, Classified, Conversed, Span, Tagged, Turn, Written
from tuner.tasks.data.words import split_words, tagged
from tuner.tasks.fit.language import examples_of
from tuner.tasks.language.few_shot import Coverage, NoShots, Similar, covering
from tuner.tasks.language.generation import Budget, budget_of, fitted_prompt, prompt_ids
from tuner.tasks.language.prompts import (
    AskAnswer,
    AskClassify,
    AskConverse,
    Asking,
    AskRelate,
    AskTag,
    AskTranslate,
    asking_of,
    located,
    make_asking,
)
from tuner.tasks.predictions import Found, Labelled

TEXT = 'Ann "Nan" Lee of Oslo met Ann in\nNew  York.'


def tag(text: str = TEXT, *spans: Span) -> Tagged:
    return tagged(text, spans) if spans else Tagged(text, split_words(text))


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(tiny_tokenizer(["Ann Lee of Oslo met Ann in New York", "refund delivery repair"]))


def served(task: Asking, example: Any, said: str, renderer: Renderer) -> bool:
    """Whether the grammar lets this be said, whole."""
    import llguidance.hf

    tokenizer = llguidance.hf.from_tokenizer(renderer.tokenizer, eos_token=renderer.end_of_turn)
    ids = renderer.encode(said)
    grammar = task.grammar(example)
    assert grammar is not None
    return len(choices(tokenizer, grammar, ids)) == len(ids) + 1


def test_a_label_is_one_of_the_labels(renderer: Renderer) -> None:
    task = AskClassify(("refund", "delivery"))
    example = Classified("Where is it?", ("delivery",))
    assert served(task, example, task.wanted(example), renderer)
    assert not served(task, example, "repair", renderer)
    assert task.read(example, "delivery", 0.5) == Labelled(("delivery",), 0.5, {"delivery": 0.5})
    assert "refund, delivery" in task.system
    many = AskClassify(("refund", "delivery"), multi=True)
    assert served(many, example, '["delivery","refund"]', renderer)
    assert served(many, example, "[]", renderer)
    assert not served(many, example, '["repair"]', renderer)
    assert many.read(example, '["refund","delivery","refund"]', 1.0).labels == ("delivery", "refund")
    assert many.read(example, '["refund","deli', 1.0).labels == ("refund",)


def test_entities_are_copied_and_found_again_in_their_order(renderer: Renderer) -> None:
    task = AskTag(("person", "place"))
    example = tag(TEXT, Span(0, 13, "person"), Span(17, 21, "place"), Span(26, 29, "person"), Span(33, 42, "place"))
    said = task.wanted(example)
    assert said == '[["Ann Nan Lee","person"],["Oslo","place"],["Ann","person"],["New York","place"]]'
    assert served(task, example, said, renderer)
    assert not served(task, example, '[["Bergen","place"]]', renderer)
    assert not served(task, example, '[["Oslo","thing"]]', renderer)
    found = task.read(example, said, 1.0)
    assert found.spans == (Span(0, 13, "person"), Span(17, 21, "place"), Span(26, 29, "person"), Span(33, 42, "place"))
    assert found.tags == example.tags
    assert found.dropped == 0


def test_what_is_not_in_the_text_is_dropped_and_counted() -> None:
    task = AskTag(("person", "place"))
    said = (
        '[["Bergen","place"],["Ann","person"],["Ann","person"],["Ann","person"],["nn","person"],["Oslo","thing"],["Os'
    )
    found = task.read(tag(), said, 1.0)
    assert [(TEXT[one.start : one.end], one.start) for one in found.spans] == [("Ann", 0), ("Ann", 26)]
    assert found.dropped == 4
    assert task.read(tag("  "), "[]", 1.0).spans == ()


def test_words_are_found_whole_and_whatever_their_spacing() -> None:
    assert located("Ann", "Annabel met Ann") == (12, 15)
    assert located("New York", TEXT) == (33, 42)
    assert located("Ann", TEXT, 5) == (26, 29)
    assert located("Ann", TEXT, 30) == (0, 3)
    assert located("北京", "我们在北京。") == (3, 5)
    assert located("nobody", TEXT) is None
    assert located("a(b", "x a(b y") == (2, 5)


def test_an_answer_is_words_of_the_context_or_null(renderer: Renderer) -> None:
    task = AskAnswer()
    asked = Asked("Where?", TEXT, (Answer("New  York", 33),))
    assert task.wanted(asked) == '"New York"'
    assert served(task, asked, '"New York"', renderer)
    assert served(task, asked, "null", renderer)
    assert not served(task, asked, '"Rome"', renderer)
    assert not served(AskAnswer(none=False), asked, "null", renderer)
    assert task.read(asked, '"New York"', 0.5) == Found("New  York", 33, 42, 0.5)
    assert task.read(asked, "null", 0.5).text == ""
    assert task.measure([asked], [task.read(asked, '"New York"', 0.5)]).value == 1.0


def test_a_relation_is_one_of_the_set_and_its_pair_is_shown_marked(renderer: Renderer) -> None:
    task = AskRelate(("Part(e1,e2)", "Other"))
    from tuner.tasks.data.marked import related

    example = related("The <e1>lid</e1> of the <e2>pot</e2>.", "Part(e1,e2)")
    assert task.conversation(example)[0].text == "The <e1>lid</e1> of the <e2>pot</e2>."
    assert served(task, example, "Part(e1,e2)", renderer)
    assert task.measure([example], [task.read(example, "Part(e1,e2)", 1.0)], resamples=0).value == 1.0


def test_labels_come_from_the_examples_or_are_named() -> None:
    examples = [Classified("a", ("x",)), Classified("b", ("y", "x"))]
    task = asking_of("classify", examples)
    assert (task.labels, task.options()) == (("x", "y"), {"multi": True})
    assert make_asking("classify", task.labels, task.options()) == task
    assert asking_of("classify", [], labels=["b", "a"]).labels == ("b", "a")
    assert asking_of("tag", [tag(TEXT, Span(0, 3, "person"))]).labels == ("person",)
    with pytest.raises(DatasetError, match="name them with --labels"):
        asking_of("classify", [])
    assert asking_of("translate", [Written("Hi", "你好")]).options() == {"into": "Chinese"}
    assert "into Welsh" in asking_of("translate", [Written("Hi", "你好")], into="Welsh").system
    with pytest.raises(DatasetError, match="is not asked for 'dance'"):
        make_asking("dance", (), {})


def test_shots_are_the_nearest_the_nearest_last_and_never_the_text_itself() -> None:
    pool = [
        Classified(text, ("x",)) for text in ("red apple pie", "blue sea", "red apple tart", "green tea", "red car")
    ]
    near = Similar(pool, 2, HashEncoder()).for_each([Classified("Red apple  pie"), Classified("the blue sea")])
    assert [one.text for one in near[0]][-1] == "red apple tart"
    assert all(one.text != "red apple pie" for one in near[0])
    assert near[1][-1].text == "blue sea"
    assert NoShots().for_each(pool) == [[], [], [], [], []]
    with pytest.raises(DatasetError, match="--shots 0"):
        Similar([], 2, HashEncoder())
    with pytest.raises(DatasetError, match="shots is -1"):
        Coverage(pool, -1)


def test_shots_cover_the_labels_before_any_has_two() -> None:
    pool = [Classified(f"{label} {number}", (label,)) for label in "abc" for number in range(9)]
    assert {one.labels[0] for one in covering(pool, 3)} == {"a", "b", "c"}
    assert sorted(one.labels[0] for one in covering(pool, 6)) == ["a", "a", "b", "b", "c", "c"]
    assert covering(pool, 5) == covering(pool, 5) != covering(pool, 5, seed=1)
    assert len(covering(pool[:4], 9)) == 4
    shown = Coverage(pool, 3).for_each(pool)
    assert all(one not in some for one, some in zip(pool, shown, strict=True))


def test_a_prompt_that_is_too_long_loses_shots_then_turns_then_its_end(renderer: Renderer) -> None:
    task = AskConverse()
    turns = tuple(Turn("agent" if at % 2 else "customer", f"turn {at} " * 6) for at in range(5))
    example = Conversed(turns)
    shots = [Conversed((Turn("customer", f"Question {at}?"),), f"Answer {at}.") for at in range(4)]
    bare = len(prompt_ids(task, task.conversation(example), (), renderer))
    whole = len(prompt_ids(task, task.conversation(example), shots, renderer))
    assert fitted_prompt(task, example, shots, renderer, Budget(whole + 12, 10)).shots_left_out == 0
    some = fitted_prompt(task, example, shots, renderer, Budget(whole + 11, 10))
    assert (some.shots_left_out, some.turns_left_out) == (1, 0)
    fewer = fitted_prompt(task, example, shots, renderer, Budget(bare + 11, 10))
    assert (fewer.shots_left_out, fewer.turns_left_out) == (4, 1)
    one = len(prompt_ids(task, task.conversation(example)[-1:], (), renderer))
    cut = fitted_prompt(task, example, (), renderer, Budget(one + 2, 10))
    assert (cut.turns_left_out, cut.tokens_left_out) == (4, 10)
    assert len(cut.ids) == one - 10


def test_what_is_trained_is_what_the_model_chooses_behind_the_prompt_it_is_served(renderer: Renderer) -> None:
    task = AskClassify(("refund", "refusal", "delivery"))
    examples = [Classified("It is broken", (label,)) for label in task.labels]
    rows, notes = examples_of(task, examples, renderer, 500, "training")
    assert notes == []
    for row, one in zip(rows, examples, strict=True):
        prompt = prompt_ids(task, task.conversation(one), (), renderer)
        assert row.ids[: len(prompt)] == prompt
        said = row.ids[len(prompt) :]
        assert renderer.decode(said) == one.labels[0]
        assert said[-1] == renderer.end_of_turn
        assert not any(row.targets[: len(prompt)])
        assert 0 < row.target_count < len(said)  # The grammar forces the rest of a label, and the end.
    free, _ = examples_of(AskTranslate(into="Chinese"), [Written("Hi", "你好")], renderer, 500, "training")
    assert free[0].target_count == len(renderer.encode("你好")) + 1


def test_examples_that_cannot_be_learnt_are_left_out_and_told(renderer: Renderer) -> None:
    text = "underground"
    torn = Tagged(text, ((0, 5), (5, 11)), ("B-place", "O"))
    rows, notes = examples_of(
        AskTag(("place",)), [torn, tag("in Oslo", Span(3, 7, "place"))], renderer, 500, "training"
    )
    assert len(rows) == 1
    assert "1 training examples are left out, for what they want cannot be copied" in notes[0]
    with pytest.raises(DatasetError, match="none of 1 training examples is left; 1 training examples of more than 20"):
        examples_of(AskTag(("place",)), [tag("in Oslo", Span(3, 7, "place"))], renderer, 20, "training")


def test_how_much_may_be_said_follows_the_examples(renderer: Renderer) -> None:
    task = AskTranslate(into="Chinese")
    short = budget_of(task, [Written("Hi", "你好")] * 50, renderer, 4096)
    assert short.most_said == -(-len(renderer.encode("你好")) * 5 // 4) + 8
    assert budget_of(task, [], renderer, 4096).most_said == 128
    assert budget_of(task, [], renderer, 100).most_said == 50
