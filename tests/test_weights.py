"""What cannot be loaded is refused in one line, before a weight is read or a byte is downloaded."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import random_model
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration
from transformers.utils import logging

from medvlm_r1.policy.checkpoint import UnusableWeightsError
from medvlm_r1.policy.encode import collate
from medvlm_r1.policy.load import Recipe, load_encoder, load_policy
from medvlm_r1.policy.policy import Policy
from medvlm_r1.policy.tuning import Tuning
from medvlm_r1.policy.weights import (
    EMBEDDED,
    MissingGPUError,
    MissingWeightsError,
    check_weights,
    find_weights,
    loaded_commit,
)

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef" * 2 + "01234567"
LIMITS = {"min_pixels": 56 * 56, "max_pixels": 168 * 112}
# as the hub has it: limits of its own, far above any recipe's
HUB_PROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
}


def recipe(**changes):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        values = OmegaConf.to_container(compose("config").model.recipe)
    del values["_target_"]
    return Recipe(**(values | LIMITS | changes))


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the embedded model, to damage."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(EMBEDDED, folder, ignore=shutil.ignore_patterns("__*", "*.py"))
    return folder


@pytest.fixture
def sharded(checkpoint):
    """The same in two shards, as large models come."""
    tensors = load_file(checkpoint / "model.safetensors")
    names = list(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, checkpoint / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: s for s, held in shards.items() for name in held}}
    write(checkpoint / "model.safetensors.index.json", index)
    (checkpoint / "model.safetensors").unlink()
    return checkpoint


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """An empty cache, and nobody at the hub's address."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def in_cache(cache, folder, name="Qwen/Some-Model"):
    """Put a directory into a hub cache as a download does: blobs, links to them, a ref."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    for file in folder.iterdir():
        shutil.copy(file, home / "blobs" / file.name)
        (snapshot / file.name).symlink_to(home / "blobs" / file.name)
    return snapshot


def write(path, value):
    path.write_text(json.dumps(value))


def change(path, **values):
    write(path, json.loads(path.read_text()) | values)


def refused(folder, *parts):
    """The one line with which a checkpoint is refused; it holds ``parts`` and names the directory."""
    with pytest.raises(UnusableWeightsError) as caught:
        check_weights(str(folder), None, "cpu")
    message = str(caught.value)
    assert message.startswith(f"{folder}: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_the_embedded_model_is_found():
    folder = find_weights("embedded")
    assert (folder / "model.safetensors").is_file()
    check_weights("embedded", None, "auto")


def test_a_path_that_is_no_checkpoint_names_the_ways_on(tmp_path):
    for path in (str(tmp_path), str(tmp_path / "nowhere" / "deep")):
        with pytest.raises(MissingWeightsError, match=r"model\.path=/path/to/checkpoint"):
            find_weights(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_large_weights_need_a_gpu_unless_the_cpu_is_asked_for(checkpoint):
    size = 4_400_000_000
    head = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with (checkpoint / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + size)  # sparse: takes no space
    with pytest.raises(MissingGPUError, match=r"4\.4 GB of weights.*\n.*trainer.accelerator=cpu.*model=tiny"):
        check_weights(str(checkpoint), None, "auto")
    check_weights(str(checkpoint), None, "cpu")


class TestRefusals:
    def test_a_whole_checkpoint_is_not_refused(self, checkpoint):
        check_weights(str(checkpoint), None, "auto")

    def test_shards_are_a_whole_checkpoint(self, sharded):
        check_weights(str(sharded), None, "auto")
        assert load_policy(str(sharded), recipe()).model.lm_head is not None

    def test_pickles(self, checkpoint):
        (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
        refused(checkpoint, "pytorch_model.bin", "can run code", "save_pretrained")

    def test_pickles_beside_safetensors_do_not_matter(self, checkpoint):
        (checkpoint / "training_args.bin").write_bytes(b"x")
        (checkpoint / "pytorch_model.bin").write_bytes(b"x")
        check_weights(str(checkpoint), None, "auto")

    def test_no_weights(self, checkpoint):
        (checkpoint / "model.safetensors").unlink()
        refused(checkpoint, "no *.safetensors", "copy model.safetensors")

    def test_a_missing_shard(self, sharded):
        (sharded / "model-00002-of-00002.safetensors").unlink()
        refused(sharded, "index.json lists model-00002-of-00002.safetensors, not there", "download")

    def test_shards_without_their_index(self, sharded):
        (sharded / "model.safetensors.index.json").unlink()
        refused(sharded, "model-00001-of-00002.safetensors", "without model.safetensors.index.json")

    def test_an_index_that_lists_nothing(self, sharded):
        write(sharded / "model.safetensors.index.json", {})
        refused(sharded, "has no weight_map")

    @pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"", None])
    def test_a_file_cut_short(self, checkpoint, content):
        file = checkpoint / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] if content is None else content)
        refused(checkpoint, "model.safetensors is cut short", "copy or download it again")

    def test_no_tokenizer(self, checkpoint):
        (checkpoint / "tokenizer.json").unlink()
        refused(checkpoint, "no tokenizer.json, nor vocab.json and merges.txt", "copy")

    def test_the_older_tokenizer_files_do(self, checkpoint):
        (checkpoint / "tokenizer.json").rename(checkpoint / "vocab.json")
        (checkpoint / "merges.txt").write_text("")
        check_weights(str(checkpoint), None, "auto")

    def test_no_image_processor(self, checkpoint):
        (checkpoint / "preprocessor_config.json").unlink()
        refused(checkpoint, "no preprocessor_config.json", "copy")

    def test_a_processor_without_an_image_processor(self, checkpoint):
        (checkpoint / "preprocessor_config.json").unlink()
        write(checkpoint / "processor_config.json", {"processor_class": "Qwen2VLProcessor"})
        refused(checkpoint, "processor_config.json holds no image_processor", "copy")

    @pytest.mark.parametrize("family", ["qwen2", "llava", "qwen2_vl_text", "qwen3_vl"])
    def test_another_family(self, checkpoint, family):
        change(checkpoint / "config.json", model_type=family)
        (checkpoint / "preprocessor_config.json").unlink()  # the family is the better reason
        refused(checkpoint, f"config.json is {family!r}", "Qwen2-VL and Qwen2.5-VL", "give such a checkpoint")

    def test_no_family(self, checkpoint):
        write(checkpoint / "config.json", {})
        refused(checkpoint, "config.json is of no model_type")

    def test_remote_code_of_another_family(self, checkpoint):
        change(checkpoint / "config.json", model_type="qwen", auto_map={"AutoConfig": "configuration_qwen.X"})
        refused(checkpoint, "'qwen'", "auto_map", "Qwen2-VL")

    def test_remote_code_of_this_family_is_left_alone(self, checkpoint):
        change(checkpoint / "config.json", auto_map={"AutoModelForImageTextToText": "evil.Model"})
        check_weights(str(checkpoint), None, "auto")
        assert isinstance(load_policy(str(checkpoint), recipe()).model, Qwen2VLForConditionalGeneration)

    @pytest.mark.parametrize("content", ["{,", "<html>", "[]", ""])
    def test_no_json(self, checkpoint, content):
        (checkpoint / "config.json").write_text(content)
        refused(checkpoint, "config.json is no JSON", "copy or download it again")

    def test_a_run_says_it_in_one_line_and_builds_nothing(self, checkpoint, tmp_path):
        change(checkpoint / "config.json", model_type="llava")
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, ROOT / "run.py", f"model.path={checkpoint}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert "config.json is 'llava'" in done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - started < 60


class TestTensors:
    """Weights that do not fit their configuration; transformers would start those from chance."""

    def load(self, folder, tensors):
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        check_weights(str(folder), None, "auto")
        return load_policy(str(folder), recipe())

    @pytest.fixture
    def tensors(self):
        return load_file(EMBEDDED / "model.safetensors")

    def refused(self, folder, tensors, *parts, capfd):
        verbosity = logging.get_verbosity()
        with pytest.raises(UnusableWeightsError) as caught:
            self.load(folder, tensors)
        for part in (str(folder), "config.json", *parts):
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "LOAD REPORT" not in capfd.readouterr().err
        assert logging.get_verbosity() == verbosity

    def test_missing(self, checkpoint, tensors, capfd):
        gone = [name for name in tensors if "q_proj.weight" in name]
        for name in gone:
            del tensors[name]
        parts = (f"{len(gone)} missing", "layers.0.self_attn.q_proj.weight", "and 1 more")
        self.refused(checkpoint, tensors, *parts, capfd=capfd)

    def test_left_over(self, checkpoint, tensors, capfd):
        tensors["score.weight"] = torch.ones(2, 128)
        self.refused(checkpoint, tensors, "1 left over (score.weight)", capfd=capfd)

    def test_of_another_shape(self, checkpoint, tensors, capfd):
        name = next(name for name in tensors if "q_proj.weight" in name)
        tensors[name] = torch.ones(64, 128)
        self.refused(checkpoint, tensors, "1 of another shape", "(64, 128) for (128, 128)", capfd=capfd)

    def test_an_output_matrix_that_should_be_there(self, checkpoint, tensors, capfd):
        change(checkpoint / "config.json", tie_word_embeddings=False)
        self.refused(checkpoint, tensors, "1 missing (lm_head.weight)", capfd=capfd)

    def test_a_tied_output_matrix_is_no_mismatch(self, checkpoint, tensors):
        assert "lm_head.weight" not in tensors
        self.load(checkpoint, tensors)
        embedding = next(value for name, value in tensors.items() if "embed_tokens" in name)
        policy = self.load(checkpoint, tensors | {"lm_head.weight": embedding.clone()})
        assert policy.model.lm_head.weight is policy.model.get_input_embeddings().weight

    def test_names_of_both_layouts_load(self, checkpoint, tensors):
        assert any(name.startswith("model.layers.") for name in tensors)  # as the hub's checkpoints
        start = load_policy("embedded", recipe()).state_dict()
        renamed = {
            n.replace("model.", "model.language_model.", 1) if n.startswith("model.") else f"model.{n}": value
            for n, value in tensors.items()
        }
        loaded = self.load(checkpoint, renamed).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in start.items())


class TestTrainedHere:
    """A checkpoint that says how large its pictures were is shown pictures of the same size."""

    @pytest.fixture
    def trained(self, checkpoint):
        write(checkpoint / "medvlm_r1.json", {"run": "r", **LIMITS, "image_size": 84})
        return str(checkpoint)

    def test_the_same_is_loaded(self, trained):
        assert load_policy(trained, recipe(image_size=84)).encoder.image_size == 84

    @pytest.mark.parametrize(
        ("changes", "remedy"),
        [
            ({"image_size": None}, "(image_size null), .*: add model.recipe.image_size=84$"),
            ({"max_pixels": 401408}, "add model.recipe.max_pixels=18816$"),
            (
                {"min_pixels": 784, "image_size": 112},
                "model.recipe.min_pixels=3136 model.recipe.image_size=84$",
            ),
        ],
    )
    def test_another_is_refused_with_the_overrides(self, trained, changes, remedy):
        remedy = remedy.replace("(", "\\(").replace(")", "\\)")
        with pytest.raises(ValueError, match=f"medvlm_r1.json says.*{remedy}") as caught:
            load_policy(trained, recipe(**({"image_size": 84} | changes)))
        assert "\n" not in str(caught.value)

    def test_null_is_written_as_hydra_reads_it(self, checkpoint):
        write(checkpoint / "medvlm_r1.json", {**LIMITS, "image_size": None})
        with pytest.raises(ValueError, match=r"add model\.recipe\.image_size=null$"):
            load_policy(str(checkpoint), recipe(image_size=384))

    def test_what_it_does_not_say_is_not_compared(self, checkpoint):
        write(checkpoint / "medvlm_r1.json", LIMITS)
        assert load_policy(str(checkpoint), recipe(image_size=84)).encoder.image_size == 84


class TestEncoder:
    @pytest.mark.parametrize("nested", [False, True])
    def test_the_recipes_limits_win_over_the_checkpoints(self, checkpoint, nested):
        file = checkpoint / "preprocessor_config.json"
        write(file, HUB_PROCESSOR)
        if nested:
            file.unlink()
            write(checkpoint / "processor_config.json", {"image_processor": HUB_PROCESSOR})
        check_weights(str(checkpoint), None, "auto")
        size = load_encoder(checkpoint, recipe()).image_processor.size
        assert (size.shortest_edge, size.longest_edge) == (LIMITS["min_pixels"], LIMITS["max_pixels"])

    def test_a_chat_template_beside_the_processor_is_found(self, checkpoint):
        (template := checkpoint / "chat_template.jinja").rename(checkpoint / "t")
        write(checkpoint / "chat_template.json", {"chat_template": (checkpoint / "t").read_text()})
        expected = (EMBEDDED / template.name).read_text()
        assert load_encoder(checkpoint, recipe()).tokenizer.chat_template == expected

    def test_without_a_chat_template_it_says_so(self, checkpoint):
        (checkpoint / "chat_template.jinja").unlink()
        with pytest.raises(ValueError, match="no chat template: take an Instruct checkpoint"):
            load_encoder(checkpoint, recipe())


class TestFamilies:
    @pytest.mark.parametrize(
        ("family", "model"),
        [("qwen2_vl", Qwen2VLForConditionalGeneration), ("qwen2_5_vl", Qwen2_5_VLForConditionalGeneration)],
    )
    def test_the_checkpoint_names_its_class(self, family, model, encoder, tmp_path):
        start = Policy(random_model(encoder, family=family), encoder)
        start.save(tmp_path)
        check_weights(str(tmp_path), None, "auto")
        loaded = load_policy(str(tmp_path), recipe())
        assert type(loaded.model) is model
        assert loaded.model.training
        ours, theirs = loaded.state_dict(), start.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class TestAdapters:
    @pytest.fixture
    def base(self, encoder, tmp_path):
        Policy(random_model(encoder), encoder).save(tmp_path / "base")
        return tmp_path / "base"

    @pytest.fixture
    def adapter(self, base, tmp_path):
        """An adapter as peft alone saves it: no tokenizer, no image processor."""
        model = load_policy(str(base), recipe()).model
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    @staticmethod
    def answers(policy, prompts):
        tokens = torch.arange(12).view(2, 6)
        batch = collate([prompts["square"], prompts["two"]], policy.pad_id, torch.device("cpu"))
        with torch.no_grad():
            return policy.logprobs(batch, tokens, torch.ones_like(tokens, dtype=torch.bool))

    def test_is_read_as_the_model_that_it_makes(self, adapter, base, prompts, encoder):
        check_weights(str(adapter), None, "auto")
        merged = load_policy(str(adapter), recipe())
        assert type(merged.model) is Qwen2VLForConditionalGeneration
        assert not merged.has_adapter
        assert all(p.requires_grad for p in merged.parameters())
        adapted = Policy(PeftModel.from_pretrained(load_policy(str(base), recipe()).model, adapter), encoder)
        ours, theirs = self.answers(merged, prompts), self.answers(adapted, prompts)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        assert (ours - self.answers(load_policy(str(base), recipe()), prompts)).abs().max() > 1e-2

    def test_what_is_trained_on_from_it_is_a_whole_model(self, adapter, tmp_path):
        policy = load_policy(str(adapter), recipe(), tuning=Tuning(train="language_model"))
        policy.save(tmp_path / "whole")
        check_weights(str(tmp_path / "whole"), None, "auto")
        again = load_policy(str(tmp_path / "whole"), recipe()).state_dict()
        assert all(torch.equal(again[name], value) for name, value in policy.state_dict().items())

    @pytest.mark.parametrize("tuning", ["lora", "nf4"])
    def test_another_on_top_or_four_bits_below_are_refused(self, adapter, tuning):
        config = LoraConfig(r=2, target_modules=["q_proj"])
        tuning = Tuning("adapter", config) if tuning == "lora" else Tuning("nothing", quantize="nf4")
        with pytest.raises(ValueError, match=r"python -m medvlm_r1\.export --merge"):
            load_policy(str(adapter), recipe(), tuning=tuning)

    def test_its_own_picture_size_counts(self, adapter):
        write(adapter / "medvlm_r1.json", {**LIMITS, "image_size": 84})
        with pytest.raises(ValueError, match=r"add model\.recipe\.image_size=84$"):
            load_policy(str(adapter), recipe())

    def test_one_trained_here_brings_its_own_encoder(self, base, tmp_path):
        config = LoraConfig(r=2, target_modules=["q_proj"])
        load_policy(str(base), recipe(), tuning=Tuning("adapter", config)).save(tmp_path / "ours")
        (base / "chat_template.jinja").unlink()
        assert load_policy(str(tmp_path / "ours"), recipe()).encoder.tokenizer.chat_template

    def test_of_a_hub_model_names_the_model_and_its_commit(self, base, no_hub, tmp_path):
        in_cache(no_hub, base)
        config = LoraConfig(r=2, target_modules=["q_proj"])
        tuning = Tuning("adapter", config)
        load_policy("Qwen/Some-Model", recipe(), "main", tuning).save(tmp_path / "ours")
        saved = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
        assert (saved["base_model_name_or_path"], saved["revision"]) == ("Qwen/Some-Model", COMMIT)
        load_policy(str(tmp_path / "ours"), recipe())

    def test_pickled(self, adapter):
        (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
        refused(adapter, "only adapter_model.bin", "can run code", "adapter_model.safetensors")

    def test_without_weights(self, adapter):
        (adapter / "adapter_model.safetensors").unlink()
        refused(adapter, "with no weights")

    def test_without_a_base(self, adapter):
        change(adapter / "adapter_config.json", base_model_name_or_path=None)
        refused(adapter, "adapter_config.json has no base_model_name_or_path", "write")

    def test_whose_base_is_gone(self, adapter, base):
        shutil.rmtree(base)
        for find in (
            lambda: check_weights(str(adapter), None, "auto"),
            lambda: load_policy(str(adapter), recipe()),
        ):
            with pytest.raises(MissingWeightsError, match="base of this adapter is missing") as caught:
                find()
            assert str(adapter) in str(caught.value)
            assert str(base) in str(caught.value)

    def test_whose_base_cannot_be_loaded(self, adapter, base):
        change(base / "config.json", model_type="llava")
        with pytest.raises(UnusableWeightsError, match=f"^{base}: config.json is 'llava'"):
            check_weights(str(adapter), None, "auto")

    def test_on_an_adapter(self, adapter, tmp_path):
        second = tmp_path / "second"
        shutil.copytree(adapter, second)
        change(second / "adapter_config.json", base_model_name_or_path=str(adapter))
        refused(second, "itself an adapter", "python -m medvlm_r1.export --merge")

    def test_whose_tensors_have_other_names(self, adapter):
        """Names of an older transformers; peft would warn, and load an adapter that does nothing."""
        file = adapter / "adapter_model.safetensors"
        tensors = {n.replace("model.language_model.", "model."): v for n, v in load_file(file).items()}
        save_file(tensors, file)
        with pytest.raises(
            UnusableWeightsError, match=r"in adapter_model\.safetensors do not fit.*8 missing"
        ):
            load_policy(str(adapter), recipe())

    def test_of_another_size(self, adapter):
        change(adapter / "adapter_config.json", r=3)
        with pytest.raises(UnusableWeightsError, match="other shapes than the layers of its base"):
            load_policy(str(adapter), recipe())


class TestCache:
    def test_an_unreachable_hub_is_answered_within_seconds(self, no_hub):
        started = time.monotonic()
        with pytest.raises(MissingWeightsError, match="hub cannot be reached") as caught:
            check_weights("nobody/no-such-model", None, "auto")
        assert time.monotonic() - started < 5
        assert "model=tiny data=phantom" in str(caught.value)

    @pytest.mark.parametrize("revision", ["main", COMMIT])
    def test_a_whole_snapshot_needs_no_hub(self, revision, no_hub, sharded):
        snapshot = in_cache(no_hub, sharded)
        check_weights("Qwen/Some-Model", revision, "auto")
        assert find_weights("Qwen/Some-Model", revision) == snapshot
        assert load_policy("Qwen/Some-Model", recipe(), revision).eos_ids

    @pytest.mark.parametrize(
        "missing",
        ["model-00002-of-00002.safetensors", "tokenizer.json", "preprocessor_config.json", "config.json"],
    )
    def test_an_interrupted_download_does_not_count(self, missing, no_hub, sharded):
        snapshot = in_cache(no_hub, sharded)
        (snapshot / missing).unlink()
        with pytest.raises(MissingWeightsError, match="hub cannot be reached") as caught:
            check_weights("Qwen/Some-Model", "main", "auto")
        assert missing in str(caught.value)
        assert loaded_commit("Qwen/Some-Model", "main") is None

    def test_another_revision_does_not_count(self, no_hub, checkpoint):
        in_cache(no_hub, checkpoint)
        with pytest.raises(MissingWeightsError):
            check_weights("Qwen/Some-Model", "f" * 40, "auto")

    def test_the_commit_is_named_whatever_the_revision_calls_it(self, no_hub, checkpoint):
        snapshot = in_cache(no_hub, checkpoint)
        for path, revision in (
            ("Qwen/Some-Model", "main"),
            ("Qwen/Some-Model", COMMIT),
            (str(snapshot), None),
        ):
            assert loaded_commit(path, revision) == COMMIT
        assert loaded_commit("embedded") is None
        assert loaded_commit(str(checkpoint), "main") is None


class TestDownload:
    """The hub's protocol from this machine: its answer about a model, and its files at a commit."""

    @pytest.fixture
    def hub(self):
        """Serve a directory as ``Qwen/Some-Model``; says which files were fetched."""

        class Hub(BaseHTTPRequestHandler):
            folder, fetched = Path(), []

            def do_GET(self):
                self.answer(body=True)

            def do_HEAD(self):
                self.answer(body=False)

            def answer(self, body):
                path = self.path.split("?")[0]
                if path == "/":
                    content = b""
                elif path.startswith("/api/models/Qwen/Some-Model/") and path.endswith(f"/{COMMIT}"):
                    files = [(f.name, f.stat().st_size) for f in sorted(self.folder.iterdir())]
                    told = {
                        "id": "Qwen/Some-Model",
                        "sha": COMMIT,
                        "siblings": [{"rfilename": name, "size": size} for name, size in files],
                    }
                    if "/tree/" in path:
                        told = [{"type": "file", "path": n, "size": size, "oid": n} for n, size in files]
                    content = json.dumps(told).encode()
                elif path.startswith(f"/Qwen/Some-Model/resolve/{COMMIT}/"):
                    name = path.rsplit("/", 1)[-1]
                    content = (self.folder / name).read_bytes()
                    if body:
                        self.fetched.append(name)
                else:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *_):
                pass

        Hub.fetched = []
        server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Hub.address = f"http://127.0.0.1:{server.server_port}"
        yield Hub
        server.shutdown()
        server.server_close()

    @staticmethod
    def ask(hub, folder, cache, call):
        """``call`` in a process of its own, because the hub's client reads its address once."""
        hub.folder = folder
        code = f"from medvlm_r1.policy.weights import *\nm, c = 'Qwen/Some-Model', '{COMMIT}'\n{call}"
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"},
            capture_output=True,
            text=True,
        )

    def test_only_what_is_needed_comes_at_the_pinned_commit(self, hub, sharded, tmp_path):
        (sharded / "pytorch_model.bin").write_bytes(b"x")
        (sharded / "modeling_evil.py").write_text("x")
        done = self.ask(hub, sharded, tmp_path / "hf", "check_weights(m, c, 'auto')")
        assert done.returncode == 0, done.stderr
        assert hub.fetched == []
        done = self.ask(hub, sharded, tmp_path / "hf", "print(find_weights(m, c), loaded_commit(m, c))")
        assert done.returncode == 0, done.stderr
        folder, commit = done.stdout.split()
        assert commit == COMMIT
        wanted = {f.name for f in sharded.iterdir()} - {"pytorch_model.bin", "modeling_evil.py"}
        assert {f.name for f in Path(folder).iterdir()} == wanted
        assert sorted(hub.fetched) == sorted(wanted)

    def test_pickles_alone_are_refused_before_a_download(self, hub, checkpoint, tmp_path):
        (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
        for call in ("check_weights(m, c, 'auto')", "find_weights(m, c)"):
            done = self.ask(hub, checkpoint, tmp_path / "hf", call)
            assert "Qwen/Some-Model: weights only as pytorch_model.bin, a pickle" in done.stderr
        assert hub.fetched == []

    def test_another_family_is_refused_before_its_weights_come(self, hub, checkpoint, tmp_path):
        change(checkpoint / "config.json", model_type="llava")
        done = self.ask(hub, checkpoint, tmp_path / "hf", "find_weights(m, c)")
        assert "config.json is 'llava'" in done.stderr
        assert "config.json" in hub.fetched
        assert "model.safetensors" not in hub.fetched
