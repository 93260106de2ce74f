"""Rollouts from a vLLM server: beside the trainer on its device, or on devices of their own.

vLLM runs in an environment of its own and is reached over HTTP. Its log-probabilities are those of
:class:`~medvlm_r1.rollout.engine.Rollout`, with two differences from the engines in this process:

1. The noise is vLLM's. Its seeds depend on seed, step and question as elsewhere, but a token also depends on
   the rounding of the batch in which it was decoded, so runs do not repeat bit for bit.
2. vLLM does not give the entropy. The negative log-probability of the sampled token stands in for it: its
   mean over tokens is an unbiased estimate of the mean entropy.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

import torch
from torch import distributed
from torch.nn.utils.rnn import pad_sequence

from medvlm_r1.policy.encode import EncodedPrompt
from medvlm_r1.policy.policy import Policy
from medvlm_r1.policy.saving.folder import save_without_weights
from medvlm_r1.rollout.engine import Rollout, Sampling, build_rollout
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.vllm_client import GENERATE, NO_TRUNCATION, OPTIONS, VLLMClient
from medvlm_r1.rollout.vllm_request import SampledTokens, generate_request, read_choices
from medvlm_r1.rollout.vllm_weights import FolderTransfer, NCCLTransfer, WeightTransfer, sampling_weights
from medvlm_r1.runs.vllm_server import VLLMServer, VLLMServerError, vllm_python

REQUESTS = 64  # at the same time: each is a prompt with its images, of which vLLM decodes ``max_rows`` rows
PREFIX = 64  # tokens of an assistant prefix, at most; they come on top of max_prompt_tokens
log = logging.getLogger("medvlm_r1")


@dataclass(eq=False)
class VLLMEngine:
    """Rollouts from a vLLM server.

    The server starts at the first rollout, with the weights of the policy, and samples from those of the
    latest :meth:`Policy.sync_sampling_model <medvlm_r1.policy.policy.Policy.sync_sampling_model>`.

    Args:
        python: Python of vLLM's environment; ``None`` takes
            :func:`~medvlm_r1.runs.vllm_server.vllm_python`.
        url: running servers; rank r takes number r modulo their count. Without any, each rank starts one on
            its own device.
        transfer: of weights to the server: ``folder`` (files) or ``nccl`` (GPU to GPU, with ``url``).
        folder: parent of the folder with the files; ``None`` takes shared memory if it has room.
        max_rows: completions that a server decodes together.
        max_completion_tokens: limit of a completion, for the server's memory.
        max_images: images per prompt, at most.
        memory_share: of the GPU's memory, for a server beside the trainer; it is free while the policy
            trains.
        options: further options of vLLM's command line.
        timeout: seconds until a request fails.
        log: file of the server's output.

    Raises:
        ValueError: a value is unknown, or two do not go together.
    """

    python: str | None = None
    url: Sequence[str] = ()
    transfer: Literal["folder", "nccl"] = "folder"
    folder: str | None = None
    max_rows: int = 128
    max_completion_tokens: int = 512
    max_images: int = 2
    memory_share: float = 0.4
    options: Sequence[str] = ()
    timeout: float = 600.0
    log: str | None = None

    def __post_init__(self) -> None:
        if self.transfer not in ("folder", "nccl"):
            raise ValueError(f"rollout.transfer is {self.transfer!r}: use folder or nccl")
        if self.transfer == "nccl" and not self.url:
            raise ValueError("rollout.transfer=nccl needs rollout.url: NCCL refuses two processes on one GPU")
        self._client: VLLMClient | None = None
        self._server: VLLMServer | None = None
        self._weights: WeightTransfer | None = None
        self._held: tuple[Policy, int] | None = None  # whose weights the server has, and of which version
        self._run, self._updates = "", 0
        self._label = ""  # name of these weights on the server, which no other run uses
        self._sleeps = self._asleep = False

    def __call__(
        self, policy: Policy, prompts: Sequence[EncodedPrompt], sampling: Sampling, key: NoiseKey
    ) -> Rollout:
        """Sample completions; see :class:`~medvlm_r1.rollout.engine.RolloutEngine`.

        Raises:
            ValueError: ``sampling`` truncates, or a prompt is too long for the server.
            VLLMServerError: the server cannot be started, or has stopped.
        """
        if sampling.top_k or sampling.top_p < 1:
            raise ValueError(NO_TRUNCATION)
        self.update_weights(policy)
        self._check_limits(prompts, sampling)
        seeds = key.completion_keys([prompt.sample.id for prompt in prompts], group_size=1).tolist()

        def request(prompt: EncodedPrompt, seed: int) -> list[SampledTokens]:
            body = generate_request(policy, prompt, sampling, seed)
            try:
                response = self.client.post(GENERATE, body)
                return read_choices(response, policy, sampling, self._label)
            except (ValueError, VLLMServerError) as error:
                raise VLLMServerError(f"{prompt.sample.id}: {error}") from None

        self._wake()
        with ThreadPoolExecutor(REQUESTS) as pool:
            rows = [row for rows in pool.map(request, prompts, seeds) for row in rows]
        if sampling.temperature:  # an evaluation has further batches
            self.release()
        policy.counters["prefill_tokens"] += sum(len(prompt.ids) for prompt in prompts)
        policy.counters["decode_rows"] += sum(len(row.tokens) for row in rows)
        return _rollout(policy, rows, sampling)

    @property
    def client(self) -> VLLMClient:
        assert self._client is not None, "update_weights connects"
        return self._client

    def update_weights(self, policy: Policy) -> None:
        """Give the server the policy's weights, unless it has them. A collective: every rank must call it.

        Raises:
            VLLMServerError: the server cannot be started, refuses the weights, or has stopped.
        """
        if self._held and self._held[0] is policy and self._held[1] == policy.sampling_version:
            return
        everything = self._held is None or self._held[0] is not policy
        rank = distributed.get_rank() if distributed.is_initialized() else 0
        if self._client is None:
            self._connect(policy, rank)
        self._barrier()  # another rank may still sample from the old weights of a shared server
        self._updates += 1
        label = f"{self._run}-{self._updates}"
        if not self.url or rank < len(self.url):  # the first rank of each server
            self._wake()
            self._send(policy, everything)
            self._reset_caches()
            self.client.post("/update_weight_version", {"new_version": label})
        self._barrier()
        self._held, self._label = (policy, policy.sampling_version), label

    def release(self) -> None:
        """Let a server beside the trainer sleep: its weights move to the host until the next rollout."""
        if self._sleeps and not self._asleep:
            self.client.post("/sleep?level=1")
            self._asleep = True

    def stop(self) -> None:
        """End the server that this engine started, and delete its folder."""
        if self._server is not None:
            self._server.stop()
        if self._weights is not None:
            self._weights.close()
        self._client = self._server = self._weights = self._held = None

    def _send(self, policy: Policy, everything: bool) -> None:
        assert self._weights is not None
        self._weights.send(self.client, sampling_weights(policy, everything))

    def _reset_caches(self) -> None:
        """Drop what vLLM computed from the old weights: keys and values of prompts, features of images."""
        if not self.client.post("/reset_prefix_cache")["success"]:
            raise VLLMServerError(f"{self.client.url} keeps its prefix cache: does another program use it?")
        self.client.post("/reset_mm_cache")
        self.client.post("/reset_encoder_cache")

    def _connect(self, policy: Policy, rank: int) -> None:
        run = [uuid4().hex[:8]]
        if self.url and distributed.is_initialized():  # ranks that share a server share the name of the run
            distributed.broadcast_object_list(run)
        (self._run,) = run
        if self.transfer == "nccl":
            self._weights = NCCLTransfer()
        else:
            size = sum(parameter.nbytes for parameter in policy.sampling_model.parameters())
            if not self.url and distributed.is_initialized():  # every rank writes
                size *= distributed.get_world_size()
            self._weights = FolderTransfer(Path(self.folder) if self.folder else None, size)
        if self.url:
            client = VLLMClient(self.url[rank % len(self.url)], self.timeout)
        else:
            client = self._start(policy, rank)
        client.check()
        self._client = client

    def _start(self, policy: Policy, rank: int) -> VLLMClient:
        """Start a server on the device of the policy."""
        assert isinstance(self._weights, FolderTransfer)
        log_file = Path(self.log) if self.log else self._weights.folder / "vllm.log"
        if rank:
            log_file = log_file.with_stem(f"{log_file.stem}-{rank}")
        # Variables of Lightning's and torchrun's ranks are not this server's.
        env = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        tokens = policy.encoder.max_prompt_tokens + PREFIX + self.max_completion_tokens
        tokens = min(tokens, policy.model.config.get_text_config().max_position_embeddings)
        if policy.device.type == "cuda":
            devices = os.environ.get("CUDA_VISIBLE_DEVICES")
            index = policy.device.index or 0
            env["CUDA_VISIBLE_DEVICES"] = devices.split(",")[index] if devices else str(index)
            self._sleeps = True
            env["PYTORCH_ALLOC_CONF"] = env["PYTORCH_CUDA_ALLOC_CONF"] = ""  # sleep excludes growing segments
            options = ["--enable-sleep-mode", "--gpu-memory-utilization", str(self.memory_share)]
        else:
            # On a CPU, vLLM 0.32 cannot seed prompts that it prefills in parts: there is room for all.
            options = ["--max-num-batched-tokens", str(tokens * self.max_rows)]
        save_without_weights(self._weights.folder, policy.model, policy.encoder)
        self._server = VLLMServer(
            self._weights.folder,
            name="policy",
            python=Path(self.python) if self.python else vllm_python(),
            dtype=str(policy.sampling_model.dtype).removeprefix("torch."),
            max_model_len=tokens,
            max_num_seqs=self.max_rows,
            images=self.max_images,
            options=[*OPTIONS, *options, *map(str, self.options)],
            env=env,
            log=log_file,
            dev_mode=True,
        )
        log.info("rollout=vllm: starting the server (log: %s)", log_file)
        with self._weights.files(sampling_weights(policy, everything=True)):
            self._server.start()
        return VLLMClient(self._server.url, self.timeout, str(log_file))

    def _check_limits(self, prompts: Sequence[EncodedPrompt], sampling: Sampling) -> None:
        longest = max(prompts, key=lambda prompt: len(prompt.ids))
        tokens = len(longest.ids) + sampling.max_tokens
        if tokens > self.client.max_model_len:
            raise VLLMServerError(
                f"{longest.sample.id}: {len(longest.ids)} tokens of prompt and {sampling.max_tokens} of "
                f"completion exceed the server's --max-model-len {self.client.max_model_len}: raise "
                "rollout.max_completion_tokens, or start the server with a longer context"
            )
        if sampling.group_size > self.client.max_num_seqs:
            raise VLLMServerError(
                f"{sampling.group_size} completions per prompt exceed the server's --max-num-seqs "
                f"{self.client.max_num_seqs}: raise rollout.max_rows, or start the server with more"
            )

    def _wake(self) -> None:
        if self._asleep:
            torch.cuda.empty_cache()  # what training has freed
            self.client.post("/wake_up")
            self._asleep = False

    def _barrier(self) -> None:
        if self.url and distributed.is_initialized():
            distributed.barrier()


def _rollout(policy: Policy, rows: Sequence[SampledTokens], sampling: Sampling) -> Rollout:
    """Pad the completions to a :class:`Rollout` on the device of the policy."""
    tokens = [torch.tensor(row.tokens, device=policy.device) for row in rows]
    padded = pad_sequence(tokens, batch_first=True, padding_value=policy.pad_id)
    values = [torch.tensor(row.logprobs, device=policy.device) for row in rows]
    logprobs = pad_sequence(values, batch_first=True)
    entropy = -logprobs if sampling.temperature else torch.zeros_like(logprobs)
    return build_rollout(policy, padded, logprobs, torch.ones_like(logprobs), entropy)
