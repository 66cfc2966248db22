"""A secret of the environment reaches the commands that need it, and no file of ours."""

from __future__ import annotations

import json
from pathlib import Path

from commands import Cli

SECRET = "s3cr3t'value $HOME"
CONFIG = r"""
project: {name: secret, base_output_dir: ./outputs}
backend:
  class_name: CommandBackend
  command:
    - bash
    - -c
    - echo "saved $0"; printf %s "$1" > "$2/job"; printf %s "$JOB_TOKEN" > "$2/job_environment"
    - ${job.attempt}
    - ${oc.env:MY_TOKEN}
    - ${job.output_dir}
  environment: {JOB_TOKEN: '${oc.env:MY_TOKEN}'}
monitoring:
  class_name: SlurmLogMonitor
  log_signals:
    saved: {pattern: 'saved (?P<number>\d+)', action: [text, words, environment, note]}
conditions:
  asked:
    class_name: CommandCondition
    command: [test, '${oc.env:MY_TOKEN}', =, '${oc.env:MY_OTHER_TOKEN}']
job: {start_condition: asked}
actions:
  text: {command: 'printf %s "${oc.env:MY_TOKEN}" > ${job.output_dir}/text_${job.attempt}'}
  words:
    command:
      - bash
      - -c
      - printf %s "$0" > "$1/words_$2"
      - ${oc.env:MY_TOKEN}
      - ${job.output_dir}
      - ${job.attempt}
  environment:
    command: printf %s "$ACTION_TOKEN" > ${job.output_dir}/environment
    environment: {ACTION_TOKEN: '${oc.env:MY_TOKEN}'}
  note:
    class_name: AppendAction
    path: ${job.output_dir}/note
    text: attempt ${job.attempt} with ${oc.env:MY_TOKEN}
"""


def test_a_secret_is_used_and_never_written(tmp_path: Path) -> None:
    """Jobs, shell commands, argvs, environments and conditions get the value; our files hold its name."""
    config = tmp_path / "secret.yaml"
    config.write_text(CONFIG)
    cli = Cli(tmp_path, MY_TOKEN=SECRET, MY_OTHER_TOKEN=SECRET)
    done = cli("submit", str(config), "--local", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    (job,) = json.loads(done.stdout)["jobs"]
    assert (job["actions"]["done"], job["actions"]["failed"]) == (4, 0)
    output = Path(job["output_dir"])
    written = ("job", "job_environment", "text_1", "words_1", "environment")
    assert {name: (output / name).read_text() for name in written} == dict.fromkeys(written, SECRET)
    assert (output / "note").read_text() == "attempt 1 with ${MY_TOKEN}\n"
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name not in written:
            assert b"s3cr3t" not in path.read_bytes(), path
