"""A run's model is handed on: its card, the command that describes and merges it, and its upload."""

import base64
import contextlib
import json
import re
import runpy
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from command import python
from safetensors.torch import load_file, save_file
from training import PROMPT, RECIPE, ROOT, SHORT, launch

from medvlm_r1.artifacts.model_card import model_card
from medvlm_r1.cli.export import files_to_upload, main
from medvlm_r1.data.sample import VQASample
from medvlm_r1.phantom import PhantomSource
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.saving.folder import inspect_folder
from medvlm_r1.policy.saving.merge import merge_adapter
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.reference import ReferenceEngine
from medvlm_r1.rollout.sampling_noise import NoiseKey

(SCAN,) = PhantomSource("mri", 25, "test")[3].images


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders of a short GRPO run on all weights, and of one with an adapter."""
    few = [override.replace("n=8", "n=4") for override in SHORT]
    few += ["model.recipe.prompts_per_step=4", "model.recipe.group_size=4"]
    return {
        tune: launch(tmp_path_factory.mktemp(tune), *few, f"peft={tune}", "workers=0")
        for tune in ("full", "lora")
    }


class TestCard:
    @pytest.mark.parametrize("tune", ["full", "lora"])
    def test_its_snippet_runs_and_answers_as_the_evaluation(self, tune, runs, tmp_path, capsys):
        folder = tmp_path / "model"
        shutil.copytree(runs[tune] / "model", folder)
        SCAN.load().save(folder / "scan.png")
        (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        (folder / "snippet.py").write_text(code)
        with contextlib.chdir(folder):
            runpy.run_path("snippet.py", run_name="__main__")
        out = capsys.readouterr().out
        if tune == "full":
            policy = load_policy(str(folder), RECIPE)
        else:
            merge_adapter(folder, tmp_path / "merged")
            policy = load_policy(str(tmp_path / "merged"), RECIPE)
        options = ("liver", "left kidney", "spleen")
        sample = VQASample("card", (SCAN,), "Which organ is marked?", options, "A", "mri", "", "test", "card")
        prompt = policy.encoder.encode(sample, "evaluate", PROMPT)
        greedy = Sampling(group_size=1, max_tokens=32, temperature=0.0)
        rollout = ReferenceEngine()(policy, [prompt], greedy, NoiseKey(0, 0))
        assert out.strip() == rollout.texts[0].strip()

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
        for line in (
            "| steps | 2 |",
            "| seed | 0 |",
            "license: apache-2.0",
            "pipeline_tag: image-text-to-text",
        ):
            assert line in text
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

    def test_it_says_what_touches_a_number(self, runs):
        record = json.loads((runs["full"] / "model" / "medvlm_r1.json").read_text())
        record["results"]["ct"]["labels"] = ["a leak", "a shortcut"]
        assert "\nCT: a leak; a shortcut.\n" in model_card(record, adapter=False)


class TestCommand:
    def test_an_adapter_that_does_not_fit_is_not_merged(self, runs, tmp_path, capsys):
        """peft would leave such an adapter without effect, and the result would be the base."""
        folder = tmp_path / "model"
        shutil.copytree(runs["lora"] / "model", folder)
        weights = load_file(folder / "adapter_model.safetensors")
        other = {name.replace("language_model", "model"): tensor for name, tensor in weights.items()}
        save_file(other, folder / "adapter_model.safetensors")
        assert main([str(folder), "--merge", "--out", str(tmp_path / "merged")]) == 2
        assert "do not fit the model" in capsys.readouterr().err
        assert not (tmp_path / "merged").exists()

    def test_it_says_what_a_run_left(self, runs, capsys):
        assert main([str(runs["lora"])]) == 0
        out = capsys.readouterr().out
        for part in ("adapter (PEFT)", "embedded", "155,648", "float32", "medvlm_r1", "12544", "32 tokens"):
            assert part in out
        assert main([str(runs["full"] / "model")]) == 0
        assert "all weights" in capsys.readouterr().out

    def test_a_run_is_merged_with_its_card(self, runs, tmp_path, capsys):
        out = tmp_path / "merged"
        assert main([str(runs["lora"]), "--merge", "--out", str(out), "--dtype", "bfloat16"]) == 0
        card = (out / "README.md").read_text()
        assert "library_name: transformers" in card
        assert "merged into these weights" in card
        assert inspect_folder(out).dtype == "bfloat16"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["merged"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
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
    def test_an_impossible_command_gives_the_reason(
        self, arguments, message, runs, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        (tmp_path / "used").mkdir()
        (tmp_path / "used" / "file").touch()
        names = {**runs, **{name: tmp_path / name for name in ("new", "used", "nowhere")}}
        assert main([argument.format(**names) for argument in arguments]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()

    def test_a_missing_base_says_where_it_looked(self, runs, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        given = ["--base", "nobody/no-such-model", "--out", str(tmp_path / "out")]
        assert main([str(runs["lora"]), "--merge", *given]) == 2
        err = capsys.readouterr().err
        assert "nobody/no-such-model" in err
        assert str(tmp_path / "cache") in err
        assert "--base" in err


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
        assert "not uploaded: checkpoints, last.ckpt, predictions.jsonl" in done.stdout
