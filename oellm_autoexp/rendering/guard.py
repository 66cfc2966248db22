#!/usr/bin/env python3
"""Runs the command of one attempt, at most once, and writes down how it ended.

Copied beside the scripts and run on compute nodes by `python3 guard.py -- COMMAND…`: the standard library
only, Python 3.6 or newer, Linux. It claims the attempt by hard-linking a complete file, which is atomic on
NFS too (link(2)): of two copies of an attempt one runs, the other exits 79. The same scheduler id with a
higher restart count takes over with the next generation. A copy that the scheduler has lost (its node was cut
off, say) ends when it sees the claim of a later start: of this attempt, or of one with a higher number.

One that was queued behind others (AUTOEXP_AFTER_DIR: their directories, one a line) begins when it finds a
file `go` in its own. Where nobody writes it for AUTOEXP_AFTER_WAIT_S, AUTOEXP_AFTER_END says behind which
ends it begins by itself: "limit" (or nothing), if the one before has left word that its time limit ended it
(with exit status 0: only where AUTOEXP_AFTER_ZERO is set); "success", if each has left word that it ended by
itself with exit status 0; anything else: none.

Reads AUTOEXP_ATTEMPT_DIR, AUTOEXP_TOKEN, AUTOEXP_SCHEDULER_ID (else Slurm's), AUTOEXP_RESTART_COUNT (else
Slurm's), AUTOEXP_TIME_LIMIT_S, AUTOEXP_SIGNAL ("USR1@60": sent that many seconds before the limit),
AUTOEXP_LIMIT_KEPT_OUTSIDE (set: limit and signal are kept by the scheduler, where people may extend the
limit), AUTOEXP_KILL_GRACE_S, AUTOEXP_HEARTBEAT_S, AUTOEXP_EXIT_RETRY_S.
Writes claim.N.json, start.N.json, heartbeat.N, exit.N.json (N: the generation). A guard that is killed
leaves no exit.N.json, and its command dies with it.
Exits with the command's status (128 + signal); 78: the attempt could not be claimed, or nobody let it begin:
nothing was run;
79: another copy has it.
"""

import ctypes
import errno
import json
import os
import signal
import socket
import stat
import sys
import time

EXIT_USAGE = 2
EXIT_CLAIM_FAILED = 78
EXIT_CLAIM_LOST = 79
#: Signals that go on to the command. The first two end it; it may take the others as mere news.
ENDING = (signal.SIGTERM, signal.SIGINT)
FORWARDED = (*ENDING, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
WATCHED = set(FORWARDED) | {signal.SIGCHLD}
#: A command that ends this many seconds after USR1, USR2 or HUP ended because of it.
REACTION_S = 600.0
#: The scheduler's clock may run so far ahead of the guard's, which begins later.
EARLY_S = 5.0
#: Slurm looks at time limits this seldom, at most.
LATE_S = 120.0
#: What a command leaves running gets this long between SIGTERM and SIGKILL, at most.
LEFT_BEHIND_S = 5.0
#: The scheduler id in a claim that keeps an attempt from ever running.
WITHDRAWN = "withdrawn"
#: How often one that waits to be told to begin looks, in seconds.
LOOK_S = 1.0
# prctl(2)
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def say(text):
    # Not sys.stderr: where the log is on a full disk, what it holds back would change the exit status (120).
    try:
        os.write(2, ("autoexp guard: %s\n" % text).encode("utf-8", "surrogateescape"))
    except OSError:
        pass


def reason(error):
    return error.strerror or str(error)


# ---------------------------------------------------------------- who am I


def process_start(pid):
    """Start time of a process (field 22 of /proc/PID/stat), or None when it is gone or a zombie."""
    stat = process_stat(pid)
    return None if stat is None or stat[0] in "ZX" else stat[19]


def process_stat(pid):
    """The fields of /proc/PID/stat from the state on (proc(5)); None when there is no such process."""
    try:
        with open("/proc/%d/stat" % pid, errors="replace") as file:
            return file.read().rpartition(")")[2].split() or None
    except OSError:
        return None


def boot_id():
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def scheduler_id(env):
    if env.get("AUTOEXP_SCHEDULER_ID"):
        return env["AUTOEXP_SCHEDULER_ID"]
    if env.get("SLURM_ARRAY_JOB_ID"):
        return "%s_%s" % (env["SLURM_ARRAY_JOB_ID"], env.get("SLURM_ARRAY_TASK_ID", ""))
    return env.get("SLURM_JOB_ID") or "%s:%d" % (socket.gethostname(), os.getpid())


def restart_count(env):
    for name in ("AUTOEXP_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        if env.get(name, "").isdigit():
            return int(env[name])
    return 0


def identity(env):
    return {
        "scheduler_id": scheduler_id(env),
        "restart_count": restart_count(env),
        "token": env.get("AUTOEXP_TOKEN", ""),
        "host": socket.gethostname(),
        "boot_id": boot_id(),
        "pid": os.getpid(),
        "pid_start": process_start(os.getpid()),
        "nonce": "%s.%d.%s" % (socket.gethostname(), os.getpid(), os.urandom(8).hex()),
    }


# ---------------------------------------------------------------- files


def shared(directory):
    """Whether a directory of the session's state is open to its group."""
    return stat.S_IMODE(os.stat(directory).st_mode) == 0o2770


def share(file):
    if shared(os.path.dirname(file.name)):
        os.fchmod(file.fileno(), 0o660)


def write_synced(path, text):
    with open(path, "w") as file:
        share(file)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_file(path, text):
    """A complete file or none: temporary file, fsync, rename, fsync of the directory."""
    temp = "%s.%d.tmp" % (path, os.getpid())
    try:
        write_synced(temp, text)
        os.rename(temp, path)
    except OSError:
        remove(temp)
        raise
    sync_directory(os.path.dirname(path))


def remove(path):
    try:
        os.unlink(path)
    except OSError:
        pass


def sync_directory(path):
    """Some network file systems refuse this; the data itself is synced."""
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


def make_directory(path):
    """Another of the group may have to go on in it."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directory(parent)
    try:
        os.mkdir(path)
    except FileExistsError:
        return
    if shared(parent):
        os.chmod(path, 0o2770)


def claim_path(directory, generation):
    return os.path.join(directory, "claim.%d.json" % generation)


def claim(directory, me):
    """Take the attempt: its generation, or None when another copy has it.

    Raises OSError (disk, path) or ValueError (a claim that cannot be read).
    """
    make_directory(directory)
    temp = os.path.join(directory, ".claim.%s" % me["nonce"])
    try:
        write_synced(temp, json.dumps(me))
        generation = 0
        while True:
            path = claim_path(directory, generation)
            try:
                os.link(temp, path)
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise
                with open(path) as file:
                    owner = json.load(file)
                # An answer of NFS that got lost and was asked for again says EEXIST to the winner, too.
                if owner["nonce"] != me["nonce"]:
                    newer = me["restart_count"] > owner["restart_count"]
                    if owner["scheduler_id"] == me["scheduler_id"] and newer:
                        generation += 1
                        continue
                    say(
                        "attempt is owned by %s on %s; this copy ends"
                        % (owner["scheduler_id"], owner["host"])
                    )
                    return None
            sync_directory(directory)
            return generation
    finally:
        remove(temp)


def is_withdrawn(path):
    """Whether a claim is one that nobody runs by; one that cannot be read is not."""
    try:
        with open(path) as file:
            return json.load(file)["scheduler_id"] == WITHDRAWN
    except (OSError, ValueError, KeyError, TypeError):
        return False


def last_word(directory):
    """How the attempt of a directory ended: cause and exit status; None where it has left no word of that."""
    newest = {"claim": -1, "exit": -1}
    try:
        for name in os.listdir(directory):
            kind, _, rest = name.partition(".")
            number = rest.partition(".")[0]
            if kind in newest and rest == number + ".json" and number.isdigit():
                newest[kind] = max(newest[kind], int(number))
        if newest["exit"] < max(0, newest["claim"]):
            return None
        with open(os.path.join(directory, "exit.%d.json" % newest["exit"])) as file:
            record = json.load(file)
        return record["cause"], record["exit_code"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ---------------------------------------------------------------- the command


def spawn(argv, env):
    """The command as a waiting child in a process group of its own, and the pipe that lets it go.

    It dies with this process, and without having run anything when this process dies before its word.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    parent = os.getpid()
    gate, go = os.pipe()
    pid = os.fork()
    if pid:
        os.close(gate)
        try:
            os.setpgid(pid, pid)
        except OSError:
            pass
        return pid, go
    status = 126
    try:
        os.close(go)
        os.setpgid(0, 0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent or not os.read(gate, 1):
            os._exit(128 + signal.SIGKILL)
        plain_signals()
        os.execvpe(argv[0], argv, env)
    except FileNotFoundError:
        status = 127
        say("%s: command not found, or the program in its first line is not" % argv[0])
    except OSError as error:
        say("%s: cannot be executed: %s" % (argv[0], reason(error)))
    except BaseException as error:  # noqa: BLE001 - a copy of the guard must never go on as one
        say("%s: cannot be executed: %r" % (argv[0], error))
    finally:
        os._exit(status)


def plain_signals():
    """What a program expects to start with: Python ignores SIGPIPE and SIGXFSZ, a shell SIGINT and SIGQUIT of
    what it starts with `&`."""
    for number in (*FORWARDED, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def descendants():
    """Live processes under this one. It is their subreaper: none gets away by losing its parent."""
    children = {}
    for name in os.listdir("/proc"):
        stat = process_stat(int(name)) if name.isdigit() else None
        if stat is not None and stat[0] not in "ZX":
            children.setdefault(int(stat[1]), []).append(int(name))
    found = list(children.get(os.getpid(), []))
    for pid in found:
        found += children.get(pid, [])
    return found


def seconds(env, name, default=None):
    text = env.get(name)
    if not text:
        return default
    try:
        return float(text)
    except ValueError:
        raise ValueError("%s is not a number of seconds: %r" % (name, text))


def early_signal(env):
    """The signal before the time limit, from "[B:]USR1@60" as in sbatch(1) --signal; None for none."""
    text = env.get("AUTOEXP_SIGNAL", "").rpartition(":")[2]
    if not text:
        return None
    name, _, before = text.partition("@")
    name = name[3:] if name.startswith("SIG") else name
    try:
        number = int(name) if name.isdigit() else getattr(signal, "SIG" + name)
        return signal.Signals(number), float(before or 60)
    except (AttributeError, ValueError):
        raise ValueError("AUTOEXP_SIGNAL is not a signal and seconds, such as USR1@60: %r" % text)


class Guard:
    def __init__(self, directory, env):
        self.directory = directory
        self.env = env
        self.me = identity(env)
        self.generation = 0
        self.limit = seconds(env, "AUTOEXP_TIME_LIMIT_S")
        self.grace = seconds(env, "AUTOEXP_KILL_GRACE_S", 30.0)
        self.beat_s = max(0.05, seconds(env, "AUTOEXP_HEARTBEAT_S", 30.0))
        self.retry_s = seconds(env, "AUTOEXP_EXIT_RETRY_S", 60.0)
        self.early = self.warning = early_signal(env)
        self.keeps_limit = self.limit is not None and not env.get("AUTOEXP_LIMIT_KEPT_OUTSIDE")
        self.ends = None
        self.cause = "exit"
        self.news = None
        self.child = 0
        self.beats = 0
        self.kill_at = None

    def path(self, name):
        return os.path.join(self.directory, name)

    def run(self, argv):
        """Claim, run, record; the status to exit with. Raises OSError or ValueError where it cannot claim."""
        if not self.may_begin():
            return EXIT_CLAIM_FAILED
        generation = claim(self.directory, self.me)
        if generation is None:
            return EXIT_CLAIM_LOST
        self.generation = generation
        started_at, started = time.time(), time.monotonic()
        self.ends = None if self.limit is None else started + self.limit
        env = dict(self.env, AUTOEXP_CLAIMED="1", AUTOEXP_GENERATION=str(generation))
        if not env.get("PYTHONUNBUFFERED"):
            env["PYTHONUNBUFFERED"] = "1"
        for name in ("DIR", "WAIT_S", "ZERO", "END"):
            env.pop("AUTOEXP_AFTER_" + name, None)
        # What sbatch was told to hand on is not what srun(1) shall hand on: the script has set more.
        env.pop("SLURM_EXPORT_ENV", None)
        if self.limit is not None:
            env["AUTOEXP_DEADLINE"] = "%.0f" % (started_at + self.limit)
        try:
            self.start(argv, env, started_at)
        except OSError as error:
            say("the command was not started: %s" % reason(error))
            self.retry_s = 0.0
            self.record(EXIT_CLAIM_FAILED, started_at)
            return EXIT_CLAIM_FAILED
        code = self.wait(started)
        self.end_the_rest()
        self.record(code, started_at)
        return EXIT_CLAIM_LOST if self.cause == "superseded" else code

    def may_begin(self):
        """Wait for the word, where this attempt was queued behind others; whether it may make its claim."""
        before = self.env.get("AUTOEXP_AFTER_DIR")
        if not before:
            return True
        begun = time.monotonic()
        give_up = begun + (seconds(self.env, "AUTOEXP_AFTER_WAIT_S", 600.0) or 0.0)
        told = (self.path("go"), claim_path(self.directory, 0))
        said = False
        while not any(os.path.exists(path) for path in told):
            if not said:
                say("what this attempt waited for has ended; waiting to be told to begin")
                said = True
            left = give_up - time.monotonic()
            if left <= 0:
                why, ended = self.may_go_on([last_word(place) for place in before.split("\n")])
                if ended:
                    say("nobody leads the session; %s: going on" % why)
                    break
                say("nobody has told this attempt to begin, and it is not known that %s" % why)
                return False
            got = signal.sigtimedwait(WATCHED, min(LOOK_S, left))
            if got is not None and got.si_signo in ENDING:
                say("ended before it was told to begin")
                return False
        if self.limit is not None:
            # The scheduler counts from the start of the job.
            self.limit = max(1.0, self.limit - (time.monotonic() - begun))
        return True

    def may_go_on(self, words):
        """What lets this attempt begin by itself, and whether the last words of those before it say so."""
        wanted = self.env.get("AUTOEXP_AFTER_END") or "limit"
        if wanted == "success":
            return "what it waits for has succeeded", all(word == ("exit", 0) for word in words)
        zero = bool(self.env.get("AUTOEXP_AFTER_ZERO"))
        by_limit = [word is not None and word[0] == "timeout" and (zero or word[1] != 0) for word in words]
        what = "by its time limit" if wanted == "limit" else "as it should"
        return "what it waits for has ended " + what, wanted == "limit" and all(by_limit)

    def start(self, argv, env, started_at):
        """Start the command. It is on record before it runs: should the guard be killed, it can be found."""
        self.child, go = spawn(argv, env)
        try:
            start = dict(self.me, generation=self.generation, pgid=self.child, started_at=started_at)
            write_file(self.path("start.%d.json" % self.generation), json.dumps(start))
            os.write(go, b"g")
        except OSError:
            os.close(go)
            os.waitpid(self.child, 0)
            raise
        os.close(go)

    def wait(self, started):
        """Forward signals, keep the time limit, beat; until the command ends. Its status as of a shell."""
        next_beat = started + self.beat_s
        while True:
            status = self.reap()
            if status is not None:
                code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                self.settle(code)
                return code
            now = time.monotonic()
            got = signal.sigtimedwait(WATCHED, max(0.0, self.next_event(started, next_beat) - now))
            now = time.monotonic()
            if got is not None and got.si_signo != signal.SIGCHLD:
                self.forward(signal.Signals(got.si_signo), now)
            if now >= next_beat:
                self.beat()
                next_beat = now + self.beat_s
                if self.kill_at is None and self.has_successor():
                    say("a later start of this job has taken over; this one ends")
                    self.end("superseded", now)
            if self.keeps_limit and self.kill_at is None:
                if self.early and now >= started + self.limit - self.early[1]:
                    self.cause = "timeout"
                    self.signal_group(self.early[0])
                    self.early = None
                if now >= started + self.limit:
                    say("time limit of %g s reached" % self.limit)
                    self.end("timeout", now)
            if self.kill_at is not None and now >= self.kill_at:
                self.signal_group(signal.SIGKILL)
                self.kill_at = now + max(1.0, self.grace)

    def has_successor(self):
        """Whether a later start of the job has made its claim."""
        if os.path.exists(claim_path(self.directory, self.generation + 1)):
            return True
        parent, own = os.path.split(self.directory)
        try:
            names = os.listdir(parent) if own.isdigit() else []
        except OSError:
            return False
        later = [name for name in names if name.isdigit() and int(name) > int(own)]
        claims = [claim_path(os.path.join(parent, name), 0) for name in later]
        return any(os.path.exists(path) and not is_withdrawn(path) for path in claims)

    def next_event(self, started, next_beat):
        times = [next_beat]
        if self.kill_at is not None:
            times.append(self.kill_at)
        elif self.keeps_limit:
            times.append(started + self.limit - (self.early[1] if self.early else 0.0))
        return min(times)

    def forward(self, number, now):
        self.signal_group(number)
        if self.cause in ("timeout", "superseded"):
            return
        if number in ENDING:
            at_limit = self.ends is not None and now >= self.ends - EARLY_S
            self.cause = "timeout" if at_limit else "signal:%s" % number.name[3:]
            if self.kill_at is None:
                self.kill_at = now + self.grace
        else:
            self.news = (number, now)

    def end(self, cause, now):
        self.cause = cause
        self.signal_group(signal.SIGTERM)
        self.kill_at = now + self.grace

    def settle(self, code):
        """Whether a signal from outside ended the command that seems to have ended by itself."""
        if self.cause != "exit":
            return
        by = code - 128
        # Slurm signals every process of a job: the command's death may be seen before the guard's own signal.
        got = signal.sigtimedwait(set(FORWARDED), 1.0 if by in FORWARDED and not self.news else 0.0)
        if got is not None:
            self.news = (signal.Signals(got.si_signo), time.monotonic())
        if self.news is not None:
            number, at = self.news
            announced = self.warning is not None and number == self.warning[0]
            within = max(REACTION_S, self.warning[1] + LATE_S) if announced else REACTION_S
            if by == number or time.monotonic() - at <= within:
                self.cause = "timeout" if announced else "signal:%s" % number.name[3:]

    def reap(self):
        """Clear away what ended; the wait status of the command if it is among that."""
        found = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return found
            if pid == 0:
                return found
            if pid == self.child:
                found = status

    def signal_group(self, number):
        try:
            os.killpg(self.child, number)
        except OSError:
            pass

    def end_the_rest(self):
        """Nothing of the attempt outlives it: a successor must find its files at rest."""
        now = time.monotonic()
        kill_at = self.kill_at if self.kill_at is not None else now + min(self.grace, LEFT_BEHIND_S)
        give_up = max(now, kill_at) + LEFT_BEHIND_S
        asked = set()
        while True:
            self.reap()
            left = descendants()
            now = time.monotonic()
            if not left:
                self.reap()
                return
            if now >= give_up:
                say("processes that cannot be killed are left: %s" % " ".join(map(str, left)))
                return
            for pid in left:
                try:
                    if now >= kill_at:
                        os.kill(pid, signal.SIGKILL)
                    elif pid not in asked:
                        os.kill(pid, signal.SIGTERM)
                except OSError:
                    pass
            asked.update(left)
            # The end of a child wakes this up; deeper ones are looked at again.
            signal.sigtimedwait({signal.SIGCHLD}, min(0.2, max(0.01, kill_at - now)))

    def beat(self):
        self.beats += 1
        path = self.path("heartbeat.%d" % self.generation)
        try:
            with open(path + ".tmp", "w") as file:
                share(file)
                file.write("%d %.0f\n" % (self.beats, time.time()))
            os.rename(path + ".tmp", path)
        except OSError:
            pass

    def record(self, code, started_at):
        """Write how it ended; a full disk gets some time to be mended."""
        text = json.dumps(
            {
                "exit_code": code,
                "cause": self.cause,
                "started_at": started_at,
                "ended_at": time.time(),
                "host": self.me["host"],
                "generation": self.generation,
            }
        )
        path = self.path("exit.%d.json" % self.generation)
        give_up, pause = time.monotonic() + self.retry_s, 0.1
        while True:
            try:
                write_file(path, text)
                return
            except OSError as error:
                left = give_up - time.monotonic()
                again = "trying again" if left > 0 else "given up"
                say("cannot write %s (exit status %d): %s; %s" % (path, code, reason(error), again))
                if left <= 0:
                    return
                time.sleep(min(pause, left))
                pause = min(2 * pause, 10.0)


# ---------------------------------------------------------------- entry


def await_go(argv):
    """Become `argv` on the submitter's word that this process is on record; end if it dies before."""
    if os.read(0, 1) != b"g":
        return EXIT_CLAIM_LOST
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    plain_signals()
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        say("%s: %s" % (argv[0], reason(error)))
        return 127


def main(arguments):
    if len(arguments) > 1 and arguments[0] == "--await-go":
        return await_go(arguments[1:])
    if len(arguments) < 2 or arguments[0] != "--":
        say("usage: guard.py -- COMMAND [ARGUMENT ...]")
        return EXIT_USAGE
    directory = os.environ.get("AUTOEXP_ATTEMPT_DIR")
    if not directory:
        say("AUTOEXP_ATTEMPT_DIR is not set: to run a script by hand, give it the argument --claimed")
        return EXIT_CLAIM_FAILED
    # Blocked signals wait for sigtimedwait: none is lost between two looks, and none ends the guard.
    for number in WATCHED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    try:
        return Guard(os.path.abspath(directory), dict(os.environ)).run(arguments[1:])
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        say("cannot claim the attempt in %s: %s" % (directory, why))
        return EXIT_CLAIM_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
