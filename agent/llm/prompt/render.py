"""Rendering of a run to messages, token ids and a loss mask, the same for serving and training.

Each message is a header, a body and a footer, encoded separately and concatenated. So the ids of a run's first steps
are a prefix of the ids of the whole run (until it is truncated, see `truncation`), which allows keys and values to be
cached and runs to be packed as trees. Bodies are encoded with special tokens switched off: a document that contains
`<|im_end|>` stays text. A generated step is rendered from its own ids; only what a person wrote is encoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from agent.errors import PromptError
from agent.llm.prompt.json_grammar import canonical
from agent.llm.prompt.step_grammar import StepShape, part_spans, write_step
from agent.llm.prompt.tool_spec import ToolSpec
from agent.records.run import Recalled, Step, Task, Trajectory
from agent.text.quotes import collect_quotes

_CACHED_BODIES = 1024
"""Bodies whose ids are cached."""

PROMPT_VERSION = "4"
"""Raised with every change that renders some run differently, changes of `truncation` included."""

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: Role
    text: str
    token_ids: tuple[int, ...] = ()
    """The ids that the model generated for this body, with its end of turn; empty for a text to be encoded."""
    context: tuple[tuple[int, int], ...] = ()
    """Spans of the text, in characters from start to end, that are never trained on."""


@dataclass(frozen=True)
class Frame:
    """Instructions and tools of a run: what its system prompt is rendered from."""

    instructions: str
    tools: tuple[ToolSpec, ...]
    plan: bool = True
    thought: bool = True

    def only(self, names: Sequence[str]) -> Frame:
        """Return the frame with only the tools of these names, in their order here."""
        return replace(self, tools=tuple(tool for tool in self.tools if tool.name in set(names)))

    def shape(self, task: Task, steps: Sequence[Step]) -> StepShape:
        """Return what the next step must contain. A plan is required first, and again after a step with an error."""
        plan = self.plan and (not steps or steps[-1].error is not None)
        labels = tuple(passage.label for step in steps for passage in step.passages)
        context = "\n".join([*task.facts.values(), task.text, *(observation_text(step) for step in steps)])
        quotes = collect_quotes(steps) if any(tool.quoted for tool in self.tools) else ()
        return StepShape(self.tools, plan, self.thought, labels, context, quotes)

    @property
    def version(self) -> str:
        """The version of the prompt: a hash that changes whenever the prompt of the same run changes."""
        text = canonical([PROMPT_VERSION, system_text(self)])
        return f"{PROMPT_VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Rendered:
    """Token ids and which of them are training targets, both of length T."""

    ids: tuple[int, ...]
    targets: tuple[bool, ...]

    def __add__(self, other: Rendered) -> Rendered:
        return Rendered(self.ids + other.ids, self.targets + other.targets)


def tool_version(tool: ToolSpec) -> str:
    """Return a hash of what the prompt says about a tool."""
    text = canonical([tool.name, tool.description, tool.parameters])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def system_text(frame: Frame) -> str:
    """Return the system prompt: the instructions, the form of a step, and a line for each tool."""
    keys = ['"plan":[...]'] if frame.plan else []
    keys += ['"thought":"..."'] if frame.thought else []
    form = ",".join([*keys, '"tool":"...","args":{...}'])
    plan = " Plan in the first step and after an error." if frame.plan else ""
    lines = [frame.instructions.strip(), f"Each step is {{{form}}}.{plan} Tools:"]
    return "\n".join([*lines, *(_tool_line(tool) for tool in frame.tools)])


def task_text(task: Task, recalled: Sequence[Recalled] = ()) -> str:
    """Return the message of a task: its context, the first calls of recalled tasks, then its text."""
    facts = "".join(f"{name}: {value}\n" for name, value in task.facts.items())
    lines = "".join(recalled_text(example) for example in recalled if example.shown)
    if not lines:
        return f"{facts}{task.text}"
    return f"{facts}Tasks like this began:\n{lines}Now: {task.text}"


def recalled_text(recalled: Recalled) -> str:
    """Return the lines of a recalled task."""
    return f"- {recalled.text}\n  {first_call_text(recalled)}\n"


def first_call_text(recalled: Recalled) -> str:
    """Return the first call of a recalled task, with its plan, in one line."""
    arguments = "".join(f" {name}={canonical(value)}" for name, value in recalled.choices)
    plan = f" ({'; '.join(recalled.plan)})" if recalled.plan else ""
    return f"{recalled.tool}{arguments}{plan}"


def observation_text(step: Step) -> str:
    """Return the message after a step: its observation or error, and its notice."""
    body = f"Error: {step.error}" if step.error is not None else step.observation
    return body if step.notice is None else f"{body}\n{step.notice}"


def messages(trajectory: Trajectory, frame: Frame) -> list[Message]:
    """Return the conversation of a run, to be continued with its next step."""
    conversation = [
        Message("system", system_text(frame)),
        Message("user", task_text(trajectory.task, trajectory.provenance.recalled)),
    ]
    for step in trajectory.steps:
        conversation.append(step_message(step))
        conversation.append(Message("tool", observation_text(step)))
    return conversation


def step_message(step: Step) -> Message:
    """Return a step as the assistant's message."""
    text = step.said if step.call is None else write_step(step)
    spans = part_spans(step) if step.context_parts else {}
    return Message("assistant", text, step.token_ids, tuple(spans[part] for part in step.context_parts))


class Renderer:
    """Renders messages to token ids as a tokenizer's chat template does."""

    def __init__(self, tokenizer: Any) -> None:
        """Probe a fast transformers tokenizer. Raises PromptError where its chat template is missing or unsuitable."""
        self.tokenizer = tokenizer
        self._plain = _without_special_tokens(tokenizer)
        self._wrappers = _probe(tokenizer)
        self._pieces: dict[str, tuple[int, ...]] = {}
        # A run's messages are rendered again at each of its steps.
        self._encoded = lru_cache(_CACHED_BODIES)(self._encode)
        end = self._encode_special(self._wrappers["assistant"][1])
        if not end:
            raise PromptError("the chat template does not close an assistant's turn; use a chat model")
        self.end_of_turn: int = end[0]
        """The id that ends the assistant's turn."""
        self._assistant_tail = end[1:]

    def header(self, role: Role) -> tuple[int, ...]:
        """Return the ids before a body."""
        return self._encode_special(self._wrappers[role][0])

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of a body; special tokens in it are encoded as text."""
        return self._encoded(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, without the end of the turn."""
        body = [id for id in ids if id != self.end_of_turn]
        return str(self.tokenizer.decode(body, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def message(self, message: Message, *, target: bool = False) -> Rendered:
        """Render one message; with `target`, its body and end of turn are trained on, except its context."""
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
        """Render the assistant's body and end of turn as a target.

        A token with any character of the message's context is not a target.
        """
        if not message.context:
            ids = message.token_ids or (*self.encode(message.text), self.end_of_turn)
            return Rendered(ids, (True,) * len(ids))
        encoding = self._plain.encode(message.text, add_special_tokens=False)
        marks = [
            all(last <= start or first >= end for start, end in message.context) for first, last in encoding.offsets
        ]
        return Rendered((*encoding.ids, self.end_of_turn), (*marks, True))

    def conversation(self, messages: Sequence[Message], targets: Collection[int] = ()) -> Rendered:
        """Render and concatenate messages; those whose index is in `targets` are targets."""
        rendered = Rendered((), ())
        for place, message in enumerate(messages):
            rendered += self.message(message, target=place in targets)
        return rendered

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the ids before the assistant's next message."""
        return self.conversation(messages).ids + self.header("assistant")

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
    """Return a copy of the tokenizer that encodes special tokens as ordinary text."""
    from tokenizers import Tokenizer

    if not getattr(tokenizer, "is_fast", False):
        raise PromptError("the model has no fast tokenizer (tokenizer.json); convert it with transformers first")
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.encode_special_tokens = True
    plain.no_truncation()
    plain.no_padding()
    return plain


def _probe(tokenizer: Any) -> dict[Role, tuple[str, str]]:
    """Return what the chat template puts around each role's body, found by rendering known bodies."""
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError("the model has no chat template; use an instruction-tuned model, or add one to its folder")

    def render(*turns: tuple[str, str], generate: bool = False) -> str:
        conversation = [{"role": role, "content": body} for role, body in turns]
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=generate))

    system, user, assistant = ("system", "@S@"), ("user", "@U@"), ("assistant", "@A@")
    whole = render(system, user, assistant, ("user", "@V@"))
    try:
        closed, generating = render(system, user), render(system, user, generate=True)
        system_head, between = closed.split("@S@")
        between, user_tail = between.split("@U@")
        assistant_head = generating.removeprefix(closed)
        assistant_tail = render(system, user, assistant).split("@A@")[1]
        user_head = whole.split("@A@")[1].split("@V@")[0].removeprefix(assistant_tail)
    except (ValueError, IndexError) as error:
        raise PromptError(
            f"the chat template drops a turn ({error}); give the model folder a plain ChatML template"
        ) from error
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
            "the chat template does not render each turn the same way; give the model folder a plain ChatML template"
        )
    return wrappers


def _tool_wrapper(render: Any, user: tuple[str, str]) -> tuple[str, str]:
    """Return the template's own tool turn where it is like a user's, else a user's turn with a mark."""
    own = user[0].replace("user", "tool")
    marked = (user[0] + "[result]\n", user[1])
    try:
        text = render(("system", "@S@"), ("user", "@U@"), ("assistant", "@A@"), ("tool", "@T@"))
    except Exception:  # templates may raise anything for a role that they do not support
        return marked
    return (own, user[1]) if own != user[0] and text.endswith(f"{own}@T@{user[1]}") else marked
