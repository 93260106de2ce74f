"""Drawing tokens from hidden states, and the Triton kernel against torch's version."""

import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from medvlm_r1.policy.forward.lm_head import next_token_logprobs
from medvlm_r1.rollout.draw import draw, draw_from_logits
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey, gumbel_max_scores

KEYS = NoiseKey(1, 2).completion_keys(["a", "b"], 3)
STEPS = torch.tensor([0, 5, 511, 3, 3, 2])

NEEDS_TRITON = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs Triton: pip install --no-deps triton (1 GB on disk)"
)
# In a process of its own, because Triton reads TRITON_INTERPRET when it is imported.
INTERPRETED = """
import sys, torch
from medvlm_r1.rollout.draw_triton import draw_from_logits
cases = torch.load(sys.argv[1])
torch.save([draw_from_logits(*case) for case in cases], sys.argv[1])
"""


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_row_draws_the_same_alone_and_in_any_batch(temperature):
    hidden, head = torch.randn(6, 16, generator=torch.manual_seed(0)), torch.randn(500, 16)
    banned = torch.arange(500) == 3
    sampling = Sampling(temperature=temperature)
    together = draw(hidden, head, banned, sampling, KEYS, STEPS)
    for row in range(6):
        one = slice(row, row + 1)
        alone = draw(hidden[one], head, banned, sampling, KEYS[one], int(STEPS[row]))
        assert alone.tokens == together.tokens[one]
        torch.testing.assert_close(alone, type(alone)(*(x[one] for x in together)), rtol=0, atol=1e-5)
    logprobs = next_token_logprobs(hidden, head, banned, sampling.divisor)
    scores = gumbel_max_scores(logprobs, sampling, KEYS, STEPS)[0]
    assert torch.equal(together.tokens, scores.argmax(-1))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_torch_draws_where_triton_fails(temperature, monkeypatch):
    """On tensors of a CPU, Triton has no driver, or is not there."""
    monkeypatch.setattr("medvlm_r1.rollout.draw.HAS_TRITON", True)
    logits, banned = torch.randn(6, 500, generator=torch.manual_seed(0)), torch.arange(500) == 3
    with pytest.warns(UserWarning, match="Triton does not run here, so torch draws"):
        tokens, logprobs, entropy = draw_from_logits(logits, banned, temperature, KEYS ^ STEPS)
    sampling = Sampling(temperature=temperature)
    expected = draw(logits, torch.eye(500), banned, sampling, KEYS, STEPS)
    assert torch.equal(tokens, expected.tokens)
    torch.testing.assert_close((logprobs, entropy), (expected.logprobs, expected.entropy), rtol=0, atol=1e-6)
    with warnings.catch_warnings(action="error"):  # once
        draw_from_logits(logits, banned, temperature, KEYS ^ STEPS)


@NEEDS_TRITON
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_the_kernels_compile_for_a_gpu():
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from medvlm_r1.rollout import draw_triton

    types = dict.fromkeys(("sums", "best", "logprobs", "entropy"), "*fp32")
    types |= {"logits": "*bf16", "banned": "*i1", "keys": "*i64", "best_id": "*i32", "tokens": "*i64"}
    types |= dict.fromkeys(("row_stride", "vocabulary", "chunks"), "i32") | {"inverse_temperature": "fp32"}
    for kernel, constants in (
        (draw_triton._draw_chunk, {"greedy": False, "size": draw_triton.CHUNK}),
        (draw_triton._join_chunks, {"greedy": False, "width": 64}),
    ):
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        compiled = compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
        assert compiled.asm["cubin"]
        assert "lg2.approx" not in compiled.asm["ptx"]  # too coarse near 1, where the largest noise is


@NEEDS_TRITON
def test_the_kernel_draws_what_torch_draws(tmp_path):
    """Through Triton's interpreter; log-probabilities and entropy against fp64."""
    torch.manual_seed(0)
    cases = []
    for vocabulary, dtype, temperature, scale in (
        (151_936, torch.bfloat16, 1.0, 4),
        (20_000, torch.float32, 0.7, 4),
        (20_000, torch.bfloat16, 0.0, 4),
        (5_000, torch.float32, 1.3, 0),  # the noise alone
    ):
        logits = (scale * torch.randn(6, vocabulary)).to(dtype)
        banned = torch.zeros(vocabulary, dtype=torch.bool)
        banned[[3, -2]] = True
        banned[logits.argmax(-1)[0]] = True
        if vocabulary == 20_000:
            banned[:4096] = True  # a whole chunk
        cases.append((logits, banned, temperature, KEYS ^ STEPS))
    torch.save(cases, tmp_path / "cases.pt")
    command = [sys.executable, "-c", INTERPRETED, str(tmp_path / "cases.pt")]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"})
    for (logits, banned, temperature, _), drawn in zip(cases, torch.load(tmp_path / "cases.pt"), strict=True):
        tokens, logprobs, entropy = drawn
        sampling = Sampling(temperature=temperature)
        exact = (logits.double() / sampling.divisor).masked_fill(banned, -torch.inf).log_softmax(-1)
        scores = gumbel_max_scores(exact.float(), sampling, KEYS, STEPS)[0]
        assert torch.equal(tokens, scores.argmax(-1))
        chosen = exact.gather(-1, tokens[:, None])[:, 0]
        torch.testing.assert_close(logprobs.double(), chosen, rtol=0, atol=3e-6)
        expected = -(exact.exp() * exact.clamp(min=-1e4)).sum(-1) if temperature else torch.zeros(6).double()
        torch.testing.assert_close(entropy.double(), expected, rtol=0, atol=3e-6)


@NEEDS_TRITON
def test_a_row_that_is_not_a_number_draws_a_token_of_the_vocabulary(tmp_path):
    """Padding must not win: a later step would embed an id that does not exist."""
    logits = torch.randn(3, 9000, generator=torch.manual_seed(0))
    logits[0], logits[2, 100] = torch.nan, torch.nan
    torch.save([(logits, torch.zeros(9000, dtype=torch.bool), 1.0, KEYS[:3])], tmp_path / "cases.pt")
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED, str(tmp_path / "cases.pt")]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"})
    ((tokens, logprobs, _),) = torch.load(tmp_path / "cases.pt")
    assert tokens[0] < 9000
    assert tokens[2] == 100
    assert logprobs.isnan().tolist() == [True, False, True]
