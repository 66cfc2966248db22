"""Metrics are kept thin, and the last ones always."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.series import (
    MAX_SHAPES,
    TAIL_BYTES,
    Series,
    last_values,
    read_series,
)


def test_one_record_an_interval_and_the_last_one_always(tmp_path):
    """Every tenth of a second for ten seconds, one a second kept."""
    path = tmp_path / "metrics" / "job.jsonl"
    series = Series(Effects(), interval_s=1.0)
    for step in range(101):
        series.add(path, 1, [{"step": step, "loss": 1.0 / (step + 1)}], 1000.0 + step / 10)
    series.settle(1010.1)
    assert 10 <= len(read_series(path)) <= 11
    series.add(path, 1, [{"step": 101, "loss": 0.5}], 1010.2)
    series.settle(1010.2, every=True)
    assert read_series(path)[-1] == {"step": 101, "loss": 0.5, "t": 1010.2, "attempt": 1}
    assert last_values(path) == {"step": 101, "loss": 0.5}


def test_rare_fields_are_not_lost_among_frequent_ones(tmp_path):
    """A validation loss between two training lines of the same interval is kept."""
    path = tmp_path / "job.jsonl"
    series = Series(Effects(), interval_s=5.0)
    series.add(path, 1, [{"loss": 1.0}], 0.0)
    series.add(path, 1, [{"loss": 0.9}, {"val_loss": 2.0}, {"loss": 0.8}], 1.0)
    series.settle(6.0)
    assert [{**r, "t": 0, "attempt": 0} for r in read_series(path)] == [
        {"loss": 1.0, "t": 0, "attempt": 0},
        {"val_loss": 2.0, "t": 0, "attempt": 0},
        {"loss": 0.8, "t": 0, "attempt": 0},
    ]
    assert last_values(path) == {"val_loss": 2.0, "loss": 0.8}


def test_weeks_stay_some_thousand_records_also_over_new_daemons(tmp_path):
    """The interval grows with the age of the series, which a new daemon reads from its first record."""
    path = tmp_path / "job.jsonl"
    series = Series(Effects(), interval_s=1.0)
    for tick in range(40_000):
        now = tick * 30.0  # two weeks
        if tick % 4000 == 0:
            series = Series(Effects(), interval_s=1.0)
        series.add(path, 1, [{"step": tick}], now)
    series.settle(now, every=True)
    records = read_series(path)
    assert len(records) < 6000
    assert records[-1]["step"] == 39_999
    assert max(b["t"] - a["t"] for a, b in pairwise(records)) <= now / 1000 + 60


def test_a_flood_of_different_names_is_bounded(tmp_path):
    """Somebody who makes up a metric name a line fills no memory."""
    path = tmp_path / "job.jsonl"
    series = Series(Effects(), interval_s=1.0)
    series.add(path, 1, [{"a": 1}], 0.0)
    series.add(path, 1, [{f"m{n}": n} for n in range(1000)], 0.5)
    series.settle(2.0)
    assert len(read_series(path)) == 1 + MAX_SHAPES
    assert last_values(path)["m999"] == 999


def test_a_clock_that_was_set_back_silences_nothing(tmp_path):
    """The next record is written at once."""
    path = tmp_path / "job.jsonl"
    series = Series(Effects(), interval_s=1.0)
    series.add(path, 1, [{"a": 1}], 5000.0)
    series.add(path, 1, [{"a": 2}], 1000.0)
    assert last_values(path) == {"a": 2}


def test_a_full_disk_loses_metrics_and_nothing_else(tmp_path):
    """No error; it goes on when mended."""
    blocked = tmp_path / "metrics"
    blocked.write_text("")
    series = Series(Effects(), interval_s=0.0)
    path = blocked / "job.jsonl"
    series.add(path, 1, [{"a": 1}], 0.0)
    assert read_series(path) == []
    assert last_values(path) == {}
    blocked.unlink()
    series.add(path, 2, [{"a": float("inf")}], 1.0)
    assert read_series(path) == [{"a": float("inf"), "t": 1.0, "attempt": 2}]
    assert path.stat().st_mode & 0o777 == 0o600


@given(cut=st.integers(0, 400), junk=st.binary(max_size=20))
@settings(max_examples=60, deadline=None)
def test_torn_lines_are_passed_over(tmp_path_factory, cut, junk):
    """Whatever a crash left, the whole records before it are read."""
    path = tmp_path_factory.mktemp("series") / "job.jsonl"
    for step in range(8):
        Series(Effects(), interval_s=0.0).add(path, 1, [{"step": step, "name": "é"}], float(step))
    data = path.read_bytes()[:cut]
    path.write_bytes(data + junk)
    whole = [json.loads(line) for line in data.split(b"\n")[:-1]]
    assert read_series(path)[: len(whole)] == whole
    last_values(path)


def test_the_latest_values_cost_the_same_however_long_the_series(tmp_path):
    """Only the end is read; a line that is cut by that is left out."""
    path = tmp_path / "job.jsonl"
    path.write_text("".join(json.dumps({"t": n, "attempt": 1, "early": n}) + "\n" for n in range(5)))
    with path.open("a") as file:
        for n in range(2000):
            file.write(json.dumps({"t": n, "attempt": 1, "step": n, "pad": "x" * 40}) + "\n")
    assert path.stat().st_size > 10 * TAIL_BYTES
    assert last_values(path) == {"step": 1999, "pad": "x" * 40}
