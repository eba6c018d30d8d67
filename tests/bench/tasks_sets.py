"""The public sets of the classic tasks: their files, their parts, and the noise that inputs are measured with."""

from __future__ import annotations

import json
import random
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuner.tasks.data.readers import read_file
from tuner.tasks.data.records import ClassifyExample, TaskName
from tuner.tasks.data.splits import Splits, split_examples
from tuner.tasks.data.typos import add_typos

SPEAKERS = {"usr": "user", "sys": "assistant"}
"""Of CrossWOZ, as the product calls them."""
SHARE = 0.3
"""Of the longer words of a noisy input, those with a mistake."""
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


@dataclass(frozen=True)
class Set:
    """A public set: its task and its files."""

    task: TaskName
    train: str
    test: str | None = None
    validation: str | None = None


SETS = {
    "banking77": Set("classify", "banking77/train.csv", "banking77/test.csv"),
    "bitext_8k": Set("classify", "bitext_8k/Bitext_Sample_Customer_Service_Training_Dataset.csv"),
    "wnut17": Set("tag", "wnut17/wnut17train.conll", "wnut17/emerging.test.annotated", "wnut17/emerging.dev.conll"),
    "semeval2010t8": Set("relate", "semeval2010t8/TRAIN_FILE.TXT", "semeval2010t8/TEST_FILE_FULL.TXT"),
    "xquad_en": Set("answer", "xquad/xquad.en.json"),
    "xquad_zh": Set("answer", "xquad/xquad.zh.json"),
    "covidqa": Set("answer", "covidqa/200423_covidQA.json"),
    "tatoeba_cmn": Set("translate", "tatoeba_cmn/cmn.txt"),
    "dialogsum": Set("summarise", "dialogsum/dialogsum.dev.jsonl", "dialogsum/dialogsum.test.jsonl"),
    "crosswoz": Set("converse", "crosswoz/val.json.zip", "crosswoz/test.json.zip"),
}


def splits_of(data: Path, name: str, seed: int, limit: int | None, test_limit: int | None) -> Splits:
    """A set's parts. The test is the same for every seed; which examples are learnt from, where limited, is not.

    With `limit` so many examples are learnt from, and the validation is a tenth of as many at most.
    """
    chosen = SETS[name]
    files = [
        _examples(chosen.task, data / one) if one else [] for one in (chosen.train, chosen.validation, chosen.test)
    ]
    made = split_examples(*files, seed=0, leakage="drop")
    watched = None if limit is None else max(1, limit // 10)
    return Splits(
        drawn(made.train, limit, seed),
        drawn(made.validation, watched, seed),
        drawn(made.test, test_limit, 0),
        made.notes,
    )


def _examples(task: TaskName, path: Path) -> list[Any]:
    if path.suffix != ".zip":
        return list(read_file(task, path))
    with tempfile.TemporaryDirectory() as folder:
        return list(read_file(task, unpacked(path, Path(folder))))


def unpacked(path: Path, folder: Path) -> Path:
    """The chats of CrossWOZ's zipped JSON as a list of turns with role and content."""
    with zipfile.ZipFile(path) as packed:
        chats = json.loads(packed.read(packed.namelist()[0]))
    rows = [
        {"messages": [{"role": SPEAKERS[one["role"]], "content": one["content"]} for one in chat["messages"]]}
        for chat in chats.values()
    ]
    made = folder / f"{path.name.split('.')[0]}.json"
    made.write_text(json.dumps(rows), encoding="utf-8")
    return made


def drawn(examples: Sequence[Any], limit: int | None, seed: int) -> list[Any]:
    """At most `limit` of the examples, the same for the same seed."""
    if limit is None or limit >= len(examples):
        return list(examples)
    return random.Random(seed).sample(list(examples), limit)


def noisy(examples: Sequence[Any]) -> dict[str, list[Any]]:
    """The examples mistyped as `adversarial = "typos"` trains on, and with neighbouring keys, which it never saw."""
    made = {"typos": [add_typos(one, random.Random(f"typos {at}"), SHARE) for at, one in enumerate(examples)]}
    if all(isinstance(one, ClassifyExample) for one in examples):
        made["keys"] = [
            replace(one, text=misstruck(one.text, random.Random(f"keys {at}"))) for at, one in enumerate(examples)
        ]
    return made


def misstruck(text: str, chance: random.Random) -> str:
    """A text in which a share of the longer words has one letter of a key beside the right one."""
    return " ".join(_struck(word, chance) if chance.random() < SHARE else word for word in text.split(" "))


def _struck(word: str, chance: random.Random) -> str:
    places = [at for at, letter in enumerate(word) if at and letter.lower() in _BESIDE]
    if len(word) < 4 or not places:
        return word
    at = chance.choice(places)
    return word[:at] + chance.choice(_BESIDE[word[at].lower()]) + word[at + 1 :]


_BESIDE: dict[str, str] = {
    letter: row[max(0, at - 1) : at] + row[at + 1 : at + 2] for row in KEYS for at, letter in enumerate(row)
}
Predict = Callable[[Sequence[Any]], list[Any]]
