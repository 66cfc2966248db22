"""What is known of one metric of one job: a few numbers and a thinned curve, however long it ran. Pure."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

#: Metrics that say how far a program is; of those in a record the first one counts.
STEPS = ("step", "global_step", "iteration", "iter", "update", "epoch")


class Better(str, Enum):
    """Which of two values wins."""

    LOW = "low"
    HIGH = "high"


class Statistic(str, Enum):
    """Which number stands for a whole curve."""

    MIN = "min"
    MAX = "max"
    LAST = "last"
    MEAN = "mean"


_LOW = frozenset(
    (
        "loss",
        "nll",
        "error",
        "errors",
        "err",
        "perplexity",
        "ppl",
        "time",
        "seconds",
        "second",
        "sec",
        "secs",
        "ms",
        "latency",
        "duration",
        "mse",
        "rmse",
        "mae",
        "wer",
        "cer",
        "ter",
        "fid",
        "bpb",
        "bpc",
        "bpt",
        "kl",
        "regret",
        "cost",
    )
)
_HIGH = frozenset(
    (
        "acc",
        "accuracy",
        "f1",
        "bleu",
        "rouge",
        "chrf",
        "meteor",
        "score",
        "scores",
        "reward",
        "rewards",
        "return",
        "returns",
        "auc",
        "auroc",
        "auprc",
        "map",
        "ndcg",
        "mrr",
        "iou",
        "miou",
        "dice",
        "precision",
        "recall",
        "r2",
        "psnr",
        "ssim",
        "throughput",
        "tflops",
        "mfu",
        "pass",
    )
)
#: Ends of words that are written as one: `valloss`.
_LOW_ENDS, _HIGH_ENDS = ("loss", "error", "perplexity"), ("accuracy", "score", "reward")
_TIMES = frozenset(
    ("time", "seconds", "second", "sec", "secs", "s", "ms", "us", "ns", "minutes", "hours", "h")
)
_WORD = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+")


def better_by_name(metric: str) -> Better | None:
    """What people mean by better for a metric of this name; None where the name does not tell.

    >>> [better_by_name(name).value for name in ("eval/loss", "valAccuracy", "tokens_per_s", "ms_per_token")]
    ['low', 'high', 'high', 'low']
    >>> better_by_name("grad_norm"), better_by_name("accuracy_loss")
    (None, None)
    """
    words = [found.lower() for found in _WORD.findall(metric)]
    if "per" in words:
        first = words[: words.index("per")]
        return Better.LOW if _TIMES.intersection(first) else Better.HIGH if first else None
    bare = {word if word in _HIGH else word.rstrip("0123456789") for word in words}
    low = any(word in _LOW or word.endswith(_LOW_ENDS) for word in bare)
    high = any(word in _HIGH or word.endswith(_HIGH_ENDS) for word in bare)
    if low == high:
        return None
    return Better.LOW if low else Better.HIGH


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A value and where it was: the step (None: not told), UTC epoch seconds, the attempt."""

    value: float
    step: float | None = None
    at: float | None = None
    attempt: int | None = None


@dataclass(slots=True)
class Points:
    """Some of the values of a curve, in order, at most `2 * most`: every second one is dropped when full.

    `steps` has NaN where none was told; `times` are UTC epoch seconds.
    """

    most: int
    steps: array[float] = field(default_factory=lambda: array("d"))
    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))
    #: Of so many values one is kept.
    stride: int = 1
    seen: int = 0

    def due(self) -> bool:
        """Whether the next value is one to keep; called once for each."""
        self.seen += 1
        return bool(self.most) and (self.seen - 1) % self.stride == 0

    def add(self, reading: Reading) -> None:
        self.steps.append(math.nan if reading.step is None else reading.step)
        self.times.append(math.nan if reading.at is None else reading.at)
        self.values.append(reading.value)
        if len(self.values) > 2 * self.most:
            self.stride *= 2
            self.steps, self.times, self.values = self.steps[::2], self.times[::2], self.values[::2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One metric of one job. `low` and `high` are the first of the least and greatest finite values."""

    last: Reading
    low: Reading | None
    high: Reading | None
    #: Of the finite values.
    mean: float | None
    count: int
    #: NaN and infinities among them.
    not_finite: int
    #: When its series began, UTC epoch seconds.
    begin: float | None = None
    points: Points = field(default_factory=lambda: Points(0))

    def of(self, statistic: Statistic) -> Reading:
        """The number that stands for it; NaN where it has no finite value, never for a value that it has."""
        match statistic:
            case Statistic.LAST:
                found: Reading | None = self.last
            case Statistic.MIN:
                found = self.low
            case Statistic.MAX:
                found = self.high
            case Statistic.MEAN:
                found = None if self.mean is None else Reading(value=self.mean)
        return found if found is not None else Reading(value=math.nan)

    def path(self, *, by_step: bool) -> list[tuple[float, float]]:
        """Its finite points: steps, or seconds since its series began, and values.

        What was rolled back is left out: where a later attempt repeats steps, it counts.
        """
        points, out = self.points, list[tuple[float, float]]()
        begin = self.begin if self.begin is not None else 0.0
        for step, at, value in zip(points.steps, points.times, points.values, strict=True):
            x = step if by_step else at - begin
            while by_step and out and out[-1][0] >= x:
                out.pop()
            if math.isfinite(x) and math.isfinite(value):
                out.append((x, value))
        return out


def mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean and the standard deviation (of a sample, n - 1) of finite values; None where there is none.

    >>> mean_and_deviation([1.0, 2.0, 3.0]), mean_and_deviation([2.0]), mean_and_deviation([])
    ((2.0, 1.0), (2.0, None), (None, None))
    """
    if not values:
        return None, None
    # Scaled, so that nothing overflows on the way.
    size = max(map(abs, values)) or 1.0
    scaled = [value / size for value in values]
    mean = math.fsum(scaled) / len(scaled)
    if len(values) == 1:
        return values[0], None
    squares = math.fsum((value - mean) * (value - mean) for value in scaled)
    return mean * size, math.sqrt(squares / (len(scaled) - 1)) * size
