"""A served model answers as a local one does, and a run that was stopped asks nothing twice.

The server is chat_server.py's, with the embedded model behind it; test_vllm_endpoint.py has vLLM's.
"""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
import training
from chat_server import NAME, Conversation, Server, parsed
from command import ROOT, environment, run_here
from omegaconf import OmegaConf
from real_vllm import thinking_checkpoint
from training import PROMPT

from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.cli.predict import main as predict
from medvlm_r1.evaluate.controls import blank as blanked
from medvlm_r1.inference.endpoint import connect
from medvlm_r1.inference.endpoint_cache import CachedResponse, EndpointCache
from medvlm_r1.inference.endpoint_chat import ChatEncoder, control_token_fault
from medvlm_r1.inference.endpoint_client import EndpointError, check_endpoint
from medvlm_r1.inference.endpoint_scores import NoScoresError, Turn, find_turn
from medvlm_r1.phantom import PhantomSource
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.prompts import reopen_think
from medvlm_r1.rewards import Rewards, letter_accuracy
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.reference import ReferenceEngine
from medvlm_r1.rollout.sampling_noise import NoiseKey

RECIPE = replace(training.RECIPE, max_prompt_tokens=4000)
GREEDY = Sampling(max_tokens=24, temperature=0.0)
RUN = [
    "+experiment=zero_shot",
    "model=endpoint",
    f"model.name={NAME}",
    "model.recipe.max_completion_tokens=24",
    "data=phantom",
    "data.validation.n=4",
    "data.test.mri.n=4",
    "data.test.ct.n=4",
    "data.test.xray.n=4",
    "trainer.accelerator=cpu",
    "logger=csv",
    "controls=[image]",
]
QUESTIONS = 16  # of RUN


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return thinking_checkpoint(tmp_path_factory.mktemp("checkpoint") / "thinking")


@pytest.fixture(scope="module")
def served(checkpoint):
    """The model with the limits that a server has by default, wider than any recipe's."""
    return load_policy(str(checkpoint), replace(RECIPE, min_pixels=56 * 56, max_pixels=28 * 28 * 1280))


@pytest.fixture
def server(served):
    server = Server(served)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def to(server, tmp_path):
    """Connects to the server."""

    def endpoint(recipe=RECIPE, **settings):
        return connect(
            settings.pop("url", server.url),
            NAME,
            recipe,
            **{"concurrency": 4, "retries": 2, "timeout": 60.0, "cache": str(tmp_path / "replies")}
            | settings,
        )

    return endpoint


def phantoms(n, modality="mri"):
    source = PhantomSource(modality, n, "test")
    return [source[i] for i in range(n)]


def ask(policy, samples, engine=None, sampling=GREEDY):
    prompts = [policy.encoder.encode(sample, "evaluate", PROMPT) for sample in samples]
    return (engine or policy.engine)(policy, prompts, sampling, NoiseKey(0, 0))


def rows(rollout):
    return list(zip(rollout.texts, rollout.lengths.tolist(), rollout.truncated.tolist(), strict=True))


def start(folder, *arguments):
    """``python run.py``, to be killed."""
    command = [sys.executable, ROOT / "run.py", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(), **pipes)


class TestPictures:
    @pytest.mark.usefixtures("unchecked")  # the server's conversation stands for a prompt style
    @pytest.mark.parametrize("side", [None, 84])
    def test_are_those_of_a_local_model(self, side, questions, short_style, served, checkpoint):
        """A server with wider limits cuts our PNG into the patches that a local model sees."""
        limits = {"min_pixels": 56 * 84, "max_pixels": 84 * 84}
        local = load_policy(str(checkpoint), replace(RECIPE, image_size=side, **limits)).encoder
        remote = ChatEncoder(side, **limits)
        blank = [perturbation.sample for q in questions.values() if (perturbation := blanked(q))]
        for sample in [*questions.values(), *blank]:
            messages, images = parsed(
                {
                    "model": NAME,
                    "messages": remote.encode(sample, "evaluate", short_style).messages,
                    "max_tokens": 1,
                }
            )
            received = replace(sample, images=images)
            there = served.encoder.encode(received, "evaluate", Conversation(messages))
            here = local.encode(sample, "evaluate", short_style)
            assert torch.equal(there.ids, here.ids)
            assert torch.equal(there.grid, here.grid)
            assert torch.equal(there.pixels, here.pixels)

    def test_have_sides_in_multiples_of_the_served_models_patch(self, to):
        endpoint = to(replace(RECIPE, min_pixels=1, max_pixels=100 * 100), patch=32)
        messages = endpoint.encoder.encode(phantoms(1)[0], "evaluate", PROMPT).messages
        _, (picture,) = parsed({"model": NAME, "messages": messages, "max_tokens": 1})
        assert picture.load().size == (96, 96)


class TestAnswers:
    @pytest.mark.parametrize("side", [112, 84])
    def test_are_those_of_a_local_run(self, side, to, checkpoint):
        recipe = replace(RECIPE, min_pixels=side * side, max_pixels=side * side)
        samples = phantoms(6) + phantoms(6, "xray")
        shared = {"prompt": PROMPT, "rewards": Rewards({"a": letter_accuracy}, {}), "seed": 0}

        def answers(policy, engine):
            module = VLMModule(policy=policy, engine=engine, max_completion_tokens=24, **shared)
            prompts = [policy.encoder.encode(sample, "evaluate", PROMPT) for sample in samples]
            rollout = module.engine(policy, prompts, module.greedy, module.noise_key)
            parsed_samples, read = module.parse(prompts, rollout.texts)
            assert [sample.id for sample in parsed_samples] == [sample.id for sample in samples]
            return rollout.lengths.tolist(), rollout.truncated.tolist(), read

        local, endpoint = load_policy(str(checkpoint), recipe), to(recipe)
        assert answers(endpoint, endpoint.engine) == answers(local, ReferenceEngine())

    def test_depend_on_the_picture(self, to):
        one, *others = phantoms(10)
        samples = [one, *(replace(one, id=other.id, images=other.images) for other in others)]
        assert len(set(ask(to(), samples).texts)) > 1

    def test_that_reach_the_limit_are_truncated(self, to):
        cut = ask(to(), phantoms(3), sampling=replace(GREEDY, max_tokens=3))
        assert cut.truncated.all()
        assert cut.lengths.tolist() == [3, 3, 3]

    def test_are_several_at_a_time_and_in_order(self, to, server, checkpoint):
        server.meeting = threading.Barrier(4)  # opens when four requests are there
        samples = phantoms(8)
        found = ask(to(concurrency=4), samples)
        assert server.peak == 4
        local = ask(load_policy(str(checkpoint), RECIPE), samples, ReferenceEngine())
        assert found.texts == [reopen_think(text) for text in local.texts]
        assert len(set(found.texts)) > 1

    def test_come_one_a_question(self, to):
        with pytest.raises(ValueError, match="an endpoint can be evaluated, not trained"):
            ask(to(), phantoms(1), sampling=replace(GREEDY, group_size=2))


class TestCachedResponses:
    def test_are_not_requested_again(self, to, server):
        first = ask(to(), phantoms(3))
        assert rows(ask(to(), phantoms(5)))[:3] == rows(first)
        assert (server.requests, len(set(server.responses))) == (5, 5)

    def test_equal_requests_are_sent_once(self, to, server):
        (one,) = phantoms(1)
        assert len(set(ask(to(), [one, replace(one, id="twin")]).texts)) == 1
        assert server.requests == 1

    def test_go_by_everything_that_changes_an_answer(self, to, server):
        (one,) = phantoms(1)
        ask(to(), [one])
        ask(to(), [one], sampling=replace(GREEDY, max_tokens=23))
        ask(to(), [replace(one, images=phantoms(2)[1].images)])
        ask(to(), [replace(one, question="Another?")])
        assert server.requests == 4
        ask(to(url=server.url.replace("127.0.0.1", "localhost")), [one])  # the same model elsewhere
        assert server.requests == 4

    def test_null_requests_again_and_stores_nothing(self, to, server, tmp_path):
        for _ in range(2):
            ask(to(cache=None), phantoms(2))
        assert server.requests == 4
        assert not list(tmp_path.iterdir())

    def test_a_torn_line_is_cut_off(self, to, server, tmp_path):
        whole = ask(to(), phantoms(3))
        (path,) = (tmp_path / "replies").glob("*.jsonl")
        assert path.name == "served_thinking-tiny.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
        assert rows(ask(to(), phantoms(3))) == rows(whole)
        assert server.requests == 4
        kept = [json.loads(line) for line in path.read_text().splitlines()]
        assert sorted(row["question"] for row in kept) == [sample.id for sample in phantoms(3)]
        assert len({row["key"] for row in kept}) == 3
        assert {row["model"] for row in kept} == {NAME}

    def test_are_shared_by_runs_at_the_same_time(self, tmp_path):
        path = tmp_path / "replies.jsonl"
        mine, theirs = EndpointCache(path), EndpointCache(path)
        mine.add("a", CachedResponse("first", 1, False))
        with path.open("ab") as file:
            file.write(b'{"key": "b", "te')  # a third one was killed here
        theirs.add("a", CachedResponse("second", 2, True))
        theirs.add("c", CachedResponse("é\nü", 3, False))
        mine.add("d", CachedResponse("last", 4, True))
        assert mine.responses == EndpointCache(path).responses
        assert theirs.responses["a"] == CachedResponse("first", 1, False)
        assert list(mine.responses) == ["a", "c", "d"]

    def test_that_are_none_are_refused(self, tmp_path):
        path = tmp_path / "replies.jsonl"
        path.write_text('{"key": "a", "text": "x", "tokens": 1, "truncated": false}\nnonsense\n')
        with pytest.raises(ValueError, match="line 2 is not a response"):
            EndpointCache(path)


class TestFailures:
    def test_that_pass_are_retried(self, to, server):
        server.troubles = [429, 500]
        assert ask(to(concurrency=1), phantoms(2)).texts
        assert (server.requests, len(server.responses)) == (4, 2)

    def test_that_stay_end_the_run_and_lose_nothing(self, to, server, tmp_path):
        server.troubles = [0, 0, 500, 500]
        with pytest.raises(EndpointError) as caught:
            ask(to(concurrency=1, retries=1), phantoms(4))
        message = str(caught.value)
        for word in (
            server.url,
            NAME,
            "question mri-test-0-00002",
            "500",
            "Start again later",
            "every response so far",
        ):
            assert word in message
        assert "\n" not in message
        ask(to(), phantoms(4))
        assert len(server.responses) == len(set(server.responses)) == 4

    def test_a_refused_request_is_not_retried(self, to, server):
        server.troubles = [400]
        with pytest.raises(EndpointError, match=r"rejects the request.*trouble 400.*max_completion_tokens"):
            ask(to(), phantoms(1))
        assert server.requests == 1

    def test_a_refused_key_names_the_variable(self, to, server):
        server.troubles = [401]
        with pytest.raises(EndpointError, match=r"rejects the API key.*environment variable SERVER_KEY"):
            ask(to(api_key_variable="SERVER_KEY"), phantoms(1))
        assert server.requests == 1

    def test_what_is_under_way_when_another_fails_is_waited_for(self, to, server):
        server.troubles = [400]
        with pytest.raises(EndpointError, match="trouble 400"):
            ask(to(concurrency=3), phantoms(8))
        assert server.requests == 3
        ask(to(), phantoms(8))
        assert len(server.responses) == len(set(server.responses)) == 8

    def test_a_lost_server(self, to):
        with pytest.raises(EndpointError, match=r"127\.0\.0\.1:.*no connection.*Start the server"):
            ask(to(url=nobody(), retries=1), phantoms(1))

    def test_an_answer_without_a_count_of_tokens(self, to, server):
        server.changed = lambda value: value | {"usage": None}
        with pytest.raises(EndpointError, match="no token usage"):
            ask(to(), phantoms(1))

    def test_reasoning_that_the_server_takes_out(self, to, server):
        """As a reasoning parser does: the remaining text would never be well formed."""

        def parse(value):
            message = value["choices"][0]["message"]
            reasoning, _, message["content"] = message["content"].partition("</think>")
            message["reasoning_content"] = reasoning
            return value

        server.changed = parse
        with pytest.raises(EndpointError, match="without a reasoning parser"):
            ask(to(), phantoms(1))

    def test_a_package_that_is_not_there(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(ValueError, match=r"pip install -e '\.\[endpoint\]'"):
            check_endpoint("http://127.0.0.1:9/v1", NAME, "OPENAI_API_KEY")


class TestCheck:
    def test_names_the_models_that_are_served(self, server):
        check_endpoint(server.url, NAME, "OPENAI_API_KEY")
        with pytest.raises(EndpointError, match=rf"does not serve Qwen.*model\.name: {NAME}, other"):
            check_endpoint(server.url, "Qwen", "OPENAI_API_KEY")

    def test_accepts_a_server_that_lists_none(self, server):
        server.models = None
        check_endpoint(server.url, NAME, "OPENAI_API_KEY")

    def test_finds_nobody_within_seconds(self):
        started = time.monotonic()
        with pytest.raises(EndpointError, match="no connection"):
            check_endpoint(nobody(), NAME, "OPENAI_API_KEY")
        assert time.monotonic() - started < 10


class Response:
    """A response with the prompt's tokens, as vLLM gives them."""

    def __init__(self, tokenizer, ids):
        rows = [{str(i): {"logprob": -1.0, "decoded_token": tokenizer.decode([i])}} for i in ids]
        self.model_extra = {"prompt_logprobs": [None, *rows[1:]]}


class TestConfidence:
    @pytest.mark.parametrize(
        ("template", "turn"),
        [
            ("", Turn("", trailing=1)),
            ("{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}", Turn("<think>\n", trailing=1)),
        ],
        ids=["plain", "opens the think tag"],
    )
    def test_finds_what_the_chat_template_adds_to_a_completion(self, template, turn, encoder):
        tokenizer = encoder.tokenizer
        template = tokenizer.chat_template + template

        async def send(request):
            options = {"chat_template": template, "return_dict": False}
            keys = ("add_generation_prompt", "continue_final_message")
            options |= {key: request["extra_body"][key] for key in keys}
            return Response(tokenizer, tokenizer.apply_chat_template(request["messages"], **options))

        assert asyncio.run(find_turn(send, NAME)) == turn

    def test_is_refused_by_a_template_that_changes_completions(self, encoder):
        async def send(request):
            *_, last = request["messages"]
            text = "<prompt>" if last["role"] == "user" else "<other prompt>" + last["content"]
            return Response(encoder.tokenizer, encoder.tokenizer(text)["input_ids"])

        with pytest.raises(NoScoresError, match="its chat template changes"):
            asyncio.run(find_turn(send, NAME))

    def test_is_missing_where_the_server_gives_no_log_probabilities(
        self, server, tmp_path, monkeypatch, capsys
    ):
        """As OpenAI's, this one rejects requests with fields that it does not know."""
        monkeypatch.chdir(tmp_path)
        phantoms(1)[0].images[0].load().save("scan.png")
        question = ["--image", "scan.png", "--question", "Which organ?", "--options", "liver", "brain"]
        assert predict(["--model", server.url, "--name", NAME, "--recipe", "tiny", *question, "--json"]) == 0
        out, err = capsys.readouterr()
        record = json.loads(out)
        assert record["confidence"] is record["probabilities"] is record["forced"] is None
        assert record["text"]
        (line,) = [line for line in err.splitlines() if "answers have no confidence" in line]
        assert f"{server.url} gives no log-probabilities of a prompt" in line

    def test_a_control_token_is_not_sent(self, server, tmp_path, capsys):
        phantoms(1)[0].images[0].load().save(tmp_path / "scan.png")
        question = ["--image", str(tmp_path / "scan.png"), "--question", "A tumour?<|im_end|>"]
        assert predict(["--model", server.url, "--name", NAME, *question]) == 2
        out, error = capsys.readouterr()
        assert "question: '<|im_end|>' is a control token, which a server would read as such" in error
        assert not out

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (["--name", "Qwen"], f"does not serve Qwen. Give one of these as --name: {NAME}, other"),
            ([], "needs --name"),
            (["--name", NAME, "--device", "cpu"], "--device cpu is for a local model"),
        ],
    )
    def test_a_wrong_command_names_its_own_options(self, given, message, server, tmp_path, capsys):
        phantoms(1)[0].images[0].load().save(tmp_path / "scan.png")
        question = ["--image", str(tmp_path / "scan.png"), "--question", "Which?", *given]
        try:
            code = predict(["--model", server.url, *question])
        except SystemExit as stopped:
            code = stopped.code
        assert code == 2
        assert message in " ".join(capsys.readouterr().err.split())


def nobody():
    """A url on which nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}/v1"


class TestRun:
    def test_killed_and_started_again_requests_nothing_twice(self, server, tmp_path, monkeypatch):
        """The whole road: what a run leaves, and that the key is in none of it."""
        command = [
            *RUN,
            f"model.url={server.url}",
            "model.api_key_variable=SERVER_KEY",
            "model.concurrency=2",
        ]
        server.held, server.limit = threading.Event(), 6  # two in the first test set
        monkeypatch.setenv("SERVER_KEY", "sk-very-secret")
        first = start(tmp_path, *command, "workers=1")
        deadline = time.monotonic() + 120
        while server.requests < 8 and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        out, err = first.communicate()
        assert (server.requests, len(server.responses)) == (8, 6), out + err
        server.held.set()
        server.held = None

        again = run_here(tmp_path, *command, "overwrite=true", "workers=0")
        out, err = again.stdout, again.stderr
        assert f"6 cached responses of {NAME} are reused" in out
        assert "HTTP Request" not in out + err
        assert max(Counter(server.responses).values()) == 1
        assert len(server.responses) == QUESTIONS
        assert server.keys == {"Bearer sk-very-secret"}

        (metrics_file,) = tmp_path.glob("outputs/runs/*/metrics.json")
        folder = metrics_file.parent
        metrics = json.loads(metrics_file.read_text())
        assert metrics["run"]["model"] == NAME
        assert metrics["run"]["parameters"] is None
        assert "127.0.0.1" not in folder.name
        predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        assert [row["sample_id"] for row in predictions] == [
            sample.id for m in ("mri", "ct", "xray") for sample in phantoms(4, m)
        ]
        assert len({row["text"] for row in predictions}) > 1
        assert all(1 < row["tokens"] <= 24 for row in predictions)
        assert (folder / "report.html").stat().st_size > 10_000
        assert OmegaConf.load(folder / "config.yaml").rollout is None
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or b"very-secret" not in path.read_bytes(), path

    def test_a_control_that_the_api_lacks_is_refused_by_name(self, tmp_path):
        command = [*RUN, f"model.url={nobody()}", "controls=[image,reasoning-cut]"]
        err = run_here(tmp_path, *command, code=2).stderr
        assert "reasoning-cut needs an assistant prefix, which the chat completions API does not take" in err

    def test_a_rejected_request_gives_one_line(self, server, tmp_path):
        server.poison = PROMPT.problem(phantoms(4, "ct")[2]).splitlines()[1]
        err = run_here(tmp_path, *RUN, f"model.url={server.url}", "workers=0", code=2).stderr
        assert "Traceback" not in err
        assert re.search(rf"error: {server.url}, model {NAME}, question \S+: .*too long.*\. If", err)
        (replies,) = tmp_path.glob("outputs/replies/*.jsonl")
        assert len(replies.read_text().splitlines()) == len(server.responses) > 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["+experiment=grpo_600"], "an endpoint can be evaluated, not trained"),
            (["+experiment=zero_shot"], "no connection"),
        ],
        ids=["trained", "unreachable"],
    )
    def test_an_impossible_run_stops_at_once(self, arguments, message, tmp_path):
        elsewhere = ["model=endpoint", f"model.url={nobody()}", "model.name=x", "data=phantom"]
        err = run_here(tmp_path, *arguments, *elsewhere, code=2).stderr
        assert message in err
        assert "Traceback" not in err


class TestControlTokens:
    """A server's tokenizer reads them in a question; which it has, a client cannot know."""

    @pytest.mark.parametrize(
        "token",
        [
            *("<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>", "<|begin_of_text|>"),
            *(
                "<s>",
                "</s>",
                "[INST]",
                "[/INST]",
                "<start_of_turn>",
                "<image>",
                "<bos>",
                "<think>",
                "</think>",
            ),
            *("<tool_call>", "</tool_response>", "<fim_prefix>", "<<SYS>>", "<IMG_CONTEXT>", "<unused42>"),
            "<\uff5cUser\uff5c>",
        ],
    )
    def test_of_any_family_are_found(self, token):
        sample = phantoms(1)[0]
        asked = replace(sample, question=f"A mass?{token}")
        assert repr(token) in control_token_fault(asked)
        options = (f"liver{token}", *sample.options[1:])
        assert repr(token) in control_token_fault(replace(sample, options=options))

    @pytest.mark.parametrize(
        "text", ["<5 mm", "p < 0.05 | q > 0.1", "T1 [mm]", "a <b> tag", "x<|y", "|>", "[IMP]", "size <3> cm"]
    )
    def test_are_not_found_in_text(self, text):
        assert control_token_fault(replace(phantoms(1)[0], question=text)) is None
