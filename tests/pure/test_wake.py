"""How long the loop rests, and what may wake it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oellm_autoexp.monitor.wake import LOCAL, MAX_LOAD, MAX_REST_S, MIN_REST_S, Alarm, Rest, file_system

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /home rw,relatime shared:2 - nfs4 server:/home rw
31 30 0:26 / /home/me/fast\\040disk rw - xfs /dev/nvme0n1 rw
32 22 0:27 / /scratch rw shared:3 master:1 - lustre 10.0.0.1@o2ib:/scratch rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/tmp", "ext4"),
        ("/home", "nfs4"),
        ("/home/me/outputs", "nfs4"),
        ("/home/me/fast disk/outputs", "xfs"),
        ("/scratch/project/run", "lustre"),
        ("/scratchy", "ext4"),
    ],
)
def test_the_file_system_is_that_of_the_closest_mount(path, kind, tmp_path):
    """Only whole components of a path count, and blanks are written as octal there."""
    assert file_system(Path(path), MOUNTS) == kind


def test_network_file_systems_are_not_local():
    """Their changes by other hosts are not seen by inotify."""
    assert not LOCAL & {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "fuse", "9p", "cephfs"}


@given(ticks=st.lists(st.booleans(), min_size=1, max_size=60), longest=st.floats(0.01, 600))
def test_a_rest_is_bounded(ticks, longest):
    """However long a scheduler wants to be left alone, the inbox is looked at every few seconds."""
    rest = Rest(longest)
    for changed in ticks:
        seconds = rest.after(changed=changed)
        assert MIN_REST_S <= seconds <= max(MIN_REST_S, min(MAX_REST_S, longest))
        assert seconds == MIN_REST_S or not changed


@given(ticks=st.lists(st.floats(0, 10), min_size=1, max_size=40))
def test_a_busy_loop_leaves_the_machine_alone(ticks):
    """After each tick the rest is at least so long that the tick was a twentieth of the time."""
    cpu, waited = [0.0], []
    alarm = Alarm(waited.append, cpu=lambda: cpu[0])
    for used_s in ticks:
        cpu[0] += used_s
        waited.clear()
        alarm.rest(1.0)
        assert sum(waited) >= max(MIN_REST_S, used_s / MAX_LOAD) * (1 - 1e-9)


def test_a_calm_loop_rests_longer_and_wakes_up_to_short_rests_again():
    rest = Rest(30.0)
    calm = [rest.after(changed=False) for _ in range(12)]
    assert calm == sorted(calm) and calm[-1] == MAX_REST_S
    assert rest.after(changed=True) == MIN_REST_S


def test_without_events_the_whole_rest_is_waited(tmp_path):
    """Nothing is watched: the clock alone decides."""
    waited = []
    Alarm(waited.append, cpu=lambda: 0.0).rest(2.0)
    assert waited == [0.25, 1.75]


def test_a_new_file_on_a_local_file_system_wakes_the_loop(tmp_path):
    """A command in the inbox need not wait for the end of the rest."""
    mounts = Path("/proc/self/mountinfo").read_text()
    if file_system(tmp_path, mounts) not in LOCAL:
        pytest.skip("the temporary directory is on a network file system")
    alarm = Alarm(lambda _seconds: None)
    alarm.watch([tmp_path, tmp_path / "missing"])
    try:
        writer = threading.Thread(target=lambda: (tmp_path / "command.json").write_text("{}"))
        writer.start()
        began = time.monotonic()
        assert alarm.rest(250.0)
        writer.join()
        assert time.monotonic() - began < 200
    finally:
        alarm.stop()
