"""The text that has a loop started again: lines of crontab(5), a unit of systemd.service(5), a job script.

Pure. All three start the same small script, which knows the program and where it finds its commands.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

#: What a loop needs of the shell that it was installed from: cron and systemd give it next to nothing. What
#: is secret, or for jobs, belongs in `slurm.env_file` and `slurm.environment`.
NEEDED = (
    "PATH",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "LANG",
    "SLURM_CONF",
    "TMUX_TMPDIR",
    "XDG_STATE_HOME",
    "XDG_CONFIG_HOME",
)
#: How often cron looks, in minutes, and how long a job waits before it starts the loop again, in seconds.
CRON_MINUTES, AGAIN_S = 10, 600


def script(program: Sequence[str], state_dir: str, environ: Mapping[str, str]) -> str:
    """A POSIX shell script: `script start --revive` or `script run`, for the session in `state_dir`."""
    lines = ["#!/bin/sh", "# Written by `oellm-autoexp daemon install`; `daemon uninstall` removes it."]
    lines += [f"export {name}={shlex.quote(environ[name])}" for name in NEEDED if environ.get(name)]
    where = shlex.quote(state_dir)
    lines += [
        "# Not mounted yet, or removed: there is nothing to lead.",
        f"[ -d {where} ] || exit 0",
        f'verb=$1; shift; exec {shlex.join(program)} daemon "$verb" "$@" {where}',
    ]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- cron


def mark(name: str) -> str:
    """What ends each of our lines in a crontab; to the shell that cron starts it is a comment."""
    return f"# oellm-autoexp {name}"


def cron_lines(path: str, name: str) -> list[str]:
    """The lines for a session: after a boot of this host, and every few minutes."""
    # A per cent sign would end the command (crontab(5)).
    command = f"/bin/sh {shlex.quote(path)} start --revive >/dev/null".replace("%", r"\%")
    return [f"{when} {command} {mark(name)}" for when in ("@reboot", f"*/{CRON_MINUTES} * * * *")]


def with_lines(crontab: str, path: str, name: str) -> str:
    """A crontab with our lines at its end, once; the others stay as they are."""
    others = without_lines(crontab, name)
    if others and not others.endswith("\n"):
        others += "\n"
    return others + "".join(f"{line}\n" for line in cron_lines(path, name))


def without_lines(crontab: str, name: str) -> str:
    """A crontab without our lines; the others stay as they are."""
    ending = f" {mark(name)}"
    return "\n".join(line for line in crontab.split("\n") if not line.endswith(ending))


# ---------------------------------------------------------------- systemd


def unit(path: str, name: str, log: str) -> str:
    """A user unit that leads a session.

    Local jobs and actions share its control group: only the loop itself is ended with it (`KillMode`).
    """
    return f"""\
# Written by `oellm-autoexp daemon install`; `daemon uninstall` removes it.
[Unit]
Description=oellm-autoexp session {_specifiers(name)}
StartLimitIntervalSec=0

[Service]
ExecStart=/bin/sh {_unit_word(path)} run
StandardOutput=append:{_specifiers(log)}
StandardError=inherit
KillMode=process
Restart=on-failure
RestartSec=60
SuccessExitStatus=130
RestartPreventExitStatus=2

[Install]
WantedBy=default.target
"""


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _unit_word(text: str) -> str:
    """A word of a command line in a unit (systemd.service(5), "Command lines")."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{_specifiers(escaped)}"'


# ---------------------------------------------------------------- a job


def job(path: str, own_path: str, name: str, log: str, options: Mapping[str, str | bool]) -> str:
    """A job script that leads a session on one core, and that a job of its own follows.

    `own_path` is where it stands; `options` are those of sbatch(1) by their long names, over ours. The next
    job waits for this one's end from the start, so that it comes whatever ends this one: the limit, a node, a
    person. It is taken back where nothing is left to do.
    """
    given: dict[str, str | bool] = {
        "job-name": name,
        "ntasks": "1",
        "cpus-per-task": "1",
        "output": log.replace("%", "%%"),
        "open-mode": "append",
        "no-requeue": True,
        "signal": "B:TERM@120",
        **options,
    }
    directives = "\n".join(
        f"#SBATCH --{key}" if value is True else f"#SBATCH --{key}={shlex.quote(str(value))}"
        for key, value in given.items()
        if value is not False
    )
    return f"""\
#!/bin/bash
{directives}
# Written by `oellm-autoexp daemon install`; `daemon uninstall` cancels it.
this=$SLURM_JOB_ID
# What this job is must not become options of the jobs that the loop submits.
for name in $(compgen -e); do
  case $name in
    SLURM_CONF|SLURM_JWT|SLURM_CONF_SERVER) ;;
    SLURM_*|SLURMD_*|SBATCH_*|SRUN_*|SQUEUE_*|SACCT_*|SCANCEL_*|SALLOC_*|PMI_*|PMIX_*) unset "$name" ;;
  esac
done
follow() {{
  next=$(sbatch --parsable --dependency=afterany:"$this" {shlex.quote(own_path)}) && next=${{next%%;*}}
}}
follow || next=
asked=
loop=
trap 'asked=1; [ -z "$loop" ] || kill -TERM "$loop" 2>/dev/null' TERM
while :; do
  /bin/sh {shlex.quote(path)} run &
  loop=$!
  wait "$loop"; code=$?
  # A signal ends the waiting, not what is waited for.
  while kill -0 "$loop" 2>/dev/null; do wait "$loop"; code=$?; done
  loop=
  case $code in 0|2) break ;; esac
  [ -z "$asked" ] || break
  sleep {AGAIN_S} & wait $!
  [ -z "$asked" ] || break
done
case $code in
  0|2) [ -z "$next" ] || scancel "$next" ;;
  *) for try in 1 2 3 4 5; do [ -n "$next" ] || follow || sleep 10; done ;;
esac
exit "$code"
"""
