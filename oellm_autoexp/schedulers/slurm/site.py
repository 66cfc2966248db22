"""What a Slurm cluster says of itself: settings, partitions, nodes, a user's associations. Pure.

The forms are those of `scontrol show config`, `scontrol show partition -o`, `sinfo -o` and
`sacctmgr -n -P show associations` (Slurm 22.05; the words are the same from 20.11 to 25).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from oellm_autoexp.core.hostlist import expand
from oellm_autoexp.core.times import parse_time

#: Between fields of sinfo: a character that no name holds.
SEPARATOR = "\x1f"
#: `sinfo -h -o`: partition, nodes, features, generic resources.
NODES_FORMAT = SEPARATOR.join(("%R", "%D", "%f", "%G"))
#: `sinfo -h -N -o`: node, state.
STATES_FORMAT = SEPARATOR.join(("%N", "%T"))
#: `sacctmgr -n -P show associations where user=… format=…`
ASSOCIATION_FIELDS = "Account,Partition,QOS,MaxSubmit"


def settings(text: str) -> dict[str, str]:
    """`scontrol show config` by name; the part on slurmctld's plug-ins has names of its own."""
    return dict(re.findall(r"^(\w+)\s+= (.*?)\s*$", text, re.MULTILINE))


def number(value: str | None) -> int | None:
    """The number that a setting begins with ("10 sec"); None: there is none, or no limit."""
    match = re.match(r"\d+", value or "")
    return int(match[0]) if match else None


# ---------------------------------------------------------------- partitions


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition; limits are None where there is none."""

    name: str
    is_up: bool = True
    is_default: bool = False
    max_time_s: int | None = None
    max_nodes: int | None = None
    total_nodes: int = 0
    nodes: frozenset[str] = frozenset()
    #: Accounts and QOS that it takes: empty for all, and those that it refuses.
    accounts: frozenset[str] = frozenset()
    denied_accounts: frozenset[str] = frozenset()
    qos: frozenset[str] = frozenset()
    denied_qos: frozenset[str] = frozenset()

    def takes_account(self, account: str) -> bool:
        """Whether jobs of an account may run here (accounts are lower case, slurmdbd(8))."""
        return _takes(account.lower(), self.accounts, self.denied_accounts)

    def takes_qos(self, qos: str) -> bool:
        return _takes(qos, self.qos, self.denied_qos)


def _takes(name: str, allowed: frozenset[str], denied: frozenset[str]) -> bool:
    return name not in denied and (not allowed or name in allowed)


def partitions(text: str) -> dict[str, Partition]:
    """The partitions of `scontrol show partition -o`, by name."""
    found = {}
    for line in text.splitlines():
        words = dict(word.partition("=")[::2] for word in line.split())
        name = words.get("PartitionName")
        if name:
            found[name] = Partition(
                name=name,
                is_up=words.get("State", "UP") == "UP",
                is_default=words.get("Default") == "YES",
                max_time_s=_seconds(words.get("MaxTime", "")),
                max_nodes=number(words.get("MaxNodes")),
                total_nodes=number(words.get("TotalNodes")) or 0,
                nodes=frozenset(expand(words.get("Nodes", ""))),
                accounts=_names(words.get("AllowAccounts")),
                denied_accounts=_names(words.get("DenyAccounts")),
                qos=_names(words.get("AllowQos")),
                denied_qos=_names(words.get("DenyQos")),
            )
    return found


def _seconds(text: str) -> int | None:
    try:
        return parse_time(text)
    except ValueError:
        return None


def _names(text: str | None) -> frozenset[str]:
    return frozenset() if text in (None, "", "ALL", "(null)") else frozenset(text.split(","))


# ---------------------------------------------------------------- nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Nodes of a partition that are alike. `gres` counts by name and by type: {"gpu": 4, "gpu:a100": 4}."""

    partition: str
    count: int
    features: frozenset[str]
    gres: Mapping[str, int]


def nodes(text: str) -> tuple[Nodes, ...]:
    """The lines of `sinfo -h -o NODES_FORMAT`."""
    found = []
    for line in text.splitlines():
        fields = line.split(SEPARATOR)
        if len(fields) == 4:
            partition, count, features, resources = fields
            found.append(
                Nodes(
                    partition=partition,
                    count=number(count) or 0,
                    features=_names(features),
                    gres=gres(resources),
                )
            )
    return tuple(found)


def failed(text: str) -> frozenset[str]:
    """The nodes that are down, fail, or do not respond (`down*`), of `sinfo -h -N -o STATES_FORMAT`.

    >>> lines = ["n1 down*", "n2 allocated", "n3 idle*", "n4 drained", "n5 failing"]
    >>> sorted(failed("\\n".join(line.replace(" ", SEPARATOR) for line in lines)))
    ['n1', 'n3', 'n5']
    """
    states = (line.split(SEPARATOR) for line in text.splitlines() if SEPARATOR in line)
    return frozenset(
        node for node, state in states if state.startswith(("down", "fail")) or state.endswith("*")
    )


def gres(text: str) -> dict[str, int]:
    """Generic resources by name, and by name and type.

    >>> gres("gpu:a100:4(S:0-1),nvme:1"), gres("gpu"), gres("(null)")
    ({'gpu': 4, 'gpu:a100': 4, 'nvme': 1}, {'gpu': 1}, {})
    """
    found: dict[str, int] = {}
    for name, kind, count in _gres_items(text):
        for key in (name, f"{name}:{kind}") if kind else (name,):
            found[key] = found.get(key, 0) + count
    return found


def _gres_items(text: str) -> Iterator[tuple[str, str, int]]:
    if text.startswith("("):
        return
    for item in re.split(r",(?![^()]*\))", text):
        # `=` stands for `:` in options; "gres/" before the name, "(S:0-1)" or "(IDX:0)" behind the count.
        words = re.sub(r"\(.*\)$", "", item.strip()).removeprefix("gres/").replace("=", ":").split(":")
        count = int(words.pop()) if len(words) > 1 and words[-1].isdecimal() else 1
        if words[0]:
            yield words[0], ":".join(words[1:]), count


def wanted_features(constraint: str) -> tuple[str, ...]:
    """The features that all must be there, of a `--constraint`; none where it says `or` or counts nodes."""
    if any(mark in constraint for mark in "|[*("):
        return ()
    return tuple(word.strip() for word in re.split("[&,]", constraint) if word.strip())


# ---------------------------------------------------------------- associations


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """What a user may use: an account, in one partition or all (""), with these QOS, so many jobs at once."""

    account: str
    partition: str
    qos: frozenset[str]
    max_submit: int | None


def associations(text: str) -> tuple[Association, ...]:
    """The lines of `sacctmgr -n -P show associations … format=ASSOCIATION_FIELDS`."""
    found = []
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == 4 and fields[0]:
            account, partition, qos, most = fields
            found.append(
                Association(account=account, partition=partition, qos=_names(qos), max_submit=number(most))
            )
    return tuple(found)
