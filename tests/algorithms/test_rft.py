"""Rejection sampling: what is kept, what is trained on, and that a stopped run goes on."""

import csv
import dataclasses
import json

import pytest
import torch
from command import run_here
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger
from training import PROMPT, RECIPE, REWARDS, SHORT, fit, module_of

from medvlm_r1.algorithms.rft import RFT, NoRightCompletionError, sampled_rows
from medvlm_r1.algorithms.sft import SFT, pad_targets
from medvlm_r1.algorithms.trajectory import Trajectory
from medvlm_r1.phantom import PhantomSource
from medvlm_r1.policy.encode import collate
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.rewards import Rewards
from medvlm_r1.rollout.engine import Rollout, Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine


def sampled(folder):
    return [json.loads(line) for line in (folder / "sampled-0.jsonl").read_text().splitlines()]


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.policy.parameters()])


class Counting(SharedPrefixEngine):
    """Counts the prompts of sampling, evaluation aside."""

    prompts = 0

    def __call__(self, policy, prompts, sampling, key):
        self.prompts += len(prompts) * (sampling.temperature > 0)
        return super().__call__(policy, prompts, sampling, key)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rft")
    return folder, fit(RFT, folder, steps=2, n=8)


def test_kept_are_the_right_completions_of_the_starting_weights(run):
    """Sampled again, question by question, and scored by the rewards one by one."""
    folder, module = run
    policy = load_policy("embedded", RECIPE)
    rows = {row["sample_id"]: row for row in sampled(folder)}
    assert rows.keys() == {sample.id for sample in PhantomSource("mri", 8, "train")}
    some = 0
    for sample in PhantomSource("mri", 8, "train"):
        prompt = policy.encoder.encode(sample, "train", PROMPT)
        rollout = SharedPrefixEngine()(policy, [prompt], Sampling(4, 24), NoiseKey(0, 0))
        answers = [PROMPT.parse(text, sample) for text in rollout.texts]
        full = [
            all(term(answer, sample) == 1 for term in REWARDS.terms.values()) and not cut
            for answer, cut in zip(answers, rollout.truncated.tolist(), strict=True)
        ]
        row = rows[sample.id]
        right = [text for text, good in zip(rollout.texts, full, strict=True) if good]
        assert [c["text"] for c in row["kept"]] == list(dict.fromkeys(right))
        assert (row["right"], row["sampled"]) == (len(right), 4)
        assert row["tokens"] == int(rollout.lengths.sum())
        assert [policy.encoder.decode(torch.tensor(c["ids"])) for c in row["kept"]] == [
            c["text"] for c in row["kept"]
        ]
        assert [t.tolist() for t in module.targets(sample)] == [c["ids"] for c in row["kept"]]
        assert all(c["ids"][-1] in policy.eos_ids for c in row["kept"])
        some += 0 < len(right) < 4
    assert some  # questions with both kinds


def test_the_same_seed_samples_the_same(run, tmp_path):
    fit(RFT, tmp_path, steps=2, n=8)
    assert (tmp_path / "sampled-0.jsonl").read_text() == (run[0] / "sampled-0.jsonl").read_text()


def trajectory_of(texts, truncated=()):
    """Two completions or more of one question, whose answer is B."""
    sample = dataclasses.replace(PhantomSource("mri", 1, "train")[0], options=("a", "b"), answer="B")
    encoder = load_policy("embedded", RECIPE).encoder
    prompt = encoder.encode(sample, "train", PROMPT)
    n = len(texts)
    tokens = torch.arange(3 * n).view(n, 3)
    mask = torch.tensor([[True, True, i % 2 == 0] for i in range(n)])
    zeros = torch.zeros(n, 3)
    cut = torch.tensor([i in truncated for i in range(n)])
    rollout = Rollout(tokens, mask, zeros, zeros, zeros, list(texts), cut)
    answers = [PROMPT.parse(text, sample) for text in texts]
    return Trajectory([prompt], rollout, [sample] * n, answers, REWARDS.score(answers, [sample] * n))


WHY, OTHER = "<think>why</think><answer>B</answer>", "<think>other</think><answer>B</answer>"


@pytest.mark.parametrize(
    ("texts", "truncated", "right", "kept"),
    [
        ([WHY, "<think>why</think><answer>A</answer>"], (), 1, [0]),  # wrong
        (["<answer>B</answer>", WHY], (), 1, [1]),  # right, and not in the format
        (["<think>why</think><answer>B.</answer>", WHY], (), 1, [1]),  # half the accuracy reward
        ([WHY, WHY, OTHER, WHY], (), 4, [0, 2]),  # each text once
        ([OTHER, WHY], (0,), 1, [1]),  # without its end
        (["<answer>A</answer>"] * 2, (), 0, []),
    ],
    ids=["wrong", "format", "half", "twice", "cut", "none"],
)
def test_what_is_kept(texts, truncated, right, kept):
    (row,) = sampled_rows(trajectory_of(texts, truncated), 1.0, 4)
    assert (row["right"], row["sampled"]) == (right, len(texts))
    assert row["kept"] == [
        {"text": texts[i], "ids": [3 * i, 3 * i + 1, 3 * i + 2][: 3 - i % 2]} for i in kept
    ]
    assert row["tokens"] == sum(3 - i % 2 for i in range(len(texts)))


def test_so_many_at_most_and_down_to_a_threshold():
    half = "<think>why</think><answer>B.</answer>"
    (row,) = sampled_rows(trajectory_of([WHY, half, OTHER]), 0.5, 2)
    assert [c["text"] for c in row["kept"]] == [WHY, half]
    assert row["right"] == 3


def test_the_loss_is_the_mean_over_the_tokens_of_all_kept_completions(tmp_path):
    off = {"limit_val_batches": 0, "limit_test_batches": 0, "log_every_n_steps": 1}
    off["logger"] = CSVLogger(tmp_path, name="", version="")
    module = fit(RFT, tmp_path, steps=1, n=4, trainer=off, micro_batch=3)
    with (tmp_path / "metrics.csv").open() as file:
        (logged,) = csv.DictReader(file)
    policy, total, count = load_policy("embedded", RECIPE), 0.0, 0
    sizes = set()
    for sample in PhantomSource("mri", 4, "train"):
        batch = collate([policy.encoder.encode(sample, "train", PROMPT)], policy.pad_id, policy.device)
        sizes.add(len(module.targets(sample)))
        for ids in module.targets(sample):
            mask = torch.ones(1, len(ids), dtype=torch.bool)
            total -= float(policy.logprobs(batch, ids[None], mask).detach().sum())
            count += len(ids)
    assert len(sizes) > 1  # some questions have more completions than others
    assert float(logged["train/loss_tokens"]) == count
    assert float(logged["train/loss"]) == pytest.approx(total / count, rel=1e-4)
    rows = sampled(tmp_path)
    seen = sum(row["prompt_tokens"] * 2 + row["tokens"] for row in rows) + count
    assert float(logged["train/tokens_seen"]) == seen
    assert float(logged["train/questions_seen"]) == 8
    counts = {name: module.totals[f"completions_{name}"] for name in ("sampled", "right", "kept")}
    assert counts == {
        "sampled": 16,
        "right": sum(row["right"] for row in rows),
        "kept": sum(len(row["kept"]) for row in rows),
    }


class Steady(RFT):
    """Trains on one question alone."""

    def targets(self, sample):
        one = min(name for name, own in self.kept.items() if own)
        return super().targets(sample) if sample.id == one else []


def test_a_step_without_a_target_changes_no_weight(tmp_path):
    """With momentum, after a step that moved them."""
    changed = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            changed.append(weights(module))

    trainer = {"callbacks": [Watch()], "limit_val_batches": 0, "limit_test_batches": 0}
    fit(Steady, tmp_path, steps=4, n=8, trainer=trainer, lr=1e-3)
    start = weights(module_of(SFT, load_policy("embedded", RECIPE)))
    moved = [not torch.equal(a, b) for a, b in zip([start, *changed], changed, strict=False)]
    assert sum(moved) == 2  # once an epoch
    assert moved.count(False) == 2
    assert all(torch.isfinite(w).all() for w in changed)


@pytest.mark.parametrize("layout", ["packed", "repeated"])
def test_rows_without_a_target_have_no_gradient(layout):
    policy = load_policy("embedded", RECIPE, layout=layout)
    samples = PhantomSource("mri", 2, "train")
    prompts = [policy.encoder.encode(sample, "train", PROMPT) for sample in samples]
    batch = collate(prompts, policy.pad_id, policy.device)
    for targets in ([[], []], [[torch.tensor([1, 2])], []], [[], [torch.tensor([1]), torch.tensor([2, 3])]]):
        tokens, mask = pad_targets(targets, policy.pad_id)
        assert mask.sum() == sum(len(t) for own in targets for t in own)
        assert tokens[mask].tolist() == [i for own in targets for t in own for i in t.tolist()]
        logprobs = policy.logprobs(batch, tokens, mask)
        torch.where(mask, logprobs, 0.0).sum().backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in policy.parameters())


def test_nothing_right_is_an_error_that_names_the_file(tmp_path):
    never = Rewards({"never": lambda answer, sample: 0.0}, {})
    with pytest.raises(NoRightCompletionError, match=r"none of 32 completions of 8 .*sampled-0\.jsonl"):
        fit(RFT, tmp_path, n=8, rewards=never)


def test_only_the_questions_of_the_run_are_sampled(tmp_path):
    engine = Counting()
    fit(RFT, tmp_path, steps=1, n=16, engine=engine)
    assert engine.prompts == 4


def test_what_an_earlier_attempt_sampled_is_not_sampled_again(run, tmp_path):
    lines = (run[0] / "sampled-0.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "sampled-0.jsonl").write_text("".join(lines[:5]) + lines[5][:20])  # torn in the second step
    engine = Counting()
    module = fit(RFT, tmp_path, steps=2, n=8, engine=engine)
    assert engine.prompts == 4
    assert torch.equal(weights(module), weights(run[1]))
    assert module.kept == run[1].kept
    assert module.seen == run[1].seen


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_kept": 0}, r"method\.max_kept is 0"),
        ({"sampling": Sampling(4, 24, temperature=0.0)}, r"method\.sampling\.temperature is 0"),
    ],
    ids=["kept", "greedy"],
)
def test_settings_that_keep_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        module_of(RFT, load_policy("embedded", RECIPE), **settings)


class TestRun:
    """From the command line."""

    RFT = ("method=rft", *SHORT, "controls=[image]", "audit=null")

    def test_a_stopped_run_ends_as_one_that_was_not(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        run_here(tmp_path / "a", *self.RFT)
        run_here(tmp_path / "b", *self.RFT, "callbacks.last.every=1")
        whole, stopped = (next((tmp_path / name / "outputs/runs").iterdir()) for name in "ab")
        # as a kill after the first step would leave it
        (stopped / "metrics.json").unlink()
        (stopped / "checkpoints/last.ckpt").unlink()
        (stopped / "sampled-0.jsonl").write_text("")  # the checkpoint has the kept completions too
        run_here(tmp_path / "b", *self.RFT, "callbacks.last.every=1", "resume=auto")
        a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, stopped))
        assert a["run"]["steps"] == b["run"]["steps"] == 2
        assert a["counters"]["completions_sampled"] == b["counters"]["completions_sampled"] == 128
        assert (whole / "model/model.safetensors").read_bytes() == (
            stopped / "model/model.safetensors"
        ).read_bytes()

    def test_nothing_right_is_one_line(self, tmp_path):
        error = run_here(tmp_path, *self.RFT, "method.threshold=2", code=2).stderr
        assert "error: none of 128 completions of 16 questions has a reward of 2 in every term" in error
        # with resume=auto its completions are read again, not sampled
        (file,) = tmp_path.glob("outputs/runs/*/sampled-0.jsonl")
        before = file.stat().st_mtime_ns
        run_here(tmp_path, *self.RFT, "method.threshold=2", "resume=auto", code=2)
        assert file.stat().st_mtime_ns == before

    def test_a_plan_is_refused_with_a_remedy(self, tmp_path):
        error = run_here(tmp_path, *self.RFT, "plan=true", code=2).stderr
        assert "plan=true cannot plan method=rft: plan its sampling as that of method=grpo" in error
