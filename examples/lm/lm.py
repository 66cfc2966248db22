"""A transformer that learns to write, byte by byte, from a text file: small on a CPU, larger on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

BYTES = 256


class Block(nn.Module):
    """Attention to what was read, then a small network for each byte."""

    def __init__(self, hidden_size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention = nn.LayerNorm(hidden_size)
        self.mixed = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)
        self.network = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, 4 * hidden_size),
            nn.GELU(),
            nn.Linear(4 * hidden_size, hidden_size),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.mixed(self.before_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        attention = nn.functional.scaled_dot_product_attention
        seen = attention(query, key, value, is_causal=True, dropout_p=dropout)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.network(x)


class ByteTransformer(nn.Module):
    """From bytes (batch, length) to scores of the byte behind each (batch, length, 256)."""

    def __init__(
        self, hidden_size: int, num_layers: int, dropout: float, heads: int = 4, context: int = 64
    ) -> None:
        super().__init__()
        self.bytes = nn.Embedding(BYTES, hidden_size)
        self.places = nn.Embedding(context, hidden_size)
        self.blocks = nn.Sequential(*(Block(hidden_size, heads, dropout) for _ in range(num_layers)))
        self.scores = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, BYTES))
        # Scores that begin small: the first loss is that of guessing.
        nn.init.normal_(self.scores[1].weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        places = torch.arange(text.shape[1], device=text.device)
        scores: Tensor = self.scores(self.blocks(self.bytes(text) + self.places(places)))
        return scores

    @staticmethod
    def training_step(trainer: Any, batch: Tensor, *_: Any) -> dict[str, Tensor]:
        """The loss is in nats for a byte; guessing has 5.55."""
        scores = trainer.model(batch[:, :-1])
        return {"loss": nn.functional.cross_entropy(scores.flatten(0, 1).float(), batch[:, 1:].flatten())}


class Windows(Dataset[Tensor]):
    """Pieces of a text, each `context` bytes and the one behind, `stride` bytes apart."""

    def __init__(self, text: bytes, context: int, stride: int) -> None:
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        self.context, self.stride = context, stride

    def __len__(self) -> int:
        return (len(self.text) - self.context - 1) // self.stride + 1

    def __getitem__(self, number: int) -> Tensor:
        first = number * self.stride
        return self.text[first : first + self.context + 1]


def text(
    path: str, batch_size: int, num_workers: int, context: int = 64
) -> tuple[list[DataLoader[Tensor]], list[DataLoader[Tensor]]]:
    """Loaders of the first nine tenths of a text, and of the rest.

    The text is all files that the pattern `path` finds, joined; it is relative to this directory.
    """
    root = Path(__file__).parent
    while path.startswith("../"):
        root, path = root.parent, path.removeprefix("../")
    whole = b"".join(found.read_bytes() for found in sorted(root.glob(path)))
    cut = len(whole) * 9 // 10
    train = Windows(whole[:cut], context, stride=context // 2)
    val = Windows(whole[cut:], context, stride=context)
    return (
        [DataLoader(train, batch_size, shuffle=True, num_workers=num_workers)],
        [DataLoader(val, batch_size, num_workers=num_workers)],
    )
