"""Sessions on a real cluster whose leaders SIGKILL ends, at chosen points around their calls of sbatch.

  deaths_at_sbatch.py ROOT KILLS SEED

Each leader is forked from this process, which has loaded the program and no threads. Sessions of single
submissions and of arrays are led in turns until there were as many deaths, half of them in each of the first
two; then to their ends. What came of it is printed as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from oellm_autoexp.core.layout import SessionPaths
from oellm_autoexp.errors import LeadershipLost
from oellm_autoexp.services import plan as planning
from oellm_autoexp.services import submit as service
from oellm_autoexp.services.lead import lead
from oellm_autoexp.services.session import replay
from oellm_autoexp.store.effects import Effects, Ran

GRACE_S = 0.3
#: Of each session; of one job each, or of two as an array.
SUBMISSIONS = 28
CONFIG = """
project: {{name: s{number}, base_output_dir: ./outputs}}
backend:
  class_name: CommandBackend
  command: [sh, -c, 'echo "$AUTOEXP_JOB_NAME $AUTOEXP_ATTEMPT" >> "$RAN"']
  environment: {{RAN: {ran}, N: "${{n}}"}}
slurm: {{array: {array}, sbatch: {{time: "00:10:00"}}}}
# What goes as one array has one time limit.
sweep: {{axes: {{slurm.sbatch.time: [{limits}], n: [0, 1]}}}}
monitoring: {{class_name: SlurmLogMonitor, poll_interval_seconds: 0.2}}
scheduler:
  class_name: slurm
  breaker: null
  max_jobs: 8
  grace_seconds: {grace}
  calls_per_second: 1000
  call_burst: 1000
"""
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be outlived")


class Fatal(Effects):
    """Ends this process at a point around its n-th call of sbatch.

    `before`: at a step between the intent and the call. `during`: the call is under way, and dies with its
    caller. `orphan`: it goes on later, while others lead, or when all is over.
    `answered`: it is done, and nobody knows. `noting`: at a step thereafter. `noted`: the journal has it.
    """

    POINTS = ("before", "during", "orphan", "answered", "noting", "noted")

    def __init__(self, point: str, call: int, chance: random.Random, word: int) -> None:
        super().__init__()
        self.word = word
        self.point = point
        self.calls_left = call
        self.steps_left = chance.randint(1, 8)
        self.during_s = chance.uniform(0.0, 0.02)
        self.late_s = chance.uniform(0.0, GRACE_S)
        self.submitting = self.answered = False

    def step(self, name: str, target: str) -> None:
        if name == "submit:before":
            self.calls_left -= 1
            self.submitting = self.calls_left <= 0
        if self.submitting and self.point == ("noting" if self.answered else "before"):
            self.steps_left -= 1
            if self.steps_left == 0:
                die()
        if self.answered and self.point == "noted" and name == "fsync:after":
            die()

    def run(self, argv: Sequence[str], **given: Any) -> Ran:
        if Path(argv[0]).name != "sbatch" or not self.submitting or self.answered:
            return super().run(argv, **given)
        if self.point == "before":
            die()
        if self.point == "orphan":
            self._leave(argv, given["env"], given["cwd"])
        if self.point == "during":
            threading.Timer(self.during_s, die).start()
        ran = super().run(argv, **given)
        if self.point in ("during", "answered"):
            die()
        self.answered = True
        return ran

    def _leave(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> NoReturn:
        later = ["sh", "-c", 'read _ || exit; sleep "$0"; exec "$@" > /dev/null', f"{self.late_s:.3f}", *argv]
        subprocess.Popen(later, env=dict(env), cwd=cwd, stdin=self.word, start_new_session=True)
        die()


def forked(do: Callable[[], None]) -> int:
    """Do something in a process of its own; how that ended."""
    parent, child = os.getpid(), os.fork()
    if child == 0:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        try:
            assert os.getppid() == parent
            do()
        except BaseException:  # noqa: BLE001 - a child never goes on as its parent
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Deaths:
    """Sessions below `root`, and how their leaders died."""

    def __init__(self, root: Path, kills: int, seed: int) -> None:
        self.root = root
        self.kills = kills
        self.chance = random.Random(seed)
        self.points = self._points()
        self.seen: Counter[str] = Counter()
        #: Pipes that orphans wait at, by their ends here.
        self.words: dict[int, int] = {}
        #: Deaths that the leaders of this session have before them.
        self.left = 0

    def _points(self) -> Iterator[str]:
        while True:
            yield from self.chance.sample(Fatal.POINTS, len(Fatal.POINTS))

    def session(self, number: int) -> dict[str, str]:
        """A session from its beginning to its end; the states of its jobs."""
        place = self.root / f"session{number}"
        place.mkdir()
        config = place / "sweep.yaml"
        array = number % 2 == 1
        limits = ", ".join(f'"{minute}:00"' for minute in range(10, 10 + SUBMISSIONS // (1 if array else 2)))
        given = {"number": number, "array": str(array).lower(), "limits": limits}
        config.write_text(CONFIG.format(ran=place / "ran", grace=GRACE_S, **given))
        if forked(lambda: opened(config)) != 0:
            sys.exit("a session could not be opened")
        self.left = min(self.kills - self.seen.total(), (self.kills + 1) // 2)
        paths = SessionPaths(place / "outputs" / ".oellm-autoexp")
        while self._led(paths):
            pass
        for word in list(self.words):
            self._give(word)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        return {name: job.state.value for name, job in replay(paths).jobs.items()}

    def _led(self, paths: SessionPaths) -> bool:
        """Lead a session once; whether it has to be led again."""
        effects = Effects()
        point = ""
        if self.left > 0:
            point = next(self.points)
            effects = Fatal(point, self.chance.choice((1, 1, 1, 2)), self.chance, self._word())
        code = forked(lambda: led(paths, effects))
        if code == -signal.SIGKILL:
            self.seen[point] += 1
            self.left -= 1
            # Some orphans go on at once, some after so many more deaths, some not yet.
            for word in [word for word in self.words if self.chance.random() < 0.2]:
                self._give(word)
            return True
        if code != 0:
            sys.exit(f"a leader ended with {code}")
        return False

    def _word(self) -> int:
        """What an orphan waits for; without this process it does nothing."""
        read, write = os.pipe()
        self.words[write] = read
        return read

    def _give(self, word: int) -> None:
        os.write(word, b"\n")
        os.close(word)
        os.close(self.words.pop(word))


def opened(config: Path) -> None:
    """Write a plan and its session; nothing is submitted yet."""
    _, loop = service.submit(planning.plan(planning.load(str(config), cwd=config.parent)))
    assert loop is not None
    loop.close()


def led(paths: SessionPaths, effects: Effects) -> None:
    loop = lead(paths, effects=effects)
    try:
        loop.run()
    except LeadershipLost as error:
        raise AssertionError("there is one leader at a time") from error
    loop.close()


def main(root: Path, kills: int, seed: int) -> None:
    # Orphans become children of this process, which can wait for their end.
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    deaths = Deaths(root, kills, seed)
    sessions: list[dict[str, str]] = []
    while deaths.seen.total() < kills:
        sessions.append(deaths.session(len(sessions)))
    print(json.dumps({"points": deaths.seen, "sessions": sessions}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
