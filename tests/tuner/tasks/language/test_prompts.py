"""What a language model is asked, what its grammar lets it say, and how that is read back."""

from __future__ import annotations

from typing import Any

import pytest

from agent.encoders.encoder import HashEncoder
from agent.errors import DatasetError
from agent.llm.prompt.render import Renderer
from tests.tuner.tiny import tiny_tokenizer
from tuner.data.examples import mark_choices
from tuner.tasks.data.records import (
    AnswerExample,
    AnswerSpan,
    ChatTurn,
    ClassifyExample,
    ConverseExample,
    Span,
    TagExample,
    WriteExample,
)
from tuner.tasks.data.words import split_words, tag_words
from tuner.tasks.fit.language import training_rows
from tuner.tasks.language.few_shot import CoverageExamples, NoExamples, SimilarExamples, cover_labels
from tuner.tasks.language.generation import TokenBudget, choose_budget, fit_prompt, prompt_ids
from tuner.tasks.language.prompts import TaskPrompt, learn_prompt, make_prompt
from tuner.tasks.language.structured_prompts import AnswerPrompt, ClassifyPrompt, RelatePrompt, TagPrompt, locate_words
from tuner.tasks.language.text_prompts import ConversePrompt, TranslatePrompt
from tuner.tasks.predictions import AnswerPrediction, LabelPrediction

TEXT = 'Ann "Nan" Lee of Oslo met Ann in\nNew  York.'


def tag(text: str = TEXT, *spans: Span) -> TagExample:
    return tag_words(text, spans) if spans else TagExample(text, split_words(text))


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(tiny_tokenizer(["Ann Lee of Oslo met Ann in New York", "refund delivery repair"]))


def served(task: TaskPrompt, example: Any, said: str, renderer: Renderer) -> bool:
    """Whether the grammar lets this be said, whole."""
    import llguidance.hf

    tokenizer = llguidance.hf.from_tokenizer(renderer.tokenizer, eos_token=renderer.end_of_turn)
    ids = renderer.encode(said)
    grammar = task.grammar(example)
    assert grammar is not None
    return len(mark_choices(tokenizer, grammar, ids)) == len(ids) + 1


def test_a_label_is_one_of_the_labels(renderer: Renderer) -> None:
    task = ClassifyPrompt(("refund", "delivery"))
    example = ClassifyExample("Where is it?", ("delivery",))
    assert served(task, example, task.target(example), renderer)
    assert not served(task, example, "repair", renderer)
    assert task.parse(example, "delivery", 0.5) == LabelPrediction(("delivery",), 0.5, {"delivery": 0.5})
    assert "refund, delivery" in task.system
    many = ClassifyPrompt(("refund", "delivery"), multi=True)
    assert served(many, example, '["delivery","refund"]', renderer)
    assert served(many, example, "[]", renderer)
    assert not served(many, example, '["repair"]', renderer)
    assert many.parse(example, '["refund","delivery","refund"]', 1.0).labels == ("delivery", "refund")
    assert many.parse(example, '["refund","deli', 1.0).labels == ("refund",)


def test_entities_are_copied_and_found_again_in_their_order(renderer: Renderer) -> None:
    task = TagPrompt(("person", "place"))
    example = tag(TEXT, Span(0, 13, "person"), Span(17, 21, "place"), Span(26, 29, "person"), Span(33, 42, "place"))
    said = task.target(example)
    assert said == '[["Ann Nan Lee","person"],["Oslo","place"],["Ann","person"],["New York","place"]]'
    assert served(task, example, said, renderer)
    assert not served(task, example, '[["Bergen","place"]]', renderer)
    assert not served(task, example, '[["Oslo","thing"]]', renderer)
    found = task.parse(example, said, 1.0)
    assert found.spans == (Span(0, 13, "person"), Span(17, 21, "place"), Span(26, 29, "person"), Span(33, 42, "place"))
    assert found.tags == example.tags
    assert found.dropped == 0


def test_what_is_not_in_the_text_is_dropped_and_counted() -> None:
    task = TagPrompt(("person", "place"))
    said = (
        '[["Bergen","place"],["Ann","person"],["Ann","person"],["Ann","person"],["nn","person"],["Oslo","thing"],["Os'
    )
    found = task.parse(tag(), said, 1.0)
    assert [(TEXT[one.start : one.end], one.start) for one in found.spans] == [("Ann", 0), ("Ann", 26)]
    assert found.dropped == 4
    assert task.parse(tag("  "), "[]", 1.0).spans == ()


def test_words_are_found_whole_and_whatever_their_spacing() -> None:
    assert locate_words("Ann", "Annabel met Ann") == (12, 15)
    assert locate_words("New York", TEXT) == (33, 42)
    assert locate_words("Ann", TEXT, 5) == (26, 29)
    assert locate_words("Ann", TEXT, 30) == (0, 3)
    assert locate_words("北京", "我们在北京。") == (3, 5)
    assert locate_words("nobody", TEXT) is None
    assert locate_words("a(b", "x a(b y") == (2, 5)


def test_an_answer_is_words_of_the_context_or_null(renderer: Renderer) -> None:
    task = AnswerPrompt()
    asked = AnswerExample("Where?", TEXT, (AnswerSpan("New  York", 33),))
    assert task.target(asked) == '"New York"'
    assert served(task, asked, '"New York"', renderer)
    assert served(task, asked, "null", renderer)
    assert not served(task, asked, '"Rome"', renderer)
    assert not served(AnswerPrompt(none=False), asked, "null", renderer)
    assert task.parse(asked, '"New York"', 0.5) == AnswerPrediction("New  York", 33, 42, 0.5)
    assert task.parse(asked, "null", 0.5).text == ""
    assert task.measure([asked], [task.parse(asked, '"New York"', 0.5)]).value == 1.0


def test_a_relation_is_one_of_the_set_and_its_pair_is_shown_marked(renderer: Renderer) -> None:
    task = RelatePrompt(("Part(e1,e2)", "Other"))
    from tuner.tasks.data.marked import parse_marked_text

    example = parse_marked_text("The <e1>lid</e1> of the <e2>pot</e2>.", "Part(e1,e2)")
    assert task.messages(example)[0].text == "The <e1>lid</e1> of the <e2>pot</e2>."
    assert served(task, example, "Part(e1,e2)", renderer)
    assert task.measure([example], [task.parse(example, "Part(e1,e2)", 1.0)], resamples=0).value == 1.0


def test_labels_come_from_the_examples_or_are_named() -> None:
    examples = [ClassifyExample("a", ("x",)), ClassifyExample("b", ("y", "x"))]
    task = learn_prompt("classify", examples)
    assert (task.labels, task.options()) == (("x", "y"), {"multi": True})
    assert make_prompt("classify", task.labels, task.options()) == task
    assert learn_prompt("classify", [], labels=["b", "a"]).labels == ("b", "a")
    assert learn_prompt("tag", [tag(TEXT, Span(0, 3, "person"))]).labels == ("person",)
    with pytest.raises(DatasetError, match="name them with --labels"):
        learn_prompt("classify", [])
    assert learn_prompt("translate", [WriteExample("Hi", "你好")]).options() == {"into": "Chinese"}
    assert "into Welsh" in learn_prompt("translate", [WriteExample("Hi", "你好")], into="Welsh").system
    with pytest.raises(DatasetError, match="has no task 'dance'"):
        make_prompt("dance", (), {})


def test_few_shot_examples_are_the_nearest_the_nearest_last_and_never_the_text_itself() -> None:
    pool = [
        ClassifyExample(text, ("x",))
        for text in ("red apple pie", "blue sea", "red apple tart", "green tea", "red car")
    ]
    near = SimilarExamples(pool, 2, HashEncoder()).select(
        [ClassifyExample("Red apple  pie"), ClassifyExample("the blue sea")]
    )
    assert [one.text for one in near[0]][-1] == "red apple tart"
    assert all(one.text != "red apple pie" for one in near[0])
    assert near[1][-1].text == "blue sea"
    assert NoExamples().select(pool) == [[], [], [], [], []]
    with pytest.raises(DatasetError, match="--shots 0"):
        SimilarExamples([], 2, HashEncoder())
    with pytest.raises(DatasetError, match="-1 few-shot examples are to be shown"):
        CoverageExamples(pool, -1)


def test_few_shot_examples_cover_the_labels_before_any_has_two() -> None:
    pool = [ClassifyExample(f"{label} {number}", (label,)) for label in "abc" for number in range(9)]
    assert {one.labels[0] for one in cover_labels(pool, 3)} == {"a", "b", "c"}
    assert sorted(one.labels[0] for one in cover_labels(pool, 6)) == ["a", "a", "b", "b", "c", "c"]
    assert cover_labels(pool, 5) == cover_labels(pool, 5) != cover_labels(pool, 5, seed=1)
    assert len(cover_labels(pool[:4], 9)) == 4
    shown = CoverageExamples(pool, 3).select(pool)
    assert all(one not in some for one, some in zip(pool, shown, strict=True))


def test_a_prompt_that_is_too_long_loses_examples_then_turns_then_its_end(renderer: Renderer) -> None:
    task = ConversePrompt()
    turns = tuple(ChatTurn("agent" if at % 2 else "customer", f"turn {at} " * 6) for at in range(5))
    example = ConverseExample(turns)
    shots = [ConverseExample((ChatTurn("customer", f"Question {at}?"),), f"Answer {at}.") for at in range(4)]
    bare = len(prompt_ids(task, task.messages(example), (), renderer))
    whole = len(prompt_ids(task, task.messages(example), shots, renderer))
    assert fit_prompt(task, example, shots, renderer, TokenBudget(whole + 12, 10)).examples_left_out == 0
    some = fit_prompt(task, example, shots, renderer, TokenBudget(whole + 11, 10))
    assert (some.examples_left_out, some.turns_left_out) == (1, 0)
    fewer = fit_prompt(task, example, shots, renderer, TokenBudget(bare + 11, 10))
    assert (fewer.examples_left_out, fewer.turns_left_out) == (4, 1)
    one = len(prompt_ids(task, task.messages(example)[-1:], (), renderer))
    cut = fit_prompt(task, example, (), renderer, TokenBudget(one + 2, 10))
    assert (cut.turns_left_out, cut.tokens_left_out) == (4, 10)
    assert len(cut.ids) == one - 10


def test_only_tokens_that_the_grammar_leaves_free_are_trained_after_the_served_prompt(renderer: Renderer) -> None:
    task = ClassifyPrompt(("refund", "refusal", "delivery"))
    examples = [ClassifyExample("It is broken", (label,)) for label in task.labels]
    rows, notes = training_rows(task, examples, renderer, 500, "training")
    assert notes == []
    for row, one in zip(rows, examples, strict=True):
        prompt = prompt_ids(task, task.messages(one), (), renderer)
        assert row.ids[: len(prompt)] == prompt
        said = row.ids[len(prompt) :]
        assert renderer.decode(said) == one.labels[0]
        assert said[-1] == renderer.end_of_turn
        assert not any(row.targets[: len(prompt)])
        assert 0 < row.target_count < len(said)  # The grammar forces the rest of a label, and the end.
    free, _ = training_rows(TranslatePrompt(into="Chinese"), [WriteExample("Hi", "你好")], renderer, 500, "training")
    assert free[0].target_count == len(renderer.encode("你好")) + 1


def test_examples_that_cannot_be_learnt_are_left_out_and_reported(renderer: Renderer) -> None:
    text = "underground"
    torn = TagExample(text, ((0, 5), (5, 11)), ("B-place", "O"))
    rows, notes = training_rows(
        TagPrompt(("place",)), [torn, tag("in Oslo", Span(3, 7, "place"))], renderer, 500, "training"
    )
    assert len(rows) == 1
    assert "1 training examples are left out, for their output cannot be copied" in notes[0]
    with pytest.raises(DatasetError, match="none of 1 training examples is left; 1 training examples of more than 20"):
        training_rows(TagPrompt(("place",)), [tag("in Oslo", Span(3, 7, "place"))], renderer, 20, "training")


def test_the_length_of_outputs_follows_the_examples(renderer: Renderer) -> None:
    task = TranslatePrompt(into="Chinese")
    short = choose_budget(task, [WriteExample("Hi", "你好")] * 50, renderer, 4096)
    assert short.max_new == -(-len(renderer.encode("你好")) * 5 // 4) + 8
    assert choose_budget(task, [], renderer, 4096).max_new == 128
    assert choose_budget(task, [], renderer, 100).max_new == 50


def test_a_budget_is_saved_under_the_keys_of_the_first_version() -> None:
    saved = {"context": 2048, "most_said": 96}
    assert TokenBudget.from_dict(saved) == TokenBudget(context=2048, max_new=96)
    assert TokenBudget.from_dict(saved).to_dict() == saved
