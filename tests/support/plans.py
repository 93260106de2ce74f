"""Plans of configurations, for tests."""

import dataclasses
import functools

import pytest
from command import ROOT
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from medvlm_r1.plan.passes import PassShape
from medvlm_r1.plan.plan import plan
from medvlm_r1.plan.workload import read_workload

PAPER = "+experiment=grpo_600"
ALL = 2_208_985_600  # parameters of Qwen2-VL-2B
TOWER = 665_271_296
TINY = PassShape(prompts=2, group_size=3, prompt=40, completion=8, grid=(8, 8))


def read(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=list(overrides))
        parts = [instantiate(node) for node in (cfg.model.recipe, cfg.model.tuning, cfg.prompt, cfg.rollout)]
        return read_workload(OmegaConf.to_container(cfg, resolve=True), *parts)


@functools.cache
def planned(*overrides, timed=False):
    """Shared by the tests that ask for the same plan: none may change it."""
    return plan(read(*overrides), timed)


def held(made, name, phase="training"):
    return sum(part.bytes.get(phase, 0) for part in made.memory if part.name == name)


def trained(made):
    return {count.name: count.trained for count in made.counts}


def check_equal(meta, real):
    """Same operations and memory; conditions on values add a few small kernels to a real pass."""
    assert dataclasses.replace(meta, traffic=real.traffic, launches=real.launches) == real
    assert meta.traffic == pytest.approx(real.traffic, rel=0.005)
    assert meta.launches == pytest.approx(real.launches, rel=0.05)
