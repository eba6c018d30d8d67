"""The commands of the sentence encoder: `encoder tune`, `list`, `promote` and `rollback`. Imported by `agent.cli.main`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.commands.tune import NOT_SHIPPED

if TYPE_CHECKING:
    from agent.config.project import Project
    from tuner.encoder.pipeline import EncoderGated
    from tuner.encoder.trainer import EncoderProgress


def add_tune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pairs",
        type=Path,
        metavar="FILE",
        help='labelled pairs besides the feedback: JSON lines {"query", "positive", "negatives"}',
    )
    parser.add_argument("--promote", action="store_true", help="gate the new adapter and promote it if it is better")


def add_promote(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="id of the candidate")


def add_rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reason", default="rolled back by hand", metavar="TEXT", help="kept in the registry's history"
    )


def encoder(args: argparse.Namespace, project: Project) -> int:
    return {"tune": _tune, "list": _list, "promote": _promote, "rollback": _rollback}[args.action](args, project)


def _tune(args: argparse.Namespace, project: Project) -> int:
    from tuner.api import open_runtime
    from tuner.encoder.pipeline import promote_encoder, tune_encoder

    with open_runtime(project, _note) as runtime:
        made = tune_encoder(runtime, pairs=args.pairs, on_progress=_progress, say=_note)
        gated = promote_encoder(runtime, made.adapter.id) if args.promote else None
    data = {
        "adapter": made.adapter.id,
        "tensors_sha256": made.adapter.tensors_sha256,
        "dataset": made.lessons.hash,
        "folder": str(made.adapter.folder),
        **asdict(made.trained),
        "promoted": gated is not None and gated.decision.ship,
    }
    text = f"adapter {made.adapter.id} in {made.adapter.folder}\nnext: ratchet encoder promote {made.adapter.id}"
    _print(data if args.json else (_told(gated) if gated else text))
    return NOT_SHIPPED if gated is not None and not gated.decision.ship else 0


def _list(args: argparse.Namespace, project: Project) -> int:
    from agent.registry.registry import Registry

    registry = Registry(project.home.encoders, listed_by="ratchet encoder list")
    known, serving = registry.list(), registry.serving()
    served = None if serving.adapter is None else serving.adapter.id
    if serving.warning:
        _note(serving.warning)
    if args.json:
        rows = [{**asdict(one), "folder": str(one.folder), "served": one.id == served} for one in known]
        _print({"served": served, "adapters": rows, "history": [asdict(one) for one in registry.history()]})
        return 0
    for one in known:
        _print(f"{'*' if one.id == served else ' '} {one.id}  {one.state}  of {one.base}  {one.added_at}")
    _print(f"served: {served or 'the base'}")
    return 0


def _promote(args: argparse.Namespace, project: Project) -> int:
    from tuner.api import open_runtime
    from tuner.encoder.pipeline import promote_encoder

    with open_runtime(project, _note) as runtime:
        gated = promote_encoder(runtime, args.adapter)
    decision = gated.decision
    data = {
        "promoted": decision.ship,
        "figures": {
            name: {"gain": one.gain, "interval": [one.low, one.high], "of": one.queries}
            for name, one in (
                ("whole", decision.whole),
                ("dense", decision.dense),
                ("general", decision.general),
                ("tasks", decision.tasks),
            )
            if one.queries
        },
        "reasons": list(decision.reasons),
        "embedded": gated.embedded,
        "report": str(gated.folder),
    }
    _print(data if args.json else _told(gated))
    return 0 if decision.ship else NOT_SHIPPED


def _rollback(args: argparse.Namespace, project: Project) -> int:
    from tuner.api import open_runtime
    from tuner.encoder.pipeline import rollback_encoder

    with open_runtime(project, _note) as runtime:
        earlier, embedded = rollback_encoder(runtime, args.reason)
    data = {"served": None if earlier is None else earlier.id, "embedded": embedded}
    name = "the encoder without an adapter" if earlier is None else f"encoder adapter {earlier.id}"
    _print(data if args.json else f"{name} is served, {embedded} passages embedded anew")
    return 0


def _told(gated: EncoderGated) -> str:
    decision = gated.decision
    verdict = f"promoted, {gated.embedded} passages embedded anew" if decision.ship else "not promoted"
    return "\n".join([verdict, *(f"- {reason}" for reason in decision.reasons), f"report: {gated.folder}"])


def _progress(progress: EncoderProgress) -> None:
    held = "" if progress.validation_loss is None else f", validation {progress.validation_loss:.3f}"
    if held or progress.step % 10 == 0:
        _note(f"step {progress.step}/{progress.steps}: loss {progress.loss:.3f}{held}")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(data: Any) -> None:
    print(data if isinstance(data, str) else json.dumps(data, indent=1, ensure_ascii=False))
