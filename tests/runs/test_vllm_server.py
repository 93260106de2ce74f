"""A server leaves no process behind, whichever way its user ends, and a failed start says why."""

import os
import signal
import subprocess
import sys
import time

import pytest

from medvlm_r1.policy.loading import resolve
from medvlm_r1.runs import end_with_parent
from medvlm_r1.runs.vllm_server import VLLMServer, VLLMServerError

# Starts a command with a child of its own, prints their process group, then does what the test appends.
USER = """
import os, subprocess, sys, time
command = ["bash", "-c", "sleep 300 & echo ready; wait"]
process = subprocess.Popen(
    [sys.executable, "-I", sys.argv[1], str(os.getpid()), *command],
    stdout=subprocess.PIPE,
    start_new_session=True,
)
process.stdout.readline()
print(process.pid, flush=True)
"""


def running(group):
    """Processes of a group, those that only wait to be collected excepted."""
    listed = subprocess.run(["ps", "-eo", "pgid,stat,pid"], capture_output=True, text=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [pid for pgid, stat, pid in rows if pgid == str(group) and not stat.startswith("Z")]


def ends(group, seconds=20):
    deadline = time.monotonic() + seconds
    while running(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not running(group)


class TestEndWithParent:
    @pytest.fixture
    def group(self):
        """Starts the command as a child of another process that then runs some code."""
        groups = []

        def start(code):
            user = subprocess.Popen(
                [sys.executable, "-c", USER + code, end_with_parent.__file__],
                stdout=subprocess.PIPE,
                text=True,
            )
            groups.append(int(user.stdout.readline()))
            return user, groups[-1]

        yield start
        for group in groups:
            if running(group):
                os.killpg(group, signal.SIGKILL)

    def test_a_killed_user_leaves_nothing(self, group):
        user, started = group("time.sleep(300)")
        assert len(running(started)) >= 3  # the watcher, the command and its child
        user.kill()
        user.wait()
        assert ends(started)

    @pytest.mark.parametrize(
        "code", ["", "raise ValueError", "os._exit(1)", "process.terminate(); process.wait()"]
    )
    def test_nor_does_one_that_ends_or_stops_it(self, code, group):
        user, started = group(code)
        user.wait()
        assert ends(started)


class TestStart:
    def server(self, python, **settings):
        return VLLMServer(
            resolve.EMBEDDED, name="tiny", python=python, max_model_len=512, max_num_seqs=2, **settings
        )

    @pytest.mark.parametrize("python", ["/nowhere/python", sys.executable])
    def test_without_vllm_names_the_command_that_installs_it(self, python):
        with pytest.raises(VLLMServerError, match=f"^{python} (is no Python|has no vLLM): `make vllm`"):
            self.server(python).start()

    def test_that_fails_gives_the_cause_and_the_log(self, vllm, tmp_path):
        server = self.server(vllm, options=["--no-such-option"], log=tmp_path / "server.log")
        with pytest.raises(VLLMServerError, match=r"ended: .*--no-such-option\. .*server\.log$"):
            server.start()
        assert ends(server.pid)
        assert "usage: api_server.py" in (tmp_path / "server.log").read_text()

    def test_that_takes_too_long_ends_the_server(self, vllm, tmp_path):
        server = self.server(vllm, start_timeout=0.5, log=tmp_path / "server.log")
        with pytest.raises(VLLMServerError, match=r"does not answer after 0\.5 s"):
            server.start()
        assert ends(server.pid)
