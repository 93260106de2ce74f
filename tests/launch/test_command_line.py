"""What a user types first: names of other libraries, quoting, --help, --cfg, own configuration folders."""

import re
import shlex
import subprocess
import sys

import hydra
import pytest
import yaml
from command import ROOT, environment, run_here
from omegaconf import OmegaConf

from medvlm_r1.launch.compose import UserError, compose_jobs
from medvlm_r1.launch.help import KEYS, help_text
from medvlm_r1.launch.reference import read_reference
from medvlm_r1.launch.suggest import SYNONYMS, keys_of, nearest, options_with
from medvlm_r1.runs.places import CONF

TINY = ["model=tiny", "data=phantom"]


def printed_configuration(folder, *arguments):
    return yaml.safe_load(run_here(folder, *arguments, "--cfg", "job", "--resolve").stdout)


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("learning_rate=1e-6", "method.optim.lr"),
        ("lr=1e-6", "method.optim.lr"),
        ("method.learning_rate=1e-6", "method.optim.lr"),
        ("num_generations=8", "method.sampling.group_size"),
        ("method.epsilon=0.2", "method.loss.clip_low or method.loss.clip_high"),
        ("method.kl_coef=0", "method.beta"),
        ("max_grad_norm=1", "method.optim.max_grad_norm"),
        ("data.batch_size=4", "model.recipe.prompts_per_step"),
        ("trainer.epochs=2", "model.recipe.epochs"),
        ("trainer.gradient_clip_val=1", "method.optim.max_grad_norm"),
        ("trainer.accumulate_grad_batches=2", "model.recipe.micro_batch or model.recipe.prompts_per_step"),
    ],
)
def test_another_librarys_name_is_answered_with_the_key(typed, key, tmp_path):
    assert f"did you mean {key}?" in run_here(tmp_path, typed, code=2).stderr


def test_suggestions_come_with_cfg_too(tmp_path):
    assert "did you mean method.optim.lr?" in run_here(tmp_path, "lr=1e-6", "--cfg", "job", code=2).stderr


def test_every_synonym_names_a_key_that_exists():
    reference = read_reference(CONF)
    options = [reference.top, *(o for group in reference.groups.values() for o in group.options.values())]
    paths = [key.path.split(".") for option in options for key in option.keys]
    known = {".".join(path[:end]) for path in paths for end in range(1, len(path) + 1)}
    assert {key for keys in SYNONYMS.values() for key in keys} <= known


@pytest.fixture(scope="module")
def chosen():
    """Configurations with each method, each size of model and each way to train it."""
    choices = [[*TINY, f"method={name}"] for name in read_reference(CONF).groups["method"].options]
    choices += [[f"model={name}"] for name in ("qwen2_vl_2b", "qwen3_vl_8b_thinking")]
    choices += [["peft=lora"], ["peft=qlora"], ["trainer=ddp"], ["data=table"], ["logger=wandb"]]
    choices += [["rollout=vllm"], ["method=zero_shot", "model=endpoint"]]
    configs = {}
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for overrides in choices:
            cfg = hydra.compose("config", overrides=overrides)
            configs[" ".join(overrides)] = keys_of(OmegaConf.to_container(cfg))
    return configs


@pytest.mark.parametrize("name", SYNONYMS)
def test_the_suggested_key_exists_whatever_is_chosen(name, chosen):
    for overrides, known in chosen.items():
        exist = {".".join(key.split(".")[:end]) for key in known for end in range(1, key.count(".") + 2)}
        for typed in (name, f"method.{name}", f"trainer.{name}"):
            near = nearest(typed, known)
            assert set(near) <= exist, f"{overrides}: {typed}"
            assert near or options_with(typed), f"{overrides}: {typed}"
            assert set(near) <= set(SYNONYMS[name]), f"{overrides}: {typed}"


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["method=sft", "num_generations=8"], "method.sampling.group_size is a key of method=grpo"),
        (["method=zero_shot", "lr=1e-6"], "method.optim.lr is a key of method=grpo, method=sft"),
        (["lora_r=8"], "peft.adapter.r is a key of peft=lora"),
    ],
)
def test_a_key_of_other_options_is_named_with_them(typed, answer, tmp_path):
    assert answer in run_here(tmp_path, *TINY, *typed, code=2).stderr


@pytest.mark.parametrize("plus", ["", "+"])
def test_an_experiment_is_chosen_with_and_without_a_plus(plus, tmp_path):
    cfg = printed_configuration(tmp_path, f"{plus}experiment=grpo_600", "model=tiny", f"{plus}debug=fast")
    assert cfg["data"]["_target_"].endswith("medvlm_r1")
    assert cfg["trainer"]["max_steps"] == 1


@pytest.mark.parametrize(
    "value",
    [
        "runs/a=b/model",
        "scans/é",
        "扫描/中",
        "~tilde",
        "a#1",
        "a[0]",
        "x(1)",
        "a!b",
        "it's",
        'say "hi"',
        "C:\\a=b",
    ],
)
def test_the_quotes_in_the_answer_are_the_ones_that_work(value, tmp_path):
    refused = run_here(tmp_path, f"data.root={value}", "data=slake", code=2).stderr
    (remedy,) = shlex.split(refused.partition("write ")[2].splitlines()[0])
    assert printed_configuration(tmp_path, "data=slake", remedy)["data"]["root"] == value


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("data.train=/é=1/my (a) #1, b.csv", "/é=1/my (a) #1, b.csv"),
        ("data.train=a,b", "a,b"),
        ("data.test={ct:/data/é.csv,mri:b#1 (2).csv}", {"ct": "/data/é.csv", "mri": "b#1 (2).csv"}),
        ("data.test={ct:a,b.csv}", {"ct": "a,b.csv"}),
        ("data.train=[é.csv,b c=1.csv]", ["é.csv", "b c=1.csv"]),
    ],
)
def test_a_shell_takes_the_quotes_of_the_answer(typed, read, tmp_path):
    key = typed.partition("=")[0]
    others = {"data.train": "data.train=a.csv", "data.test": "data.test={ct:b.csv}"}
    rest = ["data=table", *(other for name, other in others.items() if name != key)]
    refused = run_here(tmp_path, *rest, typed, code=2).stderr.splitlines()[0]
    remedy = re.split(r" for one text|, or put", refused.partition("write ")[2])[0]
    script = f"{sys.executable} {ROOT / 'run.py'} {shlex.join(rest)} {remedy} --cfg job --resolve"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["data"][key.partition(".")[2]] == read


def test_a_name_is_added_to_a_dictionary_of_an_option(tmp_path):
    node = "{_target_: medvlm_r1.phantom.PhantomSource, modality: oct, n: 4, split: test}"
    refused = run_here(tmp_path, *TINY, f"data.test={{oct: {node}}}", code=2).stderr
    assert "data.test has no 'oct' to override" in refused
    (remedy,) = shlex.split(refused.partition("write ")[2].partition(" to add it")[0])
    assert list(printed_configuration(tmp_path, *TINY, remedy)["data"]["test"])[-1] == "oct"


def test_a_text_that_looks_like_a_number_stands_in_quotes(tmp_path):
    refused = run_here(tmp_path, *TINY, "method.name=1e5", code=2).stderr
    assert "method.name is 100000.0: it must be a text" in refused
    (remedy,) = shlex.split(refused.partition("such as ")[2].splitlines()[0])
    assert printed_configuration(tmp_path, *TINY, remedy)["method"]["name"] == "1e5"


def test_a_variable_of_the_environment_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    refused = run_here(tmp_path, "data=slake", "data.root=${SCRATCH}/x", "--cfg", "job", code=2).stderr
    assert "environment is ${oc.env:SCRATCH}" in refused
    cfg = printed_configuration(tmp_path, "data=slake", "data.root=${oc.env:SCRATCH}/x")
    assert cfg["data"]["root"] == "/scratch/x"


def test_a_refused_dictionary_shows_an_example_of_quotes(tmp_path):
    refused = run_here(tmp_path, "data=table", "data.test={ct:a,b.csv}", code=2).stderr
    (remedy,) = shlex.split(refused.partition("as in ")[2].splitlines()[0])
    cfg = printed_configuration(tmp_path, "data=table", "data.train=a.csv", remedy)
    assert cfg["data"]["test"] == {"ct": "my file, 2.csv"}


def test_a_home_directory_is_spelt_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert """'model.path="/home/ada/x"'""" in run_here(tmp_path, "model.path=~/x", code=2).stderr


def test_options_and_overrides_stand_in_any_order(tmp_path):
    assert printed_configuration(tmp_path, "--cfg", "job", "seed=3", "--resolve", "workers=0")["seed"] == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.sampling.group_size=2.5", "method.sampling.group_size is 2.5: it must be an integer"),
        ("model.recipe.dtype=bf16", "model.recipe.dtype is 'bf16': it must be float32 or bfloat16"),
        ("method.normalize_advantages=1", "method.normalize_advantages is 1: it must be true or false"),
        ("+trainer.gradient_clip_val=1", "use method.optim.max_grad_norm"),
        ("+trainer.accumulate_grad_batches=2", "use model.recipe.micro_batch"),
        ("+lr=1e-6", "nothing reads the key 'lr': use method.optim.lr"),
        (
            "+trainer.limit_test_batches=0",
            "trainer.limit_test_batches is 0: give batches (an integer, at least 1)",
        ),
        ("trainer.max_steps=1.5", "trainer.max_steps is 1.5: it must be an integer"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_before_training(override, message, tmp_path):
    assert message in run_here(tmp_path, override, code=2).stderr


class TestHelp:
    def test_it_lists_every_option_of_every_group(self):
        text, groups = help_text([CONF], width=100), read_reference(CONF).groups
        for group in groups.values():
            section = text.partition(f"\n{group.name}=\n")[2].partition("\n\n")[0]
            names = [
                line[4:].split()[0] for line in section.splitlines() if line[:2] == "  " and line[4] != " "
            ]
            assert names == list(group.options), group.name

    def test_it_explains_the_keys_that_are_often_changed(self):
        text = help_text([CONF], width=100)
        for key in KEYS:
            (line,) = [line for line in text.splitlines() if line.split()[:1] == [key]]
            assert len(line.split()) > 2

    @pytest.mark.parametrize("width", [80, 120])
    def test_it_fits_the_terminal(self, width):
        lines = [line for line in help_text([CONF], width=width).splitlines() if "python run.py" not in line]
        assert max(map(len, lines)) <= max(width, 95)

    def test_it_is_printed(self, tmp_path):
        assert run_here(tmp_path, "--help").stdout.strip() == help_text([CONF])


class TestOwnFolder:
    @pytest.fixture
    def own(self, tmp_path):
        (tmp_path / "conf/experiment").mkdir(parents=True)
        (tmp_path / "conf/reward").mkdir()
        (tmp_path / "conf/experiment/mine.yaml").write_text(
            "# @package _global_\n# Mine.\ndefaults: [override /reward: mine]\nseed: 7\n"
        )
        (tmp_path / "conf/reward/mine.yaml").write_text("# My reward.\ndefaults: [accuracy]\n")
        return tmp_path

    @pytest.mark.parametrize("options", [["--config-dir", "conf"], ["--config-dir=conf"], ["-cd", "conf"]])
    def test_its_options_are_found(self, own, options):
        cfg = printed_configuration(own, *options, "experiment=mine")
        assert (cfg["seed"], list(cfg["reward"]["terms"])) == (7, ["accuracy"])

    def test_its_options_are_listed_and_suggested(self, own):
        assert "My reward." in run_here(own, "--config-dir", "conf", "--help").stdout
        assert "did you mean mine" in run_here(own, "--config-dir", "conf", "reward=mien", code=2).stderr

    def test_an_option_with_a_name_of_the_package_is_refused(self, own):
        (own / "conf/reward/accuracy.yaml").write_text("# Mine.\n")
        with pytest.raises(UserError, match=r"conf/reward/accuracy.yaml: .* give yours another one"):
            compose_jobs(["--config-dir", str(own / "conf")])

    def test_a_mistake_in_yaml_is_named_with_its_line(self, own):
        (own / "conf/reward/mine.yaml").write_text("# My reward.\nterms: {}\n  weights: {}\n")
        with pytest.raises(UserError, match=r"conf/reward/mine.yaml, line 3: expected <block end>"):
            compose_jobs(["--config-dir", str(own / "conf"), "reward=mine"])

    def test_a_missing_folder_is_an_error(self, own):
        message = "--config-dir cnof: there is no such folder"
        assert message in run_here(own, "--config-dir", "cnof", "reward=mine", code=2).stderr


def test_a_missing_package_of_an_option_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    printed = run_here(tmp_path, "optimizer=adamw_8bit", code=2).stderr
    assert "needs the package bitsandbytes: pip install -e '.[quantized]'" in printed
