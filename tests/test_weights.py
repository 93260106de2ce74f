"""Missing weights and missing GPUs are answered within seconds, before anything is downloaded."""

import json
import time

import pytest
import torch

from medvlm_r1.policy.weights import MissingGPUError, MissingWeightsError, check_weights, find_weights


def test_the_embedded_model_is_found():
    folder = find_weights("embedded")
    assert (folder / "model.safetensors").is_file()
    check_weights("embedded", None, "auto")


def test_a_path_that_is_no_checkpoint_names_the_ways_on(tmp_path):
    for path in (str(tmp_path), str(tmp_path / "nowhere" / "deep")):
        with pytest.raises(MissingWeightsError, match=r"model\.path=/path/to/checkpoint"):
            find_weights(path)


def test_a_config_without_weights_is_said(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingWeightsError, match=r"no \*\.safetensors"):
        find_weights(str(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_large_weights_need_a_gpu_unless_the_cpu_is_asked_for(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(4_400_000_000)  # sparse: takes no space
    with pytest.raises(MissingGPUError, match=r"4\.4 GB of weights.*\n.*trainer.accelerator=cpu.*model=tiny"):
        check_weights(str(tmp_path), None, "auto")
    check_weights(str(tmp_path), None, "cpu")


def test_an_unreachable_hub_is_answered_within_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(MissingWeightsError, match="hub cannot be reached") as caught:
        check_weights("nobody/no-such-model", None, "auto")
    assert time.monotonic() - started < 5
    assert "model=tiny data=phantom" in str(caught.value)


def test_an_interrupted_download_does_not_count(tmp_path, monkeypatch):
    """A cache with one of two shards is no checkpoint."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--some--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text(json.dumps({}))
    (snapshot / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(MissingWeightsError):
        check_weights("some/model", "main", "auto")
    (snapshot / "model-00002-of-00002.safetensors").write_bytes(b"")
    check_weights("some/model", "main", "auto")
