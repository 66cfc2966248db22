"""Checks of the directories where state, outputs, scripts and logs are: what their file systems can do."""

from __future__ import annotations

import errno
import os
import secrets
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from oellm_autoexp.core.verdict import format_duration
from oellm_autoexp.monitor import wake
from oellm_autoexp.services import space
from oellm_autoexp.services.doctor.site import Finding, Site, fault, ok, warning

#: Tries of which the median counts.
TRIES = 5
#: Each commit of the journal waits for the disk: above this many seconds a tick is felt.
SLOW_FSYNC_S = 0.2
#: Deadlines that jobs are told are this machine's time.
SKEW_S = 30.0
#: Of a campaign of a few hundred jobs.
FREE_FILES = 10_000
#: File systems that a reboot empties.
FLEETING = frozenset({"tmpfs", "ramfs"})
#: How long a change may take to be noticed.
WAKE_S = 3.0
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})


def written(site: Site) -> Iterator[Finding]:
    """Each place takes what a journal does to it: a complete file by a hard link, waited for on the disk."""
    for place, labels in site.places.items():
        label = _label(place, labels)
        try:
            probe = _probe(site, place)
        except OSError as error:
            if error.errno in _NO_LINKS:
                fix = "set project.state_dir to a directory on another file system"
                yield fault(f"{label} knows no hard links ({error.strerror})", fix)
            else:
                fix = "mend its rights, make room, or name another directory"
                yield fault(f"{label} cannot be written: {error.strerror}", fix)
            continue
        yield from _told(label, probe)


@dataclass(frozen=True, kw_only=True)
class _Probe:
    fsync_s: float
    #: How far the file server's clock is ahead.
    skew_s: float


def _probe(site: Site, place: Path) -> _Probe:
    """What it takes to make a file here.

    Raises:
        OSError: it cannot be done.
    """
    name = f".oellm-autoexp-doctor.{os.getpid()}.{secrets.token_hex(4)}"
    took, skews = [], []
    for number in range(TRIES):
        path = place / f"{name}.{number}"
        try:
            began, now = site.clock.monotonic(), site.clock.now()
            site.effects.write_new(path, b"doctor\n")
            took.append(site.clock.monotonic() - began)
            skews.append(path.stat().st_mtime - (now + site.clock.now()) / 2)
        finally:
            site.effects.unlink(path)
    return _Probe(fsync_s=statistics.median(took), skew_s=statistics.median(skews))


def _told(label: str, probe: _Probe) -> Iterator[Finding]:
    takes = f"a file with hard link and fsync takes {probe.fsync_s * 1000:.1f} ms"
    if probe.fsync_s > SLOW_FSYNC_S:
        yield warning(f"{label}: {takes}", "put project.state_dir on a faster file system, such as your home")
    else:
        yield ok(f"{label}: {takes}")
    if abs(probe.skew_s) > SKEW_S:
        ahead = "ahead of" if probe.skew_s > 0 else "behind"
        what = f"{label}: its file server's clock is {abs(probe.skew_s):.0f} s {ahead} this machine's"
        yield warning(what, "tell your site; until then, deadlines and ages of files are off by as much")


def file_systems(site: Site) -> Iterator[Finding]:
    """What kind of file system each place is on, and what follows for the loop."""
    mounts = wake.mounts()
    for place, labels in site.places.items():
        label, kind = _label(place, labels), wake.file_system(place, mounts)
        if kind in FLEETING:
            yield warning(f"{label} is on {kind}: a reboot empties it", "name a directory on a disk")
        elif kind not in wake.LOCAL:
            what = f"{label} is on {kind or 'an unknown file system'}: changes are found by looking at files"
            yield ok(f"{what}, every {format_duration(wake.MAX_REST_S)} at the latest")
        elif site.plan is not None and site.on_slurm:
            fix = "where compute nodes do not see it, name a directory that is shared with them"
            yield warning(f"{label} is on {kind}, which only this machine has for certain", fix)
        if kind in wake.LOCAL:
            yield from _wakes(site, place, label)


def _wakes(site: Site, place: Path, label: str) -> Iterator[Finding]:
    """Whether the loop's own alarm rings for a change."""
    path = place / f".oellm-autoexp-doctor.{os.getpid()}.wake"
    alarm = wake.Alarm(site.clock.wait)
    try:
        site.effects.mkdir(path)
        alarm.watch([path])
        site.effects.append(path / "log", b"grows\n", private=True, durable=False)
        rang = alarm.rest(WAKE_S)
    except OSError:
        return  # That it cannot be written is another check's to say.
    finally:
        alarm.stop()
        site.effects.remove_tree(path)
    if rang:
        yield ok(f"{label}: a change wakes the loop")
    else:
        what = f"{label}: a change wakes nobody, so that files are only looked at every few seconds"
        yield warning(what, "raise fs.inotify.max_user_instances and max_user_watches (inotify(7))")


def room(site: Site) -> Iterator[Finding]:
    """Room for files: what the file system and this user's quota leave."""
    for place, labels in site.places.items():
        label = _label(place, labels)
        for each in space.rooms(place):
            counts = []
            if each.bytes_free is not None:
                counts.append(space.size(max(0, each.bytes_free)))
            if each.files_free is not None:
                counts.append(f"{max(0, each.files_free):,} files")
            if not counts:
                continue
            what = f"{label}: {each.what} leaves room for {', '.join(counts)}"
            is_low = each.bytes_free is not None and each.bytes_free < space.LOW_BYTES
            if is_low or (each.files_free is not None and each.files_free < FREE_FILES):
                yield fault(what, "make room, or set project.base_output_dir to where there is more")
            else:
                yield ok(what)


def _label(place: Path, labels: tuple[str, ...]) -> str:
    return f"{place} ({', '.join(labels)})"
