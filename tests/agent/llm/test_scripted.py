"""The scripted model says its replies in order and remembers what it was shown."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from agent.errors import ModelError
from agent.llm.scripted import ScriptedModel, answer, call


def test_replies_come_in_order_and_what_was_asked_is_kept() -> None:
    model = ScriptedModel(["Hello.", call("look", id="7"), answer("There.", 2, 3)])
    replies = [model.invoke(f"question {number}") for number in range(3)]
    assert replies[0].content == "Hello."
    assert [(one["name"], one["args"]) for one in replies[1].tool_calls] == [("look", {"id": "7"})]
    assert replies[2].tool_calls[0]["args"] == {"text": "There.", "citations": [2, 3]}
    assert model.conversations == [[HumanMessage(f"question {number}")] for number in range(3)]


def test_a_call_after_the_last_reply_raises() -> None:
    model = ScriptedModel(["Hello."])
    model.invoke("a")
    with pytest.raises(ModelError, match="1 replies and was called once more"):
        model.invoke("b")


def test_binding_tools_leaves_the_script_as_it_is() -> None:
    model = ScriptedModel([AIMessage("Hello."), "Bye."])
    assert model.bind_tools([{"name": "look"}], tool_choice="any").invoke("a").content == "Hello."
    assert model.invoke("b").content == "Bye."
    assert len(model.conversations) == 2


def test_a_call_carries_plan_and_thought_and_arguments_of_any_name() -> None:
    made = call("look", plan=["a", "b"], thought="Hm.", tool="x")
    assert made.content == "Plan: a; b\nHm."
    assert made.tool_calls[0]["args"] == {"tool": "x"}


def test_many_threads_get_each_reply_once() -> None:
    model = ScriptedModel([str(number) for number in range(50)])
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda _: model.invoke("next").content, range(50)))
    assert sorted(map(int, map(str, said))) == list(range(50))
