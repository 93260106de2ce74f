"""A run's model in other hands: plain transformers and PEFT answer as our evaluation did."""

import base64
import contextlib
import errno
import functools
import json
import os
import re
import resource
import runpy
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from command import python
from lightning import seed_everything
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from training import PROMPT, RECIPE, ROOT, SHORT, launch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    Qwen2VLImageProcessorPil,
)

from medvlm_r1.data.phantom import PhantomSource
from medvlm_r1.data.sample import VQASample
from medvlm_r1.export import files_to_upload, main
from medvlm_r1.policy.encode import collate
from medvlm_r1.policy.export import ModelFolderError, look_into, whole_or_not_at_all
from medvlm_r1.policy.load import load_policy
from medvlm_r1.policy.merge import merge_adapter
from medvlm_r1.policy.tuning import Tuning
from medvlm_r1.policy.weights import EMBEDDED, base_of
from medvlm_r1.record import public_base
from medvlm_r1.rollout.draws import DrawKey
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.reference import ReferenceEngine

LIMIT = 24
TARGETS = ".*language_model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
QUESTIONS = [sample for modality in ("mri", "xray") for sample in PhantomSource(modality, 25, "test")]
LORA = Tuning(train="adapter", adapter=LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS))


def trained(tuning=None, steps=6, recipe=RECIPE):
    """A policy that learned a few questions by plain likelihood, so that it is no longer its base."""
    seed_everything(0, verbose=False)
    policy = load_policy("embedded", recipe, tuning=tuning)
    optimizer = torch.optim.AdamW(policy.trained, lr=3e-3 if tuning else 3e-4)
    samples = list(PhantomSource("mri", 4 * steps, "train"))
    for step in range(steps):
        chosen = [policy.encoder.encode(s, "train", PROMPT) for s in samples[4 * step : 4 * step + 4]]
        targets = [f"<think>It is {s.answer}.</think><answer>{s.answer}</answer>" for s in samples]
        rows = [policy.encoder.tokenizer(t + "<|im_end|>")["input_ids"] for t in targets[:4]]
        length = max(map(len, rows))
        tokens = torch.tensor([row + [policy.pad_id] * (length - len(row)) for row in rows])
        mask = torch.tensor([[k < len(row) for k in range(length)] for row in rows])
        batch = collate(chosen, policy.pad_id, policy.device)
        policy.logprobs(batch, tokens, mask)[mask].mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy


def evaluated(policy):
    """Token ids that our evaluation draws, 16 questions at a time, up to the end of sequence."""
    engine, sampling = ReferenceEngine(), Sampling(group_size=1, max_tokens=LIMIT, temperature=0.0)
    answers = []
    for start in range(0, len(QUESTIONS), 16):
        prompts = [policy.encoder.encode(s, "evaluate", PROMPT) for s in QUESTIONS[start : start + 16]]
        rollout = engine(policy, prompts, sampling, DrawKey(0, 0))
        answers += [row[kept].tolist() for row, kept in zip(rollout.tokens, rollout.mask.bool(), strict=True)]
    return answers


def answered(model, folder, samples=QUESTIONS):
    """Token ids that plain transformers generates, one question after the other."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    answers = []
    for sample in samples:
        chat = tokenizer.apply_chat_template(
            PROMPT.ask(sample, "evaluate"), tokenize=False, add_generation_prompt=True
        )
        vision = processor([image.load() for image in sample.images], return_tensors="pt")
        places = int(vision["image_grid_thw"].prod()) // processor.merge_size**2
        text = chat.replace("<|image_pad|>", "<|image_pad|>" * places)
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        kinds = (inputs["input_ids"] == model.config.image_token_id).int()
        tokens = model.generate(**inputs, **vision, mm_token_type_ids=kinds)
        answers.append(tokens[0, inputs["input_ids"].shape[1] :].tolist())
    return answers


def with_adapter(folder):
    base = AutoModelForImageTextToText.from_pretrained(EMBEDDED)
    model = PeftModel.from_pretrained(base, folder).eval()
    model.get_base_model().generation_config = GenerationConfig.from_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A trained model's directory, and what our evaluation of it says."""
    policy, folder = trained(), tmp_path_factory.mktemp("full") / "model"
    policy.save(folder, max_new_tokens=LIMIT)
    return folder, evaluated(policy)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    policy, folder = trained(LORA), tmp_path_factory.mktemp("adapter") / "model"
    policy.save(folder, max_new_tokens=LIMIT)
    return folder, evaluated(policy)


class TestAnswers:
    def test_all_weights(self, full):
        folder, expected = full
        assert answered(AutoModelForImageTextToText.from_pretrained(folder), folder) == expected

    def test_an_adapter_on_its_base(self, adapter):
        folder, expected = adapter
        assert answered(with_adapter(folder), folder) == expected

    def test_an_adapter_merged_into_its_base(self, adapter, tmp_path, capsys):
        folder, expected = adapter
        out = tmp_path / "merged"
        assert main([str(folder), "--merge", "--out", str(out)]) == 0
        assert "all weights" in capsys.readouterr().out
        assert answered(AutoModelForImageTextToText.from_pretrained(out), out) == expected
        assert not list(out.glob("adapter_*"))

    def test_training_moved_the_answers(self, full, adapter):
        """Otherwise the tests above would pass for the base as well."""
        start = evaluated(load_policy("embedded", RECIPE))
        assert len({str(start), str(full[1]), str(adapter[1])}) == 3

    def test_a_vision_token_is_never_emitted(self, untied_policy, tmp_path):
        """Not even where it is the likeliest token, as in this model that was made so."""
        untied_policy.save(tmp_path / "model", max_new_tokens=20)
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
        ids, image = torch.arange(5)[None], untied_policy.image_id
        first = model(input_ids=ids).logits[0, -1].argmax()
        with torch.no_grad():
            model.lm_head.weight[image] = 2 * model.lm_head.weight[first]
        assert model(input_ids=ids).logits[0, -1].argmax() == image
        tokens = model.generate(input_ids=ids)[0, 5:]
        assert tokens[0] == first
        assert not torch.isin(tokens, torch.tensor(untied_policy.banned_ids)).any()

    def test_a_stranger_loads_it(self, full, tmp_path):
        """In a process of its own, where our package is not to be found."""
        folder, expected = full
        (image,) = QUESTIONS[0].images
        image.load().save(tmp_path / "scan.png")
        chat = load_policy("embedded", RECIPE).encoder.encode(QUESTIONS[0], "evaluate", PROMPT).ids.tolist()
        code = f"""
import sys, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil
model = AutoModelForImageTextToText.from_pretrained({str(folder)!r})
AutoTokenizer.from_pretrained({str(folder)!r})
processor = Qwen2VLImageProcessorPil.from_pretrained({str(folder)!r})
vision = processor(Image.open("scan.png"), return_tensors="pt")
ids = torch.tensor([{chat}])
kinds = (ids == model.config.image_token_id).int()
tokens = model.generate(input_ids=ids, **vision, mm_token_type_ids=kinds)
assert not any(name.startswith("medvlm_r1") for name in sys.modules)
print(tokens[0, ids.shape[1]:].tolist())
"""
        done = python(tmp_path, "-c", code, PYTHONPATH="")
        assert json.loads(done.stdout.splitlines()[-1]) == expected[0]


class TestDirectory:
    def test_the_generation_config_is_the_evaluation(self, full, adapter):
        policy = load_policy("embedded", RECIPE)
        for folder, _ in (full, adapter):
            config = json.loads((folder / "generation_config.json").read_text())
            assert config.pop("transformers_version")
            assert config == {
                "do_sample": False,
                "repetition_penalty": 1.0,
                "eos_token_id": policy.eos_ids,
                "pad_token_id": policy.pad_id,
                "suppress_tokens": policy.banned_ids,
                "max_new_tokens": LIMIT,
            }

    def test_the_processor_is_named(self, full, adapter):
        for folder, _ in (full, adapter):
            settings = json.loads((folder / "preprocessor_config.json").read_text())
            assert settings["processor_class"] == "Qwen2VLProcessor"

    def test_an_adapter_names_its_base_and_no_directory(self, adapter):
        folder, _ = adapter
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("embedded", None)
        texts = [path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".md", ".jinja")]
        assert not any(str(ROOT) in text for text in texts)
        names = {path.name for path in folder.iterdir()}
        assert {"adapter_model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= names
        assert "README.md" not in names  # PEFT's is full of place holders

    def test_a_base_from_the_hubs_cache_is_named_by_id_and_commit(self, tmp_path):
        cached = tmp_path / "models--Qwen--Qwen2-VL-2B-Instruct" / "snapshots" / ("8" * 40)
        assert base_of(str(cached)) == ("Qwen/Qwen2-VL-2B-Instruct", "8" * 40)
        assert base_of("some/where") == ("some/where", None)

    def test_the_public_name_of_a_base_is_no_directory(self, tmp_path):
        (tmp_path / "grpo-seed0" / "model").mkdir(parents=True)
        assert public_base(str(tmp_path / "grpo-seed0" / "model"), None) == ("grpo-seed0", None, False)
        assert public_base("Qwen/Qwen2-VL-2B-Instruct", "abc") == ("Qwen/Qwen2-VL-2B-Instruct", "abc", True)
        assert public_base("embedded", None) == ("embedded", None, False)

    @pytest.mark.parametrize("tuning", [None, LORA], ids=["all", "adapter"])
    def test_bf16_stays_bf16(self, tuning, tmp_path):
        recipe = functools.partial(type(RECIPE), **{**vars(RECIPE), "dtype": "bfloat16"})()
        policy = load_policy("embedded", recipe, tuning=tuning)
        policy.save(tmp_path / "model")
        assert look_into(tmp_path / "model").dtype == "bfloat16"
        if tuning is None:
            loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype="auto")
            assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
            ours = policy.model.state_dict()
            assert all(torch.equal(v, ours[k]) for k, v in loaded.state_dict().items())

    def test_an_adapter_over_4_bits_is_merged_into_the_unrounded_base(self, tmp_path):
        pytest.importorskip("bitsandbytes")
        tuning = Tuning(train="adapter", adapter=LORA.adapter, quantize="nf4")
        policy = trained(tuning, steps=1)
        policy.save(tmp_path / "model")
        found = look_into(tmp_path / "model")
        assert (found.kind, found.base, found.dtype) == ("adapter", "embedded", "float32")
        merge_adapter(tmp_path / "model", tmp_path / "merged")
        merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").state_dict()
        start = load_policy("embedded", RECIPE).model.state_dict()
        name = "model.language_model.layers.0.self_attn.v_proj"
        layer = policy.model.get_base_model().model.language_model.layers[0].self_attn.v_proj
        delta = layer.get_delta_weight("default")
        assert delta.abs().max() > 0
        torch.testing.assert_close(merged[f"{name}.weight"], start[f"{name}.weight"] + delta)
        assert not any("quant" in key or "absmax" in key for key in merged)

    def test_merging_saves_in_the_asked_dtype(self, adapter, tmp_path):
        for dtype, stored in ((None, "float32"), ("bfloat16", "bfloat16")):
            merge_adapter(adapter[0], tmp_path / stored, dtype)
            found = look_into(tmp_path / stored)
            assert (found.kind, found.dtype) == ("weights", stored)
            loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / stored, dtype="auto")
            assert loaded.dtype == getattr(torch, stored)
            assert sum(p.numel() for p in loaded.parameters()) == found.parameters


class TestInterrupted:
    def test_a_failed_save_leaves_what_was_there(self, full, tmp_path):
        """Whatever fails half-way through the writing."""
        folder = tmp_path / "model"
        shutil.copytree(full[0], folder)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}

        def write_half():
            with whole_or_not_at_all(folder) as partial:
                (partial / "config.json").write_text("{}")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.raises(OSError, match="No space left"):
            write_half()
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_a_disk_that_is_full_leaves_no_directory(self, tmp_path):
        """Files of this process may grow to 100 kB only: writing the weights fails."""
        policy = load_policy("embedded", RECIPE)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(SafetensorError, match="File too large"):
                policy.save(tmp_path / "model")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(tmp_path.iterdir()) == []

    def test_a_killed_save_leaves_no_directory_and_the_next_one_works(self, full, tmp_path):
        code = """
import os
from pathlib import Path
from medvlm_r1.policy.export import whole_or_not_at_all
with whole_or_not_at_all(Path("model")) as partial:
    (partial / "config.json").write_text("{}")
    os.kill(os.getpid(), 9)
"""
        python(tmp_path, "-c", code, code=-9)
        assert not (tmp_path / "model").exists()
        load_policy(str(full[0]), RECIPE).save(tmp_path / "model")
        assert look_into(tmp_path / "model").kind == "weights"
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_saving_again_replaces(self, adapter, tmp_path):
        shutil.copytree(adapter[0], tmp_path / "model")
        load_policy("embedded", RECIPE).save(tmp_path / "model")
        assert look_into(tmp_path / "model").kind == "weights"
        assert not list((tmp_path / "model").glob("adapter_*"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders of a short GRPO run on all weights, and of one with an adapter."""
    few = [override.replace("n=8", "n=4") for override in SHORT]
    few += ["model.recipe.prompts_per_step=4", "model.recipe.group_size=4"]
    return {
        tune: launch(tmp_path_factory.mktemp(tune), *few, f"tune={tune}", "workers=0")
        for tune in ("full", "lora")
    }


class TestCard:
    @pytest.mark.parametrize("tune", ["full", "lora"])
    def test_its_snippet_runs_and_answers_as_the_evaluation(self, tune, runs, tmp_path, capsys):
        folder = tmp_path / "model"
        shutil.copytree(runs[tune] / "model", folder)
        QUESTIONS[3].images[0].load().save(folder / "scan.png")
        (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        (folder / "snippet.py").write_text(code)
        with contextlib.chdir(folder):
            runpy.run_path("snippet.py", run_name="__main__")
        said = capsys.readouterr().out
        if tune == "full":
            policy = load_policy(str(folder), RECIPE)
        else:
            merge_adapter(folder, tmp_path / "merged")
            policy = load_policy(str(tmp_path / "merged"), RECIPE)
        options = ("liver", "left kidney", "spleen")
        sample = VQASample(
            "card", QUESTIONS[3].images, "Which organ is marked?", options, "A", "mri", "", "test", "card"
        )
        prompt = policy.encoder.encode(sample, "evaluate", PROMPT)
        greedy = Sampling(group_size=1, max_tokens=32, temperature=0.0)
        rollout = ReferenceEngine()(policy, [prompt], greedy, DrawKey(0, 0))
        assert said.strip() == rollout.texts[0].strip()

    @pytest.mark.parametrize("tune", ["full", "lora"])
    def test_it_says_what_the_run_did_and_names_no_directory(self, tune, runs):
        folder = runs[tune] / "model"
        text = (folder / "README.md").read_text()
        metrics = json.loads((runs[tune] / "metrics.json").read_text())
        for name, label in (("mri", "MRI (in domain)"), ("ct", "CT"), ("xray", "X-ray")):
            (row,) = (line for line in text.splitlines() if line.startswith(f"| {label} |"))
            assert f"{100 * metrics['accuracy'][name]['value']:.1f} (" in row
            assert f"{100 * metrics['accuracy_lenient'][name]['value']:.1f} (" in row
            assert row.endswith("| 4 |")
        for said in (
            "| steps | 2 |",
            "| seed | 0 |",
            "license: apache-2.0",
            "pipeline_tag: image-text-to-text",
        ):
            assert said in text
        assert ("adapter (rank 16" in text) == (tune == "lora")
        for part in (str(ROOT), str(runs[tune].parents[2]), "/tmp/", "/home/"):
            assert part not in text
            assert part not in (folder / "medvlm_r1.json").read_text()

    def test_export_writes_it_anew(self, runs, tmp_path):
        folder = tmp_path / "model"
        shutil.copytree(runs["full"] / "model", folder)
        before = (folder / "README.md").read_text()
        (folder / "README.md").write_text("lost")
        assert main([str(folder), "--card"]) == 0
        assert (folder / "README.md").read_text() == before


class TestCommand:
    def test_an_adapter_that_does_not_fit_is_not_merged(self, adapter, tmp_path, capsys):
        """peft would leave such an adapter without effect, and the result would be the base."""
        folder = tmp_path / "model"
        shutil.copytree(adapter[0], folder)
        weights = load_file(folder / "adapter_model.safetensors")
        other = {name.replace("language_model", "model"): tensor for name, tensor in weights.items()}
        save_file(other, folder / "adapter_model.safetensors")
        assert main([str(folder), "--merge", "--out", str(tmp_path / "merged")]) == 2
        assert "do not fit the model" in capsys.readouterr().err
        assert not (tmp_path / "merged").exists()

    def test_it_says_what_a_run_left(self, runs, capsys):
        assert main([str(runs["lora"])]) == 0
        said = capsys.readouterr().out
        for part in ("adapter (PEFT)", "embedded", "155,648", "float32", "medvlm_r1", "12544", "32 tokens"):
            assert part in said
        assert main([str(runs["full"] / "model")]) == 0
        assert "all weights" in capsys.readouterr().out

    def test_a_run_is_merged_with_its_card(self, runs, tmp_path, capsys):
        out = tmp_path / "merged"
        assert main([str(runs["lora"]), "--merge", "--out", str(out), "--dtype", "bfloat16"]) == 0
        card = (out / "README.md").read_text()
        assert "library_name: transformers" in card
        assert "merged into these weights" in card
        assert look_into(out).dtype == "bfloat16"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["merged"]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["{full}", "--merge", "--out", "{new}"], "nothing to merge"),
            (["{lora}", "--merge"], "needs --out"),
            (["{lora}", "--merge", "--out", "{used}"], "not empty"),
            (["{lora}", "--merge", "--out", "{new}", "--base", "{nowhere}"], "nowhere"),
            (["{lora}", "--dtype", "float32"], "for --merge alone"),
            (["{lora}", "--push-to-hub", "me/it"], "not on the model hub"),
            (["{full}", "--push-to-hub", "me/it"], "no token"),
            (["{full}", "--push-to-hub", "not//a name"], "--push-to-hub"),
            (["{nowhere}"], "does not exist"),
            (["{used}"], "holds no model"),
        ],
    )
    def test_what_cannot_be_done_is_said(self, arguments, said, runs, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        (tmp_path / "used").mkdir()
        (tmp_path / "used" / "file").touch()
        names = {**runs, **{name: tmp_path / name for name in ("new", "used", "nowhere")}}
        assert main([argument.format(**names) for argument in arguments]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "new").exists()

    def test_a_missing_base_says_where_it_looked(self, adapter, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        given = ["--base", "nobody/no-such-model", "--out", str(tmp_path / "out")]
        assert main([str(adapter[0]), "--merge", *given]) == 2
        said = capsys.readouterr().err
        assert "nobody/no-such-model" in said
        assert str(tmp_path / "cache") in said
        assert "--base" in said

    def test_cut_weights_are_refused(self, full, tmp_path):
        shutil.copytree(full[0], tmp_path / "model")
        weights = tmp_path / "model" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(ModelFolderError, match="cut short"):
            look_into(tmp_path / "model")


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as an upload in one commit asks for; keeps what it was sent."""

    sent: dict[str, bytes]
    created: list[dict]

    def do_HEAD(self):
        self.reply({})

    def do_GET(self):
        self.reply({"siblings": [], "sha": "0" * 40, "id": "me/it"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Authorization"] == "Bearer hf_test"
        if self.path.endswith("/repos/create"):
            self.created.append(json.loads(body))
            return self.reply({"url": self.address + "/me/it", "id": "me/it", "name": "me/it"})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return self.reply(
                {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
            )
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.sent[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            oid = {"commitOid": "0" * 40, "commitUrl": self.address + "/me/it/commit/0", "hookOutput": ""}
            return self.reply(oid)
        return self.reply({})

    def reply(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class TestUpload:
    @pytest.fixture
    def hub(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        Hub.sent, Hub.created = {}, []
        Hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Hub
        server.shutdown()
        server.server_close()

    def test_the_model_and_nothing_else_goes_to_the_hub(self, runs, hub, tmp_path):
        folder = tmp_path / "model"
        shutil.copytree(runs["full"] / "model", folder)
        (folder / "README.md").unlink()
        (folder / "last.ckpt").write_text("secret")
        (folder / "predictions.jsonl").write_text("secret")
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "model.safetensors").write_text("secret")
        environment = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
        command = ["-m", "medvlm_r1.export", folder, "--push-to-hub", "me/it", "--private"]
        done = python(tmp_path, *command, **environment)
        assert set(hub.sent) == {path.name for path in files_to_upload(folder)}
        assert hub.sent["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        assert hub.sent["README.md"].startswith(b"---\n")  # a card was written
        assert not any(b"secret" in content for content in hub.sent.values())
        assert hub.created[0]["visibility"] == "private"
        for name in hub.sent:
            assert name in done.stdout
        assert "left here: checkpoints, last.ckpt, predictions.jsonl" in done.stdout
