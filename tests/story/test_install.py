"""`daemon install`: cron, systemd or a job bring a loop back; `uninstall` leaves no trace."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import PROGRAM, Cli, until

from oellm_autoexp.rendering import supervisors

CONFIG = """
project: {name: kept, base_output_dir: ./outputs}
backend: {class_name: CommandBackend, command: ['true']}
slurm: {sbatch: {account: my_project}}
"""
#: Behind the directory of the test's own programs.
PROGRAMS = f"{Path(sys.executable).parent}:/usr/bin:/bin"
SPOOL = "/var/spool/cron/crontabs"
#: As crontab(1), with a file for its spool: what a user's crontab holds is nothing for a test to touch.
CRONTAB = """#!/bin/sh
spool={folder}/crontab
case $1 in
  -l) [ -e $spool ] || {{ echo "no crontab for me" >&2; exit 1; }}; cat $spool ;;
  -r) rm $spool ;;
  -) cat > $spool.new
     [ -z "$(tail -c 1 $spool.new)" ] || {{ echo "missing newline before EOF" >&2; exit 1; }}
     mv $spool.new $spool ;;
esac
"""
#: Bytes of a person's, some of which are no UTF-8.
MINE = b'# mine\n\n5 * * * *   echo  "caf\xe9 100\\%"  \t\nMAILTO=x\n'


def in_a_spool_of_its_own(folder: Path) -> list[str]:
    """Before a command: the real crontab, whose spool is `folder` (in a mount namespace; needs root)."""
    return ["unshare", "-m", "sh", "-c", f'mount --bind {folder} {SPOOL} && exec "$@"', "sh"]


def has_crontab(folder: str = "/tmp") -> bool:
    if os.geteuid() != 0 or not shutil.which("crontab") or not shutil.which("unshare"):
        return False
    argv = [*in_a_spool_of_its_own(Path(folder)), "true"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


#: The real one too, wherever it can be run beside the user's.
CRONTABS = ["stub", *(["real"] if has_crontab() else [])]


def put(folder: Path, name: str, text: str) -> None:
    """An executable of this name."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    (tmp_path / "sweep.yaml").write_text(CONFIG)
    cli = Cli(tmp_path, XDG_CONFIG_HOME=str(tmp_path / "config"), SLURM_CONF="", SBATCH_PARTITION="wrong")
    assert cli.within("submit", "sweep.yaml", "--fake").returncode == 0
    # What is here of cron, systemd and Slurm is the test's own.
    cli.variables["PATH"] = f"{tmp_path / 'bin'}:{PROGRAMS}"
    for name in ("systemctl", "loginctl", "squeue", "sbatch", "scancel"):
        put(tmp_path / "bin", name, "#!/bin/sh\necho not here >&2; exit 1\n")
    put(tmp_path / "bin", "crontab", CRONTAB.format(folder=tmp_path))
    return cli


def traces(tmp_path: Path) -> set[str]:
    """The files outside of the session's own directory."""
    folders = (tmp_path / "home", tmp_path / "config")
    files = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    return {path.name for path in files if path.parent.name != "sessions"}


@pytest.mark.parametrize("which", CRONTABS)
def test_cron_gets_two_lines_and_keeps_the_others(tmp_path: Path, cli: Cli, which: str) -> None:
    """Byte for byte, twice as once; without a crontab before there is none afterwards."""
    run: list[str] = []
    if which == "real":
        cli.variables["PATH"] = PROGRAMS
        (tmp_path / "spool").mkdir()
        run = in_a_spool_of_its_own(tmp_path / "spool")
        cli.program = [*run, *PROGRAM]

    def crontab(word: str, text: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        given = {"text": False, "stdin": None, "input": text} if text is not None else {"text": False}
        return cli.run(*run, "crontab", word, **given)  # type: ignore[return-value]

    for before in (MINE, b""):
        if before:
            assert crontab("-", MINE).returncode == 0
        for said in ("two lines added", "nothing to change"):
            done = cli("daemon", "install", "kept.fake", "--cron")
            assert done.returncode == 0 and said in done.stdout, done.stderr
        after = crontab("-l").stdout
        assert after.startswith(before) and len(after.splitlines()) == len(before.splitlines()) + 2
        assert "It comes back by cron" in cli("daemon", "status", "kept.fake").stdout
        would = cli("daemon", "uninstall", "kept.fake", "--dry-run").stdout
        assert "would be removed: two lines of the crontab" in would and crontab("-l").stdout == after
        assert cli("daemon", "uninstall", "kept.fake").returncode == 0
        assert crontab("-l").stdout == before and traces(tmp_path) == set()
        if before:
            assert crontab("-r").returncode == 0
    assert crontab("-l").returncode == 1
    assert "Nothing is installed" in cli("daemon", "uninstall", "kept.fake").stdout


def test_systemd_gets_a_unit_and_says_what_is_left_to_do(tmp_path: Path, cli: Cli) -> None:
    """Without a user's bus only a person can go on; with one, all is done."""
    done = cli.within("daemon", "install", "kept.fake", "--systemd")
    assert done.returncode == 0 and "systemctl --user daemon-reload: not here" in done.stdout
    (unit,) = (tmp_path / "config" / "systemd" / "user").iterdir()
    left = done.stdout.partition("Left for you to do:\n")[2].split("\n")
    enable = f"  systemctl --user enable --now {unit.name}"
    assert left == ["  systemctl --user daemon-reload", enable, "  loginctl enable-linger", ""]
    for name in ("systemctl", "loginctl"):
        put(tmp_path / "bin", name, f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/asked\n')
    done = cli.within("daemon", "install", "kept.fake", "--systemd", "--json")
    assert json.loads(done.stdout)["left"] == []
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [line.strip() for line in left if line]
    log = tmp_path / "outputs/.oellm-autoexp-fake/.oellm-autoexp/monitor/daemon.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600, "systemd would make it with a umask's rights"
    assert cli.within("daemon", "uninstall", "kept.fake").returncode == 0
    asked = (tmp_path / "asked").read_text().splitlines()[3:]
    assert asked == [f"systemctl --user disable --now {unit.name}", "systemctl --user daemon-reload"]
    assert traces(tmp_path) == set()


def test_a_job_is_submitted_once_and_all_of_its_chain_is_cancelled(tmp_path: Path, cli: Cli) -> None:
    """With the account of the session's own jobs, and nothing that the shell would have sbatch do."""
    folder = tmp_path / "bin"
    put(folder, "squeue", f"#!/bin/sh\ncat {tmp_path}/queue\n")
    put(folder, "sbatch", f'#!/bin/sh\necho "$SBATCH_PARTITION$*" >> {tmp_path}/asked; echo "41;here"\n')
    put(folder, "scancel", f'#!/bin/sh\necho "scancel $*" >> {tmp_path}/asked\n')
    (tmp_path / "queue").write_text("")
    dry = cli.within(
        "daemon", "install", "kept.fake", "--in-job", "--sbatch", "partition=serial", "--dry-run"
    )
    assert "#SBATCH --account=my_project\n#SBATCH --partition=serial\n" in dry.stdout
    assert dry.stdout.endswith("Nothing was written.\n") and traces(tmp_path) == set()
    done = cli.within("daemon", "install", "kept.fake", "--in-job", "--sbatch", "partition=serial")
    assert done.returncode == 0 and "submitted: job 41" in done.stdout, done.stderr
    (tmp_path / "queue").write_text("99\n100\n")
    again = cli.within("daemon", "install", "kept.fake", "--in-job", "--sbatch", "partition=serial")
    assert "in the queue already: job 99, 100" in again.stdout
    assert cli.within("daemon", "uninstall", "kept.fake").returncode == 0
    submitted, *cancelled = (tmp_path / "asked").read_text().splitlines()
    assert submitted.startswith("--parsable ") and submitted.endswith(".sbatch")
    assert cancelled == ["scancel 100", "scancel 99"], "the one that waits for the other first"
    assert traces(tmp_path) == set()


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path: Path, cli: Cli) -> None:
    """One way at a time; jobs of this machine would end with the job; cron may be forbidden."""
    put(tmp_path / "bin", "crontab", "#!/bin/sh\necho you are not allowed to use cron >&2; exit 1\n")
    assert cli.within("submit", "sweep.yaml", "--local").returncode == 0
    for words, code, said in (
        ((), 2, "choose one of --cron, --systemd and --in-job"),
        (("--cron", "--systemd"), 2, "choose one"),
        (("--cron", "--sbatch", "a=b"), 2, "--sbatch is for --in-job"),
        (("--in-job",), 2, "use --cron or --systemd"),
        (("--cron",), 2, "you are not allowed to use cron"),
    ):
        done = cli.within("daemon", "install", "kept", *words)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    failed = cli.within("daemon", "install", "kept.fake", "--in-job")
    assert failed.returncode == 3 and "squeue failed: not here" in failed.stderr
    assert cli.within("daemon", "stop", "kept.fake").returncode == 0
    stopped = cli.within("daemon", "install", "kept.fake", "--in-job")
    assert stopped.returncode == 2 and "the session was stopped and stays so" in stopped.stderr
    assert traces(tmp_path) <= {path.name for path in (tmp_path / "home").rglob("kept*")}


# ---------------------------------------------------------------- what the job does


class Chain:
    """A job of the chain as Slurm would start it; its `sbatch` and `scancel` note what they are asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        put(
            root / "bin",
            "sbatch",
            f'#!/bin/sh\n{self._noting("sbatch")}[ ! -e {root}/down ] && echo "42;c"\n',
        )
        put(root / "bin", "scancel", f"#!/bin/sh\n{self._noting('scancel')}")

    def _noting(self, name: str) -> str:
        return f'echo "{name} $* job=$SLURM_JOB_ID" >> {self.root}/asked\n'

    def start(self, loop: str) -> subprocess.Popen[bytes]:
        (self.root / "loop.sh").write_text(loop)
        paths = [str(self.root / name) for name in ("loop.sh", "job.sbatch")]
        (self.root / "job.sbatch").write_text(supervisors.job(*paths, "name", "/log", {}))
        environment = {
            "PATH": f"{self.root / 'bin'}:/usr/bin:/bin",
            "SLURM_JOB_ID": "41",
            "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
            "SBATCH_PARTITION": "wrong",
            "SLURM_CONF": "/etc/slurm.conf",
            "MINE": "kept",
        }
        argv = ["bash", str(self.root / "job.sbatch")]
        self.job = subprocess.Popen(argv, env=environment, start_new_session=True)
        return self.job

    def asked(self) -> list[str]:
        path = self.root / "asked"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def follows(self) -> str:
        return f"sbatch --parsable --dependency=afterany:41 {self.root / 'job.sbatch'} job="


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    chain = Chain(tmp_path)
    yield chain
    # As Slurm does with what a job leaves behind.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(chain.job.pid, signal.SIGKILL)
    chain.job.wait()


@pytest.fixture
def ready(tmp_path: Path) -> Callable[[], bool]:
    return (tmp_path / "ready").exists


def test_a_job_that_has_nothing_left_to_do_takes_the_next_one_back(tmp_path: Path, chain: Chain) -> None:
    """Of the job it is itself, nothing reaches what it starts."""
    job = chain.start(f'[ "$1" = run ] && env > {tmp_path}/env; exit 0')
    assert job.wait() == 0
    assert chain.asked() == [chain.follows, "scancel 42 job="]
    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert {name for name in seen if name.startswith(("SLURM", "SBATCH"))} == {"SLURM_CONF"}
    assert seen["MINE"] == "kept"


def test_at_its_limit_a_job_ends_the_loop_and_the_next_one_goes_on(
    tmp_path: Path, chain: Chain, ready: Callable[[], bool]
) -> None:
    """The loop is told, and its end is waited for."""
    trap = f"trap 'sleep 0.2; touch {tmp_path}/goodbye; exit 130' TERM"
    job = chain.start(f"{trap}; touch {tmp_path}/ready; while :; do sleep 0.05; done")
    until(ready, "the loop runs")
    job.terminate()
    assert job.wait() == 130
    assert (tmp_path / "goodbye").exists()
    assert chain.asked() == [chain.follows]


def test_a_job_whose_loop_fails_waits_before_it_tries_again(
    tmp_path: Path, chain: Chain, ready: Callable[[], bool]
) -> None:
    """Another one may lead: there is nothing to be gained by asking at once, nor by the next job."""
    note = f'echo "$1" > {tmp_path}/rest; touch {tmp_path}/ready'
    put(tmp_path / "bin", "sleep", f'#!/bin/sh\n{note}; exec /bin/sleep "$1"\n')
    job = chain.start("exit 3")
    until(ready, "it waits")
    assert (tmp_path / "rest").read_text() == f"{supervisors.AGAIN_S}\n"
    job.terminate()
    assert job.wait() == 3
    assert chain.asked() == [chain.follows]


def test_a_controller_that_was_down_is_asked_again(
    tmp_path: Path, chain: Chain, ready: Callable[[], bool]
) -> None:
    """The next job is submitted at the end where it could not be at the beginning."""
    (tmp_path / "down").touch()
    job = chain.start(f"trap 'exit 130' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done")
    until(ready, "the loop runs")
    (tmp_path / "down").unlink()
    job.terminate()
    assert job.wait() == 130
    assert chain.asked() == [chain.follows, chain.follows]
