"""The one renderer: a record becomes messages, token ids and a loss mask, for serving and training alike.

Rendering is piecewise: each message is a header, a body and a footer, encoded one by one and laid end to end.
So the ids of a run's first steps are a prefix of the ids of the whole run (until it outgrows the context, see
`overflow`), which is what lets keys and values be kept and trajectories be packed as trees. Bodies are encoded with
special tokens switched off: a document that spells out `<|im_end|>` stays text. A step that the model said is
rendered from the very ids it said; only what a person wrote is encoded anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from agent.errors import PromptError
from agent.llm.prompt.json_grammar import canonical
from agent.llm.prompt.step_grammar import StepShape, ToolSpec, part_spans, write_step
from agent.records.run import Recalled, Step, Task, Trajectory
from agent.text.quotes import quotable

_KEPT = 1024
"""Bodies whose ids are kept."""

PROMPT_VERSION = "4"
"""Another one wherever a run could be rendered otherwise than before, as when the rules of `overflow` change."""

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Message:
    role: Role
    text: str
    token_ids: tuple[int, ...] = ()
    """The ids the model said for this body, its end of turn included; empty when it is to be encoded."""
    context: tuple[tuple[int, int], ...] = ()
    """Characters of a text to be encoded that are no target, where the message is one: pairs of start and end."""


@dataclass(frozen=True)
class Frame:
    """What stays the same through a run, and goes into its system prompt."""

    instructions: str
    tools: tuple[ToolSpec, ...]
    plan: bool = True
    thought: bool = True

    def only(self, names: Sequence[str]) -> Frame:
        """The same frame with some of its tools, in their order here."""
        return replace(self, tools=tuple(tool for tool in self.tools if tool.name in set(names)))

    def shape(self, task: Task, steps: Sequence[Step]) -> StepShape:
        """What the next step must hold. A plan is asked for first, and again after a step that failed."""
        plan = self.plan and (not steps or steps[-1].error is not None)
        labels = tuple(passage.label for step in steps for passage in step.passages)
        shown = "\n".join([*task.facts.values(), task.text, *(observation_text(step) for step in steps)])
        quotes = quotable(steps) if any(tool.quoted for tool in self.tools) else ()
        return StepShape(self.tools, plan, self.thought, labels, shown, quotes)

    @property
    def version(self) -> str:
        """Changes with anything that changes the prompt of an unchanged run."""
        text = canonical([PROMPT_VERSION, system_text(self)])
        return f"{PROMPT_VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Rendered:
    """Token ids, and which of them the model is to say. Both of length T."""

    ids: tuple[int, ...]
    targets: tuple[bool, ...]

    def __add__(self, other: Rendered) -> Rendered:
        return Rendered(self.ids + other.ids, self.targets + other.targets)


def tool_version(tool: ToolSpec) -> str:
    """A hash of what the model is told of a tool."""
    text = canonical([tool.name, tool.description, tool.parameters])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def system_text(frame: Frame) -> str:
    """The system prompt: the instructions, the form of a step, and a line for each tool."""
    keys = ['"plan":[...]'] if frame.plan else []
    keys += ['"thought":"..."'] if frame.thought else []
    form = ",".join([*keys, '"tool":"...","args":{...}'])
    plan = " Plan in the first step and after an error." if frame.plan else ""
    lines = [frame.instructions.strip(), f"Each step is {{{form}}}.{plan} Tools:"]
    return "\n".join([*lines, *(_tool_line(tool) for tool in frame.tools)])


def task_text(task: Task, recalled: Sequence[Recalled] = ()) -> str:
    """The task as its message: what is known of the sender, how tasks like it began, then what was asked."""
    facts = "".join(f"{name}: {value}\n" for name, value in task.facts.items())
    lines = "".join(recalled_text(one) for one in recalled if one.shown)
    if not lines:
        return f"{facts}{task.text}"
    return f"{facts}Tasks like this began:\n{lines}Now: {task.text}"


def recalled_text(one: Recalled) -> str:
    """A recalled task as its lines."""
    return f"- {one.text}\n  {beginning_text(one)}\n"


def beginning_text(one: Recalled) -> str:
    """How a recalled task began, in one line."""
    chosen = "".join(f" {name}={canonical(value)}" for name, value in one.choices)
    return f"{one.tool}{chosen} ({'; '.join(one.plan)})" if one.plan else f"{one.tool}{chosen}"


def observation_text(step: Step) -> str:
    """What the model is shown after a step."""
    body = f"Error: {step.error}" if step.error is not None else step.observation
    return body if step.notice is None else f"{body}\n{step.notice}"


def messages(trajectory: Trajectory, frame: Frame) -> list[Message]:
    """The whole run as a conversation, ready for its next step."""
    shown = [
        Message("system", system_text(frame)),
        Message("user", task_text(trajectory.task, trajectory.provenance.recalled)),
    ]
    for step in trajectory.steps:
        shown.append(step_message(step))
        shown.append(Message("tool", observation_text(step)))
    return shown


def step_message(step: Step) -> Message:
    """A step as what the assistant said."""
    text = step.said if step.call is None else write_step(step)
    spans = part_spans(step) if step.context_parts else {}
    return Message("assistant", text, step.token_ids, tuple(spans[part] for part in step.context_parts))


class Renderer:
    """Turns messages into token ids the way one tokenizer's chat template would."""

    def __init__(self, tokenizer: Any) -> None:
        """Takes a fast transformers tokenizer with a chat template. Raises PromptError where it has none."""
        self.tokenizer = tokenizer
        self._plain = _without_special_tokens(tokenizer)
        self._wrappers = _probe(tokenizer)
        self._pieces: dict[str, tuple[int, ...]] = {}
        # A run's messages are rendered again at each of its steps.
        self._encoded = lru_cache(_KEPT)(self._encode)
        end = self._encode_special(self._wrappers["assistant"][1])
        if not end:
            raise PromptError("the chat template does not close an assistant's turn; use a chat model")
        self.end_of_turn: int = end[0]
        """The id that ends what the model says."""
        self._assistant_tail = end[1:]

    def header(self, role: Role) -> tuple[int, ...]:
        return self._encode_special(self._wrappers[role][0])

    def encode(self, text: str) -> tuple[int, ...]:
        """A body: special tokens in it are text like any other."""
        return self._encoded(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids that the model said, without the end of its turn."""
        body = [one for one in ids if one != self.end_of_turn]
        return str(self.tokenizer.decode(body, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def message(self, message: Message, *, target: bool = False) -> Rendered:
        """One message. As a target, its body and end of turn are what the model is to say, less what is context."""
        header = self.header(message.role)
        if message.role == "assistant":
            body = self.turn(message)
            footer: tuple[int, ...] = self._assistant_tail
        else:
            ids = self.encode(message.text)
            body, footer = Rendered(ids, (True,) * len(ids)), self._encode_special(self._wrappers[message.role][1])
        marks = (False,) * len(header) + tuple(target and mark for mark in body.targets) + (False,) * len(footer)
        return Rendered(header + body.ids + footer, marks)

    def turn(self, message: Message) -> Rendered:
        """What the assistant says in a message, its end of turn included, as a target.

        A token that holds a character of the message's context is no target.
        """
        if not message.context:
            ids = message.token_ids or (*self.encode(message.text), self.end_of_turn)
            return Rendered(ids, (True,) * len(ids))
        encoding = self._plain.encode(message.text, add_special_tokens=False)
        marks = [
            all(last <= start or first >= end for start, end in message.context) for first, last in encoding.offsets
        ]
        return Rendered((*encoding.ids, self.end_of_turn), (*marks, True))

    def conversation(self, shown: Sequence[Message], said: Collection[int] = ()) -> Rendered:
        """Messages laid end to end; those at the places in `said` are targets."""
        rendered = Rendered((), ())
        for place, message in enumerate(shown):
            rendered += self.message(message, target=place in said)
        return rendered

    def prompt(self, shown: Sequence[Message]) -> tuple[int, ...]:
        """The ids in front of the next thing the assistant says."""
        return self.conversation(shown).ids + self.header("assistant")

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)

    def _encode_special(self, text: str) -> tuple[int, ...]:
        if text not in self._pieces:
            self._pieces[text] = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return self._pieces[text]


def _tool_line(tool: ToolSpec) -> str:
    arguments = ", ".join(
        f"{name}: {_type_name(schema)}" for name, schema in tool.parameters.get("properties", {}).items()
    )
    return f"{tool.name}({arguments}): {tool.description}"


def _type_name(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "|".join(str(choice) for choice in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"[{_type_name(schema.get('items', {}))}]"
    return {"string": "str", "integer": "int", "number": "num", "boolean": "bool"}.get(str(kind), str(kind))


def _without_special_tokens(tokenizer: Any) -> Any:
    """A copy of the tokenizer that reads special tokens as ordinary text."""
    from tokenizers import Tokenizer

    if not getattr(tokenizer, "is_fast", False):
        raise PromptError("the model has no fast tokenizer (tokenizer.json); convert it with transformers first")
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.encode_special_tokens = True
    plain.no_truncation()
    plain.no_padding()
    return plain


def _probe(tokenizer: Any) -> dict[Role, tuple[str, str]]:
    """What the chat template puts around each role's body, read off conversations of known bodies."""
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError("the model has no chat template; use an instruction-tuned model, or add one to its folder")

    def render(*turns: tuple[str, str], generate: bool = False) -> str:
        shown = [{"role": role, "content": body} for role, body in turns]
        return str(tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=generate))

    system, user, said = ("system", "@S@"), ("user", "@U@"), ("assistant", "@A@")
    whole = render(system, user, said, ("user", "@V@"))
    try:
        unasked, asked = render(system, user), render(system, user, generate=True)
        system_head, between = unasked.split("@S@")
        between, user_tail = between.split("@U@")
        assistant_head = asked.removeprefix(unasked)
        assistant_tail = render(system, user, said).split("@A@")[1]
        user_head = whole.split("@A@")[1].split("@V@")[0].removeprefix(assistant_tail)
    except (ValueError, IndexError) as fault:
        raise PromptError(
            f"the chat template drops a turn ({fault}); give the model folder a plain ChatML template"
        ) from fault
    wrappers: dict[Role, tuple[str, str]] = {
        "system": (system_head, between.removesuffix(user_head)),
        "user": (user_head, user_tail),
        "assistant": (assistant_head, assistant_tail),
    }
    wrappers["tool"] = _tool_wrapper(render, wrappers["user"])
    turns: tuple[tuple[Role, str], ...] = (
        ("system", "@S@"),
        ("user", "@U@"),
        ("assistant", "@A@"),
        ("user", "@V@"),
    )
    if whole != "".join(wrappers[role][0] + body + wrappers[role][1] for role, body in turns):
        raise PromptError(
            "the chat template does not wrap each turn alike; give the model folder a plain ChatML template"
        )
    return wrappers


def _tool_wrapper(render: Any, user: tuple[str, str]) -> tuple[str, str]:
    """The template's own tool turn where it is as plain as a user's, else a user's turn that is marked."""
    own = user[0].replace("user", "tool")
    marked = (user[0] + "[result]\n", user[1])
    try:
        text = render(("system", "@S@"), ("user", "@U@"), ("assistant", "@A@"), ("tool", "@T@"))
    except Exception:  # templates raise what they like on a role they do not know
        return marked
    return (own, user[1]) if own != user[0] and text.endswith(f"{own}@T@{user[1]}") else marked
