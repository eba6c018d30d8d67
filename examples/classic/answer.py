"""Questions about a text: contexts, questions and answers become a model that finds answers, or says there is none.

python examples/classic/answer.py
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path

from tuner.tasks.api import load, train

CONTEXT = "The {thing} was made by {maker} in {year}. It weighs {weight} and is sold in {town}."
ASKED = (
    ("Who made the {thing}?", "{maker}"),
    ("When was the {thing} made?", "{year}"),
    ("How heavy is the {thing}?", "{weight}"),
    ("Where can I buy the {thing}?", "{town}"),
    ("What does the {thing} cost?", ""),
)
THINGS = ("lamp", "tent", "stove", "bike", "clock", "kettle")
FACTS = (("Ada Brook", "1998", "two kilos", "Oslo"), ("Tom Heller", "2004", "600 grams", "Lima"))
NEW = "The radio was made by Mina Lind in 1975. It weighs one kilo and is sold in Graz."


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "asked.jsonl"
        with data.open("w", encoding="utf-8") as file:
            for thing, (maker, year, weight, town) in itertools.product(THINGS, FACTS):
                facts = {"thing": thing, "maker": maker, "year": year, "weight": weight, "town": town}
                for question, answer in ASKED:
                    row = {"context": CONTEXT, "question": question, "answer": answer}
                    file.write(json.dumps({name: text.format(**facts) for name, text in row.items()}) + "\n")
        made = train("answer", data, out=Path(folder) / "answers", say=lambda text: print(text, file=sys.stderr))
        print(f"F1 of answers about contexts kept apart: {made.scores.value:.0%}")
        asked = [(question.format(thing="radio"), NEW) for question, _ in ASKED]
        for (question, _), said in zip(asked, load(made.folder).predict(asked), strict=True):
            print(f"{question:30} {said.to_dict()['answer'] or '(the text does not say)'}")


if __name__ == "__main__":
    main()
