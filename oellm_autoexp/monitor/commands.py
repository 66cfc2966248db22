"""What a person or another process tells the loop: cancel, retry, a plan, a foreign job, nodes, stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.adopt import adopt
from oellm_autoexp.core.holds import holds
from oellm_autoexp.core.hostlist import expand
from oellm_autoexp.core.parents import lost_parent
from oellm_autoexp.core.reconcile import reconcile
from oellm_autoexp.core.session import Session
from oellm_autoexp.errors import AutoexpError


class Commands:
    """Carries commands out: each becomes events, and a sentence for the one who gave it.

    `has_nodes`: whether the session's scheduler can be told where jobs are not to run.
    """

    def __init__(self, session: Session, record: Callable[[ev.Event], None], *, has_nodes: bool) -> None:
        self._session = session
        self._record = record
        self._has_nodes = has_nodes

    def obey(self, verb: str, args: Mapping[str, Any], now: float) -> tuple[bool, str]:
        """Carry out a command; whether it was done, and the answer."""
        try:
            if verb == "cancel":
                return self._cancel(_names(args, "jobs"), now)
            if verb == "retry":
                return self._retry(_names(args, "jobs"), now)
            if verb == "reconcile":
                return self._reconcile(args, now)
            if verb in ("exclude", "forgive"):
                return self._nodes(verb, _names(args, "nodes"), str(args.get("why", "")), now)
            if verb == "adopt":
                return self._adopt(args, now)
            if verb == "stop":
                return True, "nobody leads this session until a person starts it again; its jobs go on"
        except (AutoexpError, KeyError, TypeError, ValueError) as error:
            return False, str(error)
        return False, f"this version does not know the command {verb!r}"

    def _cancel(self, names: Sequence[str], now: float) -> tuple[bool, str]:
        done = []
        for name in names:
            job = self._session.jobs[name]
            if not job.state.ended and job.end_wish is None:
                why = "cancelled by the user"
                self._record(ev.EndWished(at=now, job=name, why=why, by="user", mode="cancelled"))
                done.append(name)
        return True, f"cancelling {', '.join(done)}" if done else "nothing to cancel: every one has ended"

    def _retry(self, names: Sequence[str], now: float) -> tuple[bool, str]:
        parts = []
        if self._session.breaker is not None:
            self._record(ev.BreakerReset(at=now, by="retry"))
            found, jobs = holds(self._session), self._session.jobs.values()
            free = sum(1 for job in jobs if not (job.state.ended or job.begun or found.of(job)))
            parts.append(f"the breaker is reset: {free} waiting jobs may start")
        done, left = [], []
        for name in names:
            job = self._session.jobs[name]
            if not job.state.ended:
                continue
            parent = lost_parent(self._session, job, names)
            if parent is None:
                self._record(ev.JobRetried(at=now, job=name))
                done.append(name)
            else:
                left.append(f"{name} waits for {parent.called}, which did not succeed: retry that one")
        if done:
            parts.append(f"starting again: {', '.join(done)}")
        parts += left
        if parts:
            return True, "; ".join(parts)
        why = "none of them has ended" if names else "no job failed or was cancelled"
        return True, f"nothing to retry: {why}"

    def _reconcile(self, args: Mapping[str, Any], now: float) -> tuple[bool, str]:
        events = [ev.decode(kind, now, body) for kind, body in args["events"]]
        opened = next(event for event in events if isinstance(event, ev.SessionOpened))
        specs = [event.spec for event in events if isinstance(event, ev.JobAdded)]
        rules = {event.rules: event.config for event in events if isinstance(event, ev.RulesSet)}
        result = reconcile(
            self._session,
            opened,
            specs,
            rules,
            now=now,
            update=bool(args.get("update")),
            prune=bool(args.get("prune")),
            whole=bool(args.get("whole", True)),
            again=frozenset(_names(args, "again")),
        )
        for event in result.events:
            self._record(event)
        if result.refused:
            return False, "\n".join(f"{name} has changed: {what}" for name, what in result.changed.items())
        return True, f"{len(result.added)} added, {len(result.unchanged)} as before"

    def _adopt(self, args: Mapping[str, Any], now: float) -> tuple[bool, str]:
        events = [ev.decode(kind, now, body) for kind, body in args["events"]]
        done = adopt(self._session, events, str(args["log_path"]), now)
        for event in done.events:
            self._record(event)
        return not done.refused, done.text

    def _nodes(self, verb: str, words: Sequence[str], why: str, now: float) -> tuple[bool, str]:
        """Words are names or lists as Slurm writes them."""
        if not self._has_nodes:
            return False, "the jobs of this session run where there are no nodes to choose from"
        ledger = self._session.nodes
        nodes = tuple(dict.fromkeys(node for word in words for node in expand(word)))
        if not nodes:
            return False, f"no node is meant by {' '.join(words) or 'nothing'}: write n17 or n[01-08]"
        told = ", ".join(nodes)
        if verb == "exclude":
            self._record(ev.NodesExcluded(at=now, nodes=nodes, why=why))
            return True, f"no job is submitted to {told} until `nodes forgive`"
        unknown = [node for node in nodes if node not in ledger.evidence and node not in ledger.by_user]
        if len(unknown) == len(nodes):
            return True, f"nothing to forgive: nothing speaks against {told}"
        self._record(ev.NodesForgiven(at=now, nodes=nodes))
        return True, f"forgiven: {told}"


def _names(args: Mapping[str, Any], key: str) -> list[str]:
    return [str(name) for name in args.get(key, ())]
