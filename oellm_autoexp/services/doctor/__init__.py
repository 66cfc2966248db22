"""`doctor`: what stands between a person and finished jobs, on this machine, this cluster, with this config.

A check is a function that yields findings; adding one is a function and a line in CHECKS.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from oellm_autoexp.errors import AutoexpError
from oellm_autoexp.services.doctor import cluster, machine, places
from oellm_autoexp.services.doctor.site import Finding, Look, Site, fault

__all__ = ["CHECKS", "Examined", "Finding", "Site", "examine"]

#: Seconds that one check may take; a file server that is away would hold it for ever.
CHECK_S = 90.0

#: In the order in which they are shown.
CHECKS: Sequence[tuple[str, Look]] = (
    ("versions", machine.versions),
    ("shell", machine.shell),
    ("rights", machine.rights),
    ("staying", machine.staying),
    ("sessions", machine.sessions),
    ("disk", places.written),
    ("file system", places.file_systems),
    ("space", places.room),
    ("commands", cluster.commands),
    ("controller", cluster.controller),
    ("accounting", cluster.accounting),
    ("limits", cluster.limits),
    ("accounts", cluster.associations),
    ("partitions", cluster.partitions),
    ("hardware", cluster.hardware),
    ("scripts", cluster.scripts),
    ("launcher", machine.launchers),
    ("env_file", machine.env_files),
    ("source", machine.source),
)


@dataclass(frozen=True, kw_only=True)
class Examined:
    """A finding, and the check that it is of."""

    check: str
    finding: Finding


def examine(
    site: Site,
    *,
    checks: Sequence[tuple[str, Look]] = CHECKS,
    limit_s: float = CHECK_S,
    begins: Callable[[str], None] = lambda _check: None,
) -> Iterator[Examined]:
    """Every finding, as soon as it is known. `begins` is told the name of each check before it."""
    for name, look in checks:
        begins(name)
        for finding in _within(limit_s, look, site):
            yield Examined(check=name, finding=finding)


def _within(limit_s: float, look: Look, site: Site) -> list[Finding]:
    """The findings of a check; one that cannot be finished is a fault of what it looked at."""
    found: list[Finding] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.extend(look(site))
        except (OSError, AutoexpError) as error:
            found.append(fault(f"cannot be looked at: {error}", "mend that, and look again"))
        except BaseException as error:  # noqa: BLE001 - raised again where it can be seen
            failed.append(error)

    # A process of its own could be ended, but costs more than all checks; this one ends with the program.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if failed:
        raise failed[0]
    if thread.is_alive():
        fix = "a file system or a command hangs: `df` and `scontrol ping` tell which"
        return [*found, fault(f"no answer within {limit_s:g} s", fix)]
    return found
