"""W&B and TensorBoard hold the configuration; a resumed run continues its W&B run."""

import html
import json
import os
import sys
from pathlib import Path

import pytest
import wandb
import yaml
from command import run_here
from lightning import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from training import SHORT
from wandb_file import records

from medvlm_r1.cli.compare import main as compare
from medvlm_r1.launch.validate import check_tracking
from medvlm_r1.runs import status
from medvlm_r1.tracking.completions import as_markdown, table_of
from medvlm_r1.tracking.run import _without_users, log_end
from medvlm_r1.tracking.wandb_run import TrackingError, reach

COMMAND = [*SHORT, "data.train.n=32", "trainer.max_steps=4", "workers=0", "resume=auto", "logger=wandb"]
COMMAND += ["tags=[one,two]", "callbacks.last.every=2", "callbacks.rollouts.images_every=2"]
COMMAND += ["hydra.run.dir=outputs/runs/run"]


class StopAt(Callback):
    """Ends the process within a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if module.step == self.step:
            raise SystemExit(9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that was stopped in its third step, and resumed."""
    place = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        stop = "+callbacks.stop={_target_: test_tracking.StopAt, step: 3}"
        run_here(place, *COMMAND, stop, code=9)
        run_here(place, *COMMAND)
    return place / "outputs/runs/run"


@pytest.fixture(scope="module")
def files(folder):
    """Records of the two W&B files, in the order in which they were written."""
    paths = sorted(folder.glob("logs/wandb/offline-run-*/*.wandb"))
    return [records(path) for path in paths]


def config_of(file):
    """The configuration that the records of a file set."""
    config = {}
    for record in file:
        for update in (*record.run.config.update, *record.config.update):
            config[update.key or tuple(update.nested_key)] = json.loads(update.value_json)
    return config


def test_the_two_attempts_are_one_wandb_run(folder, files):
    first, second = status.attempts(folder)
    assert first["tracking"] == second["tracking"]
    runs = [next(r.run for r in file if r.HasField("run")) for file in files]
    assert [run.run_id for run in runs] == [first["tracking"]] * 2
    for run in runs:
        assert (run.project, run.display_name, run.run_group, run.job_type) == (
            "medvlm_r1",
            "run",
            "default",
            "grpo",
        )
        assert list(run.tags) == ["one", "two"]


def test_overwrite_begins_a_new_wandb_run(tmp_path):
    ids = []
    for overwrite in (False, False, True, False):
        with status.attempt(tmp_path, overwrite):
            ids.append(status.tracking_id(tmp_path))
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_wandb_holds_the_resolved_configuration_and_the_facts(folder, files):
    written = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    for file in files:
        config = config_of(file)
        facts = config["run"]
        assert facts["versions"]["torch"]
        assert facts["hardware"]
        assert facts["audit"].startswith("no test image is a copy of a training image; pixels checked of all")
        assert facts["data_sha256"].keys() == {"train", "validation", "mri", "ct", "xray"}
    assert {key: config[key] for key in written} == written


def test_the_steps_continue(files):
    """On the trainer's step, which is the axis of every curve."""
    curves = []
    for file in files:
        rows = [{i.key or i.nested_key[0]: json.loads(i.value_json) for i in r.history.item} for r in file]
        rows = [row for row in rows if "train/reward" in row]
        curves.append({row["trainer/global_step"]: row["train/reward"] for row in rows})
    first, second = curves
    assert sorted(first) == [0, 1]
    assert sorted(second) == [2, 3]


def artifacts_of(file):
    """Names of the artifacts, with the names of their files."""
    found = {}
    for record in file:
        artifact = record.request.log_artifact.artifact if record.HasField("request") else record.artifact
        if artifact.name:
            found[artifact.name] = sorted(Path(entry.path).name for entry in artifact.manifest.contents)
    return found


def test_wandb_gets_completions_with_pictures_and_the_results(folder, files):
    artifacts = {name: names for file in files for name, names in artifacts_of(file).items()}
    (table,) = (names for name, names in artifacts.items() if name.endswith("completions"))
    assert sum(name.endswith(".png") for name in table) == 4
    assert artifacts["run-run"] == ["metrics.json", "predictions.jsonl", "report.html"]
    *_, shown = (folder / "logs/wandb").glob("offline-run-*/files/media/table/completions_*.json")
    assert {"completion", "accuracy", "advantage", "picture"} <= set(json.loads(shown.read_text())["columns"])


def test_nothing_is_staged_outside_the_run_folder(folder):
    assert list((folder / "logs/wandb/artifacts/staging").iterdir())
    assert "WANDB_DATA_DIR" not in os.environ


@pytest.fixture(scope="module")
def events(folder):
    return EventAccumulator(str(folder / "logs/tensorboard")).Reload()


def text(events, tag):
    return events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()


def test_tensorboard_holds_the_resolved_configuration(folder, events):
    block = text(events, "configuration").removeprefix("```yaml\n").removesuffix("```")
    config = yaml.safe_load(block)
    assert config == yaml.safe_load((folder / "hparams.yaml").read_text())
    assert config.pop("run")["commit"] == status.attempts(folder)[-1]["commit"]
    assert config == yaml.safe_load((folder / "config.yaml").read_text())


def test_tensorboards_table_of_runs_has_settings_and_the_accuracy(folder, events):
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["method.beta"].number_value == 0.04
    assert settings["data.test.ct.modality"].string_value == "ct"
    assert not [key for key in settings if key.startswith(("logger.", "callbacks.")) or "_target_" in key]
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    columns = [info.name.tag for info in HParamsPluginData.FromString(content).experiment.metric_infos]
    assert columns == ["validation/accuracy", "test/accuracy"]
    metrics = json.loads((folder / "metrics.json").read_text())["accuracy"]
    mean = sum(interval["value"] for interval in metrics.values()) / len(metrics)
    assert events.Scalars("test/accuracy")[-1].value == pytest.approx(mean)
    assert "hp_metric" not in events.Tags()["scalars"]


def test_tensorboard_shows_completions_and_questions(events):
    assert "<answer>" in html.unescape(text(events, "completions"))
    assert len([tag for tag in events.Tags()["images"] if tag.startswith("questions/")]) == 4


def test_metrics_csv_has_the_metrics_of_training_alone(folder):
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert "train/reward" in header
    assert "test/" not in header


def test_the_comparison_goes_to_the_group_of_its_runs(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for _ in range(2):
        assert compare([str(folder), "--out", str(tmp_path), "--wandb", "papers"]) == 0
    found = [records(path) for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))]
    runs = [next(r.run for r in file if r.HasField("run")) for file in found]
    assert len(runs) == 2
    assert {(run.project, run.run_group, run.job_type) for run in runs} == {("papers", "default", "compare")}
    assert len({run.run_id for run in runs}) == 1
    names = {"comparison.json", "comparison.md", "comparison.tex", "comparison.csv", "accuracy.png"}
    assert set(artifacts_of(found[0])[f"comparison-{tmp_path.name}"]) == {*names, "report.html"}


def test_wandb_without_a_key_is_one_line(tmp_path, monkeypatch):
    for name, value in {
        "HOME": tmp_path,
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()  # it reads the environment once
    with pytest.raises(TrackingError, match=r"No API key .* WANDB_MODE=offline needs no account"):
        reach(lambda: wandb.init(project="p", dir=tmp_path))


def test_wandb_does_not_get_the_command_line(folder, files):
    assert files
    for path in folder.glob("logs/wandb/offline-run-*/*.wandb"):
        assert b"callbacks.last.every=2" not in path.read_bytes()


def test_passwords_in_addresses_are_not_logged():
    config = {"model": {"url": "https://me:se@cret@host:8000/v1", "tests": ["a@b", "https://host/x"]}}
    assert _without_users(config) == {
        "model": {"url": "https://host:8000/v1", "tests": ["a@b", "https://host/x"]}
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"logger": {"mlflow": {}}}, r"needs the package mlflow: pip install -e '\.\[mlflow\]'"),
        ({"tags": "one"}, r"tags is 'one': give a list, 'tags=\[a,b\]'"),
        ({"track": ["image"]}, "track has image: choose from completions, images, files"),
    ],
    ids=str,
)
def test_a_mistake_stops_before_training(changed, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    config = {"logger": {}, "tags": [], "track": []}
    check_tracking(OmegaConf.create(config))
    with pytest.raises(ValueError, match=message):
        check_tracking(OmegaConf.create(config | changed))


def test_a_table_of_completions_survives_their_text():
    rows = [
        {
            "question": "Which | organ?",
            "options": ["liver", "<b>"],
            "gold": "A",
            "text": "<think>a\nb</think>",
            "right": True,
            "rewards": {"format": 1.0},
            "total": 1.0,
            "advantage": -0.123456,
        }
    ]
    _, _, line = as_markdown(*table_of(rows)).splitlines()
    assert "<" not in line
    assert html.unescape(line) == (
        "| Which | organ? A) liver B) <b> | A | <think>a b</think> | True | 1 | 1 | -0.123456 |"
    )
    assert line.count("|") == 8


class Unreachable(TensorBoardLogger):
    def log_metrics(self, *arguments, **settings):
        raise ConnectionError("no answer")


def test_a_logger_that_fails_at_the_end_leaves_a_complete_run(folder, tmp_path, caplog):
    log_end([Unreachable(tmp_path), TensorBoardLogger(tmp_path, name="second")], folder, [])
    assert "Unreachable did not get the results (no answer)" in caplog.text
    assert list((tmp_path / "second").rglob("events*"))
