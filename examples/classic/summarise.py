"""Long messages and their summaries become a summariser: pairs in a file, an adapter of the local language model.

python examples/classic/summarise.py
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path

from tuner.tasks.api import load, train

TEXT = (
    "Hello, this is {name}. I hope you are all well. I bought a {thing} from you some time ago, and I was happy with "
    "it at first. Now {fault}, although I took good care of it. I would like to {wish}. Many thanks, {name}"
)
NAMES = ("Ada", "Tom", "Mia", "Leo")
THINGS = ("tent", "stove", "lamp", "jacket")
CASES = (("the zip is stuck", "have it mended"), ("it leaks", "send it back"), ("a part is missing", "get that part"))
NEW = ("Eva", "tent", "it leaks", "send it back")


def summary(name: str, thing: str, fault: str, wish: str) -> str:
    return f"{name}'s {thing}: {fault}. Wants to {wish}."


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "messages.jsonl"
        with data.open("w", encoding="utf-8") as file:
            for name, thing, (fault, wish) in itertools.product(NAMES, THINGS, CASES):
                text = TEXT.format(name=name, thing=thing, fault=fault, wish=wish)
                file.write(json.dumps({"text": text, "summary": summary(name, thing, fault, wish)}) + "\n")
        made = train("summarise", data, out=Path(folder) / "short", say=lambda text: print(text, file=sys.stderr))
        print(f"ROUGE-L: {made.before.value:.0%} before, {made.scores.value:.0%} after")
        name, thing, fault, wish = NEW
        (said,) = load(made.folder).predict([TEXT.format(name=name, thing=thing, fault=fault, wish=wish)])
        print(said.to_dict()["said"])


if __name__ == "__main__":
    main()
