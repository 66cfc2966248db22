"""Checks of the Slurm cluster: its commands and limits, and whether it has what the jobs ask for."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from oellm_autoexp.core.times import format_time, parse_time
from oellm_autoexp.errors import did_you_mean
from oellm_autoexp.schedulers.slurm import site as slurm_site
from oellm_autoexp.services.doctor.site import COMMANDS, Asked, Finding, Site, fault, ok, warning

#: The oldest version that has what is asked of it (SLURM_TIME_FORMAT, `squeue -O` with every field).
OLDEST = (20, 11)
#: The loop looks at least this often; a job that squeue forgets sooner may end unseen.
LOOK_S = 60
#: Directives that are tried with `sbatch --test-only`: each try takes a job id.
TESTED = 3


def commands(site: Site) -> Iterator[Finding]:
    """Slurm's commands are here."""
    if not site.on_slurm:
        if site.plan is None:
            yield warning(
                "no sbatch here: this is no login node of a Slurm cluster", "--local runs jobs here"
            )
        return
    missing = [name for name in COMMANDS if site.path_of(site.command(name)[0]) is None]
    for name in missing:
        word = site.command(name)[0]
        fix = f"load the module that has it, or name it: scheduler.{COMMANDS[name]}" if COMMANDS[name] else ""
        if name == "sacct":
            yield warning(f"no `{word}`: nothing is asked of accounting", "load the module that has it")
        else:
            yield fault(f"no `{word}` on PATH", fix or "load the module that has Slurm's commands")
    if not missing:
        yield ok(f"{', '.join(shlex.join(site.command(name)) for name in COMMANDS)} are here")


def controller(site: Site) -> Iterator[Finding]:
    """The controller answers, and its version is one that is understood."""
    if not site.on_slurm or site.path_of("scontrol") is None:
        return
    began = site.clock.monotonic()
    if not site.answers:
        ran = site.ask("scontrol", "show", "config")
        said = "it does not answer" if ran.status is None else " ".join(ran.errors.split()) or ran.output
        fix = "wait for it (jobs that run go on), or set SLURM_CONF to the cluster that is meant"
        yield fault(f"slurmctld: {said[:200]}", fix)
        return
    took = site.clock.monotonic() - began
    version, name = site.settings.get("SLURM_VERSION", ""), site.settings.get("ClusterName", "")
    yield ok(f"cluster {name}: Slurm {version} answered in {took:.2f} s")
    numbers = tuple(slurm_site.number(part) or 0 for part in version.split(".")[:2])
    if version and numbers < OLDEST:
        yield warning(f"Slurm {version} is older than 20.11", "try a small sweep first, and watch it")


def accounting(site: Site) -> Iterator[Finding]:
    """Whether ended jobs can be asked about, and until when without accounting."""
    if not site.answers:
        return
    age_s = slurm_site.number(site.settings.get("MinJobAge")) or 0
    if not site.has_accounting:
        yield ok("accounting is off: how a job ended is known from squeue and from the record it leaves")
        if 0 < age_s < LOOK_S:
            what = f"squeue forgets an ended job after {age_s} s (MinJobAge), and there is no accounting"
            yield warning(what, "jobs that are killed without a record count as lost and are run again")
        return
    ran = site.ask("sacct", "-n", "-X", "-S", "now-1minutes")
    if ran.status == 0:
        yield ok("accounting is on, and sacct answers")
    else:
        said = "no answer" if ran.status is None else " ".join(ran.errors.split())[:200]
        yield warning(f"accounting is on, but sacct fails: {said}", "squeue and the jobs' own records serve")


def limits(site: Site) -> Iterator[Finding]:
    """Limits of the whole cluster that a plan may meet."""
    if not site.answers:
        return
    shown = ("MaxArraySize", "MaxJobCount", "MinJobAge", "MessageTimeout", "KillWait")
    yield ok(", ".join(f"{name} {site.settings.get(name, '?')}" for name in shown))
    most = slurm_site.number(site.settings.get("MaxJobCount"))
    count = _at_once(site)
    if most is not None and count > most:
        what = f"{count} jobs would be submitted at once; the cluster takes {most} of all users"
        yield fault(what, f"set scheduler.max_jobs well below {most}")
    for asked in site.asked:
        kill_wait_s = slurm_site.number(site.settings.get("KillWait")) or 0
        if asked.options.get("signal", "") == "" and kill_wait_s < 10:
            what = f"a job has {kill_wait_s} s from SIGTERM to SIGKILL at its time limit (KillWait)"
            yield warning(what, 'where it saves then, ask earlier: slurm.sbatch.signal: "B:USR1@300"')
            break


def _at_once(site: Site) -> int:
    if site.plan is None:
        return 0
    wanted = getattr(site.plan.loaded.scheduler.config, "max_jobs", None)
    return min(len(site.plan.jobs), wanted or len(site.plan.jobs))


def associations(site: Site) -> Iterator[Finding]:
    """The accounts and limits that accounting gives this user."""
    if not site.has_accounting:
        return
    known = site.associations
    enforced = "associations" in site.settings.get("AccountingStorageEnforce", "")
    if not known:
        if enforced:
            yield fault("accounting knows no account of yours", "ask your project's manager for one")
        return
    accounts = {each.account for each in known}
    yield ok(f"your accounts: {', '.join(sorted(accounts))}")
    for asked in site.asked:
        account = asked.options.get("account")
        mine = [each for each in known if account is None or each.account == account.lower()]
        if account is not None and not mine:
            say = fault if enforced else warning
            hint = did_you_mean(account, accounts)
            yield say(f"account {account} of {asked.whom} is none of yours", hint)
            continue
        qos = asked.options.get("qos")
        allowed = {name for each in mine for name in each.qos}
        if qos is not None and allowed and qos not in allowed:
            say = fault if "qos" in site.settings.get("AccountingStorageEnforce", "") else warning
            yield say(f"qos {qos} of {asked.whom} is not open to you", did_you_mean(qos, allowed))
        yield from _most_submitted(site, mine)


def _most_submitted(site: Site, mine: Iterable[slurm_site.Association]) -> Iterator[Finding]:
    most = [each.max_submit for each in mine]
    bounds = [bound for bound in most if bound is not None]
    if most and len(bounds) == len(most) and _at_once(site) > max(bounds):
        what = f"{_at_once(site)} jobs would be submitted at once; your association takes {max(bounds)}"
        yield warning(what, f"set scheduler.max_jobs: {max(bounds)}; the others wait for their turn")


def partitions(site: Site) -> Iterator[Finding]:
    """The partitions that jobs ask for exist, are up, and take their time, nodes and account."""
    if not site.partitions:
        return
    if not site.asked:
        up = [name for name, found in site.partitions.items() if found.is_up]
        yield ok(f"partitions: {', '.join(up)}")
    for asked in site.asked:
        named = [name for name in asked.options.get("partition", "").split(",") if name]
        unknown = [name for name in named if name not in site.partitions]
        for name in unknown:
            hint = did_you_mean(name, site.partitions)
            yield fault(f"there is no partition {name}: {asked.whom}", hint)
        found = site.partitions_of(asked)
        if not named and not found:
            hint = f"name one in slurm.sbatch.partition: {', '.join(site.partitions)}"
            yield fault(f"no partition is named for {asked.whom}, and the cluster has no default", hint)
        problems = [list(_fits(partition, asked)) for partition in found]
        if found and not unknown and not any(problems):
            yield ok(f"partition {', '.join(each.name for each in found)} takes {asked.whom}")
        # Of several it is enough that one takes the job.
        if problems and all(problems):
            yield from (finding for each in problems for finding in each)


def _fits(partition: slurm_site.Partition, asked: Asked) -> Iterator[Finding]:
    name = f"partition {partition.name}"
    if not partition.is_up:
        yield warning(f"{name} is not up: jobs wait", "wait, or name another: slurm.sbatch.partition")
    try:
        wanted_s = parse_time(asked.options["time"]) if "time" in asked.options else None
    except ValueError:
        wanted_s = None
    most_s = partition.max_time_s
    if wanted_s is not None and most_s is not None and wanted_s > most_s:
        what = f"{name} allows {format_time(most_s)}; {asked.whom} asks for {asked.options['time']}"
        fix = f'set slurm.sbatch.time: "{format_time(most_s)}", and restart after timeout'
        yield fault(what, fix)
    nodes = asked.job.spec.resources.nodes
    most = min(bound for bound in (partition.max_nodes, partition.total_nodes or nodes) if bound is not None)
    if nodes > most:
        fix = "set slurm.sbatch.nodes, or name another partition"
        yield fault(f"{name} gives a job at most {most} nodes; {asked.whom} asks for {nodes}", fix)
    for key, takes in (("account", partition.takes_account), ("qos", partition.takes_qos)):
        value = asked.options.get(key)
        if value is not None and not takes(value):
            yield fault(f"{name} does not take {key} {value}: {asked.whom}", f"set slurm.sbatch.{key}")


def hardware(site: Site) -> Iterator[Finding]:
    """Some node has the features and the generic resources that jobs ask for."""
    for asked in site.asked if site.nodes else ():
        names = {each.name for each in site.partitions_of(asked)}
        there = [each for each in site.nodes if each.partition in names]
        if not there:
            continue
        features = slurm_site.wanted_features(asked.options.get("constraint", ""))
        fitting = [each for each in there if each.features.issuperset(features)]
        if not fitting:
            known = sorted({feature for each in there for feature in each.features})
            fix = did_you_mean(features[0], known) or "these nodes have no features: leave it out"
            yield fault(f"no node has the constraint {asked.options['constraint']}: {asked.whom}", fix)
            continue
        wanted = slurm_site.gres(_resources_of(asked))
        if not any(_has(each, wanted) for each in fitting):
            have = sorted({f"{name}:{count}" for each in fitting for name, count in each.gres.items()})
            fix = f"its nodes have {', '.join(have) or 'none'}"
            words = ", ".join(f"{name}:{count}" for name, count in wanted.items())
            yield fault(f"no node of {', '.join(sorted(names))} has {words}: {asked.whom}", fix)
        elif wanted or features:
            yield ok(f"nodes of {', '.join(sorted(names))} have what {asked.whom} asks for")


def _resources_of(asked: Asked) -> str:
    """What each node must have."""
    gpus = asked.options.get("gpus-per-node")
    parts = [asked.options.get("gres", ""), *(f"gpu:{each}" for each in (gpus or "").split(",") if each)]
    return ",".join(part for part in parts if part)


def _has(nodes: slurm_site.Nodes, wanted: dict[str, int]) -> bool:
    return all(nodes.gres.get(name, 0) >= count for name, count in wanted.items())


def scripts(site: Site) -> Iterator[Finding]:
    """Slurm itself takes the scripts, as far as `sbatch --test-only` can tell."""
    if not site.answers:
        return
    for asked in site.asked[:TESTED]:
        path = Path(tempfile.gettempdir(), f"oellm-autoexp-doctor.{os.getpid()}.sbatch")
        try:
            site.effects.create(path, asked.job.script.encode(), mode=0o600)
            ran = site.ask("sbatch", "--test-only", str(path))
        finally:
            site.effects.unlink(path)
        said = " ".join(f"{ran.errors} {ran.output}".split()).removeprefix("sbatch: ")
        if ran.status == 0:
            yield ok(f"sbatch --test-only of {asked.whom}: {said[:200]}")
        else:
            why = f"no answer within {site.command_s:g} s" if ran.status is None else said[:300]
            yield fault(f"sbatch --test-only of {asked.whom}: {why}", "mend slurm.sbatch as it says")
    if len(site.asked) > TESTED:
        yield ok(f"{len(site.asked) - TESTED} more kinds of jobs were not tried with sbatch --test-only")
