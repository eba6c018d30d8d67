"""How alike two questions are: pairs with a score train the sentence encoder, and then say it of new pairs.

python examples/classic/embed.py
"""

from __future__ import annotations

import csv
import itertools
import random
import sys
import tempfile
from pathlib import Path

from tuner.tasks.api import load, train

ASKED = {
    "opening": ("When does {} open?", "Opening hours of {}?", "Until when is {} open today?"),
    "fare": ("What does {} cost?", "How much do I pay for {}?", "Is there a fee for {}?"),
    "way": ("How do I get to {}?", "Which bus goes to {}?", "Where is the way to {}?"),
}
PLACES = ("the museum", "the tower", "the zoo", "the castle", "the lake", "the market")
NEW = "When does the garden open?"
OTHERS = ("What does the garden cost?", "Until when is the harbour open today?", "Which bus goes to the garden?")


def score(one: tuple[str, str], other: tuple[str, str]) -> float:
    """The same wish counts for more here than the same place: 0, 1, 4 or 5."""
    return 4.0 * (one[0] == other[0]) + (one[1] == other[1])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "pairs.csv"
        asked = [
            (wish, place, text.format(place)) for (wish, texts) in ASKED.items() for text in texts for place in PLACES
        ]
        chance = random.Random(0)
        pairs = chance.sample(list(itertools.combinations(asked, 2)), 400)
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("sentence1", "sentence2", "score"))
            writer.writerows((one[2], other[2], score(one[:2], other[:2])) for one, other in pairs)
        made = train("embed", table, out=Path(folder) / "vectors", say=lambda text: print(text, file=sys.stderr))
        print(f"Spearman on pairs kept apart: {made.before.value:.2f} before, {made.scores.value:.2f} after")
        said = load(made.folder).predict([(NEW, other) for other in OTHERS])
        for one, other in sorted(zip(said, OTHERS, strict=True), key=lambda pair: -pair[0].score):
            print(f"{one.score:5.2f}  {other}")


if __name__ == "__main__":
    main()
