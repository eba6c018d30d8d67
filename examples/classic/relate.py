"""What one thing is to another: texts with two marked entities become a model that names the relation.

python examples/classic/relate.py
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path

from tuner.tasks.api import load, train

TEXTS = (
    ("The <e1>{part}</e1> of the <e2>{whole}</e2> is new.", "Part(e1,e2)"),
    ("Look at the <e1>{whole}</e1> with the loose <e2>{part}</e2>.", "Part(e2,e1)"),
    ("This <e1>{whole}</e1> has a <e2>{part}</e2> made of steel.", "Part(e2,e1)"),
    ("We put the <e1>{part}</e1> beside the <e2>{whole}</e2>.", "Other"),
    ("A <e1>{whole}</e1> costs more than a <e2>{part}</e2>.", "Other"),
    ("They took the <e1>{part}</e1> off the <e2>{whole}</e2>.", "Part(e1,e2)"),
)
PARTS = ("handle", "wheel", "lid", "zip", "pole")
WHOLES = ("cart", "tent", "pot", "bag", "stove")
NEW = ("The <e1>roof</e1> of the <e2>house</e2> leaks.", "I bought a <e1>car</e1> with a broken <e2>mirror</e2>.")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "marked.jsonl"
        rows = [
            {"text": text.format(part=part, whole=whole), "label": label}
            for (text, label), part, whole in itertools.product(TEXTS, PARTS, WHOLES)
        ]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        made = train("relate", data, out=Path(folder) / "relations", say=lambda text: print(text, file=sys.stderr))
        print(f"macro F1, the direction counted: {made.scores.value:.0%}")
        for text, said in zip(NEW, load(made.folder).predict(NEW), strict=True):
            print(f"{said.to_dict()['labels'][0]:12} {said.score:.2f}  {text}")


if __name__ == "__main__":
    main()
