"""Which nodes are left out of submissions, and why: evidence, its decay, and the caps.

The rules, the fewest that are right. The end of an attempt gives

- weight 1 to a node that the scheduler itself says has failed, and to one that a log signal with an error
  mode, or with `metadata: {kind: failed_node}`, names (its `node`, `host` or `hostname` field): the first
  MAX_NAMED different ones of a log, since a cascade names hundreds of innocent ones, and only nodes that the
  attempt had. The node in Slurm's notice
  `JOB 7 ON n3 CANCELLED AT …` is the batch host, whichever failed, and is never blamed;
- else a share to each of the attempt's nodes: 1 where a node failed and nobody says which, SHARE for a
  stall, for an attempt that vanished, and for a crash within QUICK_S without progress; divided by the number
  of nodes, so that a node of a large job is suspected only when several deaths share it;
- nothing where the job, a person or the scheduler's policy is the cause: crash.config, crash.oom, crash.nan,
  cancelled, preempted. Shares are taken back when a death proves to be the job's own (crash.config) or the
  sweep's (the breaker);
- a success, or an end at the time limit after progress, halves what there is against the attempt's nodes.

A node's score is the sum of its weights, each halved every `half_life_hours`. So one hard failure leaves a
node out for one half-life, and three quick deaths in half a day do so for twelve hours.

Sources: Slurm names the batch host in cancel notices (seen on 22.05.8); logs of jobs of 512 to 1,024 nodes
named 830 of them in one cascade; nvidia-resiliency-ext suspects a node after 3 cycles below 10 minutes;
nodes that have failed once fail again soon far more often than others (Kokolis et al., arXiv 2410.21680).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.hostlist import expand, is_host
from oellm_autoexp.core.model import Attempt, Job, LogSignal, SchedulerFact, mode_root
from oellm_autoexp.core.quick import quick, replace
from oellm_autoexp.core.signals import FAILED_NODE
from oellm_autoexp.core.verdict import EXIT_CLAIM_FAILED, EXIT_CLAIM_LOST

NAMED, SHARE = 1.0, 0.2
#: A smaller share says nothing, and a job of so many nodes would fill the journal with it.
MIN_SHARE = 0.01
MAX_NAMED = 3
QUICK_S = 600.0
#: What a node keeps of its score when an attempt on it ended well.
TRUST = 0.5
#: The latest pieces of evidence of a node that are kept.
KEPT = 20
NODE_FIELDS = ("node", "host", "hostname")
#: What a failure of the job itself adds up to.
OWN_FAULT = frozenset({"crash.config", "crash.oom", "crash.nan"})
_CANCEL_NOTICE = re.compile(r"\*\*\* (?:JOB|STEP) \S+ ON \S+ CANCELLED ")
_HOUR = 3600.0


@dataclass(kw_only=True)
class NodeExclusion:
    """When nodes are left out (`scheduler.node_exclusion`; null: only when a person says so).

    `half_life_hours`: the time in which suspicion halves. `threshold`: the score from which a node is left
    out; one hard failure is 1. At most `max_nodes` at a time, and at most `max_fraction` of the nodes that
    the job could be given, though one always, and never so many that fewer are left than it asks for.
    """

    half_life_hours: float = 48.0
    threshold: float = 0.5
    max_nodes: int = 32
    max_fraction: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.half_life_hours < math.inf:
            raise ValueError(f"half_life_hours must be more than 0, got {self.half_life_hours}")
        if not 0 < self.threshold < math.inf:
            raise ValueError(f"threshold must be more than 0, got {self.threshold}")
        if self.max_nodes < 0:
            raise ValueError(f"max_nodes must not be negative, got {self.max_nodes}")
        if not 0 <= self.max_fraction <= 1:
            raise ValueError(f"max_fraction must be between 0 and 1, got {self.max_fraction}")


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One thing that speaks against a node. `share`: it was one of several that may be to blame."""

    weight: float
    at: float
    what: str
    job: str
    share: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A node that something speaks against, or that a person has excluded."""

    node: str
    score: float
    #: "2 node failures in 3 h".
    why: str
    by_user: bool = False
    #: When its score falls below the threshold; None: it is below, or a person has to say so.
    until: float | None = None

    @property
    def excluded(self) -> bool:
        return self.by_user or self.until is not None


@dataclass(slots=True)
class NodeLedger:
    """What is known against nodes; made by applying events."""

    evidence: dict[str, tuple[Evidence, ...]] = field(default_factory=dict)
    #: Nodes that a person has excluded, and why.
    by_user: dict[str, str] = field(default_factory=dict)

    def apply(self, event: ev.Event) -> None:
        match event:
            case ev.NodesSuspected():
                found = Evidence(
                    weight=event.weight, at=event.at, what=event.what, job=event.job, share=event.share
                )
                for node in event.nodes:
                    self.evidence[node] = (*self.evidence.get(node, ()), found)[-KEPT:]
            case ev.NodesTrusted():
                for node in event.nodes:
                    self._keep(node, [replace(each, weight=each.weight * TRUST) for each in self._of(node)])
            case ev.NodesExcluded():
                self.by_user.update(dict.fromkeys(event.nodes, event.why))
            case ev.NodesForgiven():
                for node in event.nodes:
                    self.evidence.pop(node, None)
                    if event.by == "user":
                        self.by_user.pop(node, None)
            case ev.AttemptEnded() if event.mode == "crash.config":
                self._take_back({event.job})
            case ev.BreakerTripped():
                self._take_back(event.jobs)
            case _:
                pass

    def _of(self, node: str) -> tuple[Evidence, ...]:
        return self.evidence.get(node, ())

    def _keep(self, node: str, evidence: Sequence[Evidence]) -> None:
        kept = tuple(each for each in evidence if each.weight >= MIN_SHARE)
        if kept:
            self.evidence[node] = kept
        else:
            self.evidence.pop(node, None)

    def _take_back(self, jobs: Collection[str]) -> None:
        for node in list(self.evidence):
            self._keep(node, [each for each in self._of(node) if not (each.share and each.job in jobs)])

    # ---- what follows

    def score(self, node: str, now: float, rules: NodeExclusion) -> float:
        """The sum of what speaks against a node, each part by its age."""
        half_life_s = rules.half_life_hours * _HOUR
        ages = ((each.weight, max(0.0, now - each.at)) for each in self._of(node))
        return math.fsum(weight * math.pow(2.0, -age / half_life_s) for weight, age in ages)

    def excluded(self, now: float, rules: NodeExclusion | None) -> frozenset[str]:
        """The nodes that are left out where nothing bounds how many."""
        weighed = self.evidence if rules is not None else ()
        found = [
            node for node in weighed if rules is not None and self.score(node, now, rules) >= rules.threshold
        ]
        return frozenset([*self.by_user, *found])

    def suspects(self, now: float, rules: NodeExclusion | None) -> list[Suspect]:
        """Whom a person has excluded, then everybody else, worst first; without `rules` only the former."""
        found = []
        for node in {**self.by_user, **self.evidence} if rules is not None else self.by_user:
            score = self.score(node, now, rules) if rules is not None else 0.0
            if node in self.by_user:
                why = self.by_user[node] or "excluded by a person"
                found.append(Suspect(node=node, score=score, why=why, by_user=True))
            elif rules is not None:
                until = None
                if score >= rules.threshold:
                    halvings = math.log2(score / rules.threshold)
                    until = now + halvings * rules.half_life_hours * _HOUR
                found.append(Suspect(node=node, score=score, why=in_words(self._of(node)), until=until))
        return sorted(found, key=lambda each: (not each.by_user, -each.score, each.node))

    def left_out(
        self,
        now: float,
        rules: NodeExclusion | None,
        *,
        wanted: int,
        eligible: Collection[str] | None = None,
        seen: int = 0,
    ) -> tuple[Suspect, ...]:
        """The nodes that a submission is not to get, worst first.

        Args:
            wanted: the nodes that its largest job asks for.
            eligible: the nodes that it could be given; None: nobody knows. Others are of no concern.
            seen: how many nodes jobs have been given so far, which counts where nobody knows.
        """
        found = [each for each in self.suspects(now, rules) if each.excluded]
        if eligible is not None:
            found = [each for each in found if each.node in eligible]
        ordered = [each for each in found if each.by_user]
        if rules is None:
            return tuple(ordered)
        known = seen if eligible is None else len(eligible)
        room = min(rules.max_nodes, max(1, int(rules.max_fraction * known)))
        if eligible is not None:
            room = min(room, max(0, len(eligible) - len(ordered) - wanted))
        return (*ordered, *[each for each in found if not each.by_user][:room])


# ---------------------------------------------------------------- evidence


def after_end(
    job: Job, fact: SchedulerFact | None, ledger: NodeLedger, now: float
) -> tuple[ev.NodesSuspected | ev.NodesTrusted, ...]:
    """What the end of a job's latest attempt says of its nodes."""
    attempt = job.attempt
    if attempt is None or attempt.alive or attempt.started_at is None:
        return ()
    name, number = job.spec.name, attempt.number
    mine = expand((fact.nodes if fact is not None else "") or attempt.nodes)
    root = mode_root(attempt.mode)
    if root == "success" or (root == "timeout" and attempt.progressed):
        cleared = tuple(node for node in mine if node in ledger.evidence)
        return (ev.NodesTrusted(at=now, nodes=cleared, job=name, attempt=number),) if cleared else ()
    if root not in ("crash", "stall") or attempt.mode in OWN_FAULT:
        return ()
    if attempt.exit_code in (EXIT_CLAIM_LOST, EXIT_CLAIM_FAILED):
        return ()

    def suspected(nodes: Sequence[str], weight: float, what: str, *, share: bool) -> ev.NodesSuspected:
        return ev.NodesSuspected(
            at=now, nodes=tuple(nodes), weight=weight, what=what, job=name, attempt=number, share=share
        )

    failed = [node for node in expand(fact.failed_nodes if fact is not None else "") if node in mine]
    if failed:
        # Many at once are a switch or a power supply, and no node's own fault.
        weight = NAMED * min(1.0, MAX_NAMED / len(failed))
        return (suspected(failed, weight, "node failure", share=False),)
    named = [node for node in (_own(name, mine) for name in attempt.named_nodes) if node]
    if named:
        return (suspected(list(dict.fromkeys(named)), NAMED, f"log signal of {attempt.mode}", share=False),)
    weight, what = _unnamed(attempt)
    share = weight / max(1, len(mine))
    return (suspected(mine, share, what, share=True),) if mine and share >= MIN_SHARE else ()


def _own(name: str, nodes: Collection[str]) -> str:
    """The node that a log means, which may write it with its domain; "" for none of the attempt's."""
    if not nodes or name in nodes:
        return name
    short = name.partition(".")[0]
    return short if short in nodes else ""


def _unnamed(attempt: Attempt) -> tuple[float, str]:
    if attempt.mode == "crash.node_failure":
        return NAMED, "node failure"
    if attempt.mode == "crash.lost":
        return SHARE, "lost attempt"
    if mode_root(attempt.mode) == "stall":
        return SHARE, "stall"
    lived = (attempt.ended_at or 0.0) - (attempt.started_at or 0.0)
    return (SHARE, "quick death") if not attempt.progressed and lived <= QUICK_S else (0.0, "")


def named_nodes(before: tuple[str, ...], signals: Sequence[LogSignal]) -> tuple[str, ...]:
    """The nodes that signals of failures name, after those of earlier ones."""
    names = list(before)
    for found in signals:
        if len(names) >= MAX_NAMED:
            break
        tells = found.fields.get("kind") == FAILED_NODE or mode_root(found.mode) in ("crash", "stall")
        if not tells or _CANCEL_NOTICE.search(found.line):
            continue
        for key in NODE_FIELDS:
            node = str(found.fields.get(key) or "")
            if node and is_host(node) and node not in names:
                names.append(node)
                break
    return tuple(names[:MAX_NAMED])


# ---------------------------------------------------------------- words


def in_words(evidence: Sequence[Evidence]) -> str:
    """What speaks against a node, the heaviest kind first: "2 node failures in 3 h, 1 stall"."""
    kinds = sorted(evidence, key=lambda each: each.what)
    parts = []
    for what, group in groupby(kinds, key=lambda each: each.what):
        found = list(group)
        times = [each.at for each in found]
        span = f" in {_span(max(times) - min(times))}" if len(found) > 1 else ""
        plural = f"{what}s" if not what.startswith("log signal") else what.replace("signal", "signals")
        parts.append((sum(each.weight for each in found), f"{len(found)} {plural if span else what}{span}"))
    return ", ".join(text for _, text in sorted(parts, key=lambda part: (-part[0], part[1])))


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", _HOUR), ("min", 60.0)):
        if seconds >= (2 * size if unit == "d" else size):
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def left_out_in_words(suspects: Sequence[Suspect], most: int = 3) -> str:
    """ "node n17 left out: 2 node failures in 3 h"; "" for none."""
    parts = [f"node {each.node} left out: {each.why}" for each in suspects[:most]]
    if len(suspects) > most:
        parts.append(f"and {len(suspects) - most} more nodes")
    return "; ".join(parts)
