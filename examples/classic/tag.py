"""Who and where in a text: words with tags in columns become a model that finds entities in plain text.

python examples/classic/tag.py
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

from tuner.tasks.api import load, train

SENTENCES = (
    "{who/PER} lives in {where/LOC} now .",
    "Yesterday {who/PER} flew to {where/LOC} with two friends .",
    "The people of {where/LOC} know {who/PER} well .",
    "Have you written to {who/PER} ?",
    "It rained in {where/LOC} for a week .",
)
PEOPLE = ("Ada Brook", "Tom Heller", "Mina", "Jun Sato", "Rosa Lind")
PLACES = ("Oslo", "New Haven", "Green Valley", "Port Ellen", "Graz")
NEW = ("Last year Peter Moss moved to Madrid.", "Nobody in Cape Town has heard of Lena.")


def columns(sentence: str, who: str, where: str) -> str:
    lines: list[str] = []
    for word in sentence.split():
        name, tag = {"{who/PER}": (who, "PER"), "{where/LOC}": (where, "LOC")}.get(word, (word, "O"))
        for place, part in enumerate(name.split()):
            prefix = "" if tag == "O" else "I-" if place else "B-"
            lines.append(f"{part} {prefix}{tag}")
    return "\n".join(lines) + "\n\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "news.conll"
        data.write_text(
            "".join(columns(*one) for one in itertools.product(SENTENCES, PEOPLE, PLACES)), encoding="utf-8"
        )
        made = train("tag", data, out=Path(folder) / "entities", say=lambda text: print(text, file=sys.stderr))
        print(f"F1 of whole entities: {made.scores.value:.0%}")
        for text, said in zip(NEW, load(made.folder).predict(NEW), strict=True):
            print(text, said.to_dict()["entities"])


if __name__ == "__main__":
    main()
