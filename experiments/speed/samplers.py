"""The samplers that are compared: our engine in this process, and vLLM in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from our_side import ENGINES, forced_ends
from sizes import STYLE, Size, encoder, random_model
from timing import clock
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from medvlm_r1.data.sample import VQASample
from medvlm_r1.policy.encode import collate
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine
from medvlm_r1.runs import end_with_parent
from medvlm_r1.runs.vllm_server import check_python


@dataclass
class Drawn:
    """Completions of a list of prompts, prompt-major.

    Attributes:
        seconds: from questions with decoded images (ours) or prompts with decoded images (vLLM) to texts.
        prompts: token ids, once per prompt.
        tokens, logprobs: of each row.
    """

    seconds: float
    prompts: list[list[int]]
    tokens: list[list[int]]
    logprobs: list[list[float]]


class Ours:
    """``rollout=shared_prefix`` on random weights, which it saves for vLLM.

    Args:
        folder: receives the weights, tokenizer and image processor.
        rows: limit of rows that decode together.
    """

    name = "ours"

    def __init__(self, size: Size, folder: Path, rows: int) -> None:
        model = random_model(size).requires_grad_(False)
        self.policy = Policy(model, encoder(size.model))
        self.policy.save(folder)
        self.policy.banned.zero_()  # vLLM normalises over the full vocabulary
        self.engine = SharedPrefixEngine(max_rows=rows)
        self.ends = forced_ends(ENGINES["shared_prefix"][0])
        self.step = 0

    def sample(self, questions: Sequence[VQASample], size: Size, lengths: Tensor) -> Drawn:
        """Draw completions of exactly these lengths; no vision token is drawn."""
        self.step += 1
        policy, key = self.policy, NoiseKey(0, self.step)
        rows = key.completion_keys([question.id for question in questions], size.group)
        start = clock()
        prompts = [policy.encoder.encode(question, "train", STYLE) for question in questions]
        with self.ends.set(rows, lengths, policy.eos_ids, policy.banned_ids):
            rollout = self.engine(policy, prompts, Sampling(size.group, size.new_tokens), key)
        seconds = clock() - start
        tokens, logprobs = (
            [row[mask].tolist() for row, mask in zip(rows, rollout.mask, strict=True)]
            for rows in (rollout.tokens, rollout.logprobs)
        )
        return Drawn(seconds, [prompt.ids.tolist() for prompt in prompts], tokens, logprobs)

    @torch.no_grad()
    def trained_on(self, questions: Sequence[VQASample], drawn: Drawn) -> list[list[float]]:
        """Log-probabilities of another sampler's tokens, as training computes them."""
        policy = self.policy
        prompts = [policy.encoder.encode(question, "train", STYLE) for question in questions]
        tokens = pad_sequence([torch.tensor(row) for row in drawn.tokens], batch_first=True)
        lengths = torch.tensor([len(row) for row in drawn.tokens])
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        batch = collate(prompts, policy.pad_id, policy.device)
        found = policy.logprobs(batch, tokens.to(policy.device), mask.to(policy.device)).cpu()
        return [row[:length].tolist() for row, length in zip(found, lengths.tolist(), strict=True)]


class VLLM:
    """vLLM's offline engine on the weights in ``folder``, with its prefix cache, which is its default.

    Args:
        options: of ``vllm.LLM``.
        env: further environment variables.

    Raises:
        VLLMServerError: the Python has no vLLM.
        RuntimeError: the engine does not start.
    """

    name = "vLLM"

    def __init__(self, folder: Path, python: Path, options: dict[str, Any], env: dict[str, str]) -> None:
        check_python(python)
        self.folder, self.log = folder, folder.with_suffix(".log")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        worker = [str(python), str(Path(__file__).with_name("vllm_worker.py")), str(folder)]
        self.process = subprocess.Popen(
            [sys.executable, "-I", end_with_parent.__file__, str(os.getpid()), *worker, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env=inherited | {"VLLM_NO_USAGE_STATS": "1"} | env,
            process_group=0,
        )
        self.versions = self._answer()

    def sample(
        self, questions: Sequence[VQASample], size: Size, lengths: Tensor, banned: Sequence[int] = ()
    ) -> Drawn:
        """Draw completions of exactly these lengths.

        Args:
            banned: ids that are not drawn; they remain in the softmax of the log-probabilities.
        """
        same = {"ignore_eos": True, "logprobs": 0}
        limits = lengths.clamp(max=size.new_tokens).view(-1, size.group).tolist()
        request = [
            self._prompt(question, size)
            | {"sampling": {"n": n, "max_tokens": limit, **same}, "banned": list(banned)}
            for question, row in zip(questions, limits, strict=True)
            for n, limit in ([(size.group, row[0])] if len(set(row)) == 1 else [(1, limit) for limit in row])
        ]
        print(json.dumps(request), file=self.process.stdin, flush=True)
        drawn = Drawn(**self._answer())
        drawn.prompts = drawn.prompts[:: len(request) // len(questions)]
        return drawn

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def _prompt(self, question: VQASample, size: Size) -> dict[str, Any]:
        """Token ids with one placeholder per image, which vLLM expands, and the images' files."""
        made = encoder(size.model)
        text = made.tokenizer.apply_chat_template(
            STYLE.render(question, "train"), tokenize=False, add_generation_prompt=True
        )
        paths = [self.folder / f"{image.name}-{image.width}x{image.height}.png" for image in question.images]
        for path, image in zip(paths, question.images, strict=True):
            if not path.exists():
                image.load().save(path)
        return {
            "ids": made.tokenizer(text, add_special_tokens=False)["input_ids"],
            "images": [str(path) for path in paths],
        }

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"vLLM ended:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)
