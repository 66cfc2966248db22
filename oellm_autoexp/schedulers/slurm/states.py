"""What each state and reason of Slurm means: one table, for the real client and for the fake cluster.

Sources: job_states and job_state_reason in slurm/slurm.h, squeue(1), sacct(1), and what Slurm 22.05 was seen
to do (tests/data/slurm).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from oellm_autoexp.core.model import SchedulerFact, SchedulerState
from oellm_autoexp.core.verdict import EXIT_CLAIM_FAILED

#: By the word that squeue and sacct print.
STATES: Mapping[str, SchedulerState] = {
    "PENDING": SchedulerState.PENDING,
    "REQUEUED": SchedulerState.PENDING,
    "REQUEUE_FED": SchedulerState.PENDING,
    # Requeued and held: it waits for a person (see REASONS).
    "REQUEUE_HOLD": SchedulerState.PENDING,
    "SPECIAL_EXIT": SchedulerState.PENDING,
    "RESV_DEL_HOLD": SchedulerState.PENDING,
    "EXPEDITING": SchedulerState.PENDING,
    # It has its nodes, and nothing moves: no stall is counted.
    "CONFIGURING": SchedulerState.HELD,
    "POWER_UP_NODE": SchedulerState.HELD,
    "SUSPENDED": SchedulerState.HELD,
    "STOPPED": SchedulerState.HELD,
    "RUNNING": SchedulerState.RUNNING,
    "RESIZING": SchedulerState.RUNNING,
    "SIGNALING": SchedulerState.RUNNING,
    "COMPLETING": SchedulerState.COMPLETING,
    "STAGE_OUT": SchedulerState.COMPLETING,
    "UPDATE_DB": SchedulerState.COMPLETING,
    "COMPLETED": SchedulerState.COMPLETED,
    "FAILED": SchedulerState.FAILED,
    "LAUNCH_FAILED": SchedulerState.FAILED,
    "RECONFIG_FAIL": SchedulerState.FAILED,
    "TIMEOUT": SchedulerState.TIMEOUT,
    "OUT_OF_MEMORY": SchedulerState.OUT_OF_MEMORY,
    "NODE_FAIL": SchedulerState.NODE_FAIL,
    "BOOT_FAIL": SchedulerState.NODE_FAIL,
    "PREEMPTED": SchedulerState.PREEMPTED,
    "DEADLINE": SchedulerState.DEADLINE,
    "CANCELLED": SchedulerState.CANCELLED,
    # Another cluster of the federation has it; here it is known no more.
    "REVOKED": SchedulerState.GONE,
}

_WAIT = ""
_LESS = "this job alone asks for more than the limit: ask for less, or use another account or QOS"
_OTHERS = "a limit of the account, QOS or user is reached: it starts when other jobs have ended"
_BUDGET = "the account's or QOS's budget is used up: use another, or ask for more"
_CLOSED = "the partition is closed at the moment: wait, or choose another (slurm.sbatch.partition)"
_HELD = "it is held: `scontrol release` lets it go on"

#: What a person can do about a reason ("": nothing, it passes by itself), by a pattern for the whole of it.
#: The first that matches counts.
REASONS: tuple[tuple[str, str], ...] = (
    (
        r"None|Priority|Resources|Dependency|BeginTime|Licenses|Reservation|Cleaning|Prolog|SchedDefer|"
        r"JobArrayTaskLimit|FrontEndDown|BlockMaxError|BlockFreeAction|BurstBuffer\w+|Power\w+|FedJobLock",
        _WAIT,
    ),
    # Why it ended; the state says it, too.
    (
        r"NonZeroExitCode|TimeLimit|JobLaunchFailure|NodeDown|SystemFailure|InactiveLimit|OutOfMemory|DeadLine|"
        r"RaisedSignal.*",
        _WAIT,
    ),
    (r"PartitionNodeLimit", "ask for another number of nodes, or another partition (slurm.sbatch.nodes)"),
    (r"PartitionTimeLimit", "the partition allows less time: lower slurm.sbatch.time"),
    (r"PartitionConfig", "the partition cannot give what it asks for: ask for less, or choose another"),
    (r"PartitionDown|PartitionInactive", _CLOSED),
    (r"JobHeldAdmin", "an administrator holds it: ask them why"),
    (r"JobHeldUser|job requeued in held state|ReservationDeleted", _HELD),
    (r"JobHoldMaxRequeue|launch failed requeued held", f"its start failed too often; {_HELD}"),
    (r"DependencyNeverSatisfied", "it will never start: cancel it, and look at slurm.sbatch.dependency"),
    (r"BadConstraints", "no node has what it asks for (slurm.sbatch.constraint, nodes, memory)"),
    (r"ReqNodeNotAvail.*|Nodes required for job are .*", "nodes it needs are down, drained or reserved"),
    (r"InvalidAccount|AccountNotAllowed", "the account may not be used: look at slurm.sbatch.account"),
    (r"InvalidQOS|QOSNotAllowed", "the QOS may not be used: look at slurm.sbatch.qos"),
    (r"MaxMemPerLimit", "it asks for more memory than is allowed (slurm.sbatch.mem)"),
    (r"QOSUsageThreshold|AccountingPolicy", _BUDGET),
    (r"(QOS|Association)(Time|Resource)Limit", _LESS),
    (r"(QOS|Association)JobLimit", _OTHERS),
    (r"(QOS|Assoc)Max\w+(PerJob|PerJobLimit|PerNode)|QOSMin\w+", _LESS),
    (r"(QOS|Assoc)Grp\w*(Minutes|MinutesLimit)", _BUDGET),
    (r"(QOS|Assoc)(Grp|Max)\w+|Max\w+PerAccount", _OTHERS),
)
_REASONS = tuple((re.compile(pattern), advice) for pattern, advice in REASONS)

#: slurmstepd(8) could not open the log or the working directory: "0:53" in squeue and sacct.
_LAUNCH_FAULT = 53
_HAS_STARTED = frozenset(SchedulerState) - {SchedulerState.PENDING}


@lru_cache(maxsize=1024)
def advice(reason: str) -> str | None:
    """What a person can do about a reason; None for one that the table lacks."""
    # scontrol(1) writes blanks as `_`.
    text = reason.strip("()")
    for pattern, found in _REASONS:
        if pattern.fullmatch(text) or pattern.fullmatch(text.replace("_", " ")):
            return found
    return None


def explained(reason: str) -> str:
    """A reason for waiting, in Slurm's words, with what can be done about it."""
    what = advice(reason)
    return f"{reason}: {what}" if what else reason


def fact(
    word: str,
    *,
    reason: str = "",
    exit_code: int = 0,
    signal: int = 0,
    started_at: float | None = None,
    ended_at: float | None = None,
    nodes: str = "",
    failed_nodes: str = "",
    restart_count: int = 0,
) -> SchedulerFact:
    """A statement of squeue or sacct as a fact; `exit_code` and `signal` as in their "3:0"."""
    first, _, tail = word.partition(" ")
    state = STATES.get(first.rstrip("+"))
    why = "" if reason == "None" else reason
    if state is None:
        # A later version's word: alive, for nothing may be concluded from it.
        state, why = SchedulerState.HELD, f"Slurm says {first}, which this version does not know"
    elif first == "BOOT_FAIL":
        why = f"{why}, the node did not boot".lstrip(", ")
    elif state is SchedulerState.CANCELLED:
        # Of one that never ran squeue still shows why it waited.
        why = f"{tail} (user id)".strip() if tail.startswith("by ") else ""
    if state is SchedulerState.OUT_OF_MEMORY:
        # "0:125" is Slurm's own mark; what the kernel sent was SIGKILL.
        exit_code, signal = 0, 9
    elif signal == _LAUNCH_FAULT:
        exit_code, signal = EXIT_CLAIM_FAILED, 0
        why = f"{why} (0:53: the log or the working directory could not be opened on {nodes or 'the node'})"
    ended = state.ended
    return SchedulerFact(
        state=state,
        reason=why,
        exit_code=exit_code if ended else None,
        signal=signal if ended else 0,
        # Of one that was cancelled before it had nodes, Slurm says that it started when it ended.
        started_at=started_at if state in _HAS_STARTED and nodes else None,
        ended_at=ended_at if ended or state is SchedulerState.COMPLETING else None,
        nodes=nodes,
        failed_nodes=failed_nodes,
        restart_count=restart_count,
    )
