"""What it costs to find a big session again: reading its journal, replaying it, following it.

    python benchmarks/journal.py [JOBS] [RECORDS]

The reference parses the same lines with `json.loads` alone: no checksum, no typed events, no order.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from table import Table, number, peak_mb

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.core.model import Cursor, JobSpec, LogSignal, SchedulerRef
from oellm_autoexp.core.session import Session
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.journal import Follower, Journal, leader_alive, read


def history(jobs: int, records: int) -> Iterator[ev.Event]:
    """Jobs that were submitted and report checkpoints and progress until there are enough records."""
    at = 1_700_000_000.123
    yield ev.SessionOpened(at=at, project="bench", session="s", nonce="n", scheduler={"class_name": "x"})
    for index in range(jobs):
        place = f"/scratch/project_465000123/outputs/train_lr{index}"
        yield ev.JobAdded(
            at=at,
            spec=JobSpec(
                name=f"train_lr{index}",
                id=f"{index:012x}",
                index=index,
                parameters={"lr": 0.001, "seed": index},
                argv=("python", "train.py", "--lr", "0.001", "--seed", str(index)),
                output_dir=place,
                checkpoint_dir=f"{place}/checkpoints",
                script_path=f"{place}.sh",
                script_digest="a" * 64,
                log_path=f"{place}.{{attempt}}.log",
                rules="r",
            ),
        )
    for index in range(jobs):
        name, token = f"train_lr{index}", f"{index:016x}"
        ref = SchedulerRef(id=str(100_000 + index), cluster="lumi", token=token, submitted_at=at)
        yield ev.SubmitRequested(at=at, token=token, jobs=((name, 1),))
        yield ev.SubmitSpawned(at=at, token=token)
        yield ev.SubmitAccepted(at=at, token=token, refs=(ref,))
        yield ev.AttemptStarted(at=at, job=name, attempt=1, started_at=at, nodes="nid001234")
    for record in range(records - 1 - 5 * jobs):
        turn, index = divmod(record, jobs)
        name = f"train_lr{index}"
        if turn % 3:
            yield ev.ProgressMade(at=at + turn, job=name, attempt=1, counter="iteration", value=turn * 100.0)
            continue
        saved = f"/scratch/project_465000123/outputs/{name}/iter_{turn:07d}"
        found = LogSignal(
            rule="saved",
            file="log",
            generation=0,
            offset=10_000 * turn,
            line=f"Checkpoint saved: {saved}",
            fields={"path": saved},
        )
        yield ev.SignalsFound(
            at=at + turn,
            job=name,
            attempt=1,
            file="log",
            cursor=Cursor(inode=index, offset=10_000 * turn, head="ab" * 4, tail="cd" * 4),
            signals=(found,),
            matches={"saved": turn},
        )


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    records = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    with tempfile.TemporaryDirectory() as directory:
        paths = SessionPaths(Path(directory) / "state")
        journal, _ = Journal.lead(paths, Effects(), now=1.0, monotonic=time.monotonic, wait=time.sleep)
        begin = time.process_time()
        for turn, event in enumerate(history(jobs, records), 1):
            journal.append(event)
            if turn % 500 == 0:
                journal.commit()
        journal.commit()
        path = next(paths.journal.iterdir())
        size = path.stat().st_size / 1e6
        making = time.process_time() - begin

        begin = time.process_time()
        for line in path.read_bytes().splitlines():
            json.loads(line)
        floor = time.process_time() - begin

        begin = time.process_time()
        events = read(paths).events
        reading = time.process_time() - begin

        begin = time.process_time()
        session = Session()
        for event in events:
            session.apply(event)
        replaying = time.process_time() - begin

        follower = Follower(paths)
        follower.new_events()
        begin = time.process_time()
        for _ in range(100):
            follower.new_events()
        following = (time.process_time() - begin) / 100
        begin = time.process_time()
        for _ in range(100):
            leader_alive(paths)
        leading = (time.process_time() - begin) / 100
    table = Table(f"{records:,} records of {jobs:,} jobs, {size:.0f} MB", "CPU s", "ratio", left=(44,))
    for name, spent in (
        ("reference: json.loads of each line", floor),
        ("read: checked, typed, in order", reading),
        ("replay", replaying),
        ("made and written, a barrier every 500", making),
        ("a follower's look that finds nothing", following),
        ("who leads", leading),
    ):
        table.row(name, number(spent), number(spent / floor))
    print(f"\nmemory at most: {peak_mb():.0f} MB")


if __name__ == "__main__":
    main()
