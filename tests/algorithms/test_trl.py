"""The same rewards and the same rows through TRL's own trainers and through ours."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import trl  # its trainers are loaded when they are asked for, which takes seconds
from datasets import Dataset
from formulas import close, grpo_loss, random_rows
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from medvlm_r1.algorithms.advantages import GroupRelative, LeaveOneOut, PerTerm
from medvlm_r1.policy.loading.resolve import EMBEDDED
from medvlm_r1.rewards import RewardTable

# --- advantages: one step of TRL's trainers on a language model of one layer --------------------------

GROUP = 4
TABLES = {
    # as the papers' rewards: two terms of zeros and ones, groups without spread among them
    "right or wrong": {
        "accuracy": [0.0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0],
        "format": [1.0, 1, 0, 1, 1, 1, 1, 1, 0, 1, 0, 1, 0, 0, 0, 0],
    },
    "graded": {
        "accuracy": torch.rand(16, generator=torch.Generator().manual_seed(0)).tolist(),
        "format": torch.rand(16, generator=torch.Generator().manual_seed(1)).tolist(),
    },
}
WEIGHTS = {"accuracy": 1.0, "format": 0.5}


def trl_advantages(method, terms, folder, **settings):
    """What TRL's trainer of ``method`` makes of the rewards of one step of four prompts."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )

    def reward(name):
        def given(completions, **_):
            assert len(completions) == len(terms[name])
            return terms[name]

        given.__name__ = name
        return given

    rows = len(terms["accuracy"])
    args = getattr(trl, f"{method}Config")(
        output_dir=str(folder),
        per_device_train_batch_size=rows,
        num_generations=GROUP,
        max_completion_length=2,
        max_steps=1,
        reward_weights=[WEIGHTS[name] for name in terms],
        beta=0.0,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    trainer = getattr(trl, f"{method}Trainer")(
        model,
        [reward(name) for name in terms],
        args,
        Dataset.from_dict({"prompt": [f"question {number}" for number in range(rows // GROUP)]}),
        processing_class=tokenizer,
    )
    trainer.train()
    return torch.tensor(trainer._logs["advantages"])


@pytest.mark.parametrize("terms", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize(
    ("ours", "method", "settings"),
    [
        (GroupRelative(), "GRPO", {"scale_rewards": "group"}),
        (GroupRelative("none"), "GRPO", {"scale_rewards": "none"}),
        (PerTerm(), "GRPO", {"multi_objective_aggregation": "normalize_then_sum"}),
        (LeaveOneOut(), "RLOO", {}),
    ],
    ids=["grpo", "dr_grpo", "gdpo", "rloo"],
)
def test_advantages(ours, method, settings, terms, tmp_path):
    theirs = trl_advantages(method, terms, tmp_path, **settings)
    table = RewardTable({name: torch.tensor(values) for name, values in terms.items()}, WEIGHTS)
    advantages = ours(table, torch.zeros(16, dtype=torch.bool), GROUP)
    assert advantages.abs().max() > 0.5
    close(advantages, theirs)


# --- losses: TRL's own methods on rows of which we know every number ----------------------------------


def trl_loss(trainer, rows, **settings):
    """The loss that one of TRL's trainers computes from these rows, and what it logs."""
    logprobs, old, reference, advantages, mask = rows
    known = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda value: value, reduce=lambda value, reduction: value
        ),
        aux_loss_enabled=False,
        model=SimpleNamespace(training=True),
        **settings,
    )
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "old_logps": (old * mask).sum(1),
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    return trainer._compute_loss(known, None, inputs), known._metrics["train"]


def trl_grpo_loss(rows, loss_type, beta, clip, level="token"):
    """That of TRL's GRPO trainer, completions being 16 tokens long at most."""
    return trl_loss(
        trl.GRPOTrainer,
        rows,
        _entropy_bonus_enabled=False,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        beta=beta,
        current_gradient_accumulation_steps=1,
        epsilon_low=clip[0],
        epsilon_high=clip[1],
        importance_sampling_level=level,
        loss_type=loss_type,
        max_completion_length=16,
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
    )


def same(ours, theirs, logprobs):
    """Value and gradient."""
    close(ours, theirs)
    close(torch.autograd.grad(ours, logprobs)[0], torch.autograd.grad(theirs, logprobs)[0])


@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.2, 0.28)])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(
    ("their_loss_type", "loss_type"),
    [("grpo", "sequence"), ("dapo", "token"), ("bnpo", "token"), ("dr_grpo", "token")],
)
def test_loss(their_loss_type, loss_type, beta, clip):
    rows = random_rows(12, 9, seed=3)
    logprobs, mask = rows[0], rows[-1]
    theirs, logged = trl_grpo_loss(rows, their_loss_type, beta, clip)
    # Dr. GRPO divides by rows * longest completion; the others by what they see.
    denominator = 12 * 16 if their_loss_type == "dr_grpo" else None
    ours, stats = grpo_loss(
        *rows, beta=beta, denominator=denominator, clip_low=clip[0], clip_high=clip[1], loss_type=loss_type
    )
    assert stats["clipped"] > 3
    same(ours, theirs, logprobs)
    close(stats["clipped"] / mask.sum(), logged["clip_ratio/region_mean"][0])
    if beta:
        close(stats["kl"] / mask.sum(), logged["kl"][0])


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_loss_of_gspo(beta):
    rows = random_rows(12, 9, seed=3)
    clip = (3e-2, 4e-2)  # wide enough that some are held and some are not
    theirs, _ = trl_grpo_loss(rows, "grpo", beta, clip, level="sequence")
    ours, stats = grpo_loss(
        *rows, beta=beta, clip_low=clip[0], clip_high=clip[1], importance_sampling_level="sequence"
    )
    assert 0 < stats["clipped"] < rows[-1].sum()
    same(ours, theirs, rows[0])


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_loss_of_cispo(beta):
    rows = random_rows(12, 9, seed=3)
    theirs, _ = trl_grpo_loss(rows, "cispo", beta, (0.2, 1.2))  # TRL's is the bound itself
    ours, stats = grpo_loss(*rows, beta=beta, loss_type="token", policy_loss="weighted")
    assert 0 < stats["clipped"] < rows[-1].sum()
    same(ours, theirs, rows[0])


def test_loss_of_rloo():
    rows = random_rows(12, 9, seed=3)
    theirs, _ = trl_loss(trl.RLOOTrainer, rows, epsilon_low=0.2, epsilon_high=0.2)
    logprobs, old, _, advantages, mask = rows
    ours, stats = grpo_loss(
        logprobs, old, None, advantages, mask, beta=0, importance_sampling_level="completion"
    )
    assert 0 < stats["clipped"] < mask.sum()
    same(ours, theirs, logprobs)
