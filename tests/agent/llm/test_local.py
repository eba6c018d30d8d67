"""The local model as a chat model, on a tiny random engine: what does not depend on what a model knows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage

from agent.errors import AdapterError, ModelError
from agent.llm.engine import Engine
from agent.llm.local import LocalModel
from agent.llm.render import Renderer

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
    stream = model.stream("Where is it?", seed=3, max_tokens=900, cancelled=cancelled)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not cancelled.is_set()
    heard = []
    for piece in model.stream("Where is it?", seed=3, max_tokens=900, cancelled=cancelled):
        heard.append(piece)
        cancelled.set()
    assert heard[-1].response_metadata["finish_reason"] == "cancelled"


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
    with pytest.raises(ModelError, match="asked for model 'huge', but this engine holds 'tiny'"):
        model.invoke([HumanMessage("Hello")], model="huge")


def test_an_adapter_that_is_not_loaded_is_refused(model: LocalModel) -> None:
    with pytest.raises(AdapterError, match="'red' is not loaded; pass its folder"):
        model.on_adapter("red")
    assert model.on_adapter(None).provenance().adapter is None
