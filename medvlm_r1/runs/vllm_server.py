"""A vLLM server as a part of this process: started, waited for, and ended with all of its processes.

vLLM pins its own torch and transformers, so it runs in an environment of its own and is reached over HTTP.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from medvlm_r1.runs import end_with_parent
from medvlm_r1.runs.places import CONF

PYTHON = "MEDVLM_R1_VLLM_PYTHON"
_PROBE = (
    "import importlib.metadata as m, importlib.util as u; u.find_spec('vllm').name; print(m.version('torch'))"
)
_CAUSE = re.compile(r"(?:[A-Z]\w*(?:Error|Exception)|error): .*|ended by SIG.*")
_RECORD = re.compile(r"\(\w+ pid=\d+\) [A-Z]+ \S+ \S+ \[\S+\] ")  # what vLLM's log puts before a line
_CONSEQUENCE = "Engine core initialization failed"  # of the cause, which is above it in the log
_OPEN = build_opener(ProxyHandler({})).open  # no proxy reaches this machine's loopback


class VLLMServerError(RuntimeError):
    """A server failed. The message gives the cause, the log and the remedy."""


def vllm_python() -> Path:
    """Return vLLM's Python: environment variable ``MEDVLM_R1_VLLM_PYTHON``, or where make installs it."""
    return Path(os.environ.get(PYTHON) or CONF.parent / ".venv/vllm/bin/python")


def check_python(python: Path) -> bool:
    """Check that a Python has vLLM; return whether its torch is a CPU build.

    Raises:
        VLLMServerError: there is no such file, or it has no vLLM.
    """
    remedy = (
        "`make vllm` in the checkout installs vLLM for a CPU; for a GPU, install it into an "
        f"environment of its own, and set {PYTHON} to the Python of that environment"
    )
    try:
        probe = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, check=True)
    except OSError:
        raise VLLMServerError(f"{python} is no Python: {remedy}") from None
    except subprocess.CalledProcessError:
        raise VLLMServerError(f"{python} has no vLLM: {remedy}") from None
    return probe.stdout.strip().endswith("+cpu")


class VLLMServer:
    """An OpenAI-compatible server of one model on this machine, as a context manager.

    It is one process group. It ends with :meth:`stop`, after a failed start, and with this process, however
    that ends.

    Args:
        model: Hugging Face directory.
        name: name of the model in requests.
        python: Python of an environment with vLLM, see :func:`vllm_python`.
        dtype: of the weights.
        max_model_len: limit of prompt and completion together, in tokens.
        max_num_seqs: completions decoded at the same time.
        images: limit per prompt.
        options: further options of vLLM's command line.
        env: further environment variables. On a CPU, ``VLLM_CPU_KVCACHE_SPACE`` is 1 (GiB) by default.
        log: file of the server's output; default: a temporary file, which only a failed start leaves.
        dev_mode: whether the server has vLLM's development routes, such as ``/collective_rpc``.
        start_timeout: seconds until the server must answer.

    Attributes:
        url: base of the server, without ``/v1``; :meth:`start` sets it, anew each time.
        pid: process group of the server; 0 before the start.
    """

    def __init__(
        self,
        model: Path,
        *,
        name: str,
        python: Path,
        dtype: str = "float32",
        max_model_len: int,
        max_num_seqs: int,
        images: int = 2,
        options: Sequence[str] = (),
        env: Mapping[str, str] = {},
        log: Path | None = None,
        dev_mode: bool = False,
        start_timeout: float = 900.0,
    ) -> None:
        self.model, self.python, self.log, self.start_timeout = model, python, log, start_timeout
        self.options = ["--model", str(model), "--served-model-name", name, "--dtype", dtype]
        self.options += ["--max-model-len", str(max_model_len), "--max-num-seqs", str(max_num_seqs)]
        self.options += ["--limit-mm-per-prompt", f'{{"image": {images}, "video": 0}}', *options]
        self.env = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1", **env}
        if dev_mode:
            self.env["VLLM_SERVER_DEV_MODE"] = "1"
        self.url, self.pid = "", 0
        self._process: subprocess.Popen[bytes] | None = None
        self._port = socket.socket()

    def __enter__(self) -> "VLLMServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            VLLMServerError: vLLM is not installed, the server ends, or it does not answer in time.
        """
        on_cpu = check_python(self.python)
        # Bound until the end and with the server's own option, which lets it in: nobody else gets this port.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        port = self._port.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [str(self.python), "-m", "vllm.entrypoints.openai.api_server", *self.options]
        command += ["--host", "127.0.0.1", "--port", str(port), *(["--enforce-eager"] if on_cpu else [])]
        env = {"VLLM_CPU_KVCACHE_SPACE": "1"} if on_cpu else {}
        env |= {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        env |= self.env
        if self.log is None:
            descriptor, name = tempfile.mkstemp(prefix="vllm-", suffix=".log")
            path = Path(name)
        else:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            path, descriptor = self.log, os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with open(descriptor, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", end_with_parent.__file__, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                start_new_session=True,
            )
        self.pid = self._process.pid
        try:
            self._wait(path)
        except BaseException:
            self.stop()
            raise
        if self.log is None:
            path.unlink()

    def stop(self) -> None:
        """End the server and all processes that it started; nothing if it does not run."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(end_with_parent.GRACE_SECONDS + 5)
            except subprocess.TimeoutExpired:  # such as after SIGSTOP
                os.killpg(self.pid, signal.SIGKILL)
                self._process.wait()
            self._process = None
        self._port.close()

    def _wait(self, log: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self.start_timeout
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with _OPEN(f"{self.url}/health", timeout=5):
                    return
            except OSError:  # refused, before the server listens
                time.sleep(0.2)
        late = self._process.poll() is None
        raise VLLMServerError(
            f"the vLLM server of {self.model} "
            f"{f'does not answer after {self.start_timeout:g} s' if late else 'ended'}: {_last_error(log)}. "
            f"Correct the model or the server's options; its whole output is in {log}"
        )


def _last_error(log: Path) -> str:
    """Return the last error in a log of vLLM, or its last lines."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [n for n, line in enumerate(lines) if _CAUSE.search(line) and _CONSEQUENCE not in line]
    if errors:
        first, *rest = lines[errors[-1] :]
        lines = [first, *(line for line in rest[:1] if not _RECORD.match(line))]
    return " ".join(_RECORD.sub("", line).strip() for line in lines[-5:])[:400]
