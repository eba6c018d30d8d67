"""The grammar admits what `write_step` writes, and no other spelling of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from agent.errors import GrammarError, PromptError
from agent.llm.prompt.json_grammar import canonical, integer_pattern, value_grammar
from agent.llm.prompt.step_grammar import (
    MAX_COPIES,
    ParsedStep,
    StepShape,
    call_grammar,
    find_identifiers,
    parse_step,
    part_spans,
    step_grammar,
    write_step,
)
from agent.llm.prompt.tool_spec import ToolSpec, enum_arguments
from agent.records.run import ToolCall

Admits = Callable[[str, str], bool]
Schema = dict[str, Any]
relaxed = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))

# What a grammar leaves out of strings: control characters but the line feed, and what UTF-8 cannot hold.
characters = st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from('"\\\n/{}[]:,é你😀')


def text(least: int, most: int) -> st.SearchStrategy[str]:
    return st.text(characters, min_size=least, max_size=most)


# -- random tools and calls that fit them ------------------------------------------------------------------


@st.composite
def string_schemas(draw: Any) -> Any:
    kind = draw(st.sampled_from(["plain", "sizes", "pattern", "enum"]))
    if kind == "plain":
        return {"type": "string"}, text(0, 30)
    if kind == "sizes":
        least = draw(st.integers(0, 4))
        most = least + draw(st.integers(0, 6))
        return {"type": "string", "minLength": least, "maxLength": most}, text(least, most)
    if kind == "pattern":
        pattern = draw(st.sampled_from(["^[0-9]{5}$", "^[A-Z]{2}-[0-9]{2}$", "^(ab|cd)+$", r"^\d{1,3}\.[a-f]$"]))
        return {"type": "string", "pattern": pattern, "maxLength": 20}, st.from_regex(
            re.compile(pattern[:-1] + r"\Z", re.ASCII)
        ).filter(lambda one: len(one) <= 20)
    choices = draw(st.lists(text(0, 6), min_size=1, max_size=4, unique=True))
    return {"enum": choices, "type": "string"}, st.sampled_from(choices)


@st.composite
def number_schemas(draw: Any) -> Any:
    kind = draw(st.sampled_from(["free", "bounds", "above", "number", "boolean", "null", "const"]))
    if kind == "free":
        return {"type": "integer"}, st.integers(-(10**15) + 1, 10**15 - 1)
    if kind == "bounds":
        low = draw(st.integers(-2000, 2000))
        high = low + draw(st.integers(0, 3000))
        return {"type": "integer", "minimum": low, "maximum": high}, st.integers(low, high)
    if kind == "above":
        low = draw(st.integers(-50, 50))
        return {"type": "integer", "exclusiveMinimum": low}, st.integers(low + 1, 10**15 - 1)
    if kind == "number":
        halves = st.integers(-(10**6), 10**6).map(lambda one: one + 0.5)
        return {"type": "number"}, halves | st.integers(-(10**9) + 1, 10**9 - 1) | st.just(0.25)
    if kind == "boolean":
        return {"type": "boolean"}, st.booleans()
    if kind == "null":
        return {"type": "null"}, st.none()
    value = draw(st.sampled_from(["x", 3, True, None, "ö"]))
    return {"const": value}, st.just(value)


@st.composite
def schemas(draw: Any, depth: int = 0) -> Any:
    kinds = ["string", "number"] + (["array", "union", "object", "tuple"] if depth < 2 else [])
    kind = draw(st.sampled_from(kinds))
    if kind == "string":
        return draw(string_schemas())
    if kind == "number":
        return draw(number_schemas())
    if kind == "array":
        schema, values = draw(schemas(depth=depth + 1))
        least, most = draw(st.sampled_from([(0, 3), (1, 4), (2, 2), (0, 0)]))
        sizes = {"minItems": least, "maxItems": most}
        return {"type": "array", "items": schema, **sizes}, st.lists(values, min_size=least, max_size=most)
    if kind == "tuple":
        both = [draw(schemas(depth=depth + 1)) for _ in range(2)]
        return (
            {"type": "array", "prefixItems": [one for one, _ in both], "minItems": 2, "maxItems": 2},
            st.tuples(*(values for _, values in both)).map(list),
        )
    if kind == "union":
        one, two = draw(schemas(depth=depth + 1)), draw(schemas(depth=depth + 1))
        word = draw(st.sampled_from(["anyOf", "oneOf"]))
        return {word: [one[0], two[0]]}, one[1] | two[1]
    return draw(objects(depth + 1))


@st.composite
def objects(draw: Any, depth: int = 0) -> Any:
    names = draw(st.lists(st.sampled_from("abcdefg"), max_size=4, unique=True))
    members = {name: draw(schemas(depth=depth)) for name in names}
    required = [name for name in names if draw(st.booleans())]
    properties = {name: schema for name, (schema, _) in members.items()}
    values = st.fixed_dictionaries(
        {name: members[name][1] for name in required},
        optional={name: members[name][1] for name in names if name not in required},
    ).map(lambda made: {name: made[name] for name in names if name in made})
    return {"type": "object", "properties": properties, "required": required}, values


@st.composite
def steps(draw: Any) -> tuple[StepShape, ParsedStep]:
    parameters, values = draw(objects())
    other, _ = draw(objects())
    plan, thought = draw(st.booleans()), draw(st.booleans())
    tools = (ToolSpec("first", "", other), ToolSpec("second", "", parameters))
    step = ParsedStep(
        ToolCall("second", draw(values)),
        draw(text(1, 20)) if thought else "",
        tuple(draw(st.lists(text(1, 12), min_size=1, max_size=4))) if plan else (),
    )
    return StepShape(tools, plan, thought), step


@relaxed
@given(made=steps())
def test_what_is_written_is_admitted_and_read_back_the_same(admits: Admits, made: tuple[StepShape, ParsedStep]) -> None:
    shape, step = made
    said = write_step(step)
    assert admits(step_grammar(shape), said)
    assert parse_step(said) == step
    assert write_step(parse_step(said)) == said


@relaxed
@given(made=steps(), spelling=st.sampled_from(["spaces", "ascii", "indent", "keys", "tail", "head"]))
def test_no_other_spelling_of_a_step_is_admitted(
    admits: Admits, made: tuple[StepShape, ParsedStep], spelling: str
) -> None:
    shape, step = made
    said = write_step(step)
    data = json.loads(said)
    other = {
        "spaces": json.dumps(data, ensure_ascii=False),
        "ascii": json.dumps(data, separators=(",", ":")),
        "indent": json.dumps(data, ensure_ascii=False, indent=1),
        "keys": canonical(dict(reversed(data.items()))),
        "tail": said + "\n",
        "head": " " + said,
    }[spelling]
    assume(other != said)
    assert not admits(step_grammar(shape), other)


@pytest.mark.parametrize(
    "said",
    [
        '{"tool":"go","args":{"n":007}}',
        '{"tool":"go","args":{"n":-0}}',
        '{"tool":"go","args":{"n":7.0}}',
        '{"tool":"go","args":{"n":7e0}}',
        '{"tool":"go","args":{"n":7,"n":7}}',
        '{"tool":"go","args":{"n":7,"x":1}}',
        '{"tool":"go","args":{}}',
        '{"tool":"gone","args":{"n":7}}',
        '{"thought":"x","tool":"go","args":{"n":7}}',
    ],
)
def test_what_is_no_step_is_not_admitted(admits: Admits, said: str) -> None:
    tool = ToolSpec("go", "", {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    grammar = step_grammar(StepShape((tool,), plan=False, thought=False))
    assert admits(grammar, '{"tool":"go","args":{"n":7}}')
    assert not admits(grammar, said)


@pytest.mark.parametrize("said", [r'"\u0041"', r'"\/"', r'"\t"', '"a\tb"', '"a\nb"', '"\x7f"', "'a'", '"a'])
def test_a_string_has_one_spelling(admits: Admits, said: str) -> None:
    grammar = value_grammar({"type": "string"})
    assert admits(grammar, canonical('a"\\\n/A'))
    assert not admits(grammar, said)


@relaxed
@given(low=st.integers(-(10**6), 10**6), size=st.integers(0, 10**6), data=st.data())
def test_an_integer_pattern_is_its_range(low: int, size: int, data: Any) -> None:
    high = low + size
    pattern = re.compile(integer_pattern(low, high))
    for value in (low - 1, low, high, high + 1, 0, data.draw(st.integers(low - 2000, high + 2000))):
        assert (pattern.fullmatch(str(value)) is not None) == (low <= value <= high)
    assert not pattern.fullmatch("-0")
    assert not pattern.fullmatch("007")


def test_citations_are_the_labels_that_were_shown(admits: Admits) -> None:
    cited = {"type": "array", "items": {"type": "integer"}}
    parameters = {
        "type": "object",
        "properties": {"text": {"type": "string"}, "citations": cited},
        "required": ["text"],
    }
    answer = ToolSpec("answer", "", parameters, "answered")

    def fits(citations: list[int], labels: tuple[int, ...]) -> bool:
        step = ParsedStep(ToolCall("answer", {"text": "It is so.", "citations": citations}))
        return admits(step_grammar(StepShape((answer,), False, False, labels)), write_step(step))

    assert fits([], ())
    assert not fits([1], ())
    assert fits([3, 12], (3, 12, 5))
    assert not fits([1], (3, 12, 5))
    assert not fits([3, 12, 5, 3], (3, 12, 5))


def test_a_tool_that_ends_nothing_may_have_citations_of_its_own(admits: Admits) -> None:
    cited = {"type": "array", "items": {"type": "integer"}}
    tool = ToolSpec("note", "", {"type": "object", "properties": {"citations": cited}})
    said = '{"tool":"note","args":{"citations":[99]}}'
    assert admits(step_grammar(StepShape((tool,), False, False)), said)


# -- copied arguments --------------------------------------------------------------------------------------

NUMBER = {"type": "string", "pattern": "^[0-9]{5}$"}
WORDS = {"type": "string", "minLength": 2, "maxLength": 12}


def copying(name: str, argument: Schema, *, required: bool = True) -> ToolSpec:
    needed = ["x"] if required else []
    parameters = {"type": "object", "properties": {"x": argument}, "required": needed}
    return ToolSpec(name, "", parameters, copied=("x",))


def can_say(admits: Admits, tools: tuple[ToolSpec, ...], shown: str, name: str, **arguments: str) -> bool:
    grammar = step_grammar(StepShape(tools, False, False, (), shown))
    return admits(grammar, write_step(ParsedStep(ToolCall(name, arguments))))


def test_an_identifier_is_one_that_was_shown(admits: Admits) -> None:
    tools, shown = (copying("track", NUMBER),), "order 44000, not R55000 nor 66000-1; 123456 is no number of ours"
    assert can_say(admits, tools, shown, "track", x="44000")
    for made_up in ("12345", "55000", "66000", "23456"):
        assert not can_say(admits, tools, shown, "track", x=made_up)


def test_without_an_identifier_the_tool_that_needs_one_cannot_be_called(admits: Admits) -> None:
    tools = (copying("track", NUMBER), copying("list", NUMBER, required=False))
    assert not can_say(admits, tools, "my last order", "track", x="12345")
    assert can_say(admits, tools, "my last order", "list")
    assert not can_say(admits, tools, "my last order", "list", x="12345")
    assert can_say(admits, tools, "my order 44000", "list", x="44000")


def test_where_no_tool_could_be_called_the_tools_have_to_refuse(admits: Admits) -> None:
    assert can_say(admits, (copying("track", NUMBER),), "my last order", "track", x="12345")


def test_a_copied_text_is_a_run_of_whole_words_of_a_fitting_length(admits: Admits) -> None:
    tools, shown = (copying("find", WORDS),), 'Is the "Elm  Gloves"\nsize (XL) in?'
    for words in ("Elm Gloves", "Is the Elm", "(XL) in?", "in?", "size", "Gloves size"):
        assert can_say(admits, tools, shown, "find", x=words)
    for other in ("elm gloves", "Elm Glove", "lm Gloves", "the Gloves", " the", "Elm Gloves size", "?", '"Elm'):
        assert not can_say(admits, tools, shown, "find", x=other)


def test_a_placeholder_and_scripts_without_spaces_are_copied_too(admits: Admits) -> None:
    tools, shown = (copying("find", WORDS),), "Now it is <email_1>. 退货期限是几天"
    assert can_say(admits, tools, shown, "find", x="<email_1>")
    assert can_say(admits, tools, shown, "find", x="退货期限")
    assert not can_say(admits, tools, shown, "find", x="退期限")


def test_an_identifier_may_stand_beside_letters_of_a_script_that_puts_no_space_there(admits: Admits) -> None:
    shown = "订单48213已发货, 주문 48214은 또, 48215です, x48216号 单-48217 482189号"
    for number in range(48213, 48219):
        told = can_say(admits, (copying("track", NUMBER),), shown, "track", x=str(number))
        assert told == (number <= 48215), number
    name = {"type": "string", "pattern": "^[一-龥]{2}$"}
    assert can_say(admits, (copying("track", name),), "订单 已发货", "track", x="订单")
    assert not can_say(admits, (copying("track", name),), "订单 已发货", "track", x="发货")


def test_where_no_run_of_words_has_a_fitting_length_the_tool_cannot_be_called(admits: Admits) -> None:
    tools = (copying("find", WORDS), copying("list", WORDS, required=False))
    assert can_say(admits, tools, f"{'x' * 13} ab", "find", x="ab")
    for shown in ("x" * 13, "a", f"a{'x' * 13} b"):
        grammar = step_grammar(StepShape(tools, False, False, (), shown))
        assert "find" not in grammar, "its beginning must not be admitted: there would be no way out"
        assert can_say(admits, tools, shown, "list")


def test_of_many_identifiers_the_last_shown_stay() -> None:
    shown = " ".join(f"{number:05}" for number in range(100)) + " 00000"
    found = find_identifiers("^[0-9]{5}$", shown)
    assert (len(found), found[0], found[-1]) == (MAX_COPIES, "00037", "00000")
    assert find_identifiers("^(?:A|B)-[0-9]$", "A-1 C-2 B-3 A-1") == ["B-3", "A-1"]
    assert find_identifiers("^(A|B)-[0-9]$", "A-1 C-2 B-3 A-1") == ["B-3", "A-1"]


@settings(max_examples=40, deadline=None)
@given(steps())
def test_plan_and_thought_stand_where_their_spans_say(made: tuple[StepShape, ParsedStep]) -> None:
    step = made[1]
    text, spans = write_step(step), part_spans(step)
    assert list(spans) == [name for name, value in (("plan", step.plan), ("thought", step.thought)) if value]
    for name, (start, end) in spans.items():
        assert json.loads(f"{{{text[start : end - 1]}}}") == {name: json.loads(text)[name]}
    without = "".join(letter for at, letter in enumerate(text) if not any(a <= at < b for a, b in spans.values()))
    assert without == write_step(ParsedStep(step.call))


def test_references_are_followed(admits: Admits) -> None:
    place = {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "required": ["city"]}
    schema = {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/Place"}, "to": {"allOf": [{"$ref": "#/$defs/Place"}]}},
        "required": ["at", "to"],
        "$defs": {"Place": place, "City": {"enum": ["Bonn", "Köln"]}},
    }
    assert admits(value_grammar(schema), '{"at":{"city":"Bonn"},"to":{"city":"Köln"}}')
    assert not admits(value_grammar(schema), '{"at":{"city":"Ulm"},"to":{"city":"Köln"}}')


def test_a_schema_that_holds_itself_is_refused_with_what_to_do() -> None:
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}}}
    schema = {"$ref": "#/$defs/Node", "$defs": {"Node": node}}
    with pytest.raises(GrammarError, match=r"'#/\$defs/Node' contains itself.*flatten"):
        value_grammar(schema, "tool 'walk'")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({}, "no grammar for"),
        ({"type": "date"}, "no grammar for"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "arbitrary keys"),
        ({"type": "object", "properties": {}, "required": ["x"]}, "'x' is required but not among"),
        ({"type": "string", "pattern": "[0-9]+"}, "must begin with"),
        ({"type": "string", "pattern": "^a/b$"}, "no slash"),
        ({"type": "string", "pattern": "^a\\$"}, "must begin with"),
        ({"type": "string", "minLength": 5, "maxLength": 4}, "minLength 5 is above maxLength 4"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems 3 is above"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no integer lies between"),
        ({"enum": []}, "empty enum"),
        ({"$ref": "#/$defs/Gone"}, "is not defined"),
    ],
)
def test_what_the_grammar_cannot_hold_is_refused_when_it_is_made(schema: Schema, said: str) -> None:
    tool = ToolSpec("walk", "", {"type": "object", "properties": {"x": schema}})
    with pytest.raises(GrammarError, match=said) as caught:
        step_grammar(StepShape((tool,)))
    assert "tool 'walk', argument 'x'" in str(caught.value)


def test_no_tools_are_refused() -> None:
    with pytest.raises(GrammarError, match="at least one tool"):
        step_grammar(StepShape(()))


def test_an_array_may_ask_for_more_than_the_usual_most(admits: Admits) -> None:
    grammar = value_grammar({"type": "array", "items": {"type": "boolean"}, "minItems": 10})
    assert admits(grammar, canonical([True] * 10))
    assert not admits(grammar, canonical([True] * 9))


def test_many_optional_arguments_do_not_take_long(admits: Admits) -> None:
    names = [f"argument_{number}" for number in range(40)]
    schema = {"type": "object", "properties": {name: {"type": "integer"} for name in names}}
    started = time.perf_counter()
    grammar = value_grammar(schema)
    assert time.perf_counter() - started < 1
    assert admits(grammar, '{"argument_3":1,"argument_39":2}')
    assert not admits(grammar, '{"argument_39":1,"argument_3":2}')


def test_a_chat_may_answer_in_text_where_it_need_not_call(admits: Admits) -> None:
    tools = (ToolSpec("go", "", {"type": "object", "properties": {}}),)
    call = '{"tool":"go","args":{}}'
    assert admits(call_grammar(tools, text=True), call)
    assert admits(call_grammar(tools, text=True), "It is sunny.\n\nNothing else {is} known.")
    assert admits(call_grammar(tools, text=False), call)
    assert not admits(call_grammar(tools, text=False), "It is sunny.")
    assert not admits(call_grammar(tools, text=True), '{"tool":"stay","args":{}}')


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("hello", "not one JSON object"),
        ("[]", "a step is"),
        ('{"tool":1,"args":{}}', "a step is"),
        ('{"tool":"x"}', "a step is"),
        ('{"plan":"x","tool":"x","args":{}}', "plan is a list"),
        ('{"thought":1,"tool":"x","args":{}}', "thought a string"),
    ],
)
def test_what_cannot_be_read_says_what_is_wrong(said: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_step(said)


def test_a_step_without_a_call_has_no_text(admits: Admits) -> None:
    from agent.records.run import Step

    with pytest.raises(PromptError, match="no canonical text"):
        write_step(Step(None, said="hm"))


def test_equal_parts_share_one_rule() -> None:
    order: Mapping[str, Any] = {
        "type": "object",
        "properties": {"order_id": {"type": "string", "pattern": "^[0-9]{5}$"}},
        "required": ["order_id"],
    }
    tools = tuple(ToolSpec(name, "", order) for name in ("see", "stop", "send"))
    assert step_grammar(StepShape(tools)).count("[0-9]{5}") == 1


def test_choices_are_what_a_call_chose_among_texts() -> None:
    properties = {
        "desk": {"enum": ["cards", "cash"]},
        "note": {"type": "string"},
        "urgency": {"enum": [1, 2]},
        "tone": {"enum": ["warm", "plain"]},
    }
    tool = ToolSpec("route", "Route.", {"type": "object", "properties": properties})
    assert tool.choices == {"desk": ("cards", "cash"), "tone": ("warm", "plain")}
    call = ToolCall("route", {"tone": "plain", "note": "cards", "urgency": 1, "desk": "cards"})
    assert enum_arguments(call, [tool]) == (("desk", "cards"), ("tone", "plain"))
    assert enum_arguments(ToolCall("route", {"desk": "loans", "tone": "warm"}), [tool]) == (("tone", "warm"),)
    assert enum_arguments(ToolCall("other", {"desk": "cards"}), [tool]) == ()
