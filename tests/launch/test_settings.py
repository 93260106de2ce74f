"""Settings that cannot be meant are refused with their key, before data or weights are loaded."""

import copy
import inspect
import math

import hydra
import pytest
from command import run_here
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

import medvlm_r1.runs.folder  # noqa: F401 - the resolvers of the configuration
from medvlm_r1.algorithms.steps import check_length
from medvlm_r1.launch.compose import UserError
from medvlm_r1.launch.errors import user_errors
from medvlm_r1.launch.trainer_settings import _BATCHES, _FIXED, _NO_EFFECT
from medvlm_r1.launch.validate import check_model, check_same_run, check_settings
from medvlm_r1.runs.places import CONF


def composed(*overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", overrides=list(overrides))
    cfg.run_folder = "out"
    return cfg


TINY = ("model=tiny", "data=phantom")
CONFIGS = {
    "grpo": composed(*TINY),
    "sft": composed(*TINY, "method=sft", "peft=lora"),
    "a_grae": composed(*TINY, "method=a_grae", "optimizer=sgd", "rollout=reference"),
}
WRONG = (-1, math.nan, "text", 2.5, True, [])
# Keys that a wrong value leaves alone: texts, flags, and numbers that may be any.
HARMLESS = ("name", "prompt.", "data.", "logger.", "paths.", "audit.", "run_folder", "experiment", "sweep")
HARMLESS += (
    "ckpt_path",
    "card",
    "model.revision",
    "image_cache.folder",
    "target_modules",
    "callbacks.best.dirpath",
)
HARMLESS += ("callbacks.best.filename", "callbacks.last.folder")
# Values of WRONG that a key may have.
MEANT = {
    -1: ("trainer.devices", "trainer.max_steps", "trainer.num_sanity_val_steps", "reward.weights"),
    2.5: (
        *(
            "reward.weights",
            "lr_scale",
            "batch_scale",
            "temperature",
            "clip_high",
            "tis_cap",
            "beta",
            "max_grad_norm",
        ),
        *("max_memory_gb", "sampling_logp_difference", "image_cache.limit", "lora_alpha"),
    ),
}


def leaves(node, prefix=""):
    for name in node:
        value, path = node._get_node(name), f"{prefix}.{name}".lstrip(".")
        if isinstance(value, DictConfig) and not value._is_interpolation() and not value._is_none():
            yield from leaves(value, path)
        elif not name.startswith("_"):
            yield path


def refusal(cfg):
    """The message with which the settings are refused, or ``None``."""
    try:
        with user_errors():
            check_settings(cfg)
            check_model(cfg)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (name, key)
        for name, cfg in CONFIGS.items()
        for key in leaves(cfg)
        if not any(key.startswith(part) or key.endswith(part) for part in HARMLESS)
        and (name == "grpo" or key.startswith(("method", "peft", "rollout", "optimizer")))
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_with_its_key(name, key):
    default = OmegaConf.select(CONFIGS[name], key)
    for wrong in WRONG:
        could = MEANT.get(wrong, ()) if type(wrong) in (int, float) else ()
        if any(key.endswith(part) or key.startswith(part) for part in could):
            continue
        if (wrong is True and isinstance(default, bool | None)) or (
            wrong == [] and OmegaConf.is_list(default)
        ):
            continue
        cfg = copy.deepcopy(CONFIGS[name])
        OmegaConf.update(cfg, key, wrong, merge=False)
        message = refusal(cfg)
        assert message is not None, f"{key}={wrong!r} is accepted"
        assert key.rpartition(".")[2] in message, f"{key}={wrong!r}: {message}"
        assert len(message) < 400


def test_the_defaults_are_accepted():
    assert [refusal(cfg) for cfg in CONFIGS.values()] == [None] * len(CONFIGS)


# Arguments of the trainer that work here as Lightning documents them.
WORKING = {
    *("strategy", "devices", "num_nodes", "max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"),
    *("val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps", "log_every_n_steps"),
    *("enable_model_summary", "deterministic", "benchmark", "profiler", "detect_anomaly", "plugins"),
    *("enable_autolog_hparams",),
    *("enable_checkpointing", "enable_progress_bar", "default_root_dir"),  # with others, see check_trainer
}


def test_every_argument_of_the_trainer_is_known():
    """A release of Lightning with another argument should make somebody decide what it does here."""
    known = _NO_EFFECT.keys() | _FIXED.keys() | set(_BATCHES) | WORKING
    assert set(inspect.signature(Trainer).parameters) == known


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("+trainer.accumulate_grad_batches=2", "model.recipe.micro_batch"),
        ("+trainer.gradient_clip_val=0.5", "method.optim.max_grad_norm"),
        ("+trainer.gradient_clip_algorithm=value", "method.optim.max_grad_norm"),
        ("+trainer.reload_dataloaders_every_n_epochs=1", "data group"),
        ("+trainer.sync_batchnorm=true", "batch norm"),
        ("+trainer.limit_predict_batches=2", "trainer.limit_test_batches"),
        ("+trainer.logger=false", "logger=csv"),
        ("+trainer.callbacks=[]", "+callbacks.NAME"),
        ("+trainer.fast_dev_run=true", "debug=fast"),
        ("+trainer.barebones=true", "debug=profiler"),
        ("trainer.precision=bf16-mixed", "model.recipe.dtype=bfloat16"),
        ("trainer.inference_mode=true", "leave it out"),
        ("trainer.use_distributed_sampler=true", "leave it out"),
        ("trainer.accelerator=gpus", "auto, gpu or cpu"),
        ("trainer.devices=0", "a list of ids"),
        ("trainer.val_check_interval=0", "a fraction"),
        ("trainer.val_check_interval=1.5", "a fraction"),
        ("+trainer.limit_train_batches=0", "at least 1"),
        ("+trainer.limit_val_batches=0", "at least 1"),
        ("+trainer.overfit_batches=-1", "at least 1"),
        ("trainer.max_steps=0", "method=zero_shot"),
        ("model.recipe.epochs=0", "method=zero_shot"),
        ("trainer.max_epochs=-1", "give one of them"),
        ("+trainer.max_time=soon", "00:12:00:00"),
        ("+trainer.enable_checkpointing=false", "~callbacks.best"),
        ("+trainer.enable_progress_bar=false", "~callbacks.progress"),
        ("trainer.default_root_dir=elsewhere", "paths.outputs"),
        ("+trainer.foo=1", "nothing reads the key trainer.foo"),
        ("+method.betta=1", "nothing reads the key method.betta"),
        ("method.sampling.temperature=0", "method.sampling.temperature"),
        ("method.sampling.group_size=1", "at least 2"),
        ("method/advantages=no_baseline", "method.normalize_advantages=true"),
        ("method.num_minibatches=2", "model.recipe.micro_batch"),
        ("model.recipe.prompts_per_step=9 trainer.devices=2", "such as 10"),
        ("callbacks.best.monitor=accuracy", "validation/accuracy"),
        ("optimized_metric=accuracy", "validation/accuracy"),
        ("callbacks.best.mode=highest", "mode"),
        ("model.recipe.min_pixels=99999999", "max_pixels"),
        ("model=endpoint model.url=http://a/v1 model.name=x method=zero_shot model.retries=-1", "at least 0"),
        ("rollout=vllm rollout.memory_share=2", "below 1"),
    ],
)
def test_settings_that_do_nothing_or_harm_are_refused_with_the_remedy(override, remedy):
    assert remedy in refusal(composed(*TINY, *override.split()))


@pytest.mark.parametrize(
    ("refused", "remedy", "mended"),
    [
        ("~rollout", "rollout=shared_prefix", "rollout=shared_prefix"),
        ("tags=a", "tags=[a,b]", "tags=[a,b]"),
        ("track=files", "track=[a,b]", "track=[files,images]"),
        ("track=[pictures]", "choose from completions, images, files", "track=[completions,images,files]"),
        ("select=bset", "'last' or 'best'", "select=best"),
        ("resume=true", "use auto", "resume=auto"),
        ("resume=yes", "use auto", "resume=auto"),
        ("overwrite=true resume=auto", "give one of them", "overwrite=true"),
        ("select=best method=zero_shot", "a method that trains (grpo, sft, ...)", "select=best method=sft"),
        ("select=best ~callbacks.best", "callbacks.best", "select=best"),
        ("peft=nf4", "method=zero_shot", "peft=nf4 method=zero_shot"),
        ("peft=nf4", "peft=qlora", "peft=qlora"),
        ("trainer=fsdp peft=qlora", "trainer=ddp", "trainer=ddp peft=qlora"),
        ("trainer=fsdp optimizer=adamw_8bit", "optimizer=adamw", "trainer=fsdp optimizer=adamw"),
        ("rollout=vllm peft=qlora", "rollout=shared_prefix", "rollout=shared_prefix peft=qlora"),
        ("rollout=vllm method.sampling.top_k=9", "top_k", "rollout=shared_prefix method.sampling.top_k=9"),
        ("controls=[imgae]", "image", "controls=[image]"),
        (
            "method.kl_placement=token method/advantages=no_baseline",
            "method.normalize_advantages=true",
            "method.kl_placement=token method/advantages=no_baseline method.normalize_advantages=true",
        ),
        (
            "method.loss.importance_sampling_level=sequence method.kl_placement=token",
            "method.loss.importance_sampling_level=token",
            "method.loss.importance_sampling_level=token method.kl_placement=token",
        ),
    ],
)
def test_the_remedy_of_a_refusal_works(refused, remedy, mended):
    assert remedy in refusal(composed(*TINY, *refused.split()))
    assert refusal(composed(*TINY, *mended.split())) is None


def test_a_plan_of_a_run_without_an_end_is_refused(tmp_path):
    printed = run_here(tmp_path, *TINY, "plan=true", "trainer.max_epochs=-1", code=2).stderr
    assert "trainer.max_epochs and trainer.max_steps are without limit" in printed


def test_the_remedies_of_the_trainers_settings_are_accepted():
    for overrides in (
        ["+trainer.enable_checkpointing=false", "~callbacks.best"],
        ["+trainer.enable_progress_bar=false", "~callbacks.progress"],
        ["trainer.max_epochs=-1", "trainer.max_steps=3"],
        ["+trainer.max_time='00:12:00:00'"],
        ["model.recipe.dtype=bfloat16"],
        ["method/advantages=no_baseline", "method.normalize_advantages=true"],
        ["method.num_minibatches=2", "model.recipe.micro_batch=4"],
        ["model.recipe.prompts_per_step=10", "trainer.devices=2"],
    ):
        assert refusal(composed(*TINY, *overrides)) is None, overrides


SMALL = [*TINY, "data.train.n=16", "data.validation.n=4", "workers=0", "audit=null", "controls=[image]"]
SMALL += [f"data.test.{name}.n=4" for name in ("mri", "ct", "xray")]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.val_check_interval=9", "trainer.val_check_interval is 9, and an epoch has 2 steps"),
        ("model.recipe.prompts_per_step=32", "16 training questions do not fill a step of 32"),
        ("+trainer.limit_train_batches=0.1", "leaves none of the 2 steps of an epoch"),
    ],
)
def test_a_length_that_cannot_be_meant_is_refused_before_the_weights(
    override, message, tmp_path, monkeypatch
):
    def loaded(*args, **kwargs):
        raise AssertionError("the weights are loaded")

    monkeypatch.setattr("medvlm_r1.policy.loading.load.load_policy", loaded)
    assert message in run_here(tmp_path, *SMALL, override, code=2).stderr


def test_a_warm_up_that_never_ends_is_told(caplog):
    cfg = composed(*TINY, "method.optim.warmup_steps=1000", "+trainer.limit_train_batches=4")
    check_length(OmegaConf.to_container(cfg, resolve=True), 600)
    (record,) = caplog.records
    assert "method.optim.warmup_steps is 1000 and the run has 4 steps" in record.getMessage()
    assert "0.004 of its peak" in record.getMessage()
    caplog.clear()
    cfg.method.optim.warmup_steps = 3
    check_length(OmegaConf.to_container(cfg, resolve=True), 600)
    assert not caplog.records


def test_validations_may_be_counted_over_epochs(tmp_path):
    """The remedy for an interval above an epoch's steps."""
    more = ["model.recipe.epochs=3", "trainer.val_check_interval=4", "+trainer.check_val_every_n_epoch=null"]
    run_here(tmp_path, *SMALL, *more)
    (run,) = (tmp_path / "outputs/runs").iterdir()
    rows = (run / "metrics.csv").read_text().splitlines()
    steps = rows[0].split(",").index("validation/accuracy")
    assert sum(bool(row.split(",")[steps]) for row in rows[1:]) == 3  # before, after four steps, at the end


def test_a_callback_may_be_null():
    assert refusal(composed(*TINY, "callbacks.best=null")) is None
    assert "callbacks.best" in refusal(composed(*TINY, "callbacks.best=null", "select=best"))


def test_a_run_of_a_version_without_a_key_resumes(tmp_path):
    """What a new key does by default is what earlier versions did."""
    cfg = composed("model=tiny", "data=table", "data.train=a.csv", "data.test={ct:b.csv}")
    old = copy.deepcopy(cfg)
    del old.data.questions, old.data.rows.on_bad_image, old.data.rows.volumes.frame
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(old, resolve=True))
    check_same_run(cfg, tmp_path)
    cfg.data.questions = "closed"
    with pytest.raises(ValueError, match=r"data.questions was all and is closed.*with these as they were"):
        check_same_run(cfg, tmp_path)
