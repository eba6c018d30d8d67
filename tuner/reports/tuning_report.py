"""`report.html` of a tuning: curves, figures next to those of the run before, what is still wrong, settings, data."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.util.atomic_files import write_whole
from tuner.data.dataset import told_held_back
from tuner.data.retrieval_augment import told_contexts
from tuner.reports.gate_report import loss_curves
from tuner.reports.html import Table, html_table, page, short
from tuner.training.results import Trained

RESULT = "result.json"
MOST_SHOWN = 40
_WIDTH, _HEIGHT, _EDGE = 720, 260, 44
_COLOURS = {"loss": "var(--active)", "held_out_loss": "var(--candidate)"}
_OTHER = "var(--candidate)"


def write_tuning_report(
    folder: Path,
    adapter: str,
    trained: Trained,
    settings: Mapping[str, Any],
    manifest: Mapping[str, Any],
    decode: Callable[[Sequence[int]], str],
) -> Path:
    """Write `result.json` and `report.html` into a tuning's folder; `decode` makes text of token ids."""
    figures = _figures(trained, manifest)
    before = _newest_before(folder)
    write_whole(
        folder / RESULT, json.dumps({"tuning": folder.name, "adapter": adapter, "figures": figures}, indent=1) + "\n"
    )
    old = {} if before is None else before["figures"]
    columns = ("", "this tuning", *([] if before is None else [f"before ({before['adapter']})"]))
    missed = sorted(trained.missed.items(), key=lambda item: (-len(item[1]), item[0]))
    tables = [
        Table(
            "Figures",
            columns,
            tuple((name, value, *([] if before is None else [old.get(name, "")])) for name, value in figures.items()),
        ),
        Table(
            f"Still wrong: {len(missed)} of {trained.looked_at} examples that were looked at",
            ("run", "tokens", "wanted, and what comes instead"),
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
    body = f"<h1>Tuning {html.escape(folder.name)}</h1>\n<p>Adapter {html.escape(adapter)}</p>\n"
    body += curves_svg(loss_curves(folder / "metrics.jsonl")) + "".join(map(html_table, tables))
    write_whole(folder / "report.html", page(f"Tuning {folder.name}", body))
    return folder / "report.html"


def _figures(trained: Trained, manifest: Mapping[str, Any]) -> dict[str, str]:
    first, last = trained.first_held_out_loss, trained.held_out_loss
    return {
        "corrections": str(manifest["corrections"]),
        "accepted runs": str(manifest["accepted_runs"]),
        "corrections not trained": told_held_back(manifest.get("held_back_kinds", {})) or "none",
        "contexts drawn anew": told_contexts(manifest.get("contexts", {})),
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


def _newest_before(folder: Path) -> dict[str, Any] | None:
    """What the newest tuning before this one came to."""
    for path in sorted(folder.parent.glob(f"*/{RESULT}"), reverse=True):
        if path.parent.name < folder.name:
            try:
                found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                return {"adapter": str(found["adapter"]), "figures": dict(found["figures"])}
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return None


def _pair(decode: Callable[[Sequence[int]], str], wanted: int, said: int) -> str:
    return f"{decode([wanted])!r} → {decode([said])!r}"


def curves_svg(every: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Curves over the steps by name, on axes from 0; those of `loss_curves`, or any others."""
    curves = {name: points for name, points in every.items() if points}
    last = max(step for points in curves.values() for step, _ in points) or 1
    top = max(loss for points in curves.values() for _, loss in points) or 1
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" font-size="12" '
        'aria-label="Loss over optimizer steps; the table below gives the figures">'
    ]
    for share in (0, 0.5, 1):
        y = _up(share)
        parts.append(f'<line x1="{_EDGE}" x2="{_WIDTH - 8}" y1="{y}" y2="{y}" stroke="var(--line)"/>')
        parts.append(f'<text x="{_EDGE - 6}" y="{y + 4}" text-anchor="end">{share * top:.2f}</text>')
    parts.append(f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 4}" text-anchor="end">step {last:.0f}</text>')
    for place, (name, points) in enumerate(curves.items()):
        line = " ".join(f"{_along(step / last)},{_up(loss / top)}" for step, loss in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{_COLOURS.get(name, _OTHER)}" stroke-width="2"/>')
        label = html.escape({"loss": "training", "held_out_loss": "held out"}.get(name, name))
        colour = _COLOURS.get(name, _OTHER)
        parts.append(f'<text x="{_EDGE + 8 + 90 * place}" y="14" style="fill:{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _along(share: float) -> float:
    return round(_EDGE + share * (_WIDTH - _EDGE - 8), 1)


def _up(share: float) -> float:
    return round(_HEIGHT - 22 - share * (_HEIGHT - 44), 1)
