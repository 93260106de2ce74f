"""Every composition binds to its constructors, and every error names its remedy."""

import inspect
import re

import pytest
from command import ROOT, python, run_here
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import get_object
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from medvlm_r1.data.formats.image_folder import ImageFolder
from medvlm_r1.data.formats.question_file import FileSplit
from medvlm_r1.data.sources.published_set import PublishedSet
from medvlm_r1.launch.validate import check_model

CONF = ROOT / "conf"
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))
OPTIONS = [
    (f"+{group.name}" if group.name in ("debug", "hparams_search") else group.name, option.stem)
    for group in sorted(p for p in CONF.iterdir() if p.is_dir() and p.name != "experiment")
    for option in sorted(group.glob("*.yaml"))
]
POSITIONAL, KEYWORDS = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
# Constructors of the settings that the options for data share.
PASSED_ON = {"shared": PublishedSet, "split": FileSplit, "labelled": ImageFolder}
# Arguments that run.py passes to the parts that it builds.
HANDED = {"policy", "prompt", "engine", "rewards", "seed", "callbacks", "logger", "params"}


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def nodes(value, path=""):
    """Every node that names a constructor."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value
        for key, child in value.items():
            yield from nodes(child, f"{path}.{key}")
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from nodes(child, f"{path}[{index}]")


def parameters(target):
    """Names that a constructor takes; ``**shared`` and the like go to another constructor."""
    found, open_ended = set(), True
    callables = inspect.getmro(target) if inspect.isclass(target) else [target]
    if not inspect.isclass(target):
        names = inspect.signature(target).parameters
        callables += [cls for name, cls in PASSED_ON.items() if name in names]
    for cls in callables:
        signature = inspect.signature(cls.__init__ if inspect.isclass(cls) else cls)
        kinds = {name: p.kind for name, p in signature.parameters.items()}
        found |= {n for n, kind in kinds.items() if kind not in (POSITIONAL, KEYWORDS)} - {"self"}
        open_ended = KEYWORDS in kinds.values()
        if not open_ended:
            break
    return found, open_ended


def bind_all(cfg):
    cfg.run_folder = "outputs/test"
    for path, node in nodes(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)):
        known, open_ended = parameters(get_object(node["_target_"]))
        given = {key for key in node if not key.startswith("_")}
        assert open_ended or given <= known, (
            f"{path}: {given - known} are no parameters of {node['_target_']}"
        )


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("overrides", [[], ["model=tiny", "data=phantom"], ["trainer=ddp"]], ids=str)
def test_experiments_bind(experiment, overrides):
    bind_all(composed(f"+experiment={experiment}", *overrides))


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=str)
def test_options_bind(group, option):
    bind_all(composed(f"{group}={option}"))


def test_a_misspelt_key_fails():
    with pytest.raises(ConfigCompositionException):
        composed("method.betta=0")


def test_binding_notices_a_key_that_is_no_parameter():
    cfg = composed("+method.betta=0")
    with pytest.raises(AssertionError, match="betta"):
        bind_all(cfg)


def test_command_line_wins_over_the_experiment():
    cfg = composed("+experiment=grpo_600", "model=tiny", "data=phantom")
    assert cfg.model.path == "embedded"
    assert cfg.data.train._target_.endswith("PhantomSource")
    assert cfg.method.optim.lr == cfg.model.recipe.grpo_lr == 1e-4
    assert cfg.method.sampling.max_tokens == cfg.model.recipe.max_completion_tokens
    assert cfg.model.recipe.dtype == "float32"


def test_the_papers_run():
    """MedVLM-R1's hyper-parameters (its released code; the sampling group and schedule of its scripts)."""
    cfg = composed("+experiment=grpo_600")
    recipe = cfg.model.recipe
    assert (recipe.epochs, recipe.prompts_per_step, recipe.group_size) == (2, 4, 4)
    assert (recipe.grpo_lr, recipe.max_completion_tokens, recipe.max_pixels) == (1e-6, 512, 401408)
    assert cfg.data.n_train == 600
    assert cfg.data.n_train * recipe.epochs / recipe.prompts_per_step == 300
    assert (cfg.method.beta, cfg.method.sampling.temperature, cfg.method.num_iterations) == (0.04, 1.0, 1)
    assert (cfg.method.optim.schedule, cfg.method.advantages.scale) == ("linear", "std")
    assert cfg.model.path == "Qwen/Qwen2-VL-2B-Instruct"
    assert dict(cfg.reward.weights) == {"format": 1.0, "accuracy": 1.0}


@pytest.mark.parametrize("experiment", ["grpo_600", "sft_600", "zero_shot"])
def test_another_base_in_the_papers_run_changes_only_the_model(experiment):
    """The twins of a base get the same questions, prompt, rewards, rates and limits."""
    papers, other = (
        composed(f"+experiment={experiment}", f"model={model}") for model in ("qwen2_vl_2b", "qwen3_vl_2b")
    )
    assert (other.model.path, other.model.recipe.min_pixels) == ("Qwen/Qwen3-VL-2B-Instruct", 65536)
    for cfg in (papers, other):
        OmegaConf.resolve(cfg)
        del cfg.model.path, cfg.model.revision, cfg.model.recipe.min_pixels
    assert papers == other


def test_eight_gpus_take_more_prompts_per_step_and_a_higher_rate():
    """The paper's run otherwise; all of the questions are used."""
    few, many = (composed(f"+experiment={e}", "method=sft") for e in ("grpo_600", "grpo_600_8gpu"))
    assert many.model.recipe.prompts_per_step / few.model.recipe.prompts_per_step == 6
    assert many.method.optim.batch_scale / few.method.optim.batch_scale == 6
    assert many.trainer.strategy == "ddp"
    assert many.model.recipe.prompts_per_step % many.trainer.devices == 0
    assert many.data.n_train % many.model.recipe.prompts_per_step == 0
    for cfg in (few, many):
        del cfg.trainer, cfg.model.recipe.prompts_per_step, cfg.method.optim.batch_scale
    assert few == many
    adapter = composed("+experiment=grpo_600_8gpu", "peft=lora")
    assert (adapter.method.optim.lr_scale, adapter.method.optim.batch_scale) == (10, 6)


OWN_SETTINGS = ("tiny", "smollm2_vl", "endpoint")  # small models, and one that is not trained


@pytest.mark.parametrize("model", [o for g, o in OPTIONS if g == "model" and o not in OWN_SETTINGS])
def test_a_model_option_states_what_differs(model):
    """All have the keys of the 2B model's file; a hub model is pinned to a commit where one is known."""
    cfg = (
        composed(f"model={model}", "model.path=somewhere")
        if model == "med_r1"
        else composed(f"model={model}")
    )
    assert cfg.model.keys() == composed("model=qwen2_vl_2b").model.keys()
    assert cfg.model.recipe.keys() == composed("model=qwen2_vl_2b").model.recipe.keys()
    assert cfg.model.recipe.grpo_lr == 1e-6
    pinned = {"medvlm_r1": "main", "qwen3_vl_2b_thinking": "main", "med_r1": None}
    revision = cfg.model.revision
    assert revision == pinned[model] if model in pinned else re.fullmatch("[0-9a-f]{40}", revision)


def test_med_r1s_limits():
    with pytest.raises(MissingMandatoryValue):
        _ = composed("model=med_r1").model.path
    recipe = composed("model=med_r1").model.recipe
    assert (recipe.image_size, recipe.max_completion_tokens, recipe.max_pixels) == (384, 256, 401408)


def test_the_compared_methods_differ_in_the_method_alone():
    grpo, sft, zero = (
        OmegaConf.to_container(composed(f"+experiment={e}"), resolve=True)
        for e in ("grpo_600", "sft_600", "zero_shot")
    )
    for part in ("data", "model", "prompt", "reward", "rollout", "trainer", "seed"):
        assert grpo[part] == sft[part] == zero[part]
    for key in ("schedule", "warmup_steps", "max_grad_norm", "optimizer"):
        assert grpo["method"]["optim"][key] == sft["method"]["optim"][key]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method.lrr=1"], "method.optim.lr"),
        (["method.advantages.skale=none"], "did you mean method.advantages.scale"),
        (["seeed=1"], "did you mean seed"),
        (["model=tinny"], "did you mean tiny"),
        (["+experiment=grpo_60"], "did you mean grpo_600"),
        (["experiment=grpo_60"], "did you mean grpo_600"),
        (["-m", "seed=0,1"], "sweep=NAME"),
        (["-m", "sweep=x", "seed=0", "model=tiny,tinny"], "did you mean tiny"),
        (["data=mcq_json"], "data.train=..."),
        (["model=med_r1"], "model.path=..."),
    ],
    ids=str,
)
def test_a_mistake_stops_at_once_and_says_what_would_be_right(arguments, message, tmp_path):
    done = run_here(tmp_path, *arguments, code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("mistake", ["data=mcq_json", "model=tinny"])
def test_at_once_is_before_any_library_is_loaded(mistake, tmp_path):
    code = f"""
import runpy, sys
sys.argv[1:] = [{mistake!r}]
try:
    runpy.run_path({str(ROOT / "run.py")!r}, run_name="__main__")
finally:
    print({{"torch", "transformers", "lightning"}} & set(sys.modules))
"""
    done = python(tmp_path, "-c", code, code=2)
    assert "error: " in done.stderr
    assert "set()" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer=fsdp", "peft=qlora"], "weights held in 4 bits cannot be split"),
        (["trainer=fsdp", "optimizer=adamw_8bit"], "8-bit moments cannot be split"),
        (["peft=nf4"], "trains nothing: take peft=qlora"),
        (["model=endpoint", "model.url=x", "model.name=y"], "can be evaluated, not trained"),
        (
            ["method=zero_shot", "model=endpoint", "model.url=x", "model.name=y", "trainer=fsdp"],
            "an endpoint's weights cannot be split",
        ),
    ],
    ids=str,
)
def test_a_combination_that_cannot_be_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        check_model(composed("+experiment=grpo_600", *overrides))
