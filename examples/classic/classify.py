"""Which team a message is for: a table of labelled messages becomes a model that labels new ones.

python examples/classic/classify.py
"""

from __future__ import annotations

import csv
import itertools
import sys
import tempfile
from pathlib import Path

from tuner.tasks.api import load, train

MESSAGES = {
    "delivery": ("Where is my {}?", "The {} has not arrived yet", "When will the {} be delivered?"),
    "refund": ("I want my money back for the {}", "Please refund the {}", "Did you pay back the price of the {}?"),
    "repair": ("My {} is broken", "The zip of the {} came off, can you mend it?", "Do you repair a torn {}?"),
}
THINGS = ("tent", "jacket", "rope", "backpack", "stove", "sleeping bag")
NEW = ("my parcel with the lamp is still not here", "can you fix the leg of my chair?", "give me back the 20 euros")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "messages.csv"
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            for (label, texts), thing in itertools.product(MESSAGES.items(), THINGS):
                writer.writerows((text.format(thing), label) for text in texts)
        # The model is chosen by the data: with so little of it, a head on an encoder that stays as it is.
        made = train("classify", table, out=Path(folder) / "teams", say=lambda text: print(text, file=sys.stderr))
        print(f"accuracy on {made.scores.figures['accuracy'].count} messages kept apart: {made.scores.value:.0%}")
        for text, said in zip(NEW, load(made.folder).predict(NEW), strict=True):
            print(f"{said.to_dict()['labels'][0]:10} {said.score:.2f}  {text}")


if __name__ == "__main__":
    main()
