"""An update whose gradient is not finite changes nothing and is counted; some in a row stop the run."""

import copy
import math

import pytest
import torch
from lightning import Callback
from training import RECIPE, fit, module_of

from medvlm_r1.algorithms.optim import NonFiniteGradientError
from medvlm_r1.algorithms.sft import SFT
from medvlm_r1.policy.loading.load import load_policy


class Kept(Callback):
    """Keeps weights, moments and metrics of each step."""

    def __init__(self):
        self.states, self.metrics = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        (optimizer,) = trainer.optimizers
        state = {"weights": list(module.policy.parameters()), "moments": list(optimizer.state.values())}
        self.states.append(copy.deepcopy(state))
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def infinite(*steps):
    """SFT whose loss is infinite in some steps."""

    class Infinite(SFT):
        def accumulate(self, loss, last):
            super().accumulate(loss * math.inf if self.step in steps else loss, last)

    return Infinite


def run(kind, folder, *callbacks, steps, **settings):
    trainer = {"callbacks": list(callbacks), "limit_val_batches": 0, "limit_test_batches": 0}
    return fit(kind, folder, steps=steps, n=4 * steps, trainer=trainer, **settings)


def test_an_infinite_gradient_leaves_weights_and_moments_bit_for_bit(tmp_path):
    kept = Kept()
    module = run(infinite(1), tmp_path, kept, steps=2, micro_batch=2)
    before, skipped = kept.states
    torch.testing.assert_close(skipped, before, rtol=0, atol=0)
    assert before["moments"][0]["exp_avg"].any()
    assert [row["train/skipped_updates"] for row in kept.metrics] == [0, 1]
    assert [row["train/lr"] for row in kept.metrics] == pytest.approx([1e-3, 5e-4])
    assert not math.isfinite(kept.metrics[1]["train/grad_norm"])
    assert module.step == module.trainer.global_step == 2


def test_training_stops_after_too_many_in_a_row(tmp_path):
    kept = Kept()
    with pytest.raises(NonFiniteGradientError, match="not finite in 2 consecutive updates"):
        run(infinite(0, 2, 3), tmp_path, kept, steps=5, max_skipped_updates=2)
    assert [row["train/skipped_updates"] for row in kept.metrics] == [1, 1, 2]


def test_a_checkpoint_continues_the_count():
    policy = load_policy("embedded", RECIPE)
    module, resumed = (module_of(SFT, policy, max_skipped_updates=3) for _ in range(2))
    for _ in range(2):
        module.skipped.count(True)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    resumed.on_load_checkpoint(checkpoint)
    with pytest.raises(NonFiniteGradientError, match="in 3 consecutive"):
        resumed.skipped.count(True)
    assert resumed.skipped.total == 3


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_skipped_updates is 0"):
        run(SFT, tmp_path, steps=1, max_skipped_updates=0)
