"""What a person says a trained task should have given: checked, in the form the task gives, and as an example.

A label must be one that the task knows: new ones come with data, not by the way. Pure.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from agent.errors import DatasetError, FeedbackError
from tuner.tasks.data.marked import parse_marked_text
from tuner.tasks.data.records import (
    AnswerExample,
    AnswerSpan,
    ChatTurn,
    ClassifyExample,
    ConverseExample,
    Span,
    TaskExample,
    WriteExample,
)
from tuner.tasks.data.schemes import entity_types
from tuner.tasks.data.words import tag_words

NEW_LABELS = "new labels are learnt from a file: `ratchet task train --from FOLDER --data FILE`"


def right_output(told: Mapping[str, Any], arguments: Mapping[str, Any], said: str) -> dict[str, Any]:
    """An output as a person wrote it: a label, labels with | between, entities as JSON, an answer or a text.

    `told` is the task's `task.json`. Raises FeedbackError that says what could stand there.
    """
    said = said.strip()
    match told["task"]:
        case "classify" if told["options"].get("multi"):
            chosen = sorted({one.strip() for one in said.split("|") if one.strip()})
            output: dict[str, Any] = {"labels": [_known(one, told["labels"]) for one in chosen]}
        case "classify" | "relate":
            output = {"labels": [_known(said, told["labels"])]}
        case "tag":
            output = {"entities": [_entity(one, arguments["text"], told["labels"]) for one in _list(said)]}
        case "answer":
            output = {"answer": said}
        case "translate" | "summarise" | "converse":
            output = {"said": said}
        case other:
            raise FeedbackError(f"the output of a task {other} cannot be corrected yet")
    try:
        as_example(told, arguments, output)
    except (ValueError, DatasetError) as fault:
        raise FeedbackError(str(fault)) from fault
    return output


def as_example(told: Mapping[str, Any], arguments: Mapping[str, Any], output: Mapping[str, Any]) -> TaskExample:
    """A call with the output that it should have had, as an example. Raises ValueError where the two do not fit."""
    match told["task"]:
        case "classify":
            pair = arguments["other"] if told.get("pairs") else None
            return ClassifyExample(str(arguments["text"]).strip(), tuple(output["labels"]), pair)
        case "relate":
            return parse_marked_text(arguments["text"], output["labels"][0])
        case "tag":
            spans = [Span(one["start"], one["end"], one["label"]) for one in output["entities"]]
            return tag_words(arguments["text"], spans)
        case "answer":
            return AnswerExample(
                arguments["question"], arguments["context"], _answers(output["answer"], arguments["context"])
            )
        case "translate" | "summarise":
            return WriteExample(str(arguments["text"]).strip(), _written(output["said"]))
        case "converse":
            return ConverseExample((ChatTurn("customer", str(arguments["text"]).strip()),), _written(output["said"]))
        case other:
            raise ValueError(f"the output of a task {other} cannot be learnt from yet")


def _written(said: str) -> str:
    if not said:
        raise ValueError("a text of no words is nothing to learn; give what should have been written")
    return said


def _known(label: str, labels: list[str]) -> str:
    if label in labels:
        return label
    near = difflib.get_close_matches(label, labels, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(labels[:12])}{', …' * (len(labels) > 12)}"
    raise FeedbackError(f"the task has no label {label!r}; {hint} ({NEW_LABELS})")


def _list(said: str) -> list[Any]:
    form = '[{"text": "Ada", "label": "PER"}], with start where it stands there twice; [] for none'
    try:
        found = json.loads(said)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise FeedbackError(f"{said[:60]!r} is no list of entities; expected {form}")
    return found


def _entity(one: Mapping[str, Any], text: str, labels: list[str]) -> dict[str, Any]:
    kinds = sorted(entity_types(labels))
    label, words, start = _known(str(one.get("label", "")), kinds), str(one.get("text", "")), one.get("start")
    if not words:
        raise FeedbackError(f"entity {dict(one)} has no text; expected the words as they stand there")
    if start is None:
        if text.count(words) != 1:
            raise FeedbackError(f"{words!r} stands {text.count(words)} times in {text[:80]!r}; give its start")
        start = text.index(words)
    if not isinstance(start, int) or text[start : start + len(words)] != words:
        raise FeedbackError(f"at {start} of {text[:80]!r} does not stand {words!r}; correct its start")
    return {"start": start, "end": start + len(words), "label": label, "text": words}


def _answers(answer: str, context: str) -> tuple[AnswerSpan, ...]:
    if not answer:
        return ()
    if answer not in context:
        raise ValueError(f"{answer!r} does not stand in the context; give it word for word, or an empty text for none")
    return (AnswerSpan(answer, context.index(answer)),)
