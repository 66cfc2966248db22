#!/usr/bin/env python3
"""Becomes the script of one task of a Slurm array.

Copied beside the index of its submission and run on compute nodes by `python3 -I array_task.py INDEX`: the
standard library only, Python 3.6 or newer. INDEX has one JSON object a line: first what the submission is,
then for each task its environment, its attempt's directory and its script, as they were submitted.
Exits 78 where the task cannot be begun: nothing of it was run.
"""

import json
import os
import stat
import sys

EXIT_CLAIM_FAILED = 78


def entry(index, number):
    with open(index, encoding="utf-8") as file:
        for line, text in enumerate(file):
            if line == number + 1:
                return json.loads(text)
    raise ValueError("%s has no task %d" % (index, number))


def make_directory(path):
    """Open to the group where the session's state is."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directory(parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    if stat.S_IMODE(os.stat(parent).st_mode) == 0o2770:
        os.chmod(path, 0o2770)


def main(arguments):
    try:
        task = entry(arguments[0], int(os.environ["SLURM_ARRAY_TASK_ID"]))
        make_directory(task["attempt_dir"])
        script = os.path.join(task["attempt_dir"], "script.sh")
        temp = "%s.%s.%d" % (script, os.uname().nodename, os.getpid())
        with open(temp, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(task["script"])
        os.rename(temp, script)
        os.environ.update(task["environment"])
        os.execvp("bash", ["bash", script])
    except (IndexError, KeyError, OSError, ValueError) as error:
        sys.stderr.write("autoexp array task: cannot begin: %s\n" % error)
    return EXIT_CLAIM_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
