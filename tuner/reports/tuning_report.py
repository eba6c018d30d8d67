"""The report of a tuning: curves, figures beside those of the previous tuning, errors that remain, settings, data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.util.atomic_files import write_whole
from tuner.data.dataset import describe_held_back
from tuner.reports.html import Table, report_page, short
from tuner.reports.plots import line_chart, loss_curves
from tuner.training.results import Trained

RESULT = "result.json"
MOST_SHOWN = 40


def write_tuning_report(
    folder: Path,
    adapter: str,
    trained: Trained,
    settings: Mapping[str, Any],
    manifest: Mapping[str, Any],
    decode: Callable[[Sequence[int]], str],
) -> Path:
    """Write `result.json` and `report.html` into the folder of a tuning.

    Args:
        folder: Of the tuning, with `metrics.jsonl`.
        adapter: Its id.
        trained: The figures of the training.
        settings: Of the tuning.
        manifest: Of the dataset.
        decode: Returns the text of token ids.
    """
    figures = _figures(trained, manifest)
    previous = _previous_result(folder)
    write_whole(
        folder / RESULT, json.dumps({"tuning": folder.name, "adapter": adapter, "figures": figures}, indent=1) + "\n"
    )
    old = {} if previous is None else previous["figures"]
    columns = ("", "this tuning", *([] if previous is None else [f"before ({previous['adapter']})"]))
    missed = sorted(trained.missed.items(), key=lambda item: (-len(item[1]), item[0]))
    tables = [
        Table(
            "Figures",
            columns,
            tuple((name, value, *([] if previous is None else [old.get(name, "")])) for name, value in figures.items()),
        ),
        Table(
            f"Still wrong: {len(missed)} of {trained.looked_at} examples that were inspected",
            ("run", "tokens", "target → likeliest token"),
            tuple(
                (run, str(len(pairs)), short("; ".join(_pair(decode, *pair) for pair in pairs), 300))
                for run, pairs in missed[:MOST_SHOWN]
            ),
        ),
        Table(
            "Corrections that are not trained",
            ("correction", "why"),
            tuple((id, short(why, 300)) for id, why in manifest.get("held_back", {}).items()),
        ),
        Table("Settings", ("setting", "value"), tuple((name, str(value)) for name, value in settings.items())),
        Table("Data", ("", ""), tuple((name, short(str(value), 300)) for name, value in manifest.items())),
    ]
    page = report_page(
        f"Tuning {folder.name}",
        tables,
        subtitle=f"Adapter {adapter}",
        charts=[line_chart(loss_curves(folder / "metrics.jsonl"))],
    )
    write_whole(folder / "report.html", page)
    return folder / "report.html"


def _figures(trained: Trained, manifest: Mapping[str, Any]) -> dict[str, str]:
    first, last = trained.first_held_out_loss, trained.held_out_loss
    return {
        "corrections": str(manifest["corrections"]),
        "accepted runs": str(manifest["accepted_runs"]),
        "corrections not trained": describe_held_back(manifest.get("held_back_kinds", {})) or "none",
        "optimizer steps": str(trained.steps),
        "best epoch": f"{trained.best_epoch + 1} of {trained.epochs}",
        "training loss at the end": f"{trained.loss:.3f}",
        "held-out loss before": "not measured" if first is None else f"{first:.3f}",
        "held-out loss after": "not measured" if last is None else f"{last:.3f}",
        "examples still wrong": f"{len(trained.missed)} of {trained.looked_at}",
        "minutes": f"{trained.seconds / 60:.1f}",
        "tokens as trees": str(trained.packed_tokens),
        "tokens as rows": str(trained.row_tokens),
        "target tokens": str(trained.target_tokens),
        "peak memory": f"{trained.peak_bytes / 2**30:.1f} GiB",
        "precision": trained.precision,
    }


def _previous_result(folder: Path) -> dict[str, Any] | None:
    """Return adapter and figures of the tuning before this one."""
    for path in sorted(folder.parent.glob(f"*/{RESULT}"), reverse=True):
        if path.parent.name < folder.name:
            try:
                result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                return {"adapter": str(result["adapter"]), "figures": dict(result["figures"])}
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return None


def _pair(decode: Callable[[Sequence[int]], str], target: int, likeliest: int) -> str:
    return f"{decode([target])!r} → {decode([likeliest])!r}"
