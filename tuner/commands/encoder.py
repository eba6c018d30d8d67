"""The commands of the sentence encoder: `encoder tune`, `list`, `promote` and `rollback`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.commands.console import exit_code, format_verdict, print_note, print_result

if TYPE_CHECKING:
    from agent.config.project import Project
    from tuner.encoder.pipeline import GatedEncoder
    from tuner.encoder.settings import EncoderProgress


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

    with open_runtime(project, print_note) as runtime:
        tuning = tune_encoder(runtime, pairs=args.pairs, on_progress=_print_progress, say=print_note)
        gated = promote_encoder(runtime, tuning.adapter.id) if args.promote else None
    data = {
        "adapter": tuning.adapter.id,
        "tensors_sha256": tuning.adapter.tensors_sha256,
        "dataset": tuning.dataset.hash,
        "folder": str(tuning.adapter.folder),
        **asdict(tuning.trained),
        "promoted": gated is not None and gated.decision.ship,
    }
    text = f"adapter {tuning.adapter.id} in {tuning.adapter.folder}\nnext: ratchet encoder promote {tuning.adapter.id}"
    print_result(data if args.json else (_format_gated(gated) if gated else text))
    return exit_code(gated is None or gated.decision.ship)


def _list(args: argparse.Namespace, project: Project) -> int:
    from agent.registry.registry import Registry

    registry = Registry(project.home.encoders, listed_by="ratchet encoder list")
    adapters, serving = registry.list(), registry.serving()
    served = None if serving.adapter is None else serving.adapter.id
    if serving.warning:
        print_note(serving.warning)
    if args.json:
        rows = [{**asdict(one), "folder": str(one.folder), "served": one.id == served} for one in adapters]
        print_result({"served": served, "adapters": rows, "history": [asdict(one) for one in registry.history()]})
        return 0
    for one in adapters:
        print_result(f"{'*' if one.id == served else ' '} {one.id}  {one.state}  of {one.base}  {one.added_at}")
    print_result(f"served: {served or 'the base'}")
    return 0


def _promote(args: argparse.Namespace, project: Project) -> int:
    from tuner.api import open_runtime
    from tuner.encoder.pipeline import promote_encoder

    with open_runtime(project, print_note) as runtime:
        gated = promote_encoder(runtime, args.adapter)
    decision = gated.decision
    data = {
        "promoted": decision.ship,
        "figures": {
            name: {"gain": one.gain, "interval": [one.low, one.high], "of": one.examples}
            for name, one in (
                ("whole", decision.whole),
                ("dense", decision.dense),
                ("general", decision.general),
                ("tasks", decision.tasks),
            )
            if one.examples
        },
        "reasons": list(decision.reasons),
        "embedded": gated.embedded,
        "report": str(gated.folder),
    }
    print_result(data if args.json else _format_gated(gated))
    return exit_code(decision.ship)


def _rollback(args: argparse.Namespace, project: Project) -> int:
    from tuner.api import open_runtime
    from tuner.encoder.pipeline import rollback_encoder

    with open_runtime(project, print_note) as runtime:
        earlier, embedded = rollback_encoder(runtime, args.reason)
    data = {"served": None if earlier is None else earlier.id, "embedded": embedded}
    name = "the encoder without an adapter" if earlier is None else f"encoder adapter {earlier.id}"
    print_result(data if args.json else f"{name} is served, {embedded} passages embedded again")
    return 0


def _format_gated(gated: GatedEncoder) -> str:
    verdict = f"promoted, {gated.embedded} passages embedded again" if gated.decision.ship else "not promoted"
    return format_verdict(verdict, gated.decision.reasons, f"report: {gated.folder}")


def _print_progress(progress: EncoderProgress) -> None:
    validation = "" if progress.validation_loss is None else f", validation {progress.validation_loss:.3f}"
    if validation or progress.step % 10 == 0:
        print_note(f"step {progress.step}/{progress.steps}: loss {progress.loss:.3f}{validation}")
