"""What all tests share: a real Slurm cluster for those that are marked `slurm`.

They run where a cluster can be started (root, Debian's packages: `scripts/dev_slurm.py install`), and are
deselected elsewhere. With CI set they always run: there a cluster that does not start is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import dev_slurm
from dev_slurm import Cluster


def _wanted() -> bool:
    return bool(os.environ.get("CI")) or dev_slurm.is_possible()


def pytest_report_header() -> str:
    how = "run" if _wanted() else "deselected (as root: scripts/dev_slurm.py install)"
    return f"tests on a real Slurm cluster: {how}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("slurm")]
    for item in marked:
        # One worker has a cluster, another one that with accounting: jobs of both wait most of the time.
        item.add_marker(pytest.mark.xdist_group(_cluster_of(item)))
    if marked and not _wanted():
        items[:] = [item for item in items if item not in marked]
        config.hook.pytest_deselected(items=marked)


def _cluster_of(item: pytest.Item) -> str:
    used = [*getattr(item, "fixturenames", ())]
    if hasattr(item, "callspec"):
        used += item.callspec.params.values()
    return "slurm_with_accounting" if "slurm_with_accounting" in used else "slurm"


def _cluster(*, accounting: bool = False, nodes: int = 3, cpus: int = 8) -> Iterator[Cluster]:
    # A short path, for its sockets.
    directory = Path(tempfile.mkdtemp(prefix="autoexp-slurm."))
    cluster = Cluster(directory)
    # Whatever becomes of this process, no cluster is left behind.
    argv = [sys.executable, dev_slurm.__file__, "stop-after", str(os.getpid()), str(directory)]
    watcher = subprocess.Popen(argv, start_new_session=True)
    try:
        # Ended jobs are remembered for as long as a test may take.
        options = {"AccountingStorageEnforce": "associations,limits"} if accounting else {}
        cluster.create(nodes=nodes, cpus=cpus, accounting=accounting, options=options, job_age_s=60)
        yield cluster
    finally:
        if cluster.settings:
            cluster.stop()
        watcher.kill()
        watcher.wait()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def _plain_cluster() -> Iterator[Cluster]:
    yield from _cluster()


@pytest.fixture(scope="session")
def _cluster_of_small_nodes() -> Iterator[Cluster]:
    yield from _cluster(nodes=8, cpus=1)


@pytest.fixture(scope="session")
def _accounting_cluster() -> Iterator[Cluster]:
    yield from _cluster(accounting=True)


def _entered(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cluster]:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    yield cluster
    cluster.run("scancel", f"--user={os.getuid()}", check=False)


@pytest.fixture
def slurm(_plain_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of three nodes without accounting, which Slurm's commands talk to."""
    yield from _entered(_plain_cluster, monkeypatch, tmp_path)


@pytest.fixture
def slurm_with_accounting(
    _accounting_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Cluster]:
    """The same with slurmdbd, so that sacct answers."""
    yield from _entered(_accounting_cluster, monkeypatch, tmp_path)


@pytest.fixture
def slurm_of_small_nodes(
    _cluster_of_small_nodes: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Cluster]:
    """A cluster of eight nodes, each of which has room for one job."""
    yield from _entered(_cluster_of_small_nodes, monkeypatch, tmp_path)
