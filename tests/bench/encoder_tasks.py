"""What tuning the encoder on beginnings gains: labelled messages are told apart, before and after.

Draws labelled messages of a CSV file, spread evenly over the labels, tunes as `ratchet encoder tune` does, and asks the
regression that recall ranks beginnings with, fitted on all that were drawn, for others of the same file. Settings may
be chosen so: name the training file of a set, never its test file.

    python -m tests.bench.encoder_tasks TRAIN.csv --drawn 500 --seeds 10 11
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from agent.encoders.encoder import Encoder, SentenceEncoder
from agent.feedback.label_regression import LabelRegression
from agent.llm.weights.catalog import DEFAULT_ENCODER
from agent.llm.weights.load import ModelFolder, encoder_weights
from agent.text.normalise import normalise_task
from tuner.encoder.dataset import FirstCallTask, fold_text, make_dataset, part_of_group
from tuner.encoder.first_calls import HELD_OUT, VALIDATION, with_label_names
from tuner.encoder.pipeline import check_adapter_changes_output, train_in_team
from tuner.encoder.settings import EncoderProgress, EncoderSettings

ROOT = Path(__file__).resolve().parents[2]


def gain(base: ModelFolder, rows: Sequence[Any], drawn: int, asked: int, seed: int, settings: EncoderSettings) -> Any:
    """Accuracy before and after, 0 to 1, on `asked` messages that were not drawn."""
    chosen = routing.spread(rows, drawn, seed)
    others = random.Random(0).sample([one for one in rows if one not in set(chosen)], asked)
    tasks = tuple(_task(normalise_task(one.text), one.desk) for one in chosen)
    bare = SentenceEncoder(base.folder, name=DEFAULT_ENCODER)
    dataset = make_dataset((), {}, tasks)
    with tempfile.TemporaryDirectory(prefix="ratchet-") as scratch:
        trained = train_in_team(base, dataset, Path(scratch) / "adapter", settings, on_progress=_tell)
        tuned = check_adapter_changes_output(base, Path(scratch) / "adapter", dataset)
    return {
        "seed": seed,
        "trained_on": len(dataset.tasks_in("train")),
        "steps": trained.steps,
        "best_epoch": trained.best_epoch,
        "validation_loss": [round(trained.first_validation_loss, 3), round(trained.validation_loss, 3)],
        "before": accuracy(bare, tasks, others),
        "after": accuracy(tuned, tasks, others),
        "seconds": round(trained.seconds),
    }


def accuracy(encoder: Encoder, tasks: Sequence[FirstCallTask], asked: Sequence[Any]) -> float:
    texts, labels = zip(*with_label_names(tasks), strict=True)
    regression = LabelRegression(encoder.encode(texts), labels)
    vectors = encoder.encode([normalise_task(one.text) for one in asked])
    told = [regression.names[int(regression.scores(vector).argmax())] for vector in vectors]
    return sum(label == one.desk for label, one in zip(told, asked, strict=True)) / len(asked)


def _task(text: str, desk: str) -> FirstCallTask:
    part = part_of_group(fold_text(text), held_out=HELD_OUT, validation=VALIDATION)
    return FirstCallTask(text, desk, desk.replace("_", " "), part)


def _tell(progress: EncoderProgress) -> None:
    if progress.validation_loss is not None:
        print(f"step {progress.step}/{progress.steps}: validation {progress.validation_loss:.3f}", file=sys.stderr)


def _routing() -> Any:
    spec = importlib.util.spec_from_file_location("examples_routing", ROOT / "examples" / "routing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by its name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


routing = _routing()


def main() -> int:
    parser = argparse.ArgumentParser(description="What tuning the encoder on beginnings gains.")
    parser.add_argument("csv", type=Path)
    parser.add_argument("--drawn", type=int, default=500, help="messages that are learnt from")
    parser.add_argument("--asked", type=int, default=1000, help="messages that are asked for")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11])
    parser.add_argument("--models", type=Path, default=ROOT / ".ratchet" / "models")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the training")
    args = parser.parse_args()
    kinds = {one.name: type(one.default) for one in fields(EncoderSettings)}
    changed = {name: kinds[name](value) for name, value in (one.split("=") for one in args.set)}
    base = encoder_weights(DEFAULT_ENCODER, args.models)
    rows = routing.read_messages(args.csv, None, None)
    for seed in args.seeds:
        print(json.dumps(gain(base, rows, args.drawn, args.asked, seed, replace(EncoderSettings(), **changed))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
