"""Training on tiny random models: it learns, it repeats itself, and it never does nothing in silence."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.config.settings import TuningSettings
from agent.errors import DatasetError, LivenessError, TuningError
from agent.llm.engine.attention import use_ragged_attention
from agent.llm.engine.loaded_adapters import LoadedAdapters
from agent.registry.artifact import tensors_hash
from tests.tuner.tiny import QUICK, copying_examples, tiny_model
from tuner.training.results import Progress, Trained
from tuner.training.trainer import train
from tuner.tree.loss import loss_of
from tuner.tree.packing import Example, build_pack


def trained(
    folder: Path,
    settings: TuningSettings = QUICK,
    *,
    model: Any = None,
    examples: Sequence[Example] | None = None,
    held_out: Sequence[Example] = (),
    **rest: Any,
) -> Trained:
    model = tiny_model() if model is None else model
    return train(model, copying_examples() if examples is None else examples, held_out, settings, folder=folder, **rest)


def adapter_hash(folder: Path) -> str:
    return tensors_hash(folder / "adapter_model.safetensors")


def rows_of(metrics: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def test_the_loss_falls_and_an_adapter_folder_is_left(tmp_path: Path) -> None:
    examples = copying_examples()
    heard: list[Progress] = []
    made = trained(
        tmp_path / "a",
        replace(QUICK, epochs=8),
        held_out=examples,
        metrics=tmp_path / "metrics.jsonl",
        on_progress=heard.append,
    )
    assert made.first_held_out_loss is not None
    assert made.held_out_loss is not None
    assert made.held_out_loss < 0.5 * made.first_held_out_loss
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    settings, *rows = rows_of(tmp_path / "metrics.jsonl")
    assert settings["settings"]["learning_rate"] == 2e-2
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, made.steps + 1))
    assert all(row["gradient_norm"] > 0 and math.isfinite(row["loss"]) for row in steps)
    assert steps[-1]["loss"] == made.loss < steps[0]["loss"]
    assert [row["epoch"] for row in rows if "held_out_loss" in row] == list(range(made.epochs))
    assert min(row["held_out_loss"] for row in rows if "held_out_loss" in row) == made.held_out_loss
    assert heard[-1].step == heard[-1].steps == made.steps == settings["steps"]
    assert heard[-1].seconds_left == 0
    assert all(one.seconds_left > 0 for one in heard if one.step < one.steps)
    assert made.packed_tokens < made.row_tokens
    assert made.precision == "float32"


def test_targets_that_the_model_still_gets_wrong_are_reported_by_run(tmp_path: Path) -> None:
    examples = [replace(one, trajectory=f"run-{place}") for place, one in enumerate(copying_examples())]
    poor = trained(tmp_path / "a", replace(QUICK, epochs=1, learning_rate=1e-4), examples=examples)
    assert poor.looked_at == len(examples)
    assert set(poor.missed) == {one.trajectory for one in examples}
    wanted = {one.trajectory: set(one.ids[-2:]) for one in examples}
    assert all(pair[0] in wanted[run] != pair[1] for run, pairs in poor.missed.items() for pair in pairs)
    good = trained(tmp_path / "b", replace(QUICK, epochs=40), examples=examples)
    assert len(good.missed) < len(poor.missed)


def test_the_same_seed_gives_the_same_tensors_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trained(tmp_path / name, replace(QUICK, seed=seed, dropout=0.1))
    assert adapter_hash(tmp_path / "a") == adapter_hash(tmp_path / "b") != adapter_hash(tmp_path / "c")


def test_the_base_is_left_as_it_was(tmp_path: Path) -> None:
    import torch

    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained(tmp_path / "a", model=model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_gradient_of_zero_stops_the_training(tmp_path: Path) -> None:
    model = tiny_model()
    model.lm_head.weight.zero_()
    with pytest.raises(LivenessError, match="the gradient is zero"):
        trained(tmp_path / "a", model=model)
    assert not (tmp_path / "a").exists()


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    model = tiny_model()
    model.lm_head.weight.fill_(math.nan)
    with pytest.raises(TuningError, match=r"the loss is nan .*lower tuning\.learning_rate"):
        trained(tmp_path / "a", model=model)


def test_nothing_to_learn_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nothing to train on"):
        trained(tmp_path / "a", examples=[])
    with pytest.raises(DatasetError, match="no target token"):
        trained(tmp_path / "a", examples=[Example((1, 2), (False, False))])


def test_targets_that_the_model_does_not_have_are_named(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match=r"set tuning\.targets to names of its linear layers"):
        trained(tmp_path / "a", replace(QUICK, targets=("w_query",)))


def test_training_stops_early_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    examples = copying_examples()
    # Held-out rows that contradict the others are met half-way at first, and then left ever further behind.
    against = [replace(one, ids=(*one.ids[:-2], one.ids[-2], 5)) for one in examples]
    settings = replace(QUICK, epochs=40, patience=2)
    stopped = trained(tmp_path / "a", settings, held_out=against, metrics=tmp_path / "metrics.jsonl")
    assert stopped.epochs == stopped.best_epoch + 1 + settings.patience < settings.epochs
    losses = [row["held_out_loss"] for row in rows_of(tmp_path / "metrics.jsonl") if "held_out_loss" in row]
    assert losses.index(min(losses)) == stopped.best_epoch
    assert stopped.held_out_loss == min(losses)
    assert loss_under(tmp_path / "a", against) == pytest.approx(min(losses), rel=1e-5)


def loss_under(adapter: Path, examples: Sequence[Example]) -> float:
    """The mean loss of a fresh model that the saved adapter was put on."""
    import torch

    model = tiny_model()
    use_ragged_attention(model)
    bank = LoadedAdapters(model)
    bank.load("a", adapter, tensors_sha256=adapter_hash(adapter))
    bank.activate("a")
    with torch.inference_mode():
        loss = loss_of(model, build_pack(examples), before=bank.soft_prompt("a"))
    return float(loss) / sum(one.target_count for one in examples)


def test_a_held_out_loss_that_never_falls_is_an_error(tmp_path: Path) -> None:
    examples = copying_examples()
    trained(tmp_path / "a", replace(QUICK, epochs=8))
    with pytest.raises(TuningError, match="no epoch brought the held-out loss below"):
        trained(tmp_path / "b", replace(QUICK, learning_rate=0.03), held_out=examples, start_from=tmp_path / "a")


def test_training_goes_on_from_an_adapter(tmp_path: Path) -> None:
    examples = copying_examples()
    first = trained(tmp_path / "a", held_out=examples)
    second = trained(tmp_path / "b", held_out=examples, start_from=tmp_path / "a")
    assert second.first_held_out_loss == pytest.approx(first.held_out_loss)
    assert (second.held_out_loss or 9) < (first.held_out_loss or 0)


@pytest.mark.parametrize("changes", [{"r": 8}, {"alpha": 32}, {"targets": ("q_proj",)}])
def test_an_adapter_of_another_shape_is_no_start(tmp_path: Path, changes: dict[str, Any]) -> None:
    trained(tmp_path / "a")
    with pytest.raises(TuningError, match=r'set tuning\.start to "base"'):
        trained(tmp_path / "b", replace(QUICK, **changes), start_from=tmp_path / "a")


def test_products_in_bfloat16_learn_about_the_same(tmp_path: Path) -> None:
    examples = copying_examples()
    exact = trained(tmp_path / "a", held_out=examples)
    rough = trained(tmp_path / "b", replace(QUICK, precision="mixed"), held_out=examples)
    assert rough.precision == "mixed"
    assert rough.first_held_out_loss == pytest.approx(exact.first_held_out_loss, rel=0.01)
    assert rough.held_out_loss == pytest.approx(exact.held_out_loss, rel=0.15)
    assert tensors_are_float32(tmp_path / "b")


def tensors_are_float32(folder: Path) -> bool:
    from safetensors.torch import load_file

    return {str(one.dtype) for one in load_file(folder / "adapter_model.safetensors").values()} == {"torch.float32"}
