"""Says whether the demo ended as it should, given what `oellm-autoexp status … --json` printed.

Looks at what the orchestrator says of the jobs, and at what the jobs and the conversions themselves left.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Job = Mapping[str, Any]

SAVED = re.compile(r"^Checkpoint saved: (\S+)$", re.MULTILINE)
LOSS = re.compile(r"^iteration .*\| loss (\S+) \|", re.MULTILINE)
#: What ended the attempts before the last one, by the case of a point.
INTERRUPTED = {"crashes-once": "crash", "stalls-once": "stall", "over-time": "timeout"}


def faults(jobs: Mapping[str, Job]) -> Iterator[str]:
    """What is not as it should be, a sentence each."""
    if len(jobs) != 8:
        yield f"there are {len(jobs)} jobs, not 8"
    for name, job in jobs.items():
        case = name.split("_")[0]
        if case == "mistyped":
            yield from mistyped_faults(job)
            continue
        if job["state"] != "succeeded":
            yield f"{name} is {job['state']}: {job.get('reason')}"
            continue
        if not (Path(job["output_dir"]) / "result.json").is_file():
            yield f"{name} succeeded, but left no result.json"
        if case in INTERRUPTED and job["restarts"] < 1:
            yield f"{name} was never restarted ({INTERRUPTED[case]})"
        if case == "plain" and job["restarts"]:
            yield f"{name} was restarted {job['restarts']} times, for nothing"
        yield from conversion_faults(name, job)
        yield from metric_faults(name, job)
        yield from goodput_faults(name, case, job)


def mistyped_faults(job: Job) -> Iterator[str]:
    name = job["name"]
    if job["state"] != "failed" or job["error_mode"] != "crash.config":
        yield f"{name} is {job['state']} ({job['error_mode']}), but should have failed by crash.config"
    if job["restarts"]:
        yield f"{name} was restarted {job['restarts']} times, though no restart can mend it"
    if "adagard" not in (job.get("reason") or ""):
        yield f"the reason of {name} does not say what is wrong: {job.get('reason')}"


def conversion_faults(name: str, job: Job) -> Iterator[str]:
    """Each `Checkpoint saved` line of any attempt is converted exactly once."""
    saved = Counter(Path(path).name for path in saved_lines(job))
    converted = Counter(entry["checkpoint"] for entry in conversions(job))
    if not saved:
        yield f"{name} saved no checkpoint"
    for checkpoint in sorted(saved.keys() | converted.keys()):
        if saved[checkpoint] != converted[checkpoint]:
            yield (
                f"{name}: {checkpoint} was saved {saved[checkpoint]} times "
                f"and converted {converted[checkpoint]} times"
            )


def metric_faults(name: str, job: Job) -> Iterator[str]:
    """The last loss that is shown is the last one that was printed, by whichever attempt had work left."""
    printed = [loss for log in logs(job) for loss in LOSS.findall(log)]
    shown = job["metrics"].get("loss")
    if not printed or shown != float(printed[-1]):
        yield f"{name}: the loss shown is {shown}, but the logs end with {printed[-1:]}"


def goodput_faults(name: str, case: str, job: Job) -> Iterator[str]:
    """The silence of the one that stalls is told as such, and nobody else's; the parts are the whole."""
    spent = job["goodput"]
    hours = spent["hours"]
    if (hours["hang"] > 0) != (case == "stalls-once"):
        yield f"{name}: {hours['hang']} hours of its time are called a hang"
    if not 0 < spent["ettr"] <= 1 or abs(sum(hours.values()) - spent["wall_hours"]) > 1e-5:
        yield f"{name}: the parts of its time do not add up: {spent}"


def saved_lines(job: Job) -> Iterator[str]:
    """The checkpoints that all attempts say they saved."""
    for log in logs(job):
        yield from SAVED.findall(log)


def logs(job: Job) -> Iterator[str]:
    """What each attempt printed, the first one first."""
    last = Path(job["log_path"])
    for path in sorted(
        last.parent.glob(f"{job['name']}.*{last.suffix}"), key=lambda path: (len(path.name), path)
    ):
        yield path.read_text(errors="replace")


def conversions(job: Job) -> list[dict[str, Any]]:
    record = Path(job["output_dir"]) / "checkpoints" / "conversions.jsonl"
    return [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--submit-exit-code", type=int, default=1, help="how `submit` ended")
    options = parser.parse_args()
    try:
        jobs = {job["name"]: job for job in json.load(sys.stdin)["jobs"]}
    except ValueError:
        print("demo: `status --json` printed no JSON", file=sys.stderr)
        return 1
    found = list(faults(jobs))
    if options.submit_exit_code != 1:
        found.append(f"submit ended with {options.submit_exit_code}, not with 1 (one job fails by design)")
    for fault in found:
        print(f"demo: {fault}", file=sys.stderr)
    if found:
        return 1
    restarts = sum(job["restarts"] for job in jobs.values())
    converted = sum(len(conversions(job)) for job in jobs.values())
    print(
        f"demo: as it should be: 7 trainings finished ({restarts} restarts), 1 stopped at once by a mistake "
        f"in its config, {converted} checkpoints converted, each exactly once"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
