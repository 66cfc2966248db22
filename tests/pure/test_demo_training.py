"""The demo's training is a real one: it learns, and an interruption changes nothing of its result."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo"
STEPS = 60
SMALL = ["--steps", str(STEPS), "--batch", "6", "--hidden", "6", "--context", "2", "--log-every", "5"]
ARGUMENTS = [*SMALL, "--save-every", "10", "--seed", "3"]


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, str(DEMO / "train.py"), "--out", str(out), *ARGUMENTS, *more]


def train(out: Path, *more: str, attempt: int = 2) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "AUTOEXP_ATTEMPT": str(attempt)}
    return subprocess.run(command(out, *more), capture_output=True, text=True, env=env, check=False)


def end_at(out: Path, iteration: int, number: signal.Signals) -> tuple[int, str]:
    """Run until the line of an iteration is out, then send a signal; exit code and output.

    It is paced, so that the signal finds it at work.
    """
    with subprocess.Popen(command(out, "--pace", "0.02"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(f"iteration {iteration}/"):
                process.send_signal(number)
                break
        lines += list(process.stdout)
    return process.returncode, "".join(lines)


def await_sleep(pid: int) -> None:
    """Wait until a process sleeps and has used no processor time between two looks."""
    before = ""
    for _ in range(300):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        now = f"{fields[0]} {fields[11]} {fields[12]}"
        if now == before and now.startswith("S"):
            return
        before = now
        time.sleep(0.05)
    raise AssertionError("it does not come to rest")


def result(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "result.json").read_text())
    return found


def losses(output: str) -> dict[int, str]:
    return {int(n): loss for n, loss in re.findall(r"iteration (\d+)/\d+ \| loss (\S+) \|", output)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A training that nothing interrupted, and what it printed."""
    out = tmp_path_factory.mktemp("whole")
    done = train(out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def store() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_checkpoints", DEMO / "checkpoints.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_learns(whole: tuple[Path, str]) -> None:
    """The loss falls, and depends on the learning rate."""
    out, output = whole
    seen = losses(output)
    assert sorted(seen) == list(range(5, STEPS + 1, 5))
    assert float(seen[STEPS]) < float(seen[5]) - 0.3
    other = losses(train(out.with_name("other"), "--lr", "0.001").stdout)
    assert float(other[STEPS]) > float(seen[STEPS]) + 0.3


def test_the_same_seed_gives_the_same_weights(whole: tuple[Path, str], tmp_path: Path) -> None:
    assert train(tmp_path / "again").returncode == 0
    assert result(tmp_path / "again") == result(whole[0])
    assert train(tmp_path / "seed", "--seed", "4").returncode == 0
    assert result(tmp_path / "seed") != result(whole[0])


@pytest.mark.parametrize("seed", range(3))
def test_killed_anywhere_it_ends_with_the_same_weights(
    whole: tuple[Path, str], tmp_path: Path, seed: int
) -> None:
    """Killed twice at random iterations and resumed from its checkpoints, it is bit for bit the same."""
    rng = random.Random(seed)
    output = ""
    for iteration in sorted(rng.sample(range(15, 35, 5), 2)):
        code, printed = end_at(tmp_path, iteration, signal.SIGKILL)
        assert code == -signal.SIGKILL
        output += printed
    done = train(tmp_path)
    assert done.returncode == 0
    assert "resuming from" in done.stdout
    assert result(tmp_path) == result(whole[0])
    assert losses(output + done.stdout) == losses(whole[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_polite_signal_saves_and_leaves(
    whole: tuple[Path, str], tmp_path: Path, number: signal.Signals
) -> None:
    """It saves where it is, exits with 128 + the signal's number, and goes on from there."""
    code, output = end_at(tmp_path, 25, number)
    assert code == 128 + number
    left = re.search(r"left at iteration (\d+) because of", output)
    assert left is not None
    assert f"Checkpoint saved: {tmp_path}/checkpoints/step_{int(left.group(1)):06d}\n" in output
    done = train(tmp_path)
    assert f"resuming from {tmp_path}/checkpoints/step_{int(left.group(1)):06d}\n" in done.stdout
    assert result(tmp_path) == result(whole[0])


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "no manifest"])
def test_a_torn_checkpoint_falls_back_to_the_one_before(
    whole: tuple[Path, str], tmp_path: Path, damage: str
) -> None:
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
    newest = tmp_path / "checkpoints" / f"step_{STEPS:06d}"
    model = newest / "model.json"
    if damage == "truncated":
        model.write_bytes(model.read_bytes()[:100])
    elif damage == "changed":
        model.write_bytes(model.read_bytes().replace(b"1", b"2", 1))
    elif damage == "missing":
        model.unlink()
    else:
        (newest / "manifest.json").unlink()
    done = train(tmp_path)
    assert f"resuming from {tmp_path}/checkpoints/step_000050\n" in done.stdout
    assert result(tmp_path) == result(whole[0])
    assert (newest / "manifest.json").exists()


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(file=st.sampled_from(["model.json", "training.json", "manifest.json"]), cut=st.floats(0, 1))
def test_a_checkpoint_cut_anywhere_does_not_count(
    store: ModuleType, tmp_path: Path, file: str, cut: float
) -> None:
    for old in tmp_path.glob("step_*"):
        shutil.rmtree(old)
    parts = {"model": {"rows": [[0.1, -2.5e-300]]}, "training": {"iteration": 7}}
    path = store.save(tmp_path, 7, parts)
    assert store.newest(tmp_path) == path
    assert store.load(path, "model") == parts["model"]
    data = (path / file).read_bytes()
    kept = min(int(cut * len(data)), len(data) - 1)
    (path / file).write_bytes(data[:kept])
    assert not store.is_complete(path)
    assert store.newest(tmp_path) is None


def test_a_finished_training_has_nothing_to_do(whole: tuple[Path, str]) -> None:
    before = result(whole[0])
    done = train(whole[0])
    assert done.returncode == 0
    assert "iteration" not in done.stdout
    assert result(whole[0]) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "0"], "argument --hidden: must be at least 1, got 0"),
        (["--optimizer", "adagard"], "argument --optimizer: invalid choice: 'adagard'"),
        (["--lr", "nan"], "argument --lr: must be at least 0, got nan"),
        (["--text", "/nowhere.txt"], "argument --text: /nowhere.txt: No such file or directory"),
    ],
)
def test_a_mistake_is_a_usage_error(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Exit 2, with a line that says what is wrong: no restart could mend it."""
    done = train(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_other_settings_do_not_go_on_from_a_checkpoint(whole: tuple[Path, str]) -> None:
    done = train(whole[0], "--lr", "0.5")
    assert done.returncode == 2
    assert "was made with lr 0.1, not 0.5" in done.stderr


def test_the_crash_happens_on_the_first_attempt_only(whole: tuple[Path, str], tmp_path: Path) -> None:
    first = train(tmp_path, "--fault", "crash", attempt=1)
    assert first.returncode == 1
    assert first.stderr.rstrip().endswith(
        "OSError: [Errno 5] Input/output error: '/scratch/corpus/shard-0003.bin'"
    )
    assert train(tmp_path, "--fault", "crash", attempt=2).returncode == 0
    assert result(tmp_path) == result(whole[0])


def test_the_stall_is_silent_alive_and_deaf(tmp_path: Path) -> None:
    """Nothing more is printed, and SIGTERM does not end it."""
    env = {**os.environ, "AUTOEXP_ATTEMPT": "1"}
    with subprocess.Popen(
        command(tmp_path, "--fault", "stall"), stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("iteration 25/"):
                break
        await_sleep(process.pid)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.kill()
    assert process.returncode == -signal.SIGKILL


def test_a_conversion_can_be_repeated(whole: tuple[Path, str], tmp_path: Path) -> None:
    """The same bytes again, and a line in the record for each completed conversion."""
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
    checkpoint = tmp_path / "checkpoints" / "step_000010"
    convert = [sys.executable, str(DEMO / "convert.py"), str(checkpoint)]
    subprocess.run(convert, check=True, capture_output=True)
    target = checkpoint.with_name("step_000010.export.json")
    first = target.read_bytes()
    tensors = json.loads(first)["tensors"]
    assert tensors["hidden_bias"]["shape"] == [1, 6]
    subprocess.run(convert, check=True, capture_output=True)
    assert target.read_bytes() == first
    log = (tmp_path / "checkpoints" / "conversions.jsonl").read_text().splitlines()
    assert [json.loads(line)["checkpoint"] for line in log] == ["step_000010", "step_000010"]


def test_an_incomplete_checkpoint_is_not_converted(tmp_path: Path) -> None:
    torn = tmp_path / "step_000010"
    torn.mkdir()
    convert = [sys.executable, str(DEMO / "convert.py"), str(torn)]
    done = subprocess.run(convert, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not a complete checkpoint" in done.stderr
    assert list(tmp_path.iterdir()) == [torn]
