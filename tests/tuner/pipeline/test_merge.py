"""A merge is the exact weighted sum of adapters, and a candidate like any other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from agent.cli.main import main
from agent.errors import AdapterError
from agent.llm.engine.loaded_adapters import LoadedAdapters
from agent.llm.weights import load as weights
from agent.registry.artifact import tensors_hash, verify
from agent.registry.registry import Adapter, State
from agent.runtime import Runtime
from tests.tuner.data.test_replay import row
from tests.tuner.desks import TINY_ROWS, TINY_SETTINGS, make_desk, save_tiny_base
from tests.tuner.tiny import QUICK, VOCABULARY, fill_adapter, tiny_model
from tests.tuner.training.test_trainer import trained
from tuner.data.curate import Curated
from tuner.data.dataset import write_dataset
from tuner.methods.lora import with_adapter
from tuner.pipeline.candidate import CandidateOrigin, take_in
from tuner.pipeline.merge import MergePart, merge, write_sum
from tuner.pipeline.promote import promote
from tuner.pipeline.training_data import trained_tasks

# peft 0.21 uses a deprecated name of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

NOW = "2026-01-01T00:00:00Z"

SUMS: dict[str, list[tuple[float, dict[str, Any]]]] = {
    "alike": [(0.5, {}), (1.0, {})],
    "other ranks and scales": [(0.5, {"r": 3, "alpha": 7}), (-1.5, {"r": 5, "method": "rslora"})],
    "other layers and targets": [(1.0, {"top_layers": 1}), (2.0, {"targets": ("q_proj", "down_proj")})],
    "rsLoRA only": [(0.5, {"method": "rslora"}), (1.0, {"r": 2, "method": "rslora"})],
    "three": [(1.0, {"r": 2}), (-1.0, {"targets": ("v_proj",)}), (0.25, {"method": "lora+"})],
}


def random_adapter(folder: Path, *, seed: int, model: Any = None, **settings: Any) -> Path:
    adapted, _ = with_adapter(tiny_model() if model is None else model, replace(QUICK, **settings))
    fill_adapter(adapted, seed=seed)
    adapted.save_pretrained(str(folder))
    (folder / "README.md").unlink()
    return folder


def random_parts(folder: Path, asked: Sequence[tuple[float, dict[str, Any]]]) -> list[MergePart]:
    return [
        MergePart(f"a-{place}", random_adapter(folder / f"a-{place}", seed=place, **settings), weight)
        for place, (weight, settings) in enumerate(asked)
    ]


def changes(folder: Path) -> dict[str, torch.Tensor]:
    """By layer what PEFT says that an adapter adds to its weights, in float64."""
    model: Any = PeftModel.from_pretrained(tiny_model().double(), str(folder))
    layers = model.base_model.model.named_modules()
    return {name: layer.get_delta_weight("default") for name, layer in layers if isinstance(layer, LoraLayer)}


@pytest.mark.parametrize("asked", SUMS.values(), ids=SUMS)
def test_a_sum_changes_the_weights_by_the_weighted_sum_of_its_parts(
    tmp_path: Path, asked: list[tuple[float, dict[str, Any]]]
) -> None:
    parts = random_parts(tmp_path, asked)
    rank = write_sum(tiny_model(), parts, tmp_path / "sum")
    assert rank == sum(settings.get("r", QUICK.r) for _, settings in asked)
    expected: dict[str, torch.Tensor] = {}
    for part in parts:
        for name, change in changes(part.folder).items():
            expected[name] = expected.get(name, torch.zeros_like(change)) + part.weight * change
    found = changes(tmp_path / "sum")
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        torch.testing.assert_close(found[name], change, rtol=0, atol=1e-5)

    ids = torch.randint(VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(0))
    by_hand = tiny_model().double()
    with torch.inference_mode():
        for name, change in expected.items():
            by_hand.get_submodule(name).weight += change
        merged = PeftModel.from_pretrained(tiny_model().double(), str(tmp_path / "sum"))
        torch.testing.assert_close(merged(ids).logits, by_hand(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("asked", SUMS.values(), ids=SUMS)
def test_a_sum_is_served_as_it_was_written(tmp_path: Path, asked: list[tuple[float, dict[str, Any]]]) -> None:
    parts = random_parts(tmp_path, asked)
    write_sum(tiny_model(), parts, tmp_path / "sum")
    assert sorted(path.name for path in (tmp_path / "sum").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    bank = LoadedAdapters(tiny_model())
    for part in parts:
        bank.load(part.id, part.folder)
    digest = tensors_hash(tmp_path / "sum" / "adapter_model.safetensors")
    bank.load("sum", tmp_path / "sum", tensors_sha256=digest)
    assert bank.hash("sum") == bank.live_hash("sum") == digest


def test_a_sum_of_sums_is_a_sum(tmp_path: Path) -> None:
    first = random_parts(tmp_path, SUMS["other layers and targets"])
    write_sum(tiny_model(), first, tmp_path / "first")
    other = MergePart("b", random_adapter(tmp_path / "b", seed=9, method="rslora"), -0.5)
    write_sum(tiny_model(), [MergePart("first", tmp_path / "first", 2.0), other], tmp_path / "both")
    write_sum(tiny_model(), [*(replace(part, weight=2.0 * part.weight) for part in first), other], tmp_path / "at_once")
    both, at_once = changes(tmp_path / "both"), changes(tmp_path / "at_once")
    assert both.keys() == at_once.keys()
    for name, change in both.items():
        torch.testing.assert_close(change, at_once[name], rtol=0, atol=1e-5)


def test_a_tuning_with_the_same_targets_can_start_from_a_sum(tmp_path: Path) -> None:
    write_sum(tiny_model(), random_parts(tmp_path, SUMS["alike"]), tmp_path / "sum")
    settings = replace(QUICK, r=2 * QUICK.r, alpha=2 * QUICK.r, epochs=1, learning_rate=1e-4)
    trained(tmp_path / "child", settings, start_from=tmp_path / "sum")
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("sum", "child"))
    assert before.keys() == after.keys()
    assert all((tensor - after[name]).abs().max() < 0.01 for name, tensor in before.items())


def set_config(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def with_tensor(folder: Path, name: str) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), name: torch.ones(2, 2)}, path)


NO_SUMS: dict[str, tuple[dict[str, Any], Callable[[Path], object], str]] = {
    "dora": ({"method": "dora"}, lambda folder: None, "adapter a-1 was trained with DoRA"),
    "another kind": ({}, lambda folder: set_config(folder, peft_type="LN_TUNING"), "a-1 has peft_type 'LN_TUNING'"),
    "biases": ({}, lambda folder: set_config(folder, bias="all"), "a-1 has bias 'all', and only plain LoRA"),
    "whole modules": (
        {},
        lambda folder: set_config(folder, modules_to_save=["lm_head"]),
        r"a-1 has modules_to_save \['lm_head'\]",
    ),
    "a tensor beside the factors": (
        {},
        lambda folder: with_tensor(folder, "base_model.model.model.embed_tokens.lora_embedding_A"),
        "adapter a-1: '.*lora_embedding_A' is not a factor of a linear layer",
    ),
}


@pytest.mark.parametrize(("settings", "spoil", "message"), NO_SUMS.values(), ids=NO_SUMS)
def test_adapters_that_are_not_plain_lora_are_refused(
    tmp_path: Path, settings: dict[str, Any], spoil: Callable[[Path], object], message: str
) -> None:
    parts = random_parts(tmp_path, [(1.0, {}), (1.0, settings)])
    spoil(parts[1].folder)
    with pytest.raises(AdapterError, match=message):
        write_sum(tiny_model(), parts, tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def test_adapters_for_models_of_other_shapes_are_refused(tmp_path: Path) -> None:
    one = MergePart("a", random_adapter(tmp_path / "a", seed=1), 1.0)
    other = MergePart("b", random_adapter(tmp_path / "b", seed=2, model=tiny_model(hidden_size=32)), 1.0)
    with pytest.raises(AdapterError, match="adapter b does not fit the base model"):
        write_sum(tiny_model(), [one, other], tmp_path / "sum")


@dataclass
class Desk:
    """A desk on a tiny base, whose adapters are random and were trained, as they say, on tasks of their own."""

    runtime: Runtime
    base: weights.ModelFolder

    def adapter(self, tasks: str, **origin: Any) -> Adapter:
        rows = tuple(row(task, f"Do {task}.") for task in tasks)
        dataset = write_dataset(
            Curated(rows, {}, len(rows), 0),
            self.runtime.home.datasets,
            validation_share=0.0,
            created_at=NOW,
            provenance={},
        )
        model = weights.load_model(self.base, device="cpu", dtype="float32", threads=1)
        made = random_adapter(self.runtime.home.root / "made", seed=int(dataset.hash[:8], 16), model=model)
        where = CandidateOrigin(
            **{"base": self.base, "dataset_hash": dataset.hash, "tuning": "t", "created_at": NOW, **origin}
        )
        return take_in(self.runtime.registry, made, where, lambda name: f"# {name}\n", reason="made")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("merge")
    settings = TINY_SETTINGS.format(base=save_tiny_base(folder / "base"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RATCHET_HOME", raising=False)
        project = make_desk(folder / "desk", TINY_ROWS[:2], settings)
        with Runtime(project) as runtime:
            base = weights.resolve_model(project.named(project.settings.model.base), project.home.models)
            yield Desk(runtime, base)


def test_a_merge_is_gated_like_any_candidate(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = desk.runtime
    first, second = desk.adapter("ab"), desk.adapter("bc")
    where = ["--project", str(runtime.project.folder)]
    assert main([*where, "merge", f"{first.id}=0.75", f"{second.id}=-1e-1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    made = runtime.registry.get(told["adapter"])
    assert (made.state, made.parent, made.merged) == (State.TRAINED, None, (first.id, second.id))
    assert told["merged"] == [first.id, second.id]
    manifest = verify(made.folder)
    assert manifest.merged == {first.id: 0.75, second.id: -0.1}
    assert (manifest.tuning, manifest.base_revision) == ("merge", desk.base.revision)
    assert manifest.dataset_hash not in {verify(one.folder).dataset_hash for one in (first, second)}
    card = (made.folder / "README.md").read_text("utf-8")
    assert f"| {first.id} | 0.75 |\n| {second.id} | -0.1 |\n" in card
    assert f"merge of {first.id} times 0.75, {second.id} times -0.1" in runtime.registry.history()[-1].reason
    assert [path for path in runtime.home.adapters.iterdir() if path.name.startswith(".merge")] == []
    assert main([*where, "adapters"]) == 0
    assert f"{first.id} + {second.id}" in capsys.readouterr().out

    gated = promote(runtime, made.id)
    assert gated.candidate.adapter_hash == made.tensors_sha256
    assert not gated.decision.ship, "a random sum solves nothing"
    loaded = runtime.loaded()
    assert loaded is not None
    assert loaded["adapters"][made.id] == made.tensors_sha256
    assert runtime.registry.get(made.id).state is State.REJECTED
    assert merge(runtime, [(first.id, 0.75), (second.id, -0.1)]).state is State.REJECTED, "the same tensors are known"


def test_the_tasks_of_a_merge_and_its_children_are_those_of_all_its_parts(desk: Desk) -> None:
    runtime = desk.runtime
    parts = [desk.adapter("de"), desk.adapter("fg")]
    made = merge(runtime, [(one.id, 1.0) for one in parts])
    again = merge(runtime, [(made.id, 0.5), (desk.adapter("gh").id, 0.5)])
    child = desk.adapter("i", parent=again.id)
    new = Curated((row("x", "Do x."), row("d", "Do d.")), {}, 2, 0)
    assert trained_tasks(runtime.registry, runtime.home.datasets, made, new) == set("defg")
    assert trained_tasks(runtime.registry, runtime.home.datasets, child, new) == set("defghi")
    gone = runtime.home.datasets / verify(parts[0].folder).dataset_hash[:16]
    gone.rename(gone.with_name("gone"))
    assert trained_tasks(runtime.registry, runtime.home.datasets, child, new) == {"x", "d"}, (
        "all there are: what it was trained on is not known"
    )


def test_a_merge_of_the_wrong_adapters_says_why(desk: Desk) -> None:
    runtime = desk.runtime
    one, other = desk.adapter("jk").id, desk.adapter("kl").id
    stranger = desk.adapter("lm", base=replace(desk.base, name="other", revision="0" * 64)).id
    before = runtime.registry.list()
    for chosen, message in (
        ([(one, 1.0)], "two adapters or more, and 1 was named"),
        ([(one, 1.0), (one[:-1], 1.0)], f"adapter {one} is named 2 times"),
        ([(one, 1.0), ("nothing", 1.0)], "there is no adapter 'nothing'"),
        ([(one, 1.0), (other, 0.0)], f"adapter {other} has weight 0"),
        ([(one, 1.0), (other, float("nan"))], f"adapter {other} has weight nan"),
        ([(one, 1.0), (stranger, 1.0)], f"adapter {stranger} was made for base 'other', revision 000000000000, not"),
    ):
        with pytest.raises(AdapterError, match=message):
            merge(runtime, chosen)
    assert runtime.registry.list() == before
