"""A neural language model of characters in plain Python: one hidden layer over the characters before.

Weights are rows of floats by name; gradients are the rows that a batch touched. Everything is computed in
the same order each time, so the same seed gives the same weights bit for bit, resumed or not.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from operator import mul

Rows = dict[str, list[list[float]]]
Gradients = dict[str, dict[int, list[float]]]


class Text:
    """A text as numbers, the last tenth of it held out."""

    def __init__(self, text: str, context: int) -> None:
        self.alphabet = "".join(sorted(set(text)))
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self._context = context
        self._ids = [self.alphabet.index(char) for char in text]
        self._split = len(text) - len(text) // 10

    @property
    def usable(self) -> bool:
        """Whether both parts are long enough for one example."""
        return len(self._ids) - self._split > self._context < self._split

    def batch(self, rng: random.Random, size: int) -> list[tuple[Sequence[int], int]]:
        """Random examples of the training part: the characters before, and the one that follows."""
        return [self._example(rng.randrange(self._context, self._split)) for _ in range(size)]

    def held_out(self) -> list[tuple[Sequence[int], int]]:
        return [self._example(end) for end in range(self._split + self._context, len(self._ids))]

    def _example(self, end: int) -> tuple[Sequence[int], int]:
        return self._ids[end - self._context : end], self._ids[end]


class Model:
    """tanh(rows of the context's characters + bias) -> softmax over the alphabet."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._alphabet = len(rows["output"])

    @classmethod
    def random(cls, alphabet: int, context: int, hidden: int, rng: random.Random) -> Model:
        def rows(number: int, width: int, spread: float) -> list[list[float]]:
            return [[rng.uniform(-spread, spread) for _ in range(width)] for _ in range(number)]

        return cls(
            {
                "input": rows(context * alphabet, hidden, 1 / math.sqrt(context)),
                "hidden_bias": rows(1, hidden, 0.0),
                "output": rows(alphabet, hidden, 1 / math.sqrt(hidden)),
                "output_bias": rows(1, alphabet, 0.0),
            }
        )

    def loss(self, examples: Iterable[tuple[Sequence[int], int]]) -> float:
        """Mean negative log-likelihood of a character, in nats."""
        losses = [self._forward(context, target)[0] for context, target in examples]
        return sum(losses) / len(losses)

    def gradients(self, batch: Sequence[tuple[Sequence[int], int]]) -> tuple[float, Gradients]:
        """The mean loss of a batch and its gradient by every row that it touches."""
        hidden_size = len(self.rows["hidden_bias"][0])
        by_input: dict[int, list[float]] = {}
        by_output = [[0.0] * hidden_size for _ in range(self._alphabet)]
        by_hidden_bias = [0.0] * hidden_size
        by_output_bias = [0.0] * self._alphabet
        total = 0.0
        scale = 1 / len(batch)
        for context, target in batch:
            loss, hidden, chances = self._forward(context, target)
            total += loss
            deltas = [chance * scale for chance in chances]
            deltas[target] -= scale
            back = [0.0] * hidden_size
            for symbol, (delta, row) in enumerate(zip(deltas, self.rows["output"], strict=True)):
                back = [sum_ + delta * weight for sum_, weight in zip(back, row, strict=True)]
                by_output[symbol] = [
                    sum_ + delta * unit for sum_, unit in zip(by_output[symbol], hidden, strict=True)
                ]
            by_output_bias = added(by_output_bias, deltas)
            inner = [slope * (1 - unit * unit) for slope, unit in zip(back, hidden, strict=True)]
            by_hidden_bias = added(by_hidden_bias, inner)
            for index in self._inputs(context):
                earlier = by_input.get(index)
                by_input[index] = (
                    inner if earlier is None else list(map(sum, zip(earlier, inner, strict=True)))
                )
        return total * scale, {
            "input": by_input,
            "hidden_bias": {0: by_hidden_bias},
            "output": dict(enumerate(by_output)),
            "output_bias": {0: by_output_bias},
        }

    def _inputs(self, context: Sequence[int]) -> list[int]:
        return [place * self._alphabet + symbol for place, symbol in enumerate(context)]

    def _forward(self, context: Sequence[int], target: int) -> tuple[float, list[float], list[float]]:
        inputs = self.rows["input"]
        sums = map(
            sum, zip(self.rows["hidden_bias"][0], *(inputs[i] for i in self._inputs(context)), strict=True)
        )
        hidden = list(map(math.tanh, sums))
        logits = [
            bias + sum(map(mul, row, hidden))
            for bias, row in zip(self.rows["output_bias"][0], self.rows["output"], strict=True)
        ]
        top = max(logits)
        powers = [math.exp(logit - top) for logit in logits]
        total = sum(powers)
        return math.log(total) + top - logits[target], hidden, [power / total for power in powers]


def added(one: list[float], other: list[float]) -> list[float]:
    return [left + right for left, right in zip(one, other, strict=True)]


# ---------------------------------------------------------------- optimizers

Step = Callable[[Model, Gradients, Rows, float], None]


def sgd(model: Model, gradients: Gradients, memory: Rows, rate: float) -> None:  # noqa: ARG001 - remembers nothing
    for name, touched in gradients.items():
        rows = model.rows[name]
        for index, slopes in touched.items():
            rows[index] = [weight - rate * slope for weight, slope in zip(rows[index], slopes, strict=True)]


def adagrad(model: Model, gradients: Gradients, memory: Rows, rate: float) -> None:
    """Duchi et al. 2011: each weight's rate shrinks with the squares of its slopes so far."""
    sqrt = math.sqrt
    for name, touched in gradients.items():
        rows = model.rows[name]
        squares = memory.setdefault(name, [[0.0] * len(row) for row in rows])
        for index, slopes in touched.items():
            seen = [sum_ + slope * slope for sum_, slope in zip(squares[index], slopes, strict=True)]
            squares[index] = seen
            rows[index] = [
                weight - rate * slope / (sqrt(sum_) + 1e-8)
                for weight, slope, sum_ in zip(rows[index], slopes, seen, strict=True)
            ]


OPTIMIZERS: dict[str, Step] = {"sgd": sgd, "adagrad": adagrad}


def digest(rows: Rows) -> str:
    """SHA-256 of all weights, to tell whether two models are the same bit for bit."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
