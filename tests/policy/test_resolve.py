"""A checkpoint that cannot be loaded gives a one-line error before any weight is read or downloaded."""

import hashlib
import json
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from checkpoints import COMMIT, change, in_cache, recipe, refused, write
from command import run_here
from transformers import Qwen2VLForConditionalGeneration

from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.loading.resolve import (
    MissingGPUError,
    MissingWeightsError,
    check_weights,
    find_weights,
    loaded_commit,
)
from medvlm_r1.policy.loading.validate import UnusableWeightsError


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
        file.truncate(8 + len(head) + size)  # sparse: takes no disk space
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

    @pytest.mark.parametrize("family", ["qwen2", "llava", "qwen2_vl_text", "qwen3_vl_moe"])
    def test_another_family(self, checkpoint, family):
        change(checkpoint / "config.json", model_type=family)
        (checkpoint / "preprocessor_config.json").unlink()  # the error about the family comes first
        remedy = "serve it with vLLM or SGLang and evaluate it with model=endpoint"
        refused(
            checkpoint, f"config.json is {family!r}", "loads Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5", remedy
        )

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
        done = run_here(tmp_path, f"model.path={checkpoint}", code=2)
        assert "config.json is 'llava'" in done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - started < 60


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
    """A local server with the hub's protocol: information about a model, and its files at a commit."""

    @pytest.fixture
    def hub(self, no_hub, monkeypatch):
        """Serve a directory as ``Qwen/Some-Model``; returns the fetched files."""

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
        address = f"http://127.0.0.1:{server.server_port}"
        constants = "huggingface_hub.constants."  # the client reads the environment on import
        monkeypatch.setattr(constants + "ENDPOINT", address)
        files = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants + "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants + "HF_HUB_DISABLE_XET", True)
        yield Hub
        server.shutdown()
        server.server_close()

    def test_only_what_is_needed_comes_at_the_pinned_commit(self, hub, sharded):
        (sharded / "pytorch_model.bin").write_bytes(b"x")
        (sharded / "modeling_evil.py").write_text("x")
        hub.folder = sharded
        check_weights("Qwen/Some-Model", COMMIT, "auto")
        assert hub.fetched == []
        folder = find_weights("Qwen/Some-Model", COMMIT)
        assert loaded_commit("Qwen/Some-Model", COMMIT) == COMMIT
        wanted = {f.name for f in sharded.iterdir()} - {"pytorch_model.bin", "modeling_evil.py"}
        assert {f.name for f in folder.iterdir()} == wanted
        assert sorted(hub.fetched) == sorted(wanted)

    def test_pickles_alone_are_refused_before_a_download(self, hub, checkpoint):
        (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
        hub.folder = checkpoint
        for ask in (
            lambda: check_weights("Qwen/Some-Model", COMMIT, "auto"),
            lambda: find_weights("Qwen/Some-Model", COMMIT),
        ):
            with pytest.raises(
                UnusableWeightsError, match=r"^Qwen/Some-Model: weights only as pytorch_model\.bin, a pickle"
            ):
                ask()
        assert hub.fetched == []

    def test_another_family_is_refused_before_its_weights_come(self, hub, checkpoint):
        change(checkpoint / "config.json", model_type="llava")
        hub.folder = checkpoint
        with pytest.raises(UnusableWeightsError, match=r"config\.json is 'llava'"):
            find_weights("Qwen/Some-Model", COMMIT)
        assert "config.json" in hub.fetched
        assert "model.safetensors" not in hub.fetched
