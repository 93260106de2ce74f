"""HTTP to one vLLM server."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvlm_r1.runs.vllm_server import VLLMServerError, check_python, vllm_python

# A proxy is for the internet, not for a server in this machine or cluster.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
OLDEST = (0, 32)  # version of vLLM with /inference/v1/generate and weight versions
GENERATE = "/inference/v1/generate"
# Options that a server needs. By default it gives log-probabilities before the temperature, takes no token
# ids, and normalises pixels itself, so that ours would be normalised twice.
OPTIONS = ("--logprobs-mode", "processed_logprobs", "--enable-scale-out", "--no-mm-device-do-normalize")

NO_TRUNCATION = (
    "vLLM gives log-probabilities after top-k and top-p, and the loss needs those before: set "
    "method.sampling.top_p=1 and method.sampling.top_k=0, or take rollout=shared_prefix"
)


def check_vllm(python: str | None, url: Sequence[str], timeout: float) -> None:
    """Check within seconds that vLLM is installed, or that the servers answer and take weights.

    Raises:
        VLLMServerError: they do not; the message gives the remedy.
    """
    for server in url:
        VLLMClient(server, timeout).check()
    if not url:
        check_python(Path(python) if python else vllm_python())


class VLLMClient:
    """JSON requests to one server.

    Args:
        url: of the server, without ``/v1``.
        timeout: seconds until a request fails.
        log: of the server, if this process started it; errors name it.
    """

    def __init__(self, url: str, timeout: float, log: str = "its log") -> None:
        self.url, self.timeout, self.log = url.rstrip("/"), timeout, log

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """POST ``body``; returns the decoded answer, ``None`` if it is empty.

        Raises:
            VLLMServerError: no connection, no answer in time, or an error of the server.
        """
        return self._send(path, json.dumps(body or {}).encode())

    def get(self, path: str) -> Any:
        """GET; see :meth:`post`."""
        return self._send(path, None)

    def check(self) -> None:
        """Check version and options of the server, and read its limits.

        Raises:
            VLLMServerError: its version is too old, or an option is missing; the message gives the remedy.
        """
        version = self.get("/version")["version"]
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise VLLMServerError(f"{self.url} runs vLLM {version}: rollout=vllm needs {oldest} or later")
        try:
            config = self.get("/server_info?config_format=json")["vllm_config"]
        except VLLMServerError as error:
            raise VLLMServerError(
                f"{self.url} takes no new weights: start it with VLLM_SERVER_DEV_MODE=1 ({error})"
            ) from None
        model = config["model_config"]
        normalizes = (model["multimodal_config"] or {}).get("mm_device_do_normalize")
        takes_tokens = GENERATE in self.get("/openapi.json")["paths"]
        if model["logprobs_mode"] != "processed_logprobs" or normalizes or not takes_tokens:
            raise VLLMServerError(f"{self.url} lacks options: start it with {' '.join(OPTIONS)}")
        self.max_model_len: int = model["max_model_len"]
        self.max_num_seqs: int = config["scheduler_config"]["max_num_seqs"]

    def _send(self, path: str, body: bytes | None) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        try:
            with _OPENER.open(request, timeout=self.timeout) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            reason = " ".join(error.read().decode(errors="replace").split())[:300]
            raise VLLMServerError(f"{self.url}{path}: HTTP {error.code} {reason} (see {self.log})") from None
        except TimeoutError:
            raise VLLMServerError(
                f"{self.url}{path}: no answer in {self.timeout:g} s: raise rollout.timeout, or see {self.log}"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise VLLMServerError(
                f"{self.url}: the vLLM server has stopped or cannot be reached ({reason}; see {self.log}): "
                "the same command with resume=auto goes on from the newest checkpoint"
            ) from None
        return json.loads(answer) if answer else None
