"""What a Slurm cluster can do, asked now and then: settings, partitions, how much one may submit."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Mapping, Sequence

from oellm_autoexp.core.hostlist import expand
from oellm_autoexp.errors import SchedulerUnavailable
from oellm_autoexp.schedulers.slurm import answers
from oellm_autoexp.schedulers.slurm import site as slurm_site
from oellm_autoexp.schedulers.slurm import text as slurm_text
from oellm_autoexp.schedulers.slurm.answers import ClusterFacts
from oellm_autoexp.schedulers.slurm.commands import Commands
from oellm_autoexp.schedulers.slurm.site import Partition

#: What a cluster can do is asked again after this long.
PROBE_S = 3600.0


class SlurmCluster:
    """The cluster, or the clusters, that jobs are given to."""

    def __init__(self, commands: Commands, clusters: Sequence[str], *, limits: bool) -> None:
        """`limits`: how much one may submit is asked, too, where accounting tells it."""
        self._commands = commands
        self._clusters = tuple(clusters)
        self._limits = limits
        self._probed_at = 0.0
        #: What is known so far; None: it has never answered.
        self.known: ClusterFacts | None = None
        self._partitions: Mapping[str, Partition] = {}
        #: The most jobs that the user may have submitted at once; None: not known, or no limit.
        self.most_submitted: int | None = None

    @property
    def option(self) -> list[str]:
        """What each command is told of where to ask."""
        return [f"--clusters={','.join(self._clusters)}"] if self._clusters else []

    @property
    def name(self) -> str:
        """Where jobs go that are not told otherwise; "" while that is not known."""
        return self._clusters[0] if self._clusters else self.known.name if self.known is not None else ""

    @property
    def names(self) -> frozenset[str]:
        """Where jobs of ours may be."""
        return frozenset(self._clusters or (self.name,))

    def facts(self) -> ClusterFacts:
        """What the cluster says of itself.

        Raises:
            SchedulerUnavailable: it has never answered.
        """
        now = time.monotonic()
        if self.known is not None and now - self._probed_at < PROBE_S:
            return self.known
        try:
            found = answers.cluster_facts(self._commands.answer("scontrol", "show", "config"))
            if found is None:
                raise SchedulerUnavailable("scontrol show config: it names no cluster")
            text = self._commands.answer("scontrol", *self.option, "show", "partition", "--all", "-o")
        except SchedulerUnavailable:
            if self.known is None:
                raise
            return self.known
        self.known, self._probed_at = found, now
        self._partitions = slurm_site.partitions(text)
        self.most_submitted = self._ask_for_limit() if found.accounting and self._limits else None
        return found

    def _ask_for_limit(self) -> int | None:
        """The highest that any association of the user allows: which one counts, a job says."""
        try:
            user = f"user={pwd.getpwuid(os.getuid()).pw_name}"
            fields = f"format={slurm_site.ASSOCIATION_FIELDS}"
            ran = self._commands.query("sacctmgr", "-n", "-P", "show", "associations", "where", user, fields)
        except (KeyError, SchedulerUnavailable):
            return None
        found = [each.max_submit for each in slurm_site.associations(ran.output)] if ran.status == 0 else []
        limits = [most for most in found if most is not None]
        return max(limits) if limits and len(limits) == len(found) else None

    # ---- partitions

    def _of(self, script: str) -> list[Partition]:
        """The partitions that a script asks for; none where one of them is not known."""
        asked = slurm_text.options_of(script).get("partition", "")
        if not asked:
            return [each for each in self._partitions.values() if each.is_default]
        names = asked.split(",")
        known = [self._partitions[name] for name in names if name in self._partitions]
        return known if len(known) == len(names) else []

    def eligible_nodes(self, script: str) -> frozenset[str] | None:
        """The nodes that a script's jobs could be given; None: not known."""
        partitions = self._of(script)
        nodes = frozenset[str]().union(*(each.nodes for each in partitions))
        own = slurm_text.options_of(script).get("exclude", "")
        return nodes.difference(expand(own)) if partitions else None

    def failed_nodes(self, lists: Sequence[str]) -> frozenset[str]:
        """Those of some nodes that are down now, or do not respond; none where that cannot be told."""
        argv = [
            "sinfo",
            *self.option,
            "-h",
            "-N",
            "-o",
            slurm_site.STATES_FORMAT,
            f"--nodes={','.join(lists)}",
        ]
        try:
            ran = self._commands.query(*argv)
        except SchedulerUnavailable:
            return frozenset()
        return slurm_site.failed(ran.output) if ran.status == 0 else frozenset()

    def within(self, limit_s: int, script: str, now: float) -> int:
        """A time limit, in seconds, cut to what the script's partitions and its `--deadline` allow."""
        limits = [each.max_time_s for each in self._of(script)]
        longest = None if None in limits or not limits else max(most for most in limits if most is not None)
        left = slurm_text.left_until_deadline(script, now)
        return min(most for most in (limit_s, longest, left) if most is not None)
