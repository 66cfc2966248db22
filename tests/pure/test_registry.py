"""Sessions are found by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from oellm_autoexp.errors import UsageError
from oellm_autoexp.store.effects import Effects
from oellm_autoexp.store.registry import Entry, Registry


def entry(name: str, state_dir: Path, created: float = 1.0) -> Entry:
    state_dir.mkdir(parents=True, exist_ok=True)
    return Entry(name=name, state_dir=str(state_dir), project=name, config_ref="sweep.yaml", created=created)


def registry(tmp_path: Path) -> Registry:
    return Registry({"XDG_STATE_HOME": str(tmp_path / "home")})


def test_a_registered_session_is_found_and_listed(tmp_path):
    """Twice the same is one; its creation stays what it was."""
    known = registry(tmp_path)
    assert known.list_all() == []
    assert known.find("a") is None
    a, b = entry("a", tmp_path / "a", 2.0), entry("b/ü é" * 60, tmp_path / "b", 1.0)
    for item in (a, b, entry("a", tmp_path / "a", 3.0)):
        assert known.register(Effects(), item)
    assert known.list_all() == [b, a]
    assert known.find("a") == a
    assert known.find(b.name) == b
    place = tmp_path / "home" / "oellm-autoexp" / "sessions" / "a.json"
    assert place.stat().st_mode & 0o777 == 0o600


def test_two_places_may_share_a_name_and_are_told_apart(tmp_path):
    """The name alone is then refused, with both places; one that is gone does not stand in the way."""
    known = registry(tmp_path)
    first, second = entry("a", tmp_path / "x"), entry("a", tmp_path / "y", 2.0)
    known.register(Effects(), first)
    known.register(Effects(), second)
    assert known.list_all() == [first, second]
    with pytest.raises(UsageError) as caught:
        known.find("a")
    assert str(tmp_path / "x") in caught.value.hint
    assert str(tmp_path / "y") in caught.value.hint
    (tmp_path / "x").rmdir()
    assert known.find("a") == second
    known.forget(Effects(), tmp_path / "y")
    assert known.find("a") == first
    assert first.gone


def test_what_is_gone_is_forgotten_only_on_request(tmp_path):
    """A state directory may be on a file system that this host has not mounted."""
    known = registry(tmp_path)
    here, gone = entry("here", tmp_path / "here"), entry("gone", tmp_path / "gone")
    for item in (here, gone):
        known.register(Effects(), item)
    (tmp_path / "gone").rmdir()
    assert gone in known.list_all()
    known.forget(Effects(), tmp_path / "gone")
    assert known.list_all() == [here]


def test_a_home_that_cannot_be_written_is_no_error(tmp_path):
    """Nor is a broken entry."""
    (tmp_path / "home").write_text("a file")
    known = registry(tmp_path)
    assert not known.register(Effects(), entry("a", tmp_path / "a"))
    assert known.list_all() == []
    assert known.find("a") is None

    (tmp_path / "home").unlink()
    good = entry("a", tmp_path / "a")
    known.register(Effects(), good)
    assert known.directory is not None
    for name, data in (("b", b"{"), ("c", b"[]"), ("d", b'{"name": "d"}'), ("e", b"\xff")):
        (known.directory / f"{name}.json").write_bytes(data)
    assert known.list_all() == [good]


def test_the_state_home_follows_the_standard(tmp_path, monkeypatch):
    """An unset or relative XDG_STATE_HOME means ~/.local/state."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ({}, {"XDG_STATE_HOME": ""}, {"XDG_STATE_HOME": "relative"}):
        assert Registry(value).directory == tmp_path / ".local/state/oellm-autoexp/sessions"
