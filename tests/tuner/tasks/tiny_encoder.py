"""A tiny random BERT with a vocabulary of its own, saved as a folder, for the tests of the classic tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def save_encoder(folder: Path, words: Sequence[str], *, positions: int = 128) -> Path:
    """Two layers of 32 dimensions; knows these words, and single characters for the rest."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    characters = sorted({one for word in words for one in word} | set("abcdefghijklmnopqrstuvwxyz0123456789.,?!'@#-"))
    vocabulary = [*SPECIAL, *dict.fromkeys([*words, *characters, *(f"##{one}" for one in characters)])]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab={word: place for place, word in enumerate(vocabulary)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
    )
    BertModel(config).save_pretrained(folder, safe_serialization=True)
    return folder


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
