"""Choices among sampled answers, against enumeration and on groups written by hand."""

import dataclasses
import itertools
import json
from collections import Counter

import pytest
import torch
from command import ROOT, run_here
from hydra.utils import instantiate
from omegaconf import OmegaConf
from training import PROMPT, RECIPE, SHORT, fit

from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.algorithms.voting import TokenBudgetError, Voting
from medvlm_r1.evaluate.predictions import summarise
from medvlm_r1.evaluate.samples import best_of, follows, majority, vote_of
from medvlm_r1.phantom import PhantomSource
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.report.comparison import compare
from medvlm_r1.report.tables.table import accuracy_table, fairness_lines
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine


@pytest.mark.parametrize(
    ("votes", "winner"),
    [
        ("BAB", 0),
        ("ABB", 1),  # the first of the winner's answers, not the first answer
        ("AB", 0),  # a tie: A had one vote first
        ("ABBA", 1),  # a tie: B had two votes first
        ("-BA-A", 2),  # unreadable answers do not vote
        ("---C", 3),  # not even if they are the most
        ("---", 0),  # nothing to read: the first answer counts, as a wrong one
    ],
)
def test_majority(votes, winner):
    assert majority([None if v == "-" else v for v in votes]) == winner


def test_majority_against_enumeration():
    """Over all groups of up to six answers: no vote has more, and none of equal number was earlier."""
    for size in range(1, 7):
        for group in itertools.product(["A", "B", "C", None], repeat=size):
            counts = Counter(vote for vote in group if vote)
            chosen = majority(group)
            if not counts:
                assert chosen == 0
                continue
            most = max(counts.values())
            reached = {
                vote: [i for i, other in enumerate(group) if other == vote][most - 1]
                for vote in counts
                if counts[vote] == most
            }
            winner = min(reached, key=reached.get)
            assert (group[chosen], chosen) == (winner, group.index(winner))


@pytest.mark.parametrize(
    ("in_format", "logprobs", "best"),
    [
        ((True, True), (-0.5, -0.2), 1),
        ((True, False), (-0.5, -0.2), 0),  # the format comes first
        ((False, False), (-0.5, -0.2), 1),
        ((True, True, True), (-0.3, -0.1, -0.1), 1),  # the first of equal ones
    ],
    ids=["likelier", "format", "no format", "equal"],
)
def test_best_of(in_format, logprobs, best):
    assert best_of(in_format, logprobs) == best


def test_votes_are_strict_letters_or_normalised_texts():
    sample = dataclasses.replace(PhantomSource("mri", 1, "test")[0], options=("a", "b"), answer="B")
    texts = ["<answer>b</answer>", "<answer>B) b</answer>", "The answer is B.", "<answer>C</answer>"]
    assert [vote_of(PROMPT.parse(text, sample), sample) for text in texts] == ["B", None, None, None]
    open_ = dataclasses.replace(sample, options=(), answer="left kidney")
    texts = ["<answer>The left kidney.</answer>", "<answer>Left  kidney</answer>", "left kidney"]
    assert [vote_of(PROMPT.parse(t, open_), open_) for t in texts] == ["left kidney", "left kidney", None]


TEXTS = {
    "think": "<think>x</think>\n<answer>A</answer>",
    "answer": "<answer>A</answer>",
    "after": "<answer>A</answer><think>x</think>",
    "letter": "A",
    "word": "cyst",
}


@pytest.mark.parametrize(
    ("option", "right"),
    [
        ("medvlm_r1", "think"),
        ("med_r1", "think"),
        ("med_r1_no_think", "answer"),
        ("med_r1_think_after", "after"),
        ("medvlm_r1_simple", "letter"),
    ],
)
def test_the_format_is_the_one_that_the_prompt_asks_for(option, right):
    prompt = instantiate(OmegaConf.load(ROOT / f"conf/prompt/{option}.yaml"))
    sample = dataclasses.replace(PhantomSource("mri", 1, "test")[0], options=("cyst", "mass"), answer="A")
    formed = {name for name, text in TEXTS.items() if follows(prompt, prompt.parse(text, sample))}
    # without tags, a letter in tags can be read too
    assert formed == ({right} if prompt.tags else {"letter", "answer", "think", "after"})


RULES = ("majority_vote", "best_of_n")


class FiveVotes(Voting):
    """Five answers a question; ``fit`` has an ``n`` of its own."""

    def __init__(self, **settings):
        super().__init__(n=5, **settings)


def vote(folder, rule="majority_vote", **settings):
    settings = {"sampling": Sampling(max_tokens=24), "name": rule, **settings}
    return fit(FiveVotes, folder, rule=rule, **settings)


@pytest.fixture(scope="module", params=RULES)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, vote(folder, request.param, controls=("image", "reasoning-cut"))


def test_answers_are_sampled_one_by_one_and_chosen_by_the_rule(run):
    rule, _, module = run
    policy, some = load_policy("embedded", RECIPE), 0
    samples = {s.id: s for m, n in (("mri", 8), ("xray", 6)) for s in PhantomSource(m, n, "test")}
    rows = {(p.sample_id, p.control): p for p in module.predictions}
    assert len(rows) == 2 * len(samples)
    for sample in samples.values():
        row = rows[sample.id, "image"]
        prompt = policy.encoder.encode(sample, "evaluate", PROMPT)
        rollout = SharedPrefixEngine()(policy, [prompt], Sampling(5, 24), NoiseKey(0, 0))
        assert [s["text"] for s in row.samples] == rollout.texts
        assert [s["tokens"] for s in row.samples] == rollout.lengths.tolist()
        answers = [PROMPT.parse(text, sample) for text in rollout.texts]
        means = [float(rollout.logprobs[i][rollout.mask[i]].mean()) for i in range(len(answers))]
        letters = Counter(a.letter for a in answers if a.letter)
        if rule == "majority_vote":
            assert letters[row.answer] == max(letters.values())
        else:
            formed = [i for i, a in enumerate(answers) if a.well_formed] or range(5)
            assert row.chosen == max(formed, key=lambda i: means[i])
        assert [s["logprob"] for s in row.samples] == pytest.approx(means, abs=1e-5)
        chosen = answers[row.chosen]
        assert (row.text, row.answer, row.correct) == (
            chosen.text,
            chosen.letter,
            chosen.letter == sample.answer,
        )
        assert [s["correct"] for s in row.samples] == [a.letter == sample.answer for a in answers]
        assert row.completion_tokens == int(rollout.lengths.sum())
        some += len(letters) > 1
    assert some  # questions whose answers disagree
    assert all(p.text.startswith("<answer>") for p in module.predictions if p.control == "reasoning-cut")


def test_a_stopped_test_ends_as_one_that_was_not(run, tmp_path):
    """The journal keeps the sampled answers too; the last batch is answered again."""
    rule, _, module = run
    key = {"step": 0}
    settings = {"controls": ("image", "reasoning-cut"), "journal": key}
    vote(tmp_path, rule, **settings, trainer={"limit_test_batches": 1})
    before = (tmp_path / "answers.journal").read_text()
    assert '"samples": [{"text"' in before
    again = vote(tmp_path, rule, **settings)
    named = [dataclasses.replace(p, run="") for p in again.predictions]
    assert named == [dataclasses.replace(p, run="") for p in module.predictions]


def test_pass_at_n_and_mean_accuracy(run):
    module = run[2]
    section = summarise(module.predictions)["samples"]
    for name in ("mri", "xray"):
        rows = [p for p in module.predictions if (p.test_set, p.control) == (name, "image")]
        hits = torch.tensor([[s["correct"] for s in p.samples] for p in rows])
        assert section[name]["n"] == 5
        assert section[name]["pass_at_n"]["value"] == pytest.approx(hits.any(1).float().mean().item())
        assert section[name]["mean_accuracy"]["value"] == pytest.approx(hits.float().mean().item())
    assert "samples" not in summarise([dataclasses.replace(p, samples=None) for p in module.predictions])


def test_n_from_a_budget(tmp_path):
    """As many answers as cost at most the budget, by the mean length of the validation answers."""
    policy = load_policy("embedded", RECIPE)
    prompts = [policy.encoder.encode(s, "evaluate", PROMPT) for s in PhantomSource("mri", 8, "validation")]
    mean = SharedPrefixEngine()(policy, prompts, Sampling(1, 24), NoiseKey(0, 0)).lengths.float().mean()
    for n in (1, 3):
        budget = int(mean * 14 * n) + 2  # 14 test questions
        module = vote(tmp_path, tokens=budget)
        assert {len(p.samples) for p in module.predictions} == {n}
    with pytest.raises(
        TokenBudgetError, match=r"method\.tokens=14 is 1\.0 for each of 14 .*give at least \d+"
    ):
        vote(tmp_path, tokens=14)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "oracle"}, r"method\.rule is 'oracle': use majority_vote or best_of_n"),
        ({"n": 0}, r"method\.n 0 .* must be at least 1"),
        ({"tokens": 0}, r"method\.tokens 0 must be at least 1"),
        ({"sampling": Sampling(temperature=0.0)}, r"temperature is 0.*method=zero_shot"),
    ],
    ids=["rule", "n", "tokens", "greedy"],
)
def test_settings_that_choose_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Voting.check(**{"rule": "best_of_n", "sampling": Sampling(), **settings})


def test_rows_of_the_comparison(tmp_path):
    """Beside GRPO and zero-shot: a row each, pass@n, paired differences, and what both spent."""
    small = (*SHORT, "audit=null", "controls=[image]", "sweep=s", "workers=0", "model=tiny")
    run_here(tmp_path, "-m", "method=zero_shot,majority_vote,grpo", *small)
    folder = tmp_path / "outputs/sweeps/s"
    c = compare([folder])
    assert [g.label for g in c.groups] == ["Zero-shot", "Majority vote", "GRPO"]
    pairs = {(d.first, d.second) for d in c.differences}
    assert pairs >= {("Majority vote", "Zero-shot"), ("GRPO", "Zero-shot"), ("GRPO", "Majority vote")}
    assert ("Majority vote", "GRPO") not in pairs
    (table,) = [row for row in accuracy_table(c).rows if "pass@16" in row[0].note]
    assert float(table[1].text) == 100 * c.pass_at_n["Majority vote"]["mri"].value
    assert c.as_dict()["pass_at_n"].keys() == {"Majority vote"}
    (fair,) = c.fairness
    assert not fair.differences
    voted, trained = (next(r for r in c.runs if r.method == m) for m in ("majority_vote", "grpo"))
    rows = [json.loads(line) for line in (voted.folder / "predictions.jsonl").read_text().splitlines()]
    spent = sum(s["tokens"] for row in rows for s in row["samples"])
    greedy = trained.facts["completion_tokens_tested"]
    lines = fairness_lines(fair)
    assert f"  completion_tokens_tested: {greedy:,} (GRPO), {spent:,} (Majority vote)" in lines
    assert trained.facts["completion_tokens_seen"] > 16 * 8  # GRPO's samples
    assert (
        f"  completion_tokens_seen: {trained.facts['completion_tokens_seen']:,} (GRPO), 0 (Majority vote)"
        in lines
    )


def test_zero_shot_keeps_one_answer(tmp_path):
    module = fit(VLMModule, tmp_path)
    assert all(p.samples is None and p.completion_tokens == p.tokens for p in module.predictions)
