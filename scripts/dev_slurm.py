#!/usr/bin/env python3
"""A real Slurm cluster on this machine, for tests: as root, with Debian's packages, all on loopback.

  dev_slurm.py install [--accounting]             apt-get install what is missing
  eval "$(dev_slurm.py start DIR [options])"      start one; prints what to export
  dev_slurm.py kill|freeze|thaw|start-again DIR DAEMON...
  dev_slurm.py stop DIR                           end it and all its jobs; DIR stays
  dev_slurm.py stop-after PID DIR                 the same when a process has ended; DIR is removed

Daemons: slurmctld, and node1, node2, …: one slurmd each, in PID, UTS and mount namespaces of its own, so
that ending a node ends its jobs, as a power cut would. `node1.slurmd` is only the daemon: its jobs run on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
ACCOUNTING_PACKAGES = ("slurmdbd", "slurm-wlm-mysql-plugin", "mariadb-server")
#: Daemons are Debian's /usr/sbin.
SBIN = "/usr/sbin:/usr/bin:/sbin:/bin"
START_S, STOP_S, LOOK_S = 180.0, 15.0, 0.02
HOST = "127.0.0.1"
#: A database that need not outlive the machine does not wait for a disk, which others may keep busy: making
#: it would sync 1,800 times.
NO_SYNC = ("--debug-no-sync", "--innodb-flush-method=nosync", "--innodb-doublewrite=0")


class ClusterError(Exception):
    """The cluster could not be made to do what was asked."""


# ---------------------------------------------------------------- packages


def missing(accounting: bool) -> list[str]:
    """The packages that are not installed."""
    wanted = [*PACKAGES, *(ACCOUNTING_PACKAGES if accounting else ())]
    argv = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *wanted]
    told = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
    return [package for package in wanted if f"{package} installed" not in told]


def install(accounting: bool) -> None:
    """Install what is missing; the packages' own daemons are not started."""
    packages = missing(accounting)
    if not packages:
        return
    policy = Path("/usr/sbin/policy-rc.d")
    is_ours = not policy.exists()
    if is_ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for argv in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", *argv], env=environment, stdout=sys.stderr, check=True)
    finally:
        if is_ours:
            policy.unlink()


def is_possible() -> bool:
    """Whether a cluster can be started here: root, and the packages."""
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    return os.geteuid() == 0 and all(
        shutil.which(name, path=path) for name in ("slurmctld", "slurmd", "munged")
    )


# ---------------------------------------------------------------- processes


def started_at(pid: int) -> str | None:
    """The start time of a process (proc(5)), which tells it from a later one; None for dead and zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(word) for word in text.read_text().split()]
    except OSError:
        return []


def wait_until(holds: Callable[[], object], what: str, within_s: float = START_S) -> None:
    give_up = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > give_up:
            raise ClusterError(f"not within {within_s:g} s: {what}")
        time.sleep(LOOK_S)


def free_ports(count: int) -> list[int]:
    """Ports below those that outgoing connections use."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            probe = stack.enter_context(socket.socket())
            port = random.randint(20000, 32000)
            with contextlib.suppress(OSError):
                probe.bind(("0.0.0.0", port))
                ports.append(port)
    return ports


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
        return True
    return False


# ---------------------------------------------------------------- the cluster


class Cluster:
    """The cluster in one directory. Its settings and its processes are on disk, for the next call."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.settings: dict[str, object] = {}
        place = self.directory / "settings.json"
        if place.exists():
            self.settings = json.loads(place.read_text())

    @property
    def conf(self) -> Path:
        return self.directory / "slurm.conf"

    @property
    def nodes(self) -> list[str]:
        return [f"node{number + 1}" for number in range(int(str(self.settings["nodes"])))]

    @property
    def environment(self) -> dict[str, str]:
        """What a command of Slurm's needs to talk to this cluster."""
        foreign = ("SLURM", "SBATCH_", "SQUEUE_", "SACCT_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {
            **kept,
            "SLURM_CONF": str(self.conf),
            "MYSQL_UNIX_PORT": str(self.directory / "mysql.sock"),
            "PATH": f"{os.environ.get('PATH', '')}:{SBIN}",
        }

    def run(self, *argv: str, check: bool = True) -> str:
        """A command of Slurm's; what it printed."""
        done = subprocess.run(
            argv, env=self.environment, capture_output=True, text=True, check=False, timeout=START_S
        )
        if check and done.returncode != 0:
            raise ClusterError(f"{shlex.join(argv)}: exit {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout + done.stderr

    # ---- start and stop

    def create(
        self, *, nodes: int, accounting: bool, options: Mapping[str, str], cpus: int = 8, job_age_s: int = 5
    ) -> None:
        """Configure and start a new cluster.

        Raises:
            ClusterError: a daemon does not come up.
        """
        if os.geteuid() != 0:
            raise ClusterError("a cluster is started by root")
        if len(str(self.directory)) > 60:
            raise ClusterError(f"{self.directory}: too long a path for a Unix socket")
        names = ["slurmctld", "slurmdbd", *(f"node{number + 1}" for number in range(nodes))]
        self.settings = {
            "nodes": nodes,
            "accounting": accounting,
            "cpus": cpus,
            "job_age_s": job_age_s,
            "options": dict(options),
            "ports": dict(zip(names, free_ports(len(names)), strict=True)),
        }
        for name in ("run", "log", "state", "spool"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)
        key = self.directory / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        places = "".join(f"127.0.1.{number + 1} {name}\n" for number, name in enumerate(self.nodes))
        (self.directory / "hosts").write_text(Path("/etc/hosts").read_text() + places)
        self.conf.write_text("\n".join(self._conf()) + "\n")
        if accounting:
            self._make_database()
        (self.directory / "settings.json").write_text(json.dumps(self.settings))
        try:
            self.start(*self._daemons())
            self.wait_for_nodes()
        except BaseException:
            self.stop()
            raise

    def _daemons(self) -> list[str]:
        database = ["mariadbd", "slurmdbd"] if self.settings["accounting"] else []
        nodes = [name for node in self.nodes for name in (node, f"{node}.slurmd")]
        return ["munged", *database, "slurmctld", *nodes]

    def start(self, *names: str) -> None:
        """Start daemons; a node with its slurmd. Running ones are left alone."""
        for name in self._meant(names):
            if self.pid(name) is None:
                self._start(name)
            if name == "slurmdbd":
                self.run("sacctmgr", "-i", "add", "cluster", "dev", check=False)

    def _start(self, name: str) -> None:
        argv, is_up = self._daemon(name)
        log = self.directory / "log" / f"{name}.out"
        with log.open("ab") as output:
            process = subprocess.Popen(
                argv,
                env=self.environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        process.returncode = 0  # It outlives this program, which does not wait for it.
        if argv[0] in ("unshare", "nsenter"):
            wait_until(lambda: children(process.pid), f"{name} has a child, see {log}")
            pid = children(process.pid)[0]
        else:
            pid = process.pid
        (self.directory / "run" / f"{name}.pid").write_text(f"{pid} {started_at(pid)}")
        wait_until(lambda: is_up() or started_at(pid) is None, f"{name} is up, see {log}")
        if started_at(pid) is None:
            raise ClusterError(f"{name} ended at once: {log.read_text(errors='replace')[-500:]}")

    def _daemon(self, name: str) -> tuple[list[str], Callable[[], bool]]:
        """How a daemon is started, and when it is up."""
        where = self.directory
        if name == "munged":
            sock = where / "munge.sock"
            sock.unlink(missing_ok=True)
            files = {"key-file": "munge.key", "socket": "munge.sock", "seed-file": "munge.seed"}
            files.update({"pid-file": "run/munged", "log-file": "log/munged.log"})
            options = [f"--{option}={where / file}" for option, file in files.items()]
            return ["munged", "--foreground", *options], sock.exists
        if name == "mariadbd":
            sock = where / "mysql.sock"
            sock.unlink(missing_ok=True)
            options = ["--no-defaults", "--user=root", "--skip-networking", "--skip-grant-tables"]
            options += [
                f"--datadir={where / 'mysql'}",
                f"--socket={sock}",
                f"--pid-file={where / 'run/mysql'}",
            ]
            options += ["--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0", *NO_SYNC]
            return ["mariadbd", *options, "--performance-schema=OFF"], sock.exists
        if name in ("slurmctld", "slurmdbd"):
            return [name, "-D"], lambda: listens(self._port(name))
        node, _, daemon = name.partition(".")
        if daemon:
            inside = ["nsenter", f"--target={self.pid(node)}", "--pid", "--uts", "--mount", "--"]
            return [*inside, "slurmd", "-D", "-N", node], lambda: True
        # A node's first process has only to be there, and to reap.
        mark = where / "run" / f"{node}.up"
        mark.unlink(missing_ok=True)
        setup = (
            f"hostname {node} && mount --bind {where / 'hosts'} /etc/hosts && touch {mark} && "
            "exec env --ignore-signal=CHLD sleep infinity"
        )
        spaces = [
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--uts",
            "--mount",
            "--propagation",
            "slave",
        ]
        return ["unshare", *spaces, "sh", "-c", setup], mark.exists

    def stop(self) -> None:
        """End everything that was started."""
        self.kill(*reversed(self._daemons()))

    def kill(self, *names: str, gently: bool = False) -> None:
        """End daemons, and wait until they are gone; a node with all that runs on it."""
        for name in names:
            pid = self.pid(name)
            if pid is None:
                continue
            database = name in ("mariadbd", "slurmdbd", "munged")
            self._signal(name, signal.SIGTERM if gently or database else signal.SIGKILL)
            self._signal(name, signal.SIGCONT)
            try:
                wait_until(lambda name=name: self.pid(name) is None, f"{name} has ended", STOP_S)
            except ClusterError:
                self._signal(name, signal.SIGKILL)

    def freeze(self, *names: str) -> None:
        """Make daemons hang."""
        for name in names:
            self._signal(name, signal.SIGSTOP)

    def thaw(self, *names: str) -> None:
        for name in filter(self.pid, names):
            self._signal(name, signal.SIGCONT)
            parent = self._parent(name)
            if name.endswith(".slurmd") and parent > 1:
                os.kill(parent, signal.SIGCONT)  # nsenter stopped with its child.

    def _signal(self, name: str, number: signal.Signals) -> None:
        pid = self.pid(name)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _parent(self, name: str) -> int:
        pid = self.pid(name)
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(fields[1])

    def _meant(self, names: Sequence[str]) -> Iterator[str]:
        wanted = set(names) | {f"{name}.slurmd" for name in names if name in self.nodes}
        return (name for name in self._daemons() if name in wanted)

    def pid(self, name: str) -> int | None:
        """The process of a daemon, if it lives."""
        try:
            pid, start = (self.directory / "run" / f"{name}.pid").read_text().split()
        except (OSError, ValueError):
            return None
        return int(pid) if started_at(int(pid)) == start else None

    def wait_for_nodes(self) -> None:
        """Wait until every node takes jobs."""
        ready = {"idle", "mix", "alloc", "comp"}

        def are_ready() -> bool:
            told = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%t", check=False).split()
            return len(told) == len(self.nodes) and ready.issuperset(told)

        told = self.run("sinfo", "-N", "-o", "%N %T %E", check=False)
        wait_until(are_ready, f"the nodes take jobs ({told}), see {self.directory / 'log'}")

    @contextlib.contextmanager
    def configured(self, **options: object) -> Iterator[None]:
        """Other lines of slurm.conf meanwhile, such as can be changed while the daemons run."""
        known = self.settings["options"]
        assert isinstance(known, dict)
        try:
            self._reconfigure({**known, **options})
            yield
        finally:
            self._reconfigure(known)

    def _reconfigure(self, options: dict[str, object]) -> None:
        self.settings["options"] = options
        self.conf.write_text("\n".join(self._conf()) + "\n")
        self.run("scontrol", "reconfigure")

    def forget(self) -> None:
        """Have the controller lose all jobs, as when its state is lost, and begin to count anew."""
        self.kill("slurmctld")
        shutil.rmtree(self.directory / "state")
        (self.directory / "state").mkdir()
        self.start("slurmctld")
        self.wait_for_nodes()

    def wait_for_controller(self) -> None:
        wait_until(lambda: " UP" in self.run("scontrol", "ping", check=False), "slurmctld answers")

    # ---- configuration

    def _port(self, name: str) -> int:
        ports = self.settings["ports"]
        assert isinstance(ports, dict)
        return int(ports[name])

    def _conf(self) -> Iterator[str]:
        where, settings = self.directory, self.settings
        munge = where / "munge.sock"
        options = {
            "ClusterName": "dev",
            "SlurmctldHost": f"{socket.gethostname().split('.')[0]}({HOST})",
            "SlurmctldPort": self._port("slurmctld"),
            "SlurmUser": "root",
            "AuthType": "auth/munge",
            # A requeued job waits until its old credential has expired; Slurm takes no less than 5 s.
            "AuthInfo": f"socket={munge},cred_expire=5",
            "CommunicationParameters": "NoCtldInAddrAny",
            "StateSaveLocation": where / "state",
            "SlurmdSpoolDir": where / "spool" / "%n",
            "SlurmctldPidFile": where / "run" / "ctld",
            "SlurmdPidFile": where / "run" / "%n",
            "SlurmctldLogFile": where / "log" / "slurmctld.log",
            "SlurmdLogFile": where / "log" / "%n.log",
            "MailProg": "/bin/true",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SwitchType": "switch/none",
            "MpiDefault": "none",
            "JobAcctGatherType": "jobacct_gather/linux",
            "JobAcctGatherFrequency": "task=1",
            # Kills what uses too much memory, without cgroups: FAILED 0:9, as many sites show it.
            "JobAcctGatherParams": "OverMemoryKill",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            # Nodes may claim more than this machine has.
            "SlurmdParameters": "config_overrides",
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1,bf_continue,"
            "default_queue_depth=2000,bf_max_job_test=2000",
            "PriorityType": "priority/basic",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "MaxArraySize": 1001,
            "MaxJobCount": 20000,
            "MinJobAge": settings["job_age_s"],
            "SlurmdTimeout": 5,
            "MessageTimeout": 5,
            "TCPTimeout": 2,
            "BatchStartTimeout": 10,
            "KillWait": 4,
            "InactiveLimit": 0,
            "EpilogMsgTime": 0,
            "ReturnToService": 2,
            "AccountingStorageType": "accounting_storage/none",
        }
        if settings["accounting"]:
            options["AccountingStorageType"] = "accounting_storage/slurmdbd"
            options["AccountingStorageHost"] = HOST
            options["AccountingStoragePort"] = self._port("slurmdbd")
            # The munge socket of slurmdbd: AuthInfo does not count here.
            options["AccountingStoragePass"] = munge
        more = settings["options"]
        assert isinstance(more, dict)
        for name, value in {**options, **more}.items():
            yield f"{name}={value}"
        cpus = int(str(settings["cpus"]))
        for number, node in enumerate(self.nodes):
            place = f"NodeAddr=127.0.1.{number + 1} Port={self._port(node)}"
            yield f"NodeName={node} {place} CPUs={cpus} RealMemory={1000 * cpus}"
        yield "PartitionName=DEFAULT Nodes=ALL State=UP DefMemPerCPU=500 DefaultTime=1:00:00"
        yield "PartitionName=main Default=YES PriorityTier=10 PreemptMode=OFF MaxTime=7-00:00:00"
        yield "PartitionName=short PriorityTier=10 PreemptMode=OFF MaxTime=0:05:00"
        yield "PartitionName=preempt PriorityTier=1 PreemptMode=REQUEUE MaxTime=7-00:00:00"

    def _make_database(self) -> None:
        where = self.directory
        lines = [
            "DbdHost=localhost",
            f"DbdAddr={HOST}",
            f"DbdPort={self._port('slurmdbd')}",
            "SlurmUser=root",
            "AuthType=auth/munge",
            f"AuthInfo=socket={where / 'munge.sock'}",
            "StorageType=accounting_storage/mysql",
            "StorageHost=localhost",
            "StorageUser=root",
            "StorageLoc=slurm_acct_db",
            f"LogFile={where / 'log' / 'slurmdbd.log'}",
            f"PidFile={where / 'run' / 'dbd'}",
        ]
        conf = where / "slurmdbd.conf"
        conf.write_text("\n".join(lines) + "\n")
        conf.chmod(0o600)
        argv = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={where / 'mysql'}"]
        with (where / "log" / "mariadb-install-db.out").open("wb") as output:
            more = ["--skip-test-db", "--skip-name-resolve", *NO_SYNC]
            subprocess.run([*argv, *more], env=self.environment, stdout=output, stderr=output, check=True)


def stop_after(pid: int, directory: Path) -> None:
    """Wait for the end of a process, however it comes; then end its cluster, if it has not done so."""
    with contextlib.suppress(ProcessLookupError):
        waiting = select.poll()
        waiting.register(os.pidfd_open(pid), select.POLLIN)
        waiting.poll()
    cluster = Cluster(directory)
    if cluster.settings:
        cluster.stop()
    shutil.rmtree(directory, ignore_errors=True)


# ---------------------------------------------------------------- the command


def parsed() -> argparse.Namespace:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    one = commands.add_parser("install", help="install Debian's packages")
    one.add_argument("--accounting", action="store_true", help="slurmdbd and MariaDB, too")
    one = commands.add_parser("start", help="start a cluster in DIR")
    one.add_argument("directory", type=Path, metavar="DIR")
    one.add_argument("--nodes", type=int, default=3)
    one.add_argument("--cpus", type=int, default=8, help="that each node claims to have (default 8)")
    one.add_argument("--accounting", action="store_true", help="with slurmdbd, so that sacct answers")
    one.add_argument(
        "--job-age", type=int, default=5, metavar="S", help="ended jobs leave squeue after S to 2 S"
    )
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a line of slurm.conf")
    for name in ("kill", "freeze", "thaw", "start-again"):
        one = commands.add_parser(name, help=f"{name} daemons")
        one.add_argument("directory", type=Path, metavar="DIR")
        one.add_argument("daemons", nargs="+", metavar="DAEMON")
    one = commands.add_parser("stop-after", help="end and remove the cluster in DIR when a process has ended")
    one.add_argument("pid", type=int, metavar="PID")
    one.add_argument("directory", type=Path, metavar="DIR")
    one = commands.add_parser("stop", help="end the cluster in DIR")
    one.add_argument("directory", type=Path, metavar="DIR")
    return top.parse_args()


def main() -> None:
    given = parsed()
    if given.command == "install":
        install(given.accounting)
        return
    if given.command == "stop-after":
        stop_after(given.pid, given.directory)
        return
    cluster = Cluster(given.directory)
    if given.command == "start":
        options = dict(pair.split("=", 1) for pair in given.set)
        cluster.create(
            nodes=given.nodes,
            accounting=given.accounting,
            options=options,
            cpus=given.cpus,
            job_age_s=given.job_age,
        )
        print(f"export SLURM_CONF={shlex.quote(str(cluster.conf))}")
    elif not cluster.settings:
        sys.exit(f"error: there is no cluster in {given.directory}")
    elif given.command == "stop":
        cluster.stop()
    elif given.command == "start-again":
        cluster.start(*given.daemons)
    else:
        getattr(cluster, given.command)(*given.daemons)


if __name__ == "__main__":
    try:
        main()
    except ClusterError as error:
        sys.exit(f"error: {error}")
