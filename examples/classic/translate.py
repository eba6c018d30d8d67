"""Sentences and their translations become a translator: pairs in a file, an adapter of the local language model.

python examples/classic/translate.py
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path

from tuner.tasks.api import load, train

THINGS = {
    **{"house": "das Haus", "boat": "das Boot", "book": "das Buch", "bread": "das Brot", "water": "das Wasser"},
    **{"fire": "das Feuer", "bed": "das Bett", "ice": "das Eis", "ship": "das Schiff", "glass": "das Glas"},
}
KINDS = {"old": "alt", "new": "neu", "cold": "kalt", "warm": "warm", "good": "gut", "red": "rot"}
NEW = ("The bread is warm.", "The ship is old.")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.jsonl"
        rows = [
            {"en": f"The {thing} is {kind}.", "de": f"{said[0].upper()}{said[1:]} ist {how}."}
            for (thing, said), (kind, how) in itertools.product(THINGS.items(), KINDS.items())
        ]
        kept = [row for row in rows if row["en"] not in NEW]
        data.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        made = train("translate", data, out=Path(folder) / "german", say=lambda text: print(text, file=sys.stderr))
        print(f"chrF: {made.before.value:.0%} before, {made.scores.value:.0%} after")
        for text, said in zip(NEW, load(made.folder).predict(NEW), strict=True):
            print(f"{text}  {said.to_dict()['said']}")


if __name__ == "__main__":
    main()
