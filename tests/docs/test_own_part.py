"""The parts of docs/your_own_part.md, taken from a folder outside the package, as the page says."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from command import ROOT, run_here
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from training import PROMPT

from medvlm_r1.algorithms.losses import PolicyLoss
from medvlm_r1.data.sample import VQASample
from medvlm_r1.inference.answerer import load_answerer
from medvlm_r1.policy.prompt_record import UnknownPromptError
from medvlm_r1.rewards import RewardTable

PARTS = ROOT / "docs/examples/own_part"
QUESTION = VQASample(
    "q", (), "Which organ?", ("the liver", "brain", "lung"), "A", "mri", "organ", "test", "q"
)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A copy of the example folder with a MedMNIST file; its modules can be imported."""
    folder = tmp_path_factory.mktemp("own") / "study"
    shutil.copytree(PARTS, folder, ignore=shutil.ignore_patterns("__pycache__", "outputs"))
    noise, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 8), ("val", 4), ("test", 4)):
        arrays[f"{split}_images"] = noise.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n, dtype=np.uint8)[:, None] % 2
    np.savez(folder / "toy.npz", **arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(folder)])
        yield folder


@pytest.fixture(scope="module")
def run(folder):
    """The run folder of all parts together."""
    parts = ("experiment=study", "prompt=option_text", "data=medmnist", "data.path=toy.npz")
    parts += ("method.loss._target_=my_loss.SoftGate", "method.num_iterations=2")
    parts += ("model.recipe.prompts_per_step=4",)
    run_here(folder, "--config-dir", "conf", *parts, "audit=null", "controls=[image]", "logger=csv")
    return next((folder / "outputs/runs").iterdir())


def node(folder, override, key):
    """The part that an override chooses, built from the configuration."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        search = f"hydra.searchpath=[file://{folder}/conf]"
        return instantiate(compose("config", overrides=[search, override])[key])


def logged(run, name):
    with open(run / "metrics.csv") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.mark.parametrize(
    ("reasoning", "letter", "reward"),
    [("It is the liver.", "A", 1), ("It is the liver.", "B", 0), ("The liver or the lung.", "A", 0)],
)
def test_the_reward_compares_reasoning_and_answer(folder, reasoning, letter, reward):
    answer = PROMPT.parse(f"<think>{reasoning}</think><answer>{letter}</answer>", QUESTION)
    table = node(folder, "reward=consistent", "reward").score([answer], [QUESTION])
    assert table.terms["consistent"].tolist() == [reward]
    assert table.weights == {"format": 1, "accuracy": 1, "consistent": 0.5}


def test_the_prompt_asks_for_a_text_and_reads_it(folder):
    prompt = node(folder, "prompt=option_text", "prompt")
    (turn,) = prompt.render(QUESTION, "evaluate")
    assert "write the text of one option" in turn["content"][-1]["text"]
    for text, letter in (("Liver", "A"), ("b", "B"), ("the spleen", None)):
        assert prompt.parse(f"<answer>{text}</answer>", QUESTION).letter == letter
    assert prompt.parse(prompt.target(QUESTION), QUESTION).letter == "A"


def test_advantages_are_ranks_of_the_group(folder):
    estimator = node(folder, "method/advantages=ranks", "method").keywords["advantages"]
    table = RewardTable({"r": torch.tensor([0.0, 9.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0])}, {"r": 1.0})
    found = estimator(table, torch.zeros(8, dtype=torch.bool), 4)
    torch.testing.assert_close(found, torch.tensor([-3, 3, 0, 0, 0, 0, 0, 0]) / 3)


def test_the_soft_gate_has_the_gradient_of_grpo_where_the_policy_has_not_moved(folder):
    gate = node(folder, "method=soft_gate", "method").keywords["loss"]
    logprobs = torch.randn(3, 4, generator=torch.manual_seed(0)).requires_grad_()
    mask, advantages = torch.ones(3, 4, dtype=torch.bool), torch.tensor([1.0, -2.0, 0.5])

    def gradient(loss, old):
        return torch.autograd.grad(loss(logprobs, old, None, advantages, mask, 0.0)[0], logprobs)[0]

    here = logprobs.detach()
    torch.testing.assert_close(gradient(gate, here), gradient(PolicyLoss(), here))
    far = gradient(gate, here - 1)  # w = e: sech^2(t (w - 1) / 2) w instead of the clip's 0
    t = torch.where(advantages > 0, 1.0, 1.05)
    w = torch.tensor(1.0).exp()
    wanted = -advantages * w / torch.cosh(t * (w - 1) / 2) ** 2 / 12
    torch.testing.assert_close(far, wanted[:, None].expand(3, 4))


def test_all_parts_train_together(run):
    rewards = logged(run, "train/reward_consistent")
    assert len(rewards) == 2
    assert all(0 <= value <= 1 for value in rewards)
    assert logged(run, "train/beta") == pytest.approx([0.1, 0.055])  # from 0.1 to 0.01 in two steps
    assert logged(run, "train/clip_fraction") == [0, 0]  # the soft gate clips nothing
    rows = [json.loads(line) for file in (run / "rollouts").iterdir() for line in file.open()]
    totals = np.array([row["total"] for row in rows]).reshape(-1, 8)
    ranks = np.sign(totals[:, :, None] - totals[:, None, :]).sum(2) / 7
    assert np.ptp(totals) > 0
    assert [row["advantage"] for row in rows] == pytest.approx(ranks.flatten(), abs=1e-6)
    answers = [json.loads(line) for line in (run / "predictions.jsonl").open()]
    assert {row["test_set"] for row in answers} == {"ultrasound"}
    assert {row["sample_id"] for row in answers} == {f"toy-test-{i}" for i in range(4)}


def test_predict_refuses_a_model_whose_parser_it_does_not_have(run):
    with pytest.raises(UnknownPromptError, match=r"my_prompt.OptionText, .* prompt=option_text"):
        load_answerer(str(run), None, None, "cpu")


def test_a_constructor_that_cannot_be_imported_is_named_with_its_key(folder):
    wrong = "reward.terms.consistent._target_=my_rewards.consistent"
    printed = run_here(folder, "--config-dir", "conf", "reward=consistent", wrong, code=2).stderr
    assert "reward.terms.consistent._target_ is 'my_rewards.consistent': No module named" in printed


def test_every_example_file_is_on_the_page():
    page = (ROOT / "docs/your_own_part.md").read_text()
    files = [f.relative_to(PARTS).as_posix() for f in PARTS.rglob("*") if f.suffix in (".py", ".yaml")]
    assert [f for f in files if f'title="{f}"\n{(PARTS / f).read_text()}```' not in page] == []
