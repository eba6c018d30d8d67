"""What `make bench-tuning` trains on: each set as token ids and target masks, the same for both sides.

The desk's runs are made from its training tickets; the others from public data under ../shared/data, of which
nothing is kept. Assistant turns are targets; in what our own renderer makes, what the grammar forces is not.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.llm.prompt.render import Frame, Message, Rendered, Renderer
from agent.llm.prompt.tool_spec import ToolSpec
from agent.records.feedback import Rating
from agent.records.run import Provenance, Step, Task, ToolCall, Trajectory
from agent.runtime import Runtime
from agent.util.ids import new_id, timestamp
from tests.tuner.desks import Clumsy
from tuner.data.curate import TrainingRow, curate
from tuner.data.examples import prepare_examples
from tuner.demo import demo
from tuner.demo.reviewer import load_tickets
from tuner.tree.packing import Example

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = 8192
"""Of the default model."""
MAX_TOKENS = 1536
"""Of one example; longer ones are left out on both sides."""


def desk(renderer: Renderer, data: Path, scratch: Path) -> list[Example]:
    """(a) Solved runs of the demo desk's training tickets, as the desk records them."""
    project = demo.prepare_desk(ROOT / "examples" / "desk", scratch)
    tickets = load_tickets(project.folder / "tickets" / "train.jsonl")
    with Runtime(project, model=Clumsy(tickets, ())) as runtime:
        for folder in project.settings.memory.folders:
            runtime.memory.add_folder(project.resolve(folder))
        for ticket in tickets[:300]:
            run = runtime.run(ticket.task, tools=ticket.tools, run_id=new_id())
            if run.answer is not None or run.outcome == "refused":
                runtime.store.feedback.add_rating(Rating(new_id(), run.id, "up", "bench", "", timestamp()))
        return prepare_examples(
            curate(runtime.store).rows, runtime.frame(), renderer, context=CONTEXT, max_tokens=MAX_TOKENS
        )


def toolalpaca(renderer: Renderer, data: Path, scratch: Path) -> list[Example]:
    """(b) The golden calls of ToolAlpaca: one conversation an instruction, behind the descriptions of its API."""
    examples = []
    for name in ("eval_simulated.json", "eval_real.json"):
        for api in _json(data / "toolalpaca" / name):
            system = f"Use the functions of {api['Name']}.\n{api.get('NLDocumentation', '')}"
            for asked, calls in zip(api.get("Instructions") or (), api.get("Golden_Answers") or (), strict=False):
                turns = [("system", system), ("user", asked)]
                for call in calls:
                    turns += [("assistant", json.dumps(call, ensure_ascii=False)), ("tool", "done")]
                examples.append(_conversation(renderer, turns[:-1], api["Name"]))
    return examples


def fireact(renderer: Renderer, data: Path, scratch: Path) -> list[Example]:
    """(c) FireAct's HotpotQA trajectories, questions with searches."""
    (path,) = (data / "fireact").glob("hotpotqa_dev_*.json")
    examples = []
    for key, run in _json(path).items():
        turns = [(turn["role"], turn["content"]) for turn in run["traj"]]
        while turns and turns[-1][0] != "assistant":
            turns.pop()
        if turns:
            examples.append(_conversation(renderer, turns, key))
    return examples


def rows(renderer: Renderer, data: Path, scratch: Path) -> list[Example]:
    """(d) Single turns that share no prefix: word problems and their answers."""
    return [
        _conversation(
            renderer,
            [("user", f"{row['Body']} {row['Question']}"), ("assistant", f"{row['Equation']} = {row['Answer']}")],
            row["ID"],
        )
        for row in _json(data / "svamp" / "SVAMP.json")
    ]


def corrections(renderer: Renderer, data: Path, scratch: Path) -> list[Example]:
    """(e) One corrected call each, behind a system prompt that lists 77 desks."""
    with (data / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        messages = [(row["text"], row["category"].replace("_", " ")) for row in csv.DictReader(file)]
    desks = sorted({label for _, label in messages})
    chosen = random.Random(0).sample(messages, 3200)
    return labelled(renderer, "route", "Route the customer's message to the one desk that handles it.", desks, chosen)


def bitext(data: Path) -> list[tuple[str, str, str]]:
    """Flags, utterance and intent of each row of Bitext's sample; what a flag means is told in `tests.bench.noise`."""
    (path,) = (data / "bitext_8k").glob("*.csv")
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [(row["flags"], row["utterance"], row["intent"]) for row in csv.DictReader(file)]


def evenly(messages: Sequence[tuple[str, str]], labels: Sequence[str]) -> list[tuple[str, str]]:
    """The messages of the labels in random order, one of each label in turn for as long as it has any."""
    by_label: dict[str, list[str]] = {label: [] for label in labels}
    for text, label in random.Random(0).sample(list(messages), len(messages)):
        if label in by_label and text not in by_label[label]:
            by_label[label].append(text)
    most = max(map(len, by_label.values()))
    return [
        (by_label[label][place], label) for place in range(most) for label in labels if place < len(by_label[label])
    ]


def labelled(
    renderer: Renderer, tool: str, instruction: str, labels: Sequence[str], messages: Sequence[tuple[str, str]]
) -> list[Example]:
    """One call for each message, to a tool that takes one of the labels."""
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"label": {"enum": list(labels), "type": "string"}},
        "required": ["label"],
    }
    frame = Frame(instruction, (ToolSpec(tool, instruction, parameters, "answered"),), plan=False, thought=False)
    training = []
    for number, (text, label) in enumerate(messages):
        step = Step(ToolCall(tool, {"label": label}))
        run = Trajectory(f"{tool}{number}", Task(f"{tool}{number}", text), Provenance(), "", (step,))
        training.append(TrainingRow(run.id, run.task.id, "corrected", run, {0: step}, ("bench",)))
    return prepare_examples(training, frame, renderer, context=CONTEXT, max_tokens=MAX_TOKENS)


SETS: dict[str, Callable[[Renderer, Path, Path], list[Example]]] = {
    "desk": desk,
    "toolalpaca": toolalpaca,
    "fireact": fireact,
    "rows": rows,
    "corrections": corrections,
}


def fitting(examples: Sequence[Example]) -> list[Example]:
    """Those that fit into a pack and have something to say, in an order of their own."""
    kept = [one for one in examples if len(one.ids) <= MAX_TOKENS and one.target_count]
    random.Random(1).shuffle(kept)
    return kept


def of_steps(example: Example, steps: int) -> Example:
    """The example with what follows its prompt cut off, or said again, until it is `steps` steps of 60 tokens."""
    first = next(place for place, said in enumerate(example.targets) if said)
    ids, targets = example.ids[first:], example.targets[first:]
    length = 60 * steps
    again = -(-length // len(ids))
    return Example(
        example.ids[:first] + (ids * again)[:length],
        (*example.targets[:first], True, *(targets * again)[1:length]),
        example.group,
        example.trajectory,
    )


def write(path: Path, examples: Sequence[Example]) -> None:
    lines = (json.dumps([one.ids, [int(said) for said in one.targets], one.group, one.trajectory]) for one in examples)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(path: Path) -> list[Example]:
    return list(_read(path))


def _read(path: Path) -> Iterator[Example]:
    for line in path.read_text("utf-8").splitlines():
        ids, targets, group, trajectory = json.loads(line)
        yield Example(tuple(ids), tuple(map(bool, targets)), group, trajectory)


def _conversation(renderer: Renderer, turns: Sequence[tuple[Any, str]], group: str) -> Example:
    rendered = Rendered((), ())
    for role, text in turns:
        rendered += renderer.message(Message(role, text), target=role == "assistant")
    return Example(rendered.ids, rendered.targets, group)


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
