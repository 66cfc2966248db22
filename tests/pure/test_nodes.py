"""Evidence against nodes: what counts, how it fades, and whom it leaves out at most."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.core import events as ev
from oellm_autoexp.core.hostlist import MAX_HOSTS, expand
from oellm_autoexp.core.model import Attempt, Job, JobSpec, LogSignal, Phase, SchedulerFact, SchedulerState
from oellm_autoexp.core.nodes import (
    KEPT,
    MAX_NAMED,
    NodeExclusion,
    NodeLedger,
    after_end,
    in_words,
    left_out_in_words,
    named_nodes,
)

HOUR = 3600.0
RULES = NodeExclusion()


def job(mode: str, nodes: str = "n1", **attempt: Any) -> Job:
    """A job whose only attempt has ended after a minute."""
    spec = JobSpec(
        name="a",
        id="a",
        index=0,
        parameters={},
        argv=("true",),
        output_dir="",
        checkpoint_dir="",
        script_path="s",
        script_digest="",
        log_path="",
    )
    given = {"exit_code": 1, "started_at": 0.0, "ended_at": 60.0, **attempt}
    ended = Attempt(number=1, token="t", requested_at=0, phase=Phase.ENDED, mode=mode, nodes=nodes, **given)
    return Job(spec=spec, attempts=(ended,))


def failed(nodes: str, failed_nodes: str = "") -> SchedulerFact:
    return SchedulerFact(state=SchedulerState.NODE_FAIL, nodes=nodes, failed_nodes=failed_nodes)


def ledger(*events: ev.Event) -> NodeLedger:
    made = NodeLedger()
    for event in events:
        made.apply(event)
    return made


def suspected(*nodes: str, weight: float = 1.0, at: float = 0.0, **more: Any) -> ev.NodesSuspected:
    given = {"what": "node failure", "job": "a", "attempt": 1, **more}
    return ev.NodesSuspected(at=at, nodes=nodes, weight=weight, **given)


# ---------------------------------------------------------------- node lists


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("node7", ["node7"]),
        ("node[1-3,7],login1", ["node1", "node2", "node3", "node7", "login1"]),
        ("nid[0098-0101]", ["nid0098", "nid0099", "nid0100", "nid0101"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
        ("n1,n1", ["n1"]),
        ("(null)", []),
        ("n[1-", []),
        ("n[3-1]", []),
        ("n[1-999999999]", []),
        ("a b", []),
    ],
)
def test_a_node_list_is_read_as_slurm_writes_it(text: str, names: list[str]) -> None:
    """What cannot be one has no names."""
    assert list(expand(text)) == names


@given(st.text(alphabet="n0123456789[]-,() ", max_size=40))
def test_no_text_makes_a_node_list_large_or_breaks_it(text: str) -> None:
    """Whatever stands in an answer."""
    found = expand(text)
    assert len(found) <= MAX_HOSTS and len(set(found)) == len(found)


# ---------------------------------------------------------------- evidence


@pytest.mark.parametrize(
    ("ended", "fact", "found"),
    [
        # The scheduler says which.
        (job("crash.node_failure", "n[1-4]"), failed("n[1-4]", "n3"), (("n3",), 1.0, False)),
        # Many at once are no node's own fault.
        (job("crash.node_failure", "n[1-8]"), failed("n[1-8]", "n[1-6]"), ("n[1-6]", 0.5, False)),
        # It says that one failed.
        (job("crash.node_failure", "n[1-4]"), failed("n[1-4]"), ("n[1-4]", 0.25, True)),
        (job("crash.node_failure", "n[1-200]"), failed("n[1-200]"), None),
        # A log names it, with its domain; only nodes that the attempt had.
        (job("crash.gpu", "n[1-4]", named_nodes=("n2.x.y", "m9")), None, (("n2",), 1.0, False)),
        (job("crash.gpu", "n[1-4]", named_nodes=("m9",), ended_at=9000.0), None, None),
        # Nobody names one.
        (job("stall", "n1", ended_at=9000.0), None, (("n1",), 0.2, True)),
        (job("crash.lost", "n1"), None, (("n1",), 0.2, True)),
        (job("crash", "n[1-4]"), None, ("n[1-4]", 0.05, True)),
        (job("crash", "n1", ended_at=601.0), None, None),
        (job("crash", "n1", progressed_at=30.0), None, None),
        (job("crash", "n[1-21]"), None, None),
        # The nodes are not to blame.
        (job("crash.config"), None, None),
        (job("crash.oom"), None, None),
        (job("crash.nan"), None, None),
        (job("cancelled"), failed("n1", "n1"), None),
        (job("preempted"), None, None),
        (job("crash", exit_code=78), None, None),
        (job("crash", exit_code=79), None, None),
        (job("crash", started_at=None), None, None),
        (job("success", exit_code=0), None, None),
    ],
)
def test_what_an_end_says_of_its_nodes(ended: Job, fact: SchedulerFact | None, found: Any) -> None:
    """Which nodes, with which weight, and whether one of them is meant or each."""
    events = after_end(ended, fact, NodeLedger(), 60.0)
    told = [(event.nodes, round(event.weight, 9), event.share) for event in events]  # type: ignore[union-attr]
    if found is None:
        assert told == []
    else:
        nodes, weight, share = found
        assert told == [(expand(nodes) if isinstance(nodes, str) else nodes, weight, share)]


@pytest.mark.parametrize(("mode", "more"), [("success", {}), ("timeout", {"progressed_at": 50.0})])
def test_what_ends_well_halves_the_suspicion(mode: str, more: dict[str, Any]) -> None:
    """Of the nodes that it ran on, and only where there is any."""
    known = ledger(suspected("n1", "n9"))
    (event,) = after_end(job(mode, "n[1-2]", **more), None, known, 60.0)
    assert isinstance(event, ev.NodesTrusted) and event.nodes == ("n1",)
    known.apply(event)
    assert known.score("n1", 0.0, RULES) == 0.5 and known.score("n9", 0.0, RULES) == 1.0
    assert after_end(job("timeout", "n1"), None, known, 60.0) == ()


def signal(line: str, mode: str = "crash.gpu", **fields: Any) -> LogSignal:
    return LogSignal(rule="r", file="log", generation=0, offset=0, line=line, mode=mode, fields=fields)


def test_a_log_names_at_most_a_few_nodes_and_never_the_batch_host_of_a_notice() -> None:
    """Only signals with an error mode count, and only what can be a name."""
    notice = "slurmstepd-n3: error: *** JOB 7 ON n3 CANCELLED AT 2026-11-26T16:07:44 DUE TO NODE FAILURE ***"
    assert named_nodes((), [signal(notice, host="n3")]) == ()
    assert named_nodes((), [signal("x", mode="", node="n1"), signal("x", mode="success", node="n1")]) == ()
    assert named_nodes((), [signal("x", node="rank 3"), signal("x", node=7), signal("x", hostname="n4")]) == (
        "7",
        "n4",
    )
    many = [signal("x", node=f"n{number}") for number in range(830)]
    assert named_nodes(("n829",), many) == ("n829", "n0", "n1")
    assert len(named_nodes((), many)) == MAX_NAMED


# ---------------------------------------------------------------- the ledger


def test_shares_are_taken_back_when_the_fault_is_the_jobs_own() -> None:
    """A death of the same kind for the second time, or the breaker; what a node was named for stays."""
    share = suspected("n1", weight=0.2, share=True)
    named = suspected("n2")
    end = ev.AttemptEnded(at=1, job="a", attempt=2, mode="crash.config", reason="", evidence="")
    assert ledger(share, named, end).evidence.keys() == {"n2"}
    assert ledger(share, named, ev.BreakerTripped(at=1, cause="x", jobs=("a",))).evidence.keys() == {"n2"}
    other = ev.BreakerTripped(at=1, cause="x", jobs=("b",))
    assert ledger(share, named, other).evidence.keys() == {"n1", "n2"}


def test_a_score_halves_every_half_life() -> None:
    """One hard failure leaves a node out for one half-life, and `until` says so."""
    known = ledger(suspected("n1", at=100.0))
    (now,) = known.suspects(100.0, RULES)
    assert now.excluded and now.until == pytest.approx(100.0 + 48 * HOUR)
    (later,) = known.suspects(100.0 + 48 * HOUR + 1, RULES)
    assert not later.excluded and later.until is None
    assert known.score("n1", 100.0 + 96 * HOUR, RULES) == pytest.approx(0.25)


def test_a_persons_word_is_bound_by_nothing() -> None:
    """Neither by time nor by the caps nor by what nobody else says; only by another word."""
    known = ledger(ev.NodesExcluded(at=0, nodes=("n1", "n2"), why="slow"), suspected("n3"))
    rules = NodeExclusion(max_nodes=0)
    assert [each.node for each in known.left_out(1e9, rules, wanted=2, eligible=["n1", "n2"])] == ["n1", "n2"]
    assert [each.node for each in known.left_out(0.0, None, wanted=1)] == ["n1", "n2"]
    known.apply(ev.NodesForgiven(at=0, nodes=("n1", "n3"), by="scheduler"))
    assert known.by_user.keys() == {"n1", "n2"} and known.evidence == {}
    known.apply(ev.NodesForgiven(at=0, nodes=("n1",)))
    assert known.by_user == {"n2": "slow"}


NODES = [f"n{number}" for number in range(12)]
HAPPENINGS = st.lists(
    st.tuples(
        st.sampled_from(["suspect", "share", "trust", "exclude", "forgive", "own fault"]),
        st.lists(st.sampled_from(NODES), min_size=1, max_size=4, unique=True),
        st.floats(0, 5),
        st.floats(0, 100 * HOUR),
        st.sampled_from(["a", "b"]),
    ),
    max_size=60,
)


def known_from(happenings: Any) -> tuple[NodeLedger, float]:
    now, made = 0.0, NodeLedger()
    for what, nodes, weight, wait, name in happenings:
        now += wait
        if what in ("suspect", "share"):
            share = what == "share"
            made.apply(suspected(*nodes, weight=weight, at=now, job=name, share=share))
        elif what == "trust":
            made.apply(ev.NodesTrusted(at=now, nodes=tuple(nodes), job=name, attempt=1))
        elif what == "exclude":
            made.apply(ev.NodesExcluded(at=now, nodes=tuple(nodes)))
        elif what == "forgive":
            made.apply(ev.NodesForgiven(at=now, nodes=tuple(nodes)))
        else:
            made.apply(
                ev.AttemptEnded(at=now, job=name, attempt=1, mode="crash.config", reason="", evidence="")
            )
    return made, now


@given(
    HAPPENINGS,
    st.integers(1, 14),
    st.integers(0, 14),
    st.floats(0, 1),
    st.integers(0, 5),
    st.floats(0, 500 * HOUR),
)
@settings(max_examples=300, deadline=None)
def test_the_caps_hold_whatever_happened(
    happenings: Any, wanted: int, there: int, part: float, most: int, later: float
) -> None:
    """Never more than allowed, never so many that the job cannot run, worst first; and it all fades."""
    made, now = known_from(happenings)
    rules = NodeExclusion(max_fraction=part, max_nodes=most)
    eligible = NODES[:there]
    found = made.left_out(now + later, rules, wanted=wanted, eligible=eligible)
    ruled = [each for each in found if not each.by_user]
    assert {each.node for each in found} <= set(eligible)
    assert len({each.node for each in found}) == len(found)
    assert len(ruled) <= min(most, max(1, int(part * there)))
    assert not ruled or there - len(found) >= wanted
    scores = [each.score for each in ruled]
    assert scores == sorted(scores, reverse=True) and all(score >= rules.threshold for score in scores)
    assert {each.node for each in found if each.by_user} == made.by_user.keys() & set(eligible)
    unknown = made.left_out(now + later, rules, wanted=wanted, seen=there)
    assert len([each for each in unknown if not each.by_user]) <= min(most, max(1, int(part * there)))
    assert all(len(found) <= KEPT for found in made.evidence.values())
    assert all(each.by_user for each in made.suspects(now + 1e9, rules) if each.excluded)


# ---------------------------------------------------------------- words


def test_the_reason_is_a_sentence_that_counts() -> None:
    """What, how often, in which time; the heaviest first, and not a hundred nodes."""
    known = ledger(
        suspected("n17", at=0.0),
        suspected("n17", at=3 * HOUR),
        suspected("n17", weight=0.2, at=3 * HOUR, what="stall", share=True),
    )
    assert in_words(known.evidence["n17"]) == "2 node failures in 3 h, 1 stall"
    (found,) = known.left_out(3 * HOUR, RULES, wanted=1)
    assert left_out_in_words([found]) == "node n17 left out: 2 node failures in 3 h, 1 stall"
    assert left_out_in_words([found] * 5).endswith("; and 2 more nodes")
    named = [suspected("n1", at=at, what="log signal of crash.gpu") for at in (0.0, 90.0)]
    assert in_words(ledger(*named).evidence["n1"]) == "2 log signals of crash.gpu in 2 min"


@pytest.mark.parametrize(
    "wrong", [{"half_life_hours": 0}, {"threshold": 0}, {"max_nodes": -1}, {"max_fraction": 1.5}]
)
def test_a_rule_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    """Naming the key."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NodeExclusion(**wrong)
