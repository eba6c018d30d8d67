"""`make bench-tuning`: trees against TRL's SFTTrainer, same ids, targets, LoRA, optimizer, rate and threads.

Each measurement is a process of its own, ours and theirs in turn, both on the same rows. TRL gets whichever of its
settings is fastest here: packing or not, tried on the first rows of a set, in the precision that is faster. Loss is
measured the same way on both sides: row by row in float32, on rows that neither was trained on. Then how our time
grows with the number of examples and with the steps of a trajectory, whether trainings survive kills, what is
forgotten, and what adversarial training does for noisy inputs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.llm.prompt.render import Renderer
from agent.llm.weights import load as weights
from agent.llm.weights.catalog import DEFAULT_MODEL
from tests.bench import continual, noise, tuning_sets
from tests.bench.results import PEERS, RESULTS, commit, machine, write_result
from tuner.training.memory_budget import peak_bytes
from tuner.tree.packing import Example, make_batches, tokens_in

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
HOME = ROOT / ".ratchet" / "bench-tuning"
RATE = 5e-4
R = 16
HELD_OUT = 40


@dataclass(frozen=True)
class Size:
    """Rows that a set is trained on, and how many of them make an optimizer step."""

    rows: int
    step: int


SIZES = {
    "desk": Size(32, 32),
    "toolalpaca": Size(32, 32),
    "fireact": Size(24, 24),
    "rows": Size(128, 64),
    "corrections": Size(32, 32),
}
GROWTH_EXAMPLES = (100, 300, 1000, 3000)
GROWTH_STEPS = (2, 4, 8, 16, 32)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the public sets")
    parser.add_argument("--home", type=Path, default=HOME)
    parser.add_argument("--sets", nargs="*", choices=tuple(SIZES), default=tuple(SIZES))
    parser.add_argument("--parts", nargs="*", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--repeats", type=int, default=1, help="runs of theirs, each between two of ours")
    parser.add_argument("--side", choices=("ours", "theirs", "growth"), help="measure one side and print it")
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args(argv)
    args.home.mkdir(parents=True, exist_ok=True)
    if args.side:
        print(json.dumps(grow(args) if args.side == "growth" else measure(args)))
        return 0
    return compare(args)


def compare(args: argparse.Namespace) -> int:
    """Measure the parts and sets asked for; writes docs/results/tuning.json after each, where the others stay."""
    path = RESULTS / "tuning.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"metrics": {}, "rows": []}
    metrics, rows = before["metrics"], before["rows"]
    for part in args.parts:
        found, made = PARTS[part](args)
        metrics |= found
        fresh = [{"part": part, "commit": commit(), "cpu": machine()["cpu"], **row} for row in made]
        rows = joined(rows, fresh)
        against = [row for row in rows if row["part"] == "trl"]
        if against:
            metrics["peak_memory_ratio_vs_trl"] = _memory_ratio(against)
        print(write_result("tuning", "make bench-tuning", metrics, rows), flush=True)
    return 0


def joined(rows: Sequence[dict[str, Any]], fresh: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The old rows without those that were measured again, and the fresh ones. Sets of TRL's part stand by
    themselves; every other part is one piece."""

    def piece(row: dict[str, Any]) -> tuple[str, str]:
        return row["part"], row["set"] if row["part"] == "trl" else ""

    again = {piece(row) for row in fresh}
    return [row for row in rows if piece(row) not in again] + list(fresh)


def against_trl(args: argparse.Namespace) -> Part:
    """Every set, both sides in turn."""
    prepare_sets(args, args.sets)
    rows: list[dict[str, Any]] = []
    metrics: dict[str, float | None] = {}
    for name in args.sets:
        size = SIZES[name]
        packing, precision = _fastest_way(args, name)
        runs: dict[str, list[dict[str, Any]]] = {"ours": [_measured(args, name, "ours", size.rows)], "theirs": []}
        for _ in range(args.repeats):
            runs["theirs"].append(_measured(args, name, "theirs", size.rows, packing=packing, precision=precision))
            runs["ours"].append(_measured(args, name, "ours", size.rows))
        ours, theirs = (_middle(runs[side]) for side in ("ours", "theirs"))
        rows.append({"set": name, "side": "ours", "packing": True, **ours})
        rows.append({"set": name, "side": "theirs", "packing": packing, **theirs, "precision": precision})
        metrics[f"{name}_ratio_vs_trl"] = ours["targets_per_second"] / theirs["targets_per_second"]
        metrics[f"{name}_loss_ratio_vs_trl"] = ours["loss"] / theirs["loss"]
        print(f"{name}: {metrics[f'{name}_ratio_vs_trl']:.1f} times TRL", file=sys.stderr)
    return metrics, rows


def growth(args: argparse.Namespace) -> Part:
    """How our time grows with examples, and with the steps of a run."""
    prepare_sets(args, ["corrections", "desk"])
    examples = [_measured(args, "corrections", "growth", count) for count in GROWTH_EXAMPLES]
    steps = [_measured(args, "desk", "growth", 32, steps=steps) for steps in GROWTH_STEPS]
    return {"growth_exponent": _slope(examples), "growth_exponent_steps": _slope(steps)}, examples + steps


def kills(args: argparse.Namespace) -> Part:
    """Kills of small trainings at random instants, if each then ended with the tensors of one left alone."""
    folder = args.home / "kills"
    shutil.rmtree(folder, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.tuner.kills", str(folder), "--kills", "50"],
        check=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    counts = json.loads(done.stdout)
    print(f"kills: {counts}", file=sys.stderr)
    return {"kills_survived": 0 if counts["differing"] else counts["kills"]}, [counts]


def retention(args: argparse.Namespace) -> Part:
    """What an adapter that goes on forgets."""
    return continual.measure(args.data, args.home)


def noisy_inputs(args: argparse.Namespace) -> Part:
    """What adversarial training does for typos and colloquial wording, and what it costs."""
    return noise.measure(args.data, args.home)


Part = tuple[dict[str, float | None], list[dict[str, Any]]]
PARTS: dict[str, Callable[[argparse.Namespace], Part]] = {
    "trl": against_trl,
    "growth": growth,
    "kills": kills,
    "retention": retention,
    "noise": noisy_inputs,
}


def prepare_sets(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Write each set's examples once, for every process to read."""
    base = weights.resolve_model(DEFAULT_MODEL, args.home / "models", progress=lambda text: None)
    renderer = Renderer(weights.load_tokenizer(base))
    for name in names:
        made = tuning_sets.SETS[name](renderer, args.data, args.home / "desk-home")
        chosen = tuning_sets.fitting(made)
        tuning_sets.write(args.home / f"{name}.jsonl", chosen)
        print(f"{name}: {len(made)} rows, {len(chosen)} fit", file=sys.stderr)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One epoch over the set's first rows, in this process."""
    (name,) = args.sets
    held_out, chosen = _rows(args, name)
    base = weights.resolve_model(DEFAULT_MODEL, args.home / "models", progress=lambda text: None)
    side = _ours if args.side == "ours" else _theirs
    seconds, peak, precision, model = side(args, base, chosen, SIZES[name].step)
    targets = sum(one.target_count for one in chosen)
    return {
        "rows": len(chosen),
        "targets": targets,
        "row_tokens": sum(len(one.ids) for one in chosen),
        "precision": precision,
        "seconds_per_epoch": seconds,
        "targets_per_second": targets / seconds,
        "peak_bytes": peak,
        "loss": _loss(model, held_out),
    }


def grow(args: argparse.Namespace) -> dict[str, Any]:
    """Our loss and gradient of so many examples as one step; `--steps` cuts or repeats each run to so many steps."""
    from agent.config.settings import TuningSettings
    from agent.llm.engine.attention import use_ragged_attention
    from agent.llm.weights.precision import faster_precision
    from tuner.methods.lora import prepare_model
    from tuner.tree.loss import backward

    (name,) = args.sets
    _, chosen = _rows(args, name, held_out=0)
    if args.steps:
        chosen = [tuning_sets.of_steps(one, args.steps) for one in chosen]
    most = max(tuning_sets.MAX_TOKENS, *(len(one.ids) for one in chosen))
    (batch,) = make_batches(chosen, batch_targets=10**9)
    packs = batch.packs(most)
    base = weights.resolve_model(DEFAULT_MODEL, args.home / "models", progress=lambda text: None)
    model = weights.load_model(base, device="cpu", dtype="float32", threads=0)
    precision = faster_precision("cpu")
    use_ragged_attention(model)
    model, _ = prepare_model(model, TuningSettings(r=R, alpha=2 * R), precision)
    started = time.perf_counter()
    for pack in packs:
        backward(model, pack, batch.weight, precision)
    return {
        "set": name,
        "side": "growth",
        "rows": len(chosen),
        "steps": args.steps or None,
        "row_tokens": batch.row_tokens,
        "unique_tokens": tokens_in(packs),
        "seconds": time.perf_counter() - started,
        "peak_bytes": peak_bytes(),
    }


def _rows(args: argparse.Namespace, name: str, held_out: int = HELD_OUT) -> tuple[list[Example], list[Example]]:
    examples = tuning_sets.read(args.home / f"{name}.jsonl")
    return examples[:held_out], examples[held_out : held_out + args.rows]


def _ours(args: argparse.Namespace, base: Any, chosen: list[Example], step: int) -> tuple[float, int, str, Any]:
    from agent.config.settings import TuningSettings
    from tuner.training.trainer import train

    model = weights.load_model(base, device="cpu", dtype="float32", threads=0)
    targets = sum(one.target_count for one in chosen)
    settings = TuningSettings(
        r=R,
        alpha=2 * R,
        learning_rate=RATE,
        schedule="constant",
        warmup_share=0.0,
        epochs=1,
        min_steps=1,
        patience=0,
        batch_targets=math.ceil(targets * step / len(chosen)),
        max_tokens_per_pack=tuning_sets.MAX_TOKENS,
        precision=args.precision,
    )
    folder = args.home / "ours"
    # Until the last step: behind it comes a look at what the model still gets wrong, which the other side has not.
    ended: list[float] = []
    started = time.perf_counter()
    trained = train(model, chosen, [], settings, folder=folder, on_progress=lambda _: ended.append(time.perf_counter()))
    seconds, peak = ended[-1] - started, trained.peak_bytes
    print(f"{trained.steps} steps, {trained.packed_tokens} of {trained.row_tokens} tokens", file=sys.stderr)
    return seconds, peak, trained.precision, _plain(base, folder)


def _plain(base: Any, adapter: Path) -> Any:
    """A fresh model under an adapter, by PEFT alone."""
    from peft import PeftModel

    model = weights.load_model(base, device="cpu", dtype="float32", threads=0)
    return PeftModel.from_pretrained(model, str(adapter))


def _theirs(args: argparse.Namespace, base: Any, chosen: list[Example], step: int) -> tuple[float, int, str, Any]:
    sys.path.append(str(PEERS))
    import pyarrow
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(0)
    model = weights.load_model(base, device="cpu", dtype="float32", threads=0)
    tokenizer = weights.load_tokenizer(base)
    table = pyarrow.table(
        {
            "input_ids": [list(one.ids) for one in chosen],
            # What `assistant_only_loss` would make of messages; rows of ids bring it along.
            "assistant_masks": [[int(said) for said in one.targets] for one in chosen],
        }
    )
    # Named here, for datasets 5.2 cannot hash a table of pyarrow 26.
    dataset = Dataset(table, fingerprint=f"{args.sets[0]}-{len(chosen)}")
    together = 1 if args.packing else min(step, 8)
    config = SFTConfig(
        output_dir=str(args.home / "theirs"),
        packing=args.packing,
        max_length=tuning_sets.MAX_TOKENS,
        per_device_train_batch_size=together,
        gradient_accumulation_steps=max(1, step // together),
        num_train_epochs=1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        optim="adamw_torch",
        weight_decay=0.0,
        bf16=args.precision == "mixed",
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    lora = LoraConfig(r=R, lora_alpha=2 * R, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer, peft_config=lora)
    if args.packing:  # As many packs a step as hold the rows of a step.
        packs = len(trainer.train_dataset)
        trainer.args.gradient_accumulation_steps = max(1, math.ceil(packs * step / len(chosen)))
    started = time.perf_counter()
    trainer.train()
    seconds, peak = time.perf_counter() - started, peak_bytes()
    print(f"{trainer.state.global_step} steps", file=sys.stderr)
    # Loaded anew: in the trainer's hands the model would go on making products in bfloat16.
    folder = args.home / "theirs-adapter"
    trainer.model.save_pretrained(str(folder))
    return seconds, peak, args.precision, _plain(base, folder)


def _loss(model: Any, held_out: Sequence[Example]) -> float:
    """Mean loss over target tokens, row by row in float32."""
    import torch
    from torch.nn.functional import cross_entropy

    model = model.float().eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for one in held_out:
            ids = torch.tensor([one.ids])
            places = torch.tensor([place for place, said in enumerate(one.targets) if said and place])
            logits = model(input_ids=ids).logits[0, places - 1]
            total += float(cross_entropy(logits, ids[0, places], reduction="sum"))
            count += len(places)
    return total / count


def _fastest_way(args: argparse.Namespace, name: str) -> tuple[bool, str]:
    """TRL's packing and precision, by target tokens a second on a few rows; a way that memory does not hold is out.

    Without packing rows are padded to the longest, and in float32 8 of them were seen to need over 20 GiB; so where
    products in bfloat16 are faster on this machine, that precision alone is tried.
    """
    from agent.llm.weights.precision import faster_precision

    found = []
    for packing in (True, False):
        try:
            made = _measured(
                args, name, "theirs", SIZES[name].step // 4, packing=packing, precision=faster_precision("cpu")
            )
        except subprocess.CalledProcessError as fault:
            print(f"  {name}, theirs, packing {packing}: {fault}", file=sys.stderr)
            continue
        found.append((made["targets_per_second"], (packing, made["precision"])))
    return max(found)[1]


def _measured(
    args: argparse.Namespace,
    name: str,
    side: str,
    rows: int,
    *,
    packing: bool = False,
    precision: str = "auto",
    steps: int = 0,
) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.tuning", "--home", str(args.home), "--sets", name, "--side", side]
    command += ["--rows", str(rows), "--precision", precision, "--steps", str(steps)]
    command += ["--packing"] if packing else []
    quiet = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=quiet)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {name}, {side}, packing {packing}, {precision}: {result}", file=sys.stderr, flush=True)
    return result


def _middle(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of every figure; of what is no figure, the first."""
    return {
        key: statistics.median(one[key] for one in found) if isinstance(value, int | float) else value
        for key, value in found[0].items()
    }


def _memory_ratio(rows: Sequence[dict[str, Any]]) -> float:
    """Ours over theirs, the geometric mean of the sets."""
    ours, theirs = ([row["peak_bytes"] for row in rows if row["side"] == side] for side in ("ours", "theirs"))
    return statistics.geometric_mean([one / other for one, other in zip(ours, theirs, strict=True)])


def _slope(grown: Sequence[dict[str, Any]]) -> float:
    """Of log seconds over log unique tokens: 1 is linear."""
    points = [(math.log(one["unique_tokens"]), math.log(one["seconds"])) for one in grown]
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


if __name__ == "__main__":
    raise SystemExit(main())
