"""Room for what a session writes: on the file system, and of a quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oellm_autoexp.errors import StateError
from oellm_autoexp.services.space import COMFORT, LOW_BYTES, Room, check, quotas, rooms

MB = 1024**2


def checked(tmp_path: Path, jobs: int = 10, **room: int | None) -> list[str]:
    return check([tmp_path], jobs, look=lambda place: [Room(where=str(place), what="the disk", **room)])


def test_much_room_is_no_news(tmp_path: Path) -> None:
    """And so is what is not known."""
    assert checked(tmp_path, bytes_free=2 * LOW_BYTES, files_free=10**6) == []
    assert checked(tmp_path, bytes_free=None, files_free=None) == []


def test_little_room_is_a_warning_that_names_the_place(tmp_path: Path) -> None:
    (said,) = checked(tmp_path, bytes_free=500 * MB, files_free=10**6)
    assert said == f"{tmp_path}: the disk leaves room for 524.3 MB"
    (said,) = checked(tmp_path, bytes_free=2 * LOW_BYTES, files_free=500)
    assert said == f"{tmp_path}: the disk leaves room for 500 files"


def test_what_has_no_room_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """More jobs need more; a quota that is used up counts as nothing left."""
    with pytest.raises(StateError) as refused:
        checked(tmp_path, bytes_free=MB)
    assert str(tmp_path) in str(refused.value) and "oellm-autoexp cleanup" in str(refused.value)
    assert "room for 1.0 MB; 10 new jobs need 17.4 MB" in str(refused.value)
    with pytest.raises(StateError, match="room for 200 files"):
        checked(tmp_path, files_free=200)
    assert checked(tmp_path, jobs=1, files_free=200)
    with pytest.raises(StateError, match="room for 0 B"):
        checked(tmp_path, bytes_free=-5 * MB)
    assert COMFORT > 1


def test_a_directory_that_is_still_to_be_made_is_judged_by_where_it_will_be(tmp_path: Path) -> None:
    """Once, though several are named."""
    seen: list[Path] = []

    def look(place: Path) -> list[Room]:
        seen.append(place)
        return []

    assert check([tmp_path / "a" / "b", tmp_path / "c", tmp_path], 1, look=look) == []
    assert seen == [tmp_path]


def test_the_file_system_is_asked(tmp_path: Path) -> None:
    """It says as much as statvfs(3)."""
    room = next(iter(rooms(tmp_path)))
    found = os.statvfs(tmp_path)
    assert room.bytes_free == pytest.approx(found.f_bavail * found.f_frsize, abs=1024 * MB)
    assert (room.files_free is None) == (found.f_files == 0)
    assert list(rooms(tmp_path / "none")) == []


QUOTA = """\
Disk quotas for user me (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
   nfs:/home     1800000* 1500000 2000000 1764000000    5000    0  6000  0
"""
LUSTRE = """\
     /scratch/a_directory_with_a_long_name_that_goes_before_the_numbers
              4096  8192   10240       -     100     0     0       -
"""


def test_quotas_are_read_in_the_form_of_quota_and_of_lfs() -> None:
    """Kilobytes and files; the lower of two limits; 0 is none; what has another form says nothing."""
    (home,) = quotas(QUOTA, "/home", "your quota")
    assert (home.bytes_free, home.files_free) == (-300000 * 1024, 1000)
    (scratch,) = quotas(LUSTRE, "/scratch", "your quota")
    assert (scratch.bytes_free, scratch.files_free) == (4096 * 1024, None)
    for text in ("", "quota: error\n", "Disk quotas for user me (uid 1000): none\n"):
        assert list(quotas(text, "/", "your quota")) == []
