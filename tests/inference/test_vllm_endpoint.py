"""A model behind vLLM gives the answers, controls and confidences of a local one, even if its server dies."""

import json
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import training
from command import run_here
from real_vllm import CONTEXT, NAME
from training import PROMPT

from medvlm_r1.cli.predict import main as predict
from medvlm_r1.inference.endpoint import connect
from medvlm_r1.inference.endpoint_client import EndpointError, check_endpoint
from medvlm_r1.phantom import PhantomSource
from medvlm_r1.prompts import reopen_think
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey

GREEDY = Sampling(max_tokens=24, temperature=0.0)
RUN = [
    "+experiment=zero_shot",
    "model.recipe.max_completion_tokens=24",
    "data=phantom",
    "data.validation.n=4",
    *(f"data.test.{modality}.n=40" for modality in ("mri", "ct", "xray")),
    "trainer.accelerator=cpu",
    "logger=csv",
    "workers=0",
]


def served(server, *more):
    return ["model=endpoint", f"model.name={NAME}", f"model.url={server.url}/v1", *more]


def ask(server, samples, sampling=GREEDY, recipe=training.RECIPE, name=NAME, version="/v1", **settings):
    endpoint = connect(server.url + version, name, recipe, cache=None, **settings)
    prompts = [endpoint.encoder.encode(sample, "evaluate", PROMPT) for sample in samples]
    return endpoint.engine(endpoint, prompts, sampling, NoiseKey(0, 0)).texts


def phantoms(n):
    source = PhantomSource("mri", n, "test")
    return [source[i] for i in range(n)]


def predictions(folder):
    (path,) = folder.glob("outputs/runs/*/predictions.jsonl")
    kept = ("test_set", "sample_id", "control", "text", "tokens", "truncated", "answer")
    return [tuple(json.loads(line).get(key) for key in kept) for line in path.read_text().splitlines()]


def replies(folder):
    paths = list(folder.glob("outputs/replies/*.jsonl"))
    return [
        json.loads(line) for path in paths for line in path.read_bytes().splitlines(True) if b"\n" in line
    ]


def lines(folder):
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("outputs/replies/*.jsonl"))


@pytest.fixture(scope="module")
def local(vllm_server, tmp_path_factory):
    """Predictions of a local run of the same checkpoint."""
    folder = tmp_path_factory.mktemp("local")
    model = ["model=tiny", f"model.path={vllm_server.model}"]
    run_here(folder, *RUN, *model, "controls=[image,blank,swapped,permuted,prior]")
    return predictions(folder)


class TestRun:
    def test_killed_server_loses_no_answer_and_every_control_is_that_of_a_local_run(
        self, vllm_server, local, tmp_path
    ):
        command = [*RUN, "model.recipe.min_pixels=12544", "model.recipe.max_pixels=12544"]
        command += ["model.retries=1", "controls=all"]
        ended = threading.Event()

        def kill():
            while not ended.is_set() and lines(tmp_path) < 100:
                time.sleep(0.05)
            os.killpg(vllm_server.pid, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            err = run_here(tmp_path, *command, *served(vllm_server), code=2).stderr
        finally:
            ended.set()
            thread.join()
        (error,) = [line for line in err.splitlines() if line.startswith("error:")]
        assert re.search(r"question \S+: no connection .*Start the server", error)
        assert "the same command requests the rest" in error
        before = replies(tmp_path)
        assert 100 <= len(before) < 400

        vllm_server.stop()
        vllm_server.start()
        out = run_here(tmp_path, *command, *served(vllm_server), "overwrite=true").stdout
        assert f"{len(before)} cached responses of {NAME} are reused" in out
        assert "control reasoning-cut is not run" in out
        after = replies(tmp_path)
        assert after[: len(before)] == before
        assert len({reply["key"] for reply in after}) == len(after)
        # A response lacks the tag that the template opens: it is put back where the completion closes it.
        sent = [(*row[:3], reopen_think(row[3].removeprefix("<think>")), *row[4:]) for row in local]
        assert predictions(tmp_path) == sent
        assert sum(one != other for one, other in zip(sent, local, strict=True)) < 10
        assert len({row[3] for row in local}) > 100


class TestFailures:
    def test_a_server_that_stands_still(self, vllm_server):
        os.killpg(vllm_server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(EndpointError, match=r"no answer in time\. .*raise model\.timeout"):
                ask(vllm_server, phantoms(2), timeout=1.0, retries=0)
        finally:
            os.killpg(vllm_server.pid, signal.SIGCONT)
        assert len(ask(vllm_server, phantoms(2))) == 2

    def test_a_name_that_is_not_served(self, vllm_server):
        with pytest.raises(EndpointError, match=f"does not serve Qwen.*model.name: {NAME}$"):
            check_endpoint(f"{vllm_server.url}/v1", "Qwen", "OPENAI_API_KEY")
        with pytest.raises(EndpointError, match=r"not found \(.*`Qwen`.*Correct model.name"):
            ask(vllm_server, phantoms(1), name="Qwen")

    def test_an_address_without_its_version(self, vllm_server):
        check_endpoint(vllm_server.url, NAME, "OPENAI_API_KEY")  # a server need not list its models
        with pytest.raises(EndpointError, match="mostly ends in /v1"):
            ask(vllm_server, phantoms(1), version="")

    def test_a_prompt_that_is_too_long(self, vllm_server):
        (sample,) = phantoms(1)
        long = replace(sample, question="Which organ is this? " * CONTEXT)
        with pytest.raises(EndpointError, match=rf"{CONTEXT} tokens.*serve the model with a longer context"):
            ask(vllm_server, [long])


class TestPredict:
    @pytest.mark.parametrize("prompt", ["medvlm_r1", "medvlm_r1_simple"])
    def test_answers_and_probabilities_are_those_of_a_local_model(
        self, prompt, vllm_server, tmp_path, monkeypatch, capsys
    ):
        """With reasoning and answer tags, and with a letter that ends the turn."""
        monkeypatch.chdir(tmp_path)
        rows = []
        for sample in phantoms(8):
            sample.images[0].load().save(f"{sample.id}.png")
            rows.append({"image": f"{sample.id}.png", "question": sample.question, "options": sample.options})
        Path("questions.json").write_text(json.dumps(rows))

        def answers(name, *model):
            given = ["--questions", "questions.json", "--prompt", prompt, "--recipe", "tiny"]
            assert predict(["--model", *model, *given, "--out", name]) == 0
            return [json.loads(line) for line in Path(name).read_text().splitlines()]

        there = answers("served", f"{vllm_server.url}/v1", "--name", NAME)
        here = answers("local", str(vllm_server.model), "--device", "cpu")
        assert "answers have no confidence" not in capsys.readouterr().err
        for one, other in zip(there, here, strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)
            assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-4)
            differing = {"model", "probabilities", "confidence"}
            assert all(one[key] == other[key] for key in one.keys() - differing)
        assert {row["forced"] for row in there} == {prompt == "medvlm_r1_simple"}
        requested = len(replies(tmp_path))
        answers("again", f"{vllm_server.url}/v1", "--name", NAME)
        assert len(replies(tmp_path)) == requested == 16  # an answer and its scores for each question
