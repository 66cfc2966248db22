"""The journal under torn writes, full disks, damage, crashes and rivals."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oellm_autoexp.core.events import CommandAnswered, Event, JobHeld
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.errors import LeadershipLost, NotLeader, StateError
from oellm_autoexp.store import segments
from oellm_autoexp.store.effects import Effects, write_all
from oellm_autoexp.store.journal import DEAD_AFTER_S, Follower, History, Journal, leader_alive, read
from oellm_autoexp.store.leader import process_start
from oellm_autoexp.store.segments import line_of, segment


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.at = 0.0
        self.alarms: list[tuple[float, Callable[[], None]]] = []

    def monotonic(self) -> float:
        return self.at

    def wait(self, seconds: float) -> None:
        self.at += seconds
        for alarm in [item for item in self.alarms if item[0] <= self.at]:
            self.alarms.remove(alarm)
            alarm[1]()


def lead(
    paths: SessionPaths, effects: Effects | None = None, clock: Clock | None = None
) -> tuple[Journal, History]:
    clock = clock or Clock()
    led = Journal.lead(paths, effects or Effects(), now=1000.0, monotonic=clock.monotonic, wait=clock.wait)
    LED.append(led[0])
    return led


#: Leaders that a test has left behind as a crash would, but for their open files.
LED: list[Journal] = []


@pytest.fixture(autouse=True)
def _open_files() -> Iterator[None]:
    yield
    for journal in LED:
        if journal._fd >= 0:
            os.close(journal._fd)
            journal._fd = -1
    LED.clear()


def event(number: int) -> Event:
    return JobHeld(at=float(number), job=f"job-{number}", why="ä \n" * (number % 4))


def commit(journal: Journal, numbers: range) -> list[Event]:
    events = [event(number) for number in numbers]
    for item in events:
        journal.append(item)
    journal.commit()
    return events


@contextmanager
def session() -> Iterator[SessionPaths]:
    """A state directory; in memory where there is such a place, since these tests sync a lot."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as directory:
        yield SessionPaths(Path(directory) / "state")


# ---------------------------------------------------------------- one leader


def test_what_was_committed_is_read_in_order_over_all_leaders(tmp_path):
    """Events come back as they were, whoever wrote them."""
    paths = SessionPaths(tmp_path / "state")
    written: list[Event] = []
    for round_ in range(4):
        journal, history = lead(paths)
        assert history.events == written
        for start in range(3):
            written += commit(journal, range(10 * round_ + start, 10 * round_ + 2 * start))
        if round_ % 2:
            journal.close(2000.0)
    history = read(paths)
    assert (history.events, history.last_epoch, history.closed) == (written, 4, True)


def test_an_empty_place_is_an_empty_history(tmp_path):
    """Reading creates nothing and needs nothing."""
    paths = SessionPaths(tmp_path / "nowhere")
    assert read(paths) == History()
    assert Follower(paths).new_events() == []
    assert leader_alive(paths) is None
    assert not paths.state_dir.exists()


def test_nothing_is_on_disk_before_the_barrier(tmp_path):
    """`append` only buffers; `dirty` says so."""
    journal, _ = lead(SessionPaths(tmp_path))
    journal.append(event(1))
    assert journal.dirty
    assert read(SessionPaths(tmp_path)).events == []
    journal.commit()
    assert not journal.dirty
    assert read(SessionPaths(tmp_path)).events == [event(1)]


def test_infinity_and_lone_surrogates_survive(tmp_path):
    """A log that says `loss nan` in broken UTF-8 does not stop the daemon."""
    paths = SessionPaths(tmp_path)
    journal, _ = lead(paths)
    journal.append(JobHeld(at=1.0, job="\udcff\x00\u2028", why=""))
    journal.append(CommandAnswered(at=2.0, command="c", verb="v", ok=True, text="x"))
    journal.commit()
    assert read(paths).events[0] == JobHeld(at=1.0, job="\udcff\x00\u2028", why="")


def test_state_is_private_whatever_the_umask(tmp_path):
    """Directories are 0700 and files 0600; a group opens them to itself and to nobody else."""
    for name, umask, group, dir_mode, file_mode in (
        ("open", 0, None, 0o700, 0o600),
        ("group", 0o077, os.getgid(), 0o770, 0o660),
    ):
        paths = SessionPaths(tmp_path / name / "state")
        before = os.umask(umask)
        try:
            journal, _ = lead(paths, Effects(group=group))
            journal.heartbeat(1.0)
        finally:
            os.umask(before)
        for path in (paths.state_dir, *paths.state_dir.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode) & 0o777
            assert mode == (dir_mode if path.is_dir() else file_mode), path


# ---------------------------------------------------------------- torn and damaged


def three_commits(paths: SessionPaths) -> tuple[bytes, list[int], list[list[Event]]]:
    """The bytes of a segment, where its commits end, and the events of each."""
    journal, _ = lead(paths)
    path = segment(paths, 1)
    ends, commits = [path.stat().st_size], []
    for numbers in (range(1), range(1, 4), range(4, 6)):
        commits.append(commit(journal, numbers))
        ends.append(path.stat().st_size)
    return path.read_bytes(), ends, commits


def test_a_segment_torn_at_any_byte_keeps_its_complete_commits():
    """Whatever was cut off, the commits before it count, and the next leader goes on behind them."""
    with session() as paths:
        data, ends, commits = three_commits(paths)
        header = data.index(b"\n") + 1
        for cut in range(header, len(data) + 1):
            for late in segment(paths, 2), segment(paths, 3):
                late.unlink(missing_ok=True)
            segment(paths, 1).write_bytes(data[:cut])
            expected = [
                item for end, items in zip(ends[1:], commits, strict=True) if end <= cut for item in items
            ]
            assert read(paths).events == expected, cut
            assert Follower(paths).new_events() == expected, cut
            if cut % 5 == 0:
                journal, history = lead(paths)
                assert history.events == expected
                more = commit(journal, range(50, 52))
                assert read(paths).events == expected + more


@given(place=st.integers(min_value=0), flip=st.integers(1, 255), newer=st.booleans())
@settings(max_examples=300, deadline=None)
def test_damage_in_the_middle_is_never_passed_over(place, flip, newer):
    """A changed byte before the last record is an error that names the file and a byte at or before it."""
    with session() as paths:
        data, _, _ = three_commits(paths)
        if newer:
            lead(paths)
        last = data.rstrip(b"\n").rindex(b"\n") + 1
        place %= last
        path = segment(paths, 1)
        path.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
        for reader in (lambda: read(paths), lambda: Follower(paths).new_events(), lambda: lead(paths)):
            with pytest.raises(StateError) as caught:
                reader()
            file, _, byte = caught.value.where.rpartition(", byte ")
            assert file == str(path)
            assert data.rfind(b"\n", 0, place) + 1 == int(byte)
            assert caught.value.exit_code == 3
            assert "backup" in caught.value.hint


@given(place=st.integers(min_value=0), flip=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_damage_in_the_last_record_is_an_error_or_a_torn_end(place, flip):
    """The last record may be torn; it is never read as something else, a whole line is never dropped."""
    with session() as paths:
        data, _, commits = three_commits(paths)
        last = data.rstrip(b"\n").rindex(b"\n") + 1
        place = last + place % (len(data) - last)
        changed = data[place] ^ flip
        segment(paths, 1).write_bytes(data[:place] + bytes([changed]) + data[place + 1 :])
        torn = changed == 0 or place == len(data) - 1
        if torn:
            assert read(paths).events == commits[0] + commits[1]
        else:
            with pytest.raises(StateError):
                read(paths)


def test_blocks_that_were_never_written_are_a_torn_end():
    """A file that grew before its bytes arrived ends in zeros (a power cut, an NFS writer at work)."""
    with session() as paths:
        data, ends, commits = three_commits(paths)
        path = segment(paths, 1)
        for hole in (data[: ends[2]] + b"\0" * 5000, data[: ends[2] + 7] + b"\0" * 40 + b"\n"):
            path.write_bytes(hole)
            assert read(paths).events == commits[0] + commits[1]
        path.write_bytes(data[: ends[1]] + b"\0" * (ends[2] - ends[1]) + data[ends[2] :])
        with pytest.raises(StateError, match="damaged"):
            read(paths)


def test_a_lost_record_or_segment_is_noticed(tmp_path):
    """Records are numbered, segments too, and the next leader says how much it has read."""
    paths = SessionPaths(tmp_path / "state")
    data, ends, _ = three_commits(paths)
    path = segment(paths, 1)
    path.write_bytes(data[: ends[0]] + data[ends[1] :])
    with pytest.raises(StateError, match="record 2 of the journal is missing"):
        read(paths)
    path.write_bytes(data)
    lead(paths)
    path.write_bytes(data[: ends[2]])
    with pytest.raises(StateError, match="records are missing"):
        read(paths)
    with pytest.raises(StateError, match="records are missing"):
        Follower(paths).new_events()
    path.unlink()
    with pytest.raises(StateError, match="segment 1 of the journal is missing"):
        read(paths)
    path.write_bytes(data)
    segment(paths, 2).write_bytes(data)  # a copy under another segment's name
    with pytest.raises(StateError, match=r"00000002\.jsonl, byte 0"):
        read(paths)


def test_the_way_out_of_a_damaged_end_is_printed_and_works(tmp_path):
    """The hint's own command brings a session back."""
    paths = SessionPaths(tmp_path / "state")
    data, ends, commits = three_commits(paths)
    path = segment(paths, 1)
    path.write_bytes(data[: ends[2] + 3] + b"#" + data[ends[2] + 4 :])
    with pytest.raises(StateError) as caught:
        read(paths)
    command = caught.value.hint.rpartition(": ")[2]
    subprocess.run(command.split(), check=True)
    assert read(paths).events == commits[0] + commits[1]


@pytest.mark.parametrize("kind", ["version", "kind"])
def test_a_newer_version_s_journal_is_refused_politely(tmp_path, kind):
    """What this version does not know it does not skip."""
    paths = SessionPaths(tmp_path)
    journal, _ = lead(paths)
    commit(journal, range(3))
    path = segment(paths, 1)
    line = line_of(1, 5, 1.0, "job_teleported" if kind == "kind" else "job_held", '{"job":"a","why":""}')
    if kind == "version":
        text = line.replace(b'"v":1', b'"v":2').rpartition(b',"c"')[0]
        import zlib

        line = text + b',"c":"%08x"}\n' % zlib.crc32(text)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(StateError, match="newer version"):
        read(paths)


def test_an_unreadable_journal_is_an_error_for_people(tmp_path):
    """A directory where a segment should be, for instance."""
    paths = SessionPaths(tmp_path)
    segment(paths, 1).mkdir(parents=True)
    with pytest.raises(StateError, match="cannot be read"):
        read(paths)
    with pytest.raises(StateError, match="cannot be read"):
        lead(paths)


# ---------------------------------------------------------------- disks that fail


class Failing(Effects):
    """A disk that takes `room` bytes of the next write, or does not sync; `mended` puts it right."""

    def __init__(self) -> None:
        super().__init__()
        self.room: int | None = None
        self.syncs = True

    def write_at(self, fd: int, data: bytes, offset: int, target: str) -> None:
        if self.room is not None:
            os.lseek(fd, offset, os.SEEK_SET)
            write_all(fd, data[: self.room])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write_at(fd, data, offset, target)

    def fsync(self, fd: int, target: str) -> None:
        if not self.syncs:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fsync(fd, target)

    def mended(self) -> None:
        self.room, self.syncs = None, True


@given(
    faults=st.lists(
        st.tuples(st.sampled_from(["room", "sync", "none"]), st.integers(0, 900), st.integers(0, 3)),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=150, deadline=None)
def test_a_full_disk_loses_and_doubles_nothing(faults):
    """Whatever half of a commit was written, the retry and a reader in between see each event once."""
    with session() as paths:
        disk = Failing()
        journal, _ = lead(paths, disk)
        follower = Follower(paths)
        appended: list[Event] = []
        seen: list[Event] = []
        for fault, room, count in faults:
            new = [event(len(appended) + index) for index in range(count)]
            appended += new
            for item in new:
                journal.append(item)
            disk.mended()
            disk.room, disk.syncs = (room if fault == "room" else None), fault != "sync"
            if fault == "none" or not journal.dirty:
                journal.commit()
            else:
                with pytest.raises(StateError, match=r"No space left|Input/output error"):
                    journal.commit()
                assert journal.dirty
            seen += follower.new_events()
            assert seen == appended[: len(seen)]
        disk.mended()
        journal.commit()
        assert read(paths).events == appended
        assert seen + follower.new_events() == appended


def interruptions(paths: SessionPaths, at: int) -> int:
    """Commit twice with Ctrl-C at the `at`-th executed line, then go on; how many lines there were."""
    count = 0

    def trace(frame: FrameType, kind: str, _arg: object) -> object:
        nonlocal count
        if not frame.f_code.co_filename.endswith("journal.py"):
            return None
        if kind == "line":
            count += 1
            if count == at:
                raise KeyboardInterrupt
        return trace

    journal, _ = lead(paths)
    before = sys.gettrace()
    expected = [event(number) for number in range(4)]
    for half in (expected[:2], expected[2:]):
        for item in half:
            journal.append(item)
        sys.settrace(trace)
        try:
            journal.commit()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
    journal.close(1.0)
    assert read(paths).events == expected
    return count


def test_ctrl_c_anywhere_in_a_commit_loses_and_doubles_nothing():
    """Saying goodbye afterwards writes what is left."""
    with session() as paths:
        lines = interruptions(paths, 0)
    assert lines > 20
    for at in range(1, lines + 1):
        with session() as paths:
            interruptions(paths, at)


def test_a_disk_that_is_full_at_the_start_is_an_error_and_then_forgotten(tmp_path):
    """Taking over fails with one message; when there is room again it works."""
    paths = SessionPaths(tmp_path / "state")
    disk = Failing()
    disk.room = 10
    with pytest.raises(StateError, match="No space left"):
        lead(paths, disk)
    disk.mended()
    journal, history = lead(paths, disk)
    assert history.events == []
    more = commit(journal, range(2))
    assert read(paths).events == more


def test_a_state_directory_that_cannot_be_made_is_an_error_for_people(tmp_path):
    """A file stands in the way."""
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError, match="cannot be written") as caught:
        lead(SessionPaths(tmp_path / "state"))
    assert "nothing is lost" in caught.value.hint


def test_a_journal_that_is_removed_under_its_leader_stops_effects(tmp_path):
    """Bytes that nobody could find again are no record."""
    paths = SessionPaths(tmp_path / "state")
    journal, _ = lead(paths)
    moved = tmp_path / "elsewhere"
    paths.state_dir.rename(moved)
    journal.append(event(1))
    with pytest.raises(StateError, match="removed"):
        journal.commit()
    moved.rename(paths.state_dir)
    journal.commit()
    assert read(paths).events == [event(1)]


# ---------------------------------------------------------------- crashes


class Crash(BaseException):
    """The process dies here."""


class Dying(Effects):
    """Dies at the n-th step; a write that is under way leaves a part of its bytes."""

    def __init__(self, at: int, torn: float = 1.0) -> None:
        super().__init__()
        self.at, self.torn, self.count = at, torn, 0

    def step(self, name: str, target: str) -> None:
        self.count += 1
        if self.count == self.at:
            raise Crash

    def write_at(self, fd: int, data: bytes, offset: int, target: str) -> None:
        if self.count + 1 == self.at and self.torn < 1.0:
            os.lseek(fd, offset, os.SEEK_SET)
            write_all(fd, data[: int(len(data) * self.torn)])
            raise Crash
        super().write_at(fd, data, offset, target)


def scenario(paths: SessionPaths, effects: Effects, committed: list[Event], appended: list[Event]) -> None:
    journal, history = lead(paths, effects)
    assert history.events == []
    journal.heartbeat(1.0)
    for start in range(0, 9, 3):
        new = [event(number) for number in range(start, start + 3)]
        for item in new:
            journal.append(item)
        appended += new
        journal.commit()
        committed += new
        journal.heartbeat(2.0 + 100 * start)
    journal.close(3.0)


@pytest.mark.parametrize("torn", [0.0, 0.3, 0.9, 1.0])
def test_a_crash_at_any_step_loses_nothing_that_was_committed(torn):
    """After a death at any effect the next leader finds all commits that came back, whole commits only."""
    steps = Dying(0)
    with session() as paths:
        scenario(paths, steps, [], [])
    assert steps.count > 20
    for at in range(1, steps.count + 1):
        with session() as paths:
            committed: list[Event] = []
            appended: list[Event] = []
            with pytest.raises(Crash):
                scenario(paths, Dying(at, torn), committed, appended)
            journal, history = lead(paths)
            found = len(history.events)
            assert len(committed) <= found
            assert found % 3 == 0
            assert history.events == appended[:found]
            more = commit(journal, range(100, 103))
            assert read(paths).events == appended[:found] + more


# ---------------------------------------------------------------- rivals


class Hooked(Effects):
    """Calls a function at the n-th step of a name."""

    def __init__(self, name: str, hook: Callable[[], None], nth: int = 1) -> None:
        super().__init__()
        self.name, self.hook, self.left = name, hook, nth

    def step(self, name: str, target: str) -> None:
        if name == self.name:
            self.left -= 1
            if self.left == 0:
                self.hook()


def test_a_fenced_leader_stops_before_its_next_commit(tmp_path):
    """It raises, writes nothing more, and what it forces into its file is never replayed."""
    paths = SessionPaths(tmp_path)
    old, _ = lead(paths)
    first = commit(old, range(3))
    new, history = lead(paths)
    assert history.events == first
    size = segment(paths, 1).stat().st_size
    old.append(event(66))
    with pytest.raises(LeadershipLost):
        old.commit()
    assert segment(paths, 1).stat().st_size == size
    with segment(paths, 1).open("ab") as file:
        file.write(line_of(1, 5, 1.0, "job_held", '{"job":"late","why":""}') + b"garbage\n\0")
    second = commit(new, range(3, 6))
    assert read(paths).events == first + second
    assert Follower(paths).new_events() == first + second
    with pytest.raises(LeadershipLost):
        old.close(5.0)
    assert lead(paths)[1].events == first + second


@pytest.mark.parametrize("step", ["write_at:before", "write_at:after", "fsync:before", "fsync:after"])
def test_a_takeover_within_a_commit_counts_it_or_stops_its_leader(tmp_path, step):
    """A leader overtaken while it writes never goes on to effects; all readers agree with the new one."""
    paths = SessionPaths(tmp_path)
    taken: list[tuple[Journal, History]] = []
    # The first write and sync are the takeover's own, the second those of the first commit.
    effects = Hooked(step, lambda: taken.append(lead(paths)), nth=3)
    old, _ = lead(paths, effects)
    first = commit(old, range(2))
    with pytest.raises(LeadershipLost):
        commit(old, range(2, 5))
    ((new, history),) = taken
    assert history.events[:2] == first
    assert len(history.events) in (2, 5)
    second = commit(new, range(10, 12))
    assert read(paths).events == history.events + second
    assert Follower(paths).new_events() == history.events + second


def test_a_commit_that_came_back_is_never_behind_a_fence(tmp_path):
    """The old leader commits between the rival's reading and its segment: the rival reads again."""
    paths = SessionPaths(tmp_path)
    old, _ = lead(paths)
    first = commit(old, range(2))
    late: list[Event] = []
    new, history = lead(paths, Hooked("link:link", lambda: late.extend(commit(old, range(2, 4)))))
    assert late
    assert history.events == first + late
    more = commit(new, range(4, 6))
    assert read(paths).events == first + late + more
    with pytest.raises(LeadershipLost):
        old.commit()


def test_a_rival_that_dies_while_taking_over_fences_nothing(tmp_path):
    """Its empty segment stops the old leader, and everything that this one has written counts."""
    paths = SessionPaths(tmp_path)

    def die() -> None:
        raise Crash

    old, _ = lead(paths)
    first = commit(old, range(2))
    for _ in range(3):
        with pytest.raises(Crash):
            lead(paths, Hooked("write_at:before", die))
    assert Follower(paths).new_events() == []  # nobody has said yet how much counts
    old.append(event(5))
    with pytest.raises(LeadershipLost):
        old.commit()
    new, history = lead(paths)
    assert history.events == first
    follower = Follower(paths)
    assert follower.new_events() == first
    second = commit(new, range(2, 4))
    assert follower.new_events() == second
    assert read(paths).events == first + second


def test_what_is_written_while_a_rival_dies_taking_over_reaches_followers(tmp_path):
    """A follower that begins in that moment stays where the next fence may still move things."""
    paths = SessionPaths(tmp_path)
    followers: list[Follower] = []

    def die() -> None:
        raise Crash

    def rival() -> None:
        with pytest.raises(Crash):
            lead(paths, Hooked("write_at:before", die))
        followers.append(Follower(paths, after=read(paths)))

    old, _ = lead(paths, Hooked("write_at:before", rival, nth=3))
    first = commit(old, range(2))
    with pytest.raises(LeadershipLost):
        commit(old, range(2, 4))
    _, history = lead(paths)
    assert history.events[:2] == first
    assert len(history.events) == 4
    assert followers[0].new_events() == history.events[2:]


def test_a_reader_that_is_overtaken_by_a_takeover_reads_again(tmp_path, monkeypatch):
    """What it read of the old segment may have become void meanwhile."""
    paths = SessionPaths(tmp_path)
    old, _ = lead(paths)
    first = commit(old, range(2))
    really = segments._history

    def overtaken(*args: object) -> History:
        monkeypatch.undo()
        lead(paths)
        with segment(paths, 1).open("ab") as file:
            file.write(line_of(1, 4, 1.0, "job_held", '{"job":"late","why":""}'))
        return really(*args)

    monkeypatch.setattr(segments, "_history", overtaken)
    assert read(paths).events == first


def test_a_link_whose_answer_was_lost_is_recognised(tmp_path, monkeypatch):
    """Over NFS link(2) may fail although it was done."""
    paths = SessionPaths(tmp_path)
    really = os.link

    def lost_answer(source: Path, target: Path) -> None:
        really(source, target)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", lost_answer)
    journal, _ = lead(paths)
    more = commit(journal, range(2))
    assert read(paths).events == more


def test_of_two_that_take_over_in_the_same_moment_one_wins(tmp_path):
    """The hard link decides; the other one is told who leads."""
    paths = SessionPaths(tmp_path)
    winner: list[Journal] = []
    with pytest.raises(NotLeader, match=f"pid {os.getpid()}"):
        lead(paths, Hooked("link:link", lambda: winner.append(lead(paths)[0])))
    more = commit(winner[0], range(3))
    assert read(paths).events == more


CONTENDER = """
import sys, time
from pathlib import Path
from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.errors import NotLeader
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.journal import Journal
print("ready", flush=True)
sys.stdin.readline()
try:
    journal, _ = Journal.lead(SessionPaths(Path(sys.argv[1])), Effects(), now=1.0,
                              monotonic=time.monotonic, wait=time.sleep)
    print("leads", journal.epoch, flush=True)
except NotLeader as error:
    print(error, flush=True)
sys.stdin.readline()
"""


def contender(paths: SessionPaths) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CONTENDER, str(paths.state_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def tell(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def end(child: subprocess.Popen[str], *, reap: bool = True) -> None:
    child.kill()
    if reap:
        child.communicate()


def test_of_many_processes_that_race_for_an_epoch_exactly_one_wins(tmp_path):
    """Again after the winner is dead: a zombie counts as dead, a live one is named with its pid."""
    paths = SessionPaths(tmp_path)
    dead: list[subprocess.Popen[str]] = []
    for epoch in (1, 2):
        children = [contender(paths) for _ in range(4)]
        for child in children:
            tell(child)
        answers = [said(child) for child in children]
        assert answers.count(f"leads {epoch}") == 1, answers
        winner = children[answers.index(f"leads {epoch}")]
        alive = leader_alive(paths)
        assert alive is not None
        assert alive.pid == winner.pid
        with pytest.raises(NotLeader, match=rf"pid {winner.pid}, for 999 s"):
            lead(paths)
        for child in children:
            if child is not winner:
                end(child)
        end(winner, reap=False)
        os.waitid(os.P_PID, winner.pid, os.WEXITED | os.WNOWAIT)  # now a zombie
        dead.append(winner)
        assert leader_alive(paths) is None
    journal, _ = lead(paths)
    assert journal.epoch == 3
    for child in dead:
        end(child)


def rewritten_header(paths: SessionPaths, **changes: object) -> None:
    """Let the (only) segment come from another process."""
    path = segment(paths, 1)
    header, _, rest = path.read_bytes().partition(b"\n")
    body = {**json.loads(header)["d"], **changes}
    path.write_bytes(line_of(1, 0, 1000.0, "header", json.dumps(body)) + rest)


@pytest.mark.parametrize("changes", [{"boot_id": "before the reboot"}, {"pid_start": "12"}])
def test_a_leader_before_a_reboot_or_with_a_reused_pid_is_dead(tmp_path, changes):
    """Host and pid alone name nothing."""
    paths = SessionPaths(tmp_path)
    lead(paths)
    with some_process() as pid:
        rewritten_header(paths, pid=pid, pid_start=process_start(pid))
        with pytest.raises(NotLeader):
            lead(paths)
        rewritten_header(paths, **changes)
        assert leader_alive(paths) is None
        assert lead(paths)[0].epoch == 2


@contextmanager
def some_process() -> Iterator[int]:
    child = subprocess.Popen(["sleep", "60"])
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


# ---------------------------------------------------------------- leaders on other hosts


def led_elsewhere(paths: SessionPaths) -> Journal:
    journal, _ = lead(paths)
    commit(journal, range(2))
    rewritten_header(paths, host="elsewhere", pid=77)
    journal._state = journal._state._replace(length=segment(paths, 1).stat().st_size)
    return journal


def test_a_leader_elsewhere_without_a_sign_of_life_is_dead_after_its_time(tmp_path):
    """Also one that never had a first heartbeat. The contender's own clock counts, nobody's wall clock."""
    for name, beats in (("never", False), ("once", True)):
        paths = SessionPaths(tmp_path / name)
        other = led_elsewhere(paths)
        if beats:
            other.heartbeat(9e9)
        clock = Clock()
        told: list[str] = []
        journal, history = Journal.lead(
            paths,
            Effects(),
            now=1000.0,
            monotonic=clock.monotonic,
            wait=clock.wait,
            on_wait=lambda leader, told=told: told.append(f"{leader.host} {leader.pid}"),
        )
        assert journal.epoch == 2
        assert len(history.events) == 2
        assert DEAD_AFTER_S <= clock.at <= DEAD_AFTER_S + 10
        assert told == ["elsewhere 77"]
        with pytest.raises(LeadershipLost):
            other.commit()


@pytest.mark.parametrize("sign", ["heartbeat", "commit"])
def test_a_leader_elsewhere_that_shows_a_sign_of_life_leads(tmp_path, sign):
    """A heartbeat or a growing journal is enough, also late."""
    paths = SessionPaths(tmp_path)
    other = led_elsewhere(paths)
    other.heartbeat(1.0)
    clock = Clock()
    alive = (lambda: other.heartbeat(500.0)) if sign == "heartbeat" else (lambda: commit(other, range(2, 3)))
    clock.alarms.append((110.0, alive))
    with pytest.raises(NotLeader, match="host elsewhere, pid 77"):
        lead(paths, clock=clock)
    assert clock.at < DEAD_AFTER_S
    assert not segment(paths, 2).exists()


def test_a_leader_elsewhere_that_said_goodbye_needs_no_waiting(tmp_path):
    """Before the look as well as during it."""
    clock = Clock()
    paths = SessionPaths(tmp_path / "before")
    led_elsewhere(paths).close(5.0)
    assert leader_alive(paths) is None
    assert lead(paths, clock=clock)[0].epoch == 2
    assert clock.at == 0.0

    paths = SessionPaths(tmp_path / "during")
    other = led_elsewhere(paths)
    clock.alarms.append((20.0, lambda: other.close(5.0)))
    assert lead(paths, clock=clock)[0].epoch == 2
    assert clock.at <= 20.0


def test_a_heartbeat_is_written_no_more_often_than_asked(tmp_path):
    """Its counter moves even when the wall clock is set back."""
    paths = SessionPaths(tmp_path)
    journal, _ = lead(paths)
    counters = []
    for now in (100.0, 101.0, 109.9, 110.0, 50.0, 55.0):
        journal.heartbeat(now)
        counters.append(json.loads(paths.heartbeat.read_bytes())["counter"])
    assert counters == [1, 1, 1, 2, 3, 3]
    beat = json.loads(paths.heartbeat.read_bytes())
    assert (beat["epoch"], beat["pid"], beat["at"], beat["interval"]) == (1, os.getpid(), 50.0, 10.0)


# ---------------------------------------------------------------- followers


class Slow(Effects):
    """Writes in pieces, with somebody looking in between."""

    def __init__(self, seed: int, look: Callable[[], None]) -> None:
        super().__init__()
        self.random, self.look = random.Random(seed), look

    def step(self, name: str, target: str) -> None:
        self.look()

    def write_at(self, fd: int, data: bytes, offset: int, target: str) -> None:
        while data:
            size = self.random.randint(1, 200)
            super().write_at(fd, data[:size], offset, target)
            data, offset = data[size:], offset + size
            self.look()


@given(
    acts=st.lists(st.one_of(st.integers(0, 4), st.sampled_from(["lead", "close"])), max_size=15),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=100, deadline=None)
def test_a_follower_sees_each_event_once_and_in_order(acts, seed):
    """However reading and writing interleave, over any number of leaders."""
    with session() as paths:
        follower = Follower(paths)
        seen: list[Event] = []
        appended: list[Event] = []

        def look() -> None:
            seen.extend(follower.new_events())
            assert seen == appended[: len(seen)]

        effects = Slow(seed, look)
        journal, _ = lead(paths, effects)
        for act in acts:
            if isinstance(act, int):
                new = [event(len(appended) + index) for index in range(act)]
                appended += new
                for item in new:
                    journal.append(item)
                journal.commit()
            else:
                if act == "close":
                    journal.close(1.0)
                journal, _ = lead(paths, effects)
            look()
        assert seen == appended
        late = Follower(paths, after=read(paths))
        assert late.new_events() == []
        appended += [event(number) for number in range(900, 903)]
        commit(journal, range(900, 903))
        assert late.new_events() == appended[-3:]
        assert seen == appended
