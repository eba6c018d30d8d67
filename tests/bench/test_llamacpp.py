"""An adapter lands in a GGUF where llama.cpp looks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from gguf import GGUFReader, GGUFWriter
from safetensors.numpy import save_file

from tests.bench.llamacpp import write_gguf

WIDTH, HEADS = 32, 2


def test_without_an_adapter_the_gguf_is_the_same_bytes(tmp_path: Path) -> None:
    source = a_gguf(tmp_path / "base.gguf")
    write_gguf(source, None, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == source.read_bytes()


def test_an_adapter_is_added_with_the_rows_of_queries_in_the_order_of_a_gguf(tmp_path: Path) -> None:
    source = a_gguf(tmp_path / "base.gguf")
    added = an_adapter(tmp_path / "adapter", "self_attn.q_proj", "mlp.up_proj")
    write_gguf(source, tmp_path / "adapter", tmp_path / "merged.gguf")
    before, after = tensors(source), tensors(tmp_path / "merged.gguf")
    assert numpy.allclose(after["blk.0.ffn_up.weight"] - before["blk.0.ffn_up.weight"], added["mlp.up_proj"], atol=1e-6)
    change = after["blk.0.attn_q.weight"] - before["blk.0.attn_q.weight"]
    half = WIDTH // HEADS // 2
    for head in range(HEADS):
        for place in range(half):
            first = head * 2 * half + place
            wanted = added["self_attn.q_proj"][[first, first + half]]
            found = change[[head * 2 * half + 2 * place, head * 2 * half + 2 * place + 1]]
            assert numpy.allclose(found, wanted, atol=1e-6)
    assert (after["output_norm.weight"] == before["output_norm.weight"]).all()


def test_what_the_adapter_changes_can_have_another_type(tmp_path: Path) -> None:
    source = a_gguf(tmp_path / "base.gguf")
    an_adapter(tmp_path / "adapter", "mlp.up_proj")
    write_gguf(source, tmp_path / "adapter", tmp_path / "merged.gguf", kind="Q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "merged.gguf").tensors}
    assert types == {"blk.0.attn_q.weight": "F32", "blk.0.ffn_up.weight": "Q8_0", "output_norm.weight": "F32"}


def test_a_layer_that_the_gguf_lacks_is_refused(tmp_path: Path) -> None:
    source = a_gguf(tmp_path / "base.gguf")
    an_adapter(tmp_path / "adapter", "mlp.down_proj")
    with pytest.raises(ValueError, match=r"no tensor 'blk\.0\.ffn_down\.weight'"):
        write_gguf(source, tmp_path / "adapter", tmp_path / "merged.gguf")


def a_gguf(path: Path) -> Path:
    random = numpy.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_up.weight"):
        writer.add_tensor(name, random.standard_normal((WIDTH, WIDTH), dtype=numpy.float32))
    writer.add_tensor("output_norm.weight", numpy.ones(WIDTH, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def an_adapter(folder: Path, *layers: str) -> dict[str, numpy.ndarray[Any, Any]]:
    """A LoRA of rank 2 on these layers; returns what it adds to each."""
    random = numpy.random.default_rng(1)
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4, "r": 2}))
    held, added = {}, {}
    for layer in layers:
        first = random.standard_normal((2, WIDTH), dtype=numpy.float32)
        second = random.standard_normal((WIDTH, 2), dtype=numpy.float32)
        held[f"base_model.model.model.layers.0.{layer}.lora_A.weight"] = first
        held[f"base_model.model.model.layers.0.{layer}.lora_B.weight"] = second
        added[layer] = 2.0 * (second @ first)
    save_file(held, folder / "adapter_model.safetensors")
    return added


def tensors(path: Path) -> dict[str, numpy.ndarray[Any, Any]]:
    return {tensor.name: numpy.array(tensor.data) for tensor in GGUFReader(path).tensors}
