"""Classic tasks on public data: a row for each task, method and seed, beside logistic regression on labelled texts.

    python -m tests.bench.tasks --data ../shared/data --tasks banking77 wnut17 --methods head lora full --seeds 0 1 2

With `--limit` only so many examples are trained on, drawn by the seed. Writes JSON lines to `--out`, each as soon as it
is there; what is in the file already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.settings import find_project
from tuner.evaluate import Interval
from tuner.tasks.fitting import fit
from tuner.tasks.metrics import single_label
from tuner.tasks.readers import read_file
from tuner.tasks.records import TaskName
from tuner.tasks.settings import METHODS
from tuner.tasks.splits import Splits, part

ROOT = Path(__file__).resolve().parents[2]


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
}
PEERS = ("logistic_vectors", "logistic_words")
"""Logistic regression on the vectors of the same encoder, and on TF-IDF."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--tasks", nargs="+", choices=sorted(SETS), default=sorted(SETS))
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, *PEERS), default=[*METHODS, *PEERS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--limit", type=int, help="examples to train on, at most")
    parser.add_argument("--test-limit", type=int, help="examples to measure with, at most, the same for all seeds")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, as JSON")
    parser.add_argument("--out", type=Path, default=ROOT / ".ratchet" / "tasks.jsonl")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known = (
        {_name(json.loads(line)) for line in args.out.read_text("utf-8").splitlines()} if args.out.is_file() else set()
    )
    settings = {name: json.loads(value) for name, _, value in (one.partition("=") for one in args.set)}
    for row in _rows(args, settings, known):
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    return 0


def _rows(args: argparse.Namespace, settings: dict[str, Any], known: set[str]) -> Iterator[dict[str, Any]]:
    for name in args.tasks:
        for seed in args.seeds:
            splits = _splits(args.data, SETS[name], seed, args.limit, args.test_limit)
            for method in args.methods:
                head = {"task": name, "method": method, "seed": seed, "train": len(splits.train), "settings": settings}
                if _name(head) in known or (method in PEERS and SETS[name].task != "classify"):
                    continue
                if method in PEERS:
                    yield {**head, **_peer(method, splits)}
                else:
                    yield {**head, **_ours(SETS[name].task, method, splits, seed, settings)}


def _splits(data: Path, chosen: Set, seed: int, limit: int | None, test_limit: int | None) -> Splits:
    files = [
        read_file(chosen.task, data / one) if one else [] for one in (chosen.train, chosen.validation, chosen.test)
    ]
    # The test is the same for every seed; which examples are learnt from is not.
    made = part(*files, seed=0, leakage="drop")
    train, test = made.train, made.test
    if limit and limit < len(train):
        train = random.Random(seed).sample(train, limit)
    if test_limit and test_limit < len(test):
        test = random.Random(0).sample(test, test_limit)
    return Splits(train, made.validation, test, made.notes)


def _ours(task: TaskName, method: str, splits: Splits, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    from tuner.tasks.columns import Columns

    given = {"method": method, "seed": seed, **({} if method == "head" else settings)}
    with tempfile.TemporaryDirectory() as folder:
        made = fit(
            task, splits, None, Path(folder) / "made", "bench", find_project(ROOT), Columns(), _note, _tell, given
        )
    figures = {name: _interval(one) for name, one in made.scores.figures.items()}
    trained = made.trained
    return {
        "main": made.scores.main,
        "figures": figures,
        "test": len(splits.test),
        "seconds": round(trained.seconds, 1),
        "parameters": trained.parameters,
        "peak_gib": round(trained.peak_bytes / 2**30, 2),
    }


def _peer(method: str, splits: Splits) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    started = time.monotonic()
    read = _vectors if method == "logistic_vectors" else _word_counts
    train, test = read([one.text for one in splits.train], [one.text for one in splits.test])
    labels = [one.labels[0] for one in splits.train]
    said = LogisticRegression(C=10, max_iter=1000).fit(train, labels).predict(test)
    gold = [one.labels[0] for one in splits.test]
    scores = single_label(gold, list(said), sorted({*labels, *gold}))
    return {
        "main": scores.main,
        "figures": {name: _interval(one) for name, one in scores.figures.items()},
        "test": len(splits.test),
        "seconds": round(time.monotonic() - started, 1),
    }


def _vectors(train: list[str], test: list[str]) -> tuple[Any, Any]:
    from agent.llm.catalog import DEFAULT_ENCODER
    from agent.llm.weights import encoder_weights
    from agent.memory.encoder import SentenceEncoder

    base = encoder_weights(DEFAULT_ENCODER, find_project(ROOT).home.models)
    encoder = SentenceEncoder(base.folder, name=base.name)
    return encoder.encode(train), encoder.encode(test)


def _word_counts(train: list[str], test: list[str]) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    counter = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return counter.fit_transform(train), counter.transform(test)


def _interval(one: Interval) -> list[float]:
    return [round(value, 4) for value in (one.mean, one.low, one.high)]


def _name(row: dict[str, Any]) -> str:
    return json.dumps([row[name] for name in ("task", "method", "seed", "train", "settings")])


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _tell(progress: Any) -> None:
    if progress.validation is not None:
        _note(f"epoch {progress.epoch + 1}, loss {progress.loss:.3f}, validation {progress.validation.value:.4f}")


if __name__ == "__main__":
    raise SystemExit(main())
