#!/usr/bin/env python3
"""Runs the command of one attempt, at most once, and writes down how it ended.

Copied beside the scripts and run on compute nodes by `python3 guard.py -- COMMAND…`: the standard library
only, Python 3.6 or newer. It claims the attempt by hard-linking a complete file, which is atomic on NFS too
(link(2)): of two copies of an attempt one runs, the other exits 79.

Reads AUTOEXP_ATTEMPT_DIR, AUTOEXP_TOKEN, AUTOEXP_SCHEDULER_ID, AUTOEXP_TIME_LIMIT_S,
AUTOEXP_KILL_GRACE_S, AUTOEXP_HEARTBEAT_S, AUTOEXP_SIGNAL ("USR1@60").
Writes claim.N.json, start.N.json, heartbeat.N, exit.N.json (N: the
generation: a requeued job of the same id takes over with the next one).
"""

import ctypes
import errno
import json
import os
import signal
import socket
import sys
import time

EXIT_CLAIM_FAILED = 78
EXIT_CLAIM_LOST = 79
FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1


def say(text):
    sys.stderr.write("autoexp guard: %s\n" % text)
    sys.stderr.flush()


def process_start(pid):
    """Start time of a process (field 22 of /proc/PID/stat), or None when it is gone or a zombie."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            fields = file.read().rpartition(")")[2].split()
    except (OSError, IOError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def boot_id():
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except (OSError, IOError):
        return ""


def scheduler_id(env):
    if env.get("AUTOEXP_SCHEDULER_ID"):
        return env["AUTOEXP_SCHEDULER_ID"]
    if env.get("SLURM_ARRAY_JOB_ID"):
        return "%s_%s" % (env["SLURM_ARRAY_JOB_ID"], env.get("SLURM_ARRAY_TASK_ID", ""))
    return env.get("SLURM_JOB_ID", "%s:%d" % (socket.gethostname(), os.getpid()))


def restart_count(env):
    for name in ("AUTOEXP_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        if env.get(name, "").isdigit():
            return int(env[name])
    return 0


def write_file(path, text):
    """A complete file or none: temporary file, fsync, rename, fsync of the directory."""
    temp = "%s.%d.tmp" % (path, os.getpid())
    with open(temp, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temp, path)
    sync_directory(os.path.dirname(path))


def sync_directory(path):
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)


def claim(directory, env):
    """Take the attempt and return the generation; exits 79 when another copy has it."""
    os.makedirs(directory, exist_ok=True)
    me = {
        "scheduler_id": scheduler_id(env),
        "restart_count": restart_count(env),
        "token": env.get("AUTOEXP_TOKEN", ""),
        "host": socket.gethostname(),
        "boot_id": boot_id(),
        "pid": os.getpid(),
        "pid_start": process_start(os.getpid()),
    }
    temp = os.path.join(directory, ".claim.%s.%d" % (socket.gethostname(), os.getpid()))
    with open(temp, "w") as file:
        json.dump(me, file)
        file.flush()
        os.fsync(file.fileno())
    try:
        generation = 0
        while True:
            path = os.path.join(directory, "claim.%d.json" % generation)
            try:
                os.link(temp, path)
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise
                with open(path) as file:
                    owner = json.load(file)
                newer = me["restart_count"] > owner["restart_count"]
                if owner["scheduler_id"] == me["scheduler_id"] and newer:
                    generation += 1
                    continue
                say("attempt is owned by %s on %s; this copy ends" % (owner["scheduler_id"], owner["host"]))
                sys.exit(EXIT_CLAIM_LOST)
            sync_directory(directory)
            return generation
    finally:
        os.unlink(temp)


class Guard:
    def __init__(self, directory, generation, env):
        self.directory = directory
        self.generation = generation
        self.env = env
        self.limit = float(env["AUTOEXP_TIME_LIMIT_S"]) if env.get("AUTOEXP_TIME_LIMIT_S") else None
        self.grace = float(env.get("AUTOEXP_KILL_GRACE_S", "30"))
        self.beat_s = float(env.get("AUTOEXP_HEARTBEAT_S", "30"))
        self.cause = "exit"
        self.child = 0
        self.beats = 0

    def path(self, name):
        return os.path.join(self.directory, name)

    def run(self, argv):
        started_at, started = time.time(), time.monotonic()
        env = dict(self.env, AUTOEXP_CLAIMED="1", AUTOEXP_GENERATION=str(self.generation))
        env.setdefault("PYTHONUNBUFFERED", "1")
        if self.limit is not None:
            env["AUTOEXP_DEADLINE"] = "%.0f" % (started_at + self.limit)
        watched = set(FORWARDED) | {signal.SIGCHLD}
        self.child = self.spawn(argv, env, watched)
        write_file(
            self.path("start.%d.json" % self.generation),
            json.dumps(
                {
                    "scheduler_id": scheduler_id(self.env),
                    "host": socket.gethostname(),
                    "boot_id": boot_id(),
                    "pid": os.getpid(),
                    "pid_start": process_start(os.getpid()),
                    "pgid": self.child,
                    "started_at": started_at,
                }
            ),
        )
        status = self.wait(started, watched)
        self.end_group()
        code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        self.record(code, started_at)
        return code

    def spawn(self, argv, env, watched):
        """The command as a child in a process group of its own, which dies with the guard (prctl(2))."""
        libc = ctypes.CDLL(None, use_errno=True)
        parent = os.getpid()
        pid = os.fork()
        if pid:
            try:
                os.setpgid(pid, pid)
            except OSError:
                pass
            return pid
        try:
            os.setpgid(0, 0)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(128 + signal.SIGKILL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
            os.execvpe(argv[0], argv, env)
        except FileNotFoundError:
            say("%s: command not found" % argv[0])
            os._exit(127)
        except OSError as error:
            say("%s: %s" % (argv[0], error.strerror))
            os._exit(126)

    def wait(self, started, watched):
        """Forward signals, keep the time limit, beat; until the command ends."""
        early = self.early_signal()
        kill_at = None
        next_beat = started + self.beat_s
        while True:
            pid, status = os.waitpid(self.child, os.WNOHANG)
            if pid:
                return status
            now = time.monotonic()
            times = [next_beat] + ([kill_at] if kill_at is not None else [])
            if self.limit is not None and kill_at is None:
                times.append(started + self.limit)
                if early:
                    times.append(started + self.limit - early[1])
            got = signal.sigtimedwait(watched, max(0.0, min(times) - now))
            now = time.monotonic()
            if got is not None and got.si_signo != signal.SIGCHLD:
                if self.cause == "exit":
                    self.cause = "signal:%s" % signal.Signals(got.si_signo).name[3:]
                self.signal_group(got.si_signo)
                if got.si_signo in (signal.SIGTERM, signal.SIGINT) and kill_at is None:
                    kill_at = now + self.grace
            if now >= next_beat:
                self.beat()
                next_beat = now + self.beat_s
            if self.limit is not None and kill_at is None:
                if early and now >= started + self.limit - early[1]:
                    self.cause = "timeout"
                    self.signal_group(early[0])
                    early = None
                if now >= started + self.limit:
                    self.cause = "timeout"
                    self.signal_group(signal.SIGTERM)
                    kill_at = now + self.grace
            if kill_at is not None and now >= kill_at:
                self.signal_group(signal.SIGKILL)
                kill_at = now + self.grace

    def early_signal(self):
        """The signal before the time limit, from "[B:]USR1@60" as in sbatch(1) --signal."""
        text = self.env.get("AUTOEXP_SIGNAL", "").rpartition(":")[2]
        name, _, seconds = text.partition("@")
        number = getattr(signal, "SIG" + name, None)
        return (number, float(seconds or 60)) if number else None

    def signal_group(self, number):
        try:
            os.killpg(self.child, number)
        except OSError:
            pass

    def end_group(self):
        """Nothing of the attempt outlives it: a successor must find its files at rest."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self.signal_group(number)
            for _ in range(20):
                try:
                    os.killpg(self.child, 0)
                except OSError:
                    return
                time.sleep(0.05)

    def beat(self):
        self.beats += 1
        try:
            with open(self.path("heartbeat.%d" % self.generation), "w") as file:
                file.write("%d %.0f\n" % (self.beats, time.time()))
        except OSError:
            pass

    def record(self, code, started_at):
        text = json.dumps(
            {
                "exit_code": code,
                "cause": self.cause,
                "started_at": started_at,
                "ended_at": time.time(),
                "host": socket.gethostname(),
                "generation": self.generation,
            }
        )
        for wait in (0, 1, 2, 5, 10, 30):
            time.sleep(wait)
            try:
                write_file(self.path("exit.%d.json" % self.generation), text)
                return
            except OSError as error:
                say("cannot write the exit record: %s" % error.strerror)


def await_go():
    """Wait for the submitter's word that the process is on record; without it nothing may run."""
    if os.read(0, 1) != b"g":
        sys.exit(EXIT_CLAIM_LOST)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def main():
    arguments = sys.argv[1:]
    if arguments and arguments[0] == "--await-go":
        await_go()
        os.execvp(arguments[1], arguments[1:])
    if not arguments or arguments[0] != "--" or len(arguments) < 2:
        say("usage: guard.py -- COMMAND [ARGUMENT…]")
        return 2
    env = dict(os.environ)
    directory = env.get("AUTOEXP_ATTEMPT_DIR")
    if not directory:
        say("AUTOEXP_ATTEMPT_DIR is not set")
        return EXIT_CLAIM_FAILED
    # Blocked signals wait for sigtimedwait: none can be lost between two looks.
    signal.pthread_sigmask(signal.SIG_BLOCK, set(FORWARDED) | {signal.SIGCHLD})
    try:
        generation = claim(directory, env)
        return Guard(directory, generation, env).run(arguments[1:])
    except OSError as error:
        say("cannot claim the attempt in %s: %s" % (directory, error.strerror))
        return EXIT_CLAIM_FAILED


if __name__ == "__main__":
    sys.exit(main())
