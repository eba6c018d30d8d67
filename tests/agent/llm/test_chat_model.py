"""The local model as a chat model, on a tiny random engine: what does not depend on what a model knows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage

from agent.errors import AdapterError, GrammarError, ModelError, PromptError
from agent.llm.chat_model import LocalModel
from agent.llm.engine.scheduler import Engine
from agent.llm.engine.session import Generation, Request
from agent.llm.prompt.render import Frame, Message, Renderer
from agent.llm.prompt.step_grammar import write_step
from agent.llm.prompt.tool_spec import ToolSpec
from agent.llm.step_model import Proposal
from agent.records.run import Outcome, Provenance, Step, Task, ToolCall, Trajectory
from agent.run.limits import Budget
from agent.run.loop import run
from agent.run.state import Options
from agent.text.quotes import match_quotes
from tools.basics import answer

LONG = 2
"""A seed under which the tiny model does not come to an end by itself for some hundreds of tokens."""

ADD: dict[str, Any] = {
    "name": "add",
    "description": "Add.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["a"],
    },
}


@pytest.fixture
def model(make_engine: Callable[..., Engine], renderer: Renderer) -> LocalModel:
    return LocalModel(
        engine=make_engine(), renderer=renderer, base="tiny", revision="0", temperature=1.0, max_tokens=40
    )


def test_a_stream_adds_up_to_what_is_said_at_once_with_its_usage(model: LocalModel) -> None:
    whole = model.invoke("Where is it?", seed=3)
    pieces = list(model.stream("Where is it?", seed=3))
    total = pieces[0]
    for piece in pieces[1:]:
        total = total + piece
    assert len(pieces) > 2
    assert total.content == whole.content
    assert isinstance(total, AIMessageChunk)
    assert total.usage_metadata is not None
    assert whole.usage_metadata is not None
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"] > 0
    assert total.response_metadata["model_name"] == "tiny"


def test_a_stop_string_ends_and_is_not_said(model: LocalModel) -> None:
    free = str(model.invoke("Where is it?", seed=3).content)
    stop = free[6:8]
    kept = free[: free.index(stop)]
    assert model.invoke("Where is it?", seed=3, stop=[stop]).content == kept
    assert "".join(str(one.content) for one in model.stream("Where is it?", seed=3, stop=[stop])) == kept


def test_the_callers_event_cancels_a_stream_and_is_never_set_by_it(model: LocalModel) -> None:
    cancelled = threading.Event()
    assert len(list(model.stream("Where is it?", seed=3, cancelled=cancelled))) > 2
    stream = model.stream("Where is it?", seed=LONG, max_tokens=900, cancelled=cancelled)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not cancelled.is_set()
    received = []
    for piece in model.stream("Where is it?", seed=LONG, max_tokens=900, cancelled=cancelled):
        received.append(piece)
        cancelled.set()
    assert received[-1].response_metadata["finish_reason"] == "cancelled"


def test_a_tool_that_must_be_called_is_called_and_streamed_as_a_chunk(model: LocalModel) -> None:
    bound = model.bind_tools([ADD], tool_choice="add")
    (call,) = bound.invoke("Add three.").tool_calls
    assert call["name"] == "add"
    assert 0 <= call["args"]["a"] <= 9
    last = list(bound.stream("Add three."))[-1]
    assert isinstance(last, AIMessageChunk)
    assert [one["name"] for one in last.tool_calls] == ["add"]


def test_a_tool_choice_that_names_no_tool_is_refused(model: LocalModel) -> None:
    with pytest.raises(ValueError, match="'sub' is no tool; expected auto, none, any, or one of"):
        model.bind_tools([ADD], tool_choice="sub")


def test_another_model_is_not_quietly_replaced_by_this_one(model: LocalModel) -> None:
    assert model.invoke([HumanMessage("Hello")], model="tiny").content
    with pytest.raises(ModelError, match="model 'huge' was requested, but this engine has 'tiny'"):
        model.invoke([HumanMessage("Hello")], model="huge")


def test_an_adapter_that_is_not_loaded_is_refused(model: LocalModel) -> None:
    with pytest.raises(AdapterError, match="'red' is not loaded; pass its folder"):
        model.on_adapter("red")
    assert model.on_adapter(None).provenance().adapter is None


# -- whole characters and stop strings -------------------------------------------------------------------------


class Saying(Engine):
    """An engine that says a text, one token after the other, whatever it is asked."""

    words: tuple[int, ...] = ()

    def generate(self, request: Request, cancelled: threading.Event | None = None) -> Generation:
        said: list[int] = []
        going = True
        for id in self.words[: request.max_new]:
            said.append(id)
            going = request.on_tokens is None or request.on_tokens([id])
            if not going:
                break
        cut = going and len(self.words) > request.max_new
        return Generation(tuple(said), "length" if cut else "stop", len(request.ids), 0, 0, len(said), 0.0)


@pytest.fixture
def says(parts: Any, tokenizer: Any, renderer: Renderer) -> Iterator[Callable[[str], LocalModel]]:
    """A model that says a text."""
    engine = Saying(parts.model(tokenizer), tokenizer)

    def make(text: str) -> LocalModel:
        engine.words = (*renderer.encode(text), renderer.end_of_turn)
        return LocalModel(engine=engine, renderer=renderer, base="tiny", revision="0")

    yield make
    engine.close()


def streamed(model: LocalModel, **options: Any) -> list[str]:
    return [str(one.content) for one in model.stream("Where is it?", **options) if one.content]


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("It arrives. STOP here", ["STOP"], "It arrives. "),
        ("It arrives. STO", ["STOP"], "It arrives. STO"),
        ("It arrives. STO, it STOPs", ["STOP"], "It arrives. STO, it "),
        ("aab", ["ab"], "a"),
        ("aaab!", ["aab"], "a"),
        ("one\n\ntwo", ["###", "\n\n"], "one"),
        ("你好吗。", ["好吗"], "你"),
        ("你好呢。", ["好吗"], "你好呢。"),
        ("你好", ["好吗"], "你好"),
        ("right 👍🏽 so", ["👍🏽"], "right "),
        ("right 👍🏿 so", ["👍🏽"], "right 👍🏿 so"),
        ("all of it", [""], "all of it"),
    ],
)
def test_a_stop_string_is_heard_across_tokens_and_its_head_alone_is_said(
    says: Callable[[str], LocalModel], text: str, stops: list[str], kept: str
) -> None:
    model = says(text)
    assert model.invoke("Where is it?", stop=stops).content == kept
    assert "".join(streamed(model, stop=stops)) == kept


def test_what_may_be_the_head_of_a_stop_string_waits_and_nothing_else_does(
    says: Callable[[str], LocalModel],
) -> None:
    assert streamed(says("xyzzy"), stop=["zq"]) == ["x", "y", "z", "zy"]
    # The first token of the last character tells nothing yet, and 好 may still be the head.
    assert streamed(says("你好呢"), stop=["好吗"]) == ["你", "好呢"]


@pytest.mark.parametrize("text", ["订单已发货。", "🎉 Füße 👩‍👩‍👧 ₹", "e\u0301 한국어 \U00020000"])
def test_a_stream_holds_whole_characters_only_and_adds_up(says: Callable[[str], LocalModel], text: str) -> None:
    model = says(text)
    assert len(model.renderer.encode(text)) > len(text)
    pieces = streamed(model)
    assert "".join(pieces) == text == model.invoke("Where is it?").content
    assert len(pieces) > 3
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_half_of_a_character_that_was_cut_off_is_not_said(says: Callable[[str], LocalModel]) -> None:
    model = says("订单🎉")
    for most, kept in ((3, "订"), (4, "订"), (5, "订"), (6, "订单"), (9, "订单"), (10, "订单🎉")):
        made = model.invoke("Where is it?", max_tokens=most)
        assert (made.content, made.response_metadata["finish_reason"]) == (kept, "length")
        assert "".join(streamed(model, max_tokens=most)) == kept


def test_bytes_that_are_no_character_are_said_as_such_and_once(says: Callable[[str], LocalModel]) -> None:
    model = says("")
    assert isinstance(model.engine, Saying)
    model.engine.words = tuple(one for text in ("订", "!") for one in model.renderer.encode(text)[:2])
    assert streamed(model) == ["\ufffd!"]


# -- steps -----------------------------------------------------------------------------------------------------

TEXT = {"type": "string", "minLength": 1, "maxLength": 12}
CHINESE = Frame(
    "帮助客户。",
    (
        ToolSpec(
            "查订单",
            "看一个订单。",
            {
                "type": "object",
                "properties": {"号码": {"type": "string", "pattern": "^[0-9]{5}$"}, "备注": TEXT},
                "required": ["号码", "备注"],
            },
            copied=("号码",),
        ),
        ToolSpec(
            "搜索", "找文章。", {"type": "object", "properties": {"词": TEXT}, "required": ["词"]}, copied=("词",)
        ),
        ToolSpec(
            "answer",
            "回答。",
            {"type": "object", "properties": {"text": {"type": "string", "maxLength": 40}}, "required": ["text"]},
            "answered",
            quoted="text",
        ),
    ),
)
ASKED = Trajectory(
    "r",
    Task("t", "订单48213什么时候到。", {"客户": "王芳"}),
    Provenance(),
    "",
    (Step(ToolCall("搜索", {"词": "什么时候到"}), "包裹已发货。五月九日到达。🎉", "先找。", ("搜索", "回答")),),
)


def propose(model: LocalModel, trajectory: Trajectory, frame: Frame, seed: int = 0, **options: Any) -> Proposal:
    chosen = {"temperature": 1.5, "max_tokens": 900, "max_seconds": 60.0, "cancelled": threading.Event(), **options}
    return model.propose(trajectory, frame, seed=seed, **chosen)


def test_a_step_in_chinese_is_copied_quoted_streamed_and_read_back_whole(model: LocalModel) -> None:
    shown = "".join(["王芳", ASKED.task.text, ASKED.steps[0].observation])
    called = set()
    for seed in range(30):
        pieces: list[str] = []
        made = propose(model, ASKED, CHINESE, seed, on_text=pieces.append)
        assert (made.finish_reason, made.error) == ("stop", None)
        assert made.call is not None
        step = Step(made.call, thought=made.thought, plan=made.plan, token_ids=made.token_ids)
        text = write_step(step)
        assert "".join(pieces) == text == model.renderer.decode(made.token_ids)
        assert not any("\ufffd" in piece for piece in pieces)
        # What is served again is what was said, and so is what a person's copy of the step comes to.
        for again in (Message("assistant", text, made.token_ids), Message("assistant", text)):
            assert text in model.renderer.tokenizer.decode(model.renderer.message(again).ids)
        arguments = made.call.arguments
        called.add(made.call.name)
        if made.call.name == "查订单":
            assert arguments["号码"] == "48213"
        elif made.call.name == "搜索":
            assert all(part in shown for part in arguments["词"].split())
        else:
            quotes = CHINESE.shape(ASKED.task, ASKED.steps).quotes
            assert [one.text for one in quotes] == ["包裹已发货。", "五月九日到达。"]
            assert match_quotes(arguments["text"], quotes) is not None
    assert len(called) == 3, f"only {called} were called; this shows little"


def test_a_step_that_the_budget_cuts_off_is_no_step_and_holds_no_half_character(model: LocalModel) -> None:
    cut = 0
    for most in range(1, 30):
        pieces: list[str] = []
        made = propose(model, ASKED, CHINESE, seed=1, max_tokens=most, on_text=pieces.append)
        assert (made.finish_reason, made.call, len(made.token_ids)) == ("length", None, most)
        assert made.text == "".join(pieces)
        assert "\ufffd" not in made.text
        cut += model.renderer.decode(made.token_ids) != made.text
    assert cut, "no character was cut in two; this shows nothing"


def test_a_run_whose_tokens_are_used_up_within_a_step_ends_by_name(model: LocalModel) -> None:
    made = run(ASKED.task, model, [answer()], options=Options(Budget(tokens=9), temperature=1.0))
    assert (made.outcome, made.steps, made.error) == (Outcome.OUT_OF_TOKENS, (), None)


def test_a_prompt_longer_than_the_model_says_what_to_do_whether_streamed_or_not(model: LocalModel) -> None:
    for ask in (model.invoke, lambda text: list(model.stream(text))):
        with pytest.raises(PromptError, match=r"\d+ tokens and the model reads 1024; shorten the task or the conv"):
            ask("7" * 1100)


def test_a_tool_whose_arguments_nothing_fits_ends_the_run_with_where_it_was(model: LocalModel) -> None:
    nothing = {"type": "string", "pattern": "^[0-9]{5}$", "maxLength": 3}
    tool = ToolSpec("look", "Look.", {"type": "object", "properties": {"a": nothing}, "required": ["a"]})
    with pytest.raises(GrammarError, match=r'admits nothing after .*"tool":"look","args":\{"a":'):
        propose(model, ASKED, Frame("Help.", (tool,), plan=False, thought=False))
