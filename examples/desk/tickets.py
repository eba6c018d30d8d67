"""The desk's tickets, made from hand-written phrasings and the shop's database, the same on every build.

`python examples/desk/tickets.py` writes `tickets/train.jsonl` (with solutions) and `tickets/held_out.jsonl`
(without). A solution's observations come from the real tools; what the check expects is written down apart
from them, in `desk_cases.py`. Rows go round the intents, so that any prefix of a file holds all of them.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

Split = Literal["train", "held_out"]

HERE = Path(__file__).parent
ROUNDS: dict[Split, int] = {"train": 27, "held_out": 10}
POLICY_PER_ROUND = 3
SEED = 7


@dataclass(frozen=True)
class Phrasing:
    """One hand-written way to say something."""

    id: str
    intent: str
    group: str
    template: str
    """Has slots such as `{order}`; in brackets, the words to search for."""
    ask: dict[str, Any] | None = None
    """For policy questions: the article, the heading and the facts that answer them."""


def build(split: Split, seed: int = SEED) -> list[dict[str, Any]]:
    """The rows of one split; training rows hold a `solution`."""
    rows = _solved_rows(split, seed)
    hidden = () if split == "train" else ("solution",)
    return [{key: value for key, value in row.items() if key not in hidden} for row in rows]


def solve(row: dict[str, Any], seed: int = SEED) -> list[dict[str, Any]]:
    """The solution of a row of either split, which shows that the ticket can be solved."""
    split, _, number = row["id"].partition("-")
    solution: list[dict[str, Any]] = _solved_rows(split, seed)[int(number) - 1]["solution"]
    return solution


def phrasings(split: Split) -> list[Phrasing]:
    """All phrasings of one split, in the order of the files."""
    found = []
    for name, group in (("requests", ""), ("refusals", "refuse")):
        for intent, table in _toml(name).items():
            for number, template in enumerate(table.get(split, ())):
                found.append(Phrasing(f"{intent}/{split}/{number}", intent, group or str(table["group"]), template))
    for ask in _toml(f"policy_{split}")["ask"]:
        for number, template in enumerate(ask["questions"]):
            slug = f"{ask['article']}/{ask['heading']}".lower().replace(" ", "-")
            found.append(Phrasing(f"policy/{split}/{slug}/{number}", "policy", "policy", template, ask))
    return found


def main() -> None:
    """Write the tickets, and the shop when it is not there."""
    if not (HERE / "shop.db").exists():
        _sibling("desk_database").build(HERE / "shop.db")
    for split in ("train", "held_out"):
        path = HERE / "tickets" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(to_lines(build(split)), encoding="utf-8")


def to_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@cache
def _solved_rows(split: Split, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(f"{seed} {split}")
    by_intent: dict[str, list[Phrasing]] = {}
    for phrasing in phrasings(split):
        by_intent.setdefault(phrasing.intent, []).append(phrasing)
    for choices in by_intent.values():
        rng.shuffle(choices)
    slots = [intent for intent in by_intent for _ in range(POLICY_PER_ROUND if intent == "policy" else 1)]
    used = dict.fromkeys(by_intent, 0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        desk = _sibling("desk_cases").Cases(split, rng, Path(folder), _toml("requests")["why"], by_intent["policy"])
        for _ in range(ROUNDS[split]):
            for intent in rng.sample(slots, len(slots)):
                phrasing = by_intent[intent][used[intent] % len(by_intent[intent])]
                # Starts elsewhere for each intent and moves on by one each time round its phrasings, so that
                # situations are mixed in any prefix and no phrasing always meets the same one.
                turn = slots.index(intent) + used[intent] + used[intent] // len(by_intent[intent])
                used[intent] += 1
                case = desk.make(phrasing, turn)
                rows.append(
                    {
                        "id": f"{split}-{len(rows) + 1:04}",
                        "group": phrasing.group,
                        "phrasing": phrasing.id,
                        **case,
                    }
                )
    return rows


def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads((HERE / "phrasings" / f"{name}.toml").read_text(encoding="utf-8"))


def _sibling(name: str) -> ModuleType:
    """A file beside this one, loaded by path, since this folder is on nobody's import path."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{HERE / name}.py cannot be loaded; the desk needs it beside tickets.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while it is made.
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
