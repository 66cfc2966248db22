"""The schedulers that the contract suite runs over, each on a bench of its own.

An implementation joins by an entry in `BENCHES`. A bench is made from a directory and an `Effects`; made
again from the same directory it is what a new daemon finds after the old one died.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oellm_autoexp.config.sockets import SchedulerInterface, Submission, Task
from oellm_autoexp.core.model import SchedulerFact, SchedulerRef
from oellm_autoexp.core.script import ScriptRequest
from oellm_autoexp.rendering import guard
from oellm_autoexp.schedulers.fake.client import FakeSlurmClient, FakeSlurmClientConfig
from oellm_autoexp.schedulers.local import LocalScheduler, LocalSchedulerConfig
from oellm_autoexp.schedulers.slurm.client import SlurmClient, SlurmClientConfig
from oellm_autoexp.store.effects import Effects

DEADLINE_S = 120.0


class Bench(ABC):
    """A scheduler and what the suite needs around it."""

    #: Whether scripts are run; if not, the bench has no logs, environments and exit codes of commands.
    runs_commands = True
    #: Whether there are nodes to choose from.
    has_nodes = False

    def __init__(self, root: Path, effects: Effects | None = None) -> None:
        self.root = root
        self.effects = effects or Effects()
        self.scheduler = self.make()

    @abstractmethod
    def make(self) -> SchedulerInterface:
        """The scheduler, as a daemon that has just started makes it."""

    def request(self, name: str, command: str, **environment: str) -> ScriptRequest:
        path = self.root / "guard.py"
        if not path.exists():
            shutil.copy(guard.__file__, path)
        return ScriptRequest(
            name=name,
            argv=["bash", "-c", f"echo {name} >> {self.ran_path}; {command}"],
            environment=environment,
            guard_path=str(path),
        )

    def task(self, name: str, command: str, environment: Mapping[str, str] | None = None) -> Task:
        """A task that notes that it ran, then runs a shell command."""
        script = self.root / f"{name}.sh"
        script.write_text(self.scheduler.render(self.request(name, command)))
        return Task(
            name=name,
            script_path=str(script),
            log_path=str(self.root / "logs" / f"{name}.log"),
            attempt_dir=str(self.root / "attempts" / name),
            environment=environment or {},
        )

    def again(self) -> Bench:
        """As the next daemon finds it."""
        return type(self)(self.root, self.effects)

    def token(self, name: str) -> str:
        """The token that stands for a name: one cluster remembers the tests before."""
        return name

    def submit(
        self, name: str, *tasks: Task, exclude: Sequence[str] = (), after: str = ""
    ) -> Sequence[SchedulerRef]:
        whole = Submission(token=self.token(name), tasks=tasks, exclude=exclude, after=after)
        return self.scheduler.submit(whole)

    def find(self, *names: str) -> Mapping[str, Sequence[SchedulerRef]]:
        """What is found under the tokens of some names, by name."""
        found = self.scheduler.find([self.token(name) for name in names])
        return {name: found[self.token(name)] for name in names if self.token(name) in found}

    # ---- what happened

    @property
    def ran_path(self) -> Path:
        return self.root / "ran"

    @property
    def ran(self) -> list[str]:
        """The names of the commands that were started, one entry for each start."""
        return sorted(self.ran_path.read_text().split()) if self.ran_path.exists() else []

    def log(self, task: Task) -> str:
        path = Path(task.log_path)
        return path.read_text() if path.exists() else ""

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Let time pass until something holds."""
        give_up = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < give_up, f"not within {DEADLINE_S:g} s: {what}"
            self.pass_time()

    def pass_time(self) -> None:
        time.sleep(0.01)

    def fact(self, ref: SchedulerRef) -> SchedulerFact:
        return self.scheduler.poll([ref])[ref]

    def ended(self, ref: SchedulerRef) -> SchedulerFact:
        """The fact of a reference that has ended, when it has."""
        facts: list[SchedulerFact] = []

        def over() -> bool:
            facts.append(self.fact(ref))
            return facts[-1].state.ended

        self.until(over, f"{ref.id} has ended")
        return facts[-1]

    def running(self, task: Task) -> None:
        """Wait until a command of `HOLD` runs."""
        self.until(lambda: "holding\n" in self.log(task), f"{task.name} runs")

    @property
    def left(self) -> dict[str, str]:
        """Every small file under the root: what to look at when a test has failed."""
        files = (path for path in self.root.rglob("*") if path.is_file() and path.suffix != ".py")
        return {str(path.relative_to(self.root)): path.read_text() for path in files}

    def stop(self) -> None:
        """End what the test left running."""
        tokens = {path.stem for path in (self.root / "state").glob("*.json")}
        refs = [ref for found in self.scheduler.find(sorted(tokens)).values() for ref in found]
        self.scheduler.cancel(refs)
        for ref in refs:
            self.ended(ref)


#: A command that says so and then runs until it is ended.
HOLD = "echo holding; exec sleep 300"


class LocalBench(Bench):
    def make(self) -> SchedulerInterface:
        config = LocalSchedulerConfig(kill_grace_seconds=5.0)
        return LocalScheduler(config, effects=self.effects, state_dir=self.root / "state")


class FakeBench(Bench):
    """Virtual time; a task's name says whether it ends by itself."""

    runs_commands = False
    has_nodes = True
    scheduler: FakeSlurmClient

    def make(self) -> FakeSlurmClient:
        path = self.root / "scenario.yaml"
        path.write_text(
            "pace: 1\nstride: 60\njobs:\n- {match: 'hold-*', work: 300d}\n- {work: 0, startup: 1}\n"
        )
        config = FakeSlurmClientConfig(scenario=str(path))
        return FakeSlurmClient(config, effects=self.effects, state_dir=self.root / "state")

    def task(self, name: str, command: str, environment: Mapping[str, str] | None = None) -> Task:
        return super().task(f"hold-{name}" if command == HOLD else name, command, environment)

    def pass_time(self) -> None:
        self.scheduler.clock.wait(1.0)


class SlurmBench(Bench):
    """The cluster that SLURM_CONF names; asked as often as a test likes."""

    has_nodes = True

    scheduler: SlurmClient
    options: Mapping[str, Any] = {"array": True}

    def make(self) -> SlurmClient:
        given = {"calls_per_second": 1000, "call_burst": 1000, "grace_seconds": 0.0, **self.options}
        config = SlurmClientConfig(**given)
        client = SlurmClient(config, effects=self.effects, state_dir=self.root / "state")
        client.prepare()
        return client

    def token(self, name: str) -> str:
        return f"{name}{hashlib.sha256(str(self.root).encode()).hexdigest()[:12]}"

    def stop(self) -> None:
        tokens = {path.stem for path in (self.root / "state").glob("*.jsonl")}
        refs = [ref for found in self.scheduler.find(sorted(tokens)).values() for ref in found]
        self.scheduler.cancel(refs)


BENCHES: dict[str, type[Bench]] = {"local": LocalBench, "fake": FakeBench, "slurm": SlurmBench}


def submit_and_die(name: str, root: str, count: int, last: int) -> None:
    """Submit `count` tasks under the token `tok` and die at the effect step number `last`."""
    bench = BENCHES[name](Path(root), Dying(last))
    bench.submit("tok", *(bench.task(f"t{index}", "true") for index in range(count)))
    Path(root, "submitted").touch()


class Dying(Effects):
    """Ends this process, as SIGKILL would, at its step number `last`."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self._left = last

    def step(self, name: str, target: str) -> None:
        if self._left == 0:
            os._exit(9)
        self._left -= 1


def serve(name: str) -> None:
    """For each line `COUNT LAST ROOT` submit in a new process; print how that ended."""
    for line in sys.stdin:
        count, last, root = line.rstrip("\n").split(" ", 2)
        child = os.fork()
        if child == 0:
            submit_and_die(name, root, int(count), int(last))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
