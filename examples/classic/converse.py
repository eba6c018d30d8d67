"""Past chats with customers become one who answers them: question, best answer and its rating in a file.

python examples/classic/converse.py
"""

from __future__ import annotations

import csv
import itertools
import sys
import tempfile
from pathlib import Path

from tuner.tasks.api import load, train

CASES = (
    (("Where is my parcel?", "When does my order come?"), "Please look under My Orders: the day of arrival is there."),
    (("Can I send it back?", "How do I return this?"), "Yes, within 30 days. The label is in the parcel."),
    (("It is broken.", "My {thing} does not work."), "I am sorry. Please send a photo, and a new one goes out today."),
    (("Do you have it in red?", "Which colours are there?"), "There are red, blue and green."),
)
THINGS = ("tent", "lamp", "stove", "jacket", "bag", "rope")
POOR = ("How much is the {thing}?", "No idea, look yourself.")
NEW = ("Hello, I ordered a kettle. Can I send it back?", "Hello, I ordered a kettle. It is broken.")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "chats.csv"
        with data.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["question", "answer", "rating"])
            for (questions, answer), thing in itertools.product(CASES, THINGS):
                for question in questions:
                    table.writerow([f"Hello, I ordered a {thing}. {question.format(thing=thing)}", answer, 5])
            table.writerows([POOR[0].format(thing=thing), POOR[1], 1] for thing in THINGS)
        made = train("converse", data, out=Path(folder) / "helper", say=lambda text: print(text, file=sys.stderr))
        print(f"ROUGE-L: {made.before.value:.0%} before, {made.scores.value:.0%} after")
        for question, said in zip(NEW, load(made.folder).predict(NEW), strict=True):
            print(f"{question}\n  {said.to_dict()['said']}")


if __name__ == "__main__":
    main()
