"""Processes of the peers that are timed in turns, each in a virtual environment: they answer questions in JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "INTARSIA_NUM_THREADS")


def start(script, venv, peer, threads):
    """A script as a peer, in `venv-…` beside this file, or where there is none with the Python that runs."""
    python = HERE / f"venv-{venv}/bin/python"
    command = [str(python if python.exists() else sys.executable), script, "--work", peer, "--threads", str(threads)]
    if threads == 1:
        command = ["taskset", "-c", "1", *command]
    environment = {**os.environ, **dict.fromkeys(THREADS, str(threads))}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE
    )


def ask(process, *question):
    """The answer of a peer."""
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    assert line, "a peer ended"
    return json.loads(line)
