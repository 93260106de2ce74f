"""A saved model elsewhere: plain transformers and PEFT give the answers of our evaluation."""

import errno
import functools
import json
import os
import resource
import shutil

import pytest
import torch
from command import python
from lightning import seed_everything
from models import FAMILIES, encoder_for, random_model
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from training import PROMPT, RECIPE, ROOT
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    Qwen2VLImageProcessorPil,
)

from medvlm_r1.artifacts.record import public_base
from medvlm_r1.cli.export import main
from medvlm_r1.phantom import PhantomSource
from medvlm_r1.policy.encode import collate
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.loading.resolve import EMBEDDED, base_of
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.policy import Policy
from medvlm_r1.policy.saving.folder import ModelFolderError, inspect_folder
from medvlm_r1.policy.saving.merge import merge_adapter, merged_weights
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.reference import ReferenceEngine
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.runs.durable import replace_folder

LIMIT = 24
TARGETS = ".*language_model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
QUESTIONS = [sample for modality in ("mri", "xray") for sample in PhantomSource(modality, 25, "test")]
LORA = Tuning(train="adapter", adapter=LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS))


def trained(tuning=None, steps=6, recipe=RECIPE):
    """A policy that differs from its base, after a few steps of maximum likelihood."""
    seed_everything(0, verbose=False)
    policy = load_policy("embedded", recipe, tuning=tuning)
    optimizer = torch.optim.AdamW(policy.trainable_parameters, lr=3e-3 if tuning else 3e-4)
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


def evaluated(policy, samples=QUESTIONS):
    """Token ids of our greedy evaluation in batches of 16, up to the end of sequence."""
    engine, sampling = ReferenceEngine(), Sampling(group_size=1, max_tokens=LIMIT, temperature=0.0)
    answers = []
    for start in range(0, len(samples), 16):
        prompts = [policy.encoder.encode(s, "evaluate", PROMPT) for s in samples[start : start + 16]]
        rollout = engine(policy, prompts, sampling, NoiseKey(0, 0))
        answers += [row[kept].tolist() for row, kept in zip(rollout.tokens, rollout.mask.bool(), strict=True)]
    return answers


def answered(model, folder, samples=QUESTIONS):
    """Token ids of plain transformers, one question at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    answers = []
    for sample in samples:
        chat = tokenizer.apply_chat_template(
            PROMPT.render(sample, "evaluate"), tokenize=False, add_generation_prompt=True
        )
        vision = processor([image.load() for image in sample.images], return_tensors="pt")
        places = int(vision["image_grid_thw"].prod()) // processor.merge_size**2
        text = chat.replace("<|image_pad|>", "<|image_pad|>" * places)
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        kinds = (inputs["input_ids"] == model.config.image_token_id).int()
        tokens = model.generate(**inputs, **vision, mm_token_type_ids=kinds)
        answers.append(tokens[0, inputs["input_ids"].shape[1] :].tolist())
    return answers


def with_adapter(folder, base=EMBEDDED):
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), folder).eval()
    model.get_base_model().generation_config = GenerationConfig.from_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Directory of a trained model, and its tokens in our evaluation."""
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
        """Not even if it is the likeliest token, as in this model."""
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
        """In a process that cannot import our package."""
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


@pytest.mark.parametrize("family", FAMILIES[1:])  # the embedded model above is of the first
def test_every_familys_adapter_answers_the_same_on_its_base_and_merged(family, encoder, tmp_path, capsys):
    base, folder, merged = (tmp_path / name for name in ("base", "adapter", "merged"))
    encoder = encoder_for(encoder, family)
    Policy(random_model(encoder, family=family), encoder).save(base)
    adapter = LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)
    policy = load_policy(str(base), RECIPE, tuning=Tuning(train="adapter", adapter=adapter)).eval()
    policy.save(folder, max_new_tokens=LIMIT)
    assert main([str(folder), "--merge", "--out", str(merged)]) == 0
    samples = QUESTIONS[:3]
    expected = evaluated(policy, samples)
    assert answered(with_adapter(folder, base), folder, samples) == expected
    assert answered(AutoModelForImageTextToText.from_pretrained(merged), merged, samples) == expected
    assert evaluated(load_policy(str(base), RECIPE).eval(), samples) != expected
    for saved in (base, folder, merged):
        settings = json.loads((saved / "preprocessor_config.json").read_text())
        assert settings["processor_class"] == type(policy.model.base_model.model).__name__.replace(
            "ForConditionalGeneration", "Processor"
        )


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
        assert "README.md" not in names  # PEFT's contains only place holders

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
        assert inspect_folder(tmp_path / "model").dtype == "bfloat16"
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
        found = inspect_folder(tmp_path / "model")
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
            found = inspect_folder(tmp_path / stored)
            assert (found.kind, found.dtype) == ("weights", stored)
            loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / stored, dtype="auto")
            assert loaded.dtype == getattr(torch, stored)
            assert sum(p.numel() for p in loaded.parameters()) == found.parameters

    def test_cut_weights_are_refused(self, full, tmp_path):
        shutil.copytree(full[0], tmp_path / "model")
        weights = tmp_path / "model" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(ModelFolderError, match="cut short"):
            inspect_folder(tmp_path / "model")


class TestInterrupted:
    def test_a_failed_save_leaves_what_was_there(self, full, tmp_path):
        """An exception in the middle of writing."""
        folder = tmp_path / "model"
        shutil.copytree(full[0], folder)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}

        def write_half():
            with replace_folder(folder) as partial:
                (partial / "config.json").write_text("{}")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.raises(OSError, match="No space left"):
            write_half()
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_a_disk_that_is_full_leaves_no_directory(self, tmp_path):
        """With a limit of 100 kB per file, writing the weights fails."""
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
from medvlm_r1.runs.durable import replace_folder
with replace_folder(Path("model")) as partial:
    (partial / "config.json").write_text("{}")
    os.kill(os.getpid(), 9)
"""
        python(tmp_path, "-c", code, code=-9)
        assert not (tmp_path / "model").exists()
        load_policy(str(full[0]), RECIPE).save(tmp_path / "model")
        assert inspect_folder(tmp_path / "model").kind == "weights"
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_saving_again_replaces(self, adapter, tmp_path):
        shutil.copytree(adapter[0], tmp_path / "model")
        load_policy("embedded", RECIPE).save(tmp_path / "model")
        assert inspect_folder(tmp_path / "model").kind == "weights"
        assert not list((tmp_path / "model").glob("adapter_*"))


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_weight_by_weight_gives_each_weight_once(family, encoder):
    own = encoder_for(encoder, family)
    model = random_model(own, family=family)
    names = [name for name, _ in model.named_parameters()]
    targets = r".*(language_model|visual.blocks).*\.(\w+_proj|qkv|proj|(linear_)?fc\d)"
    tuning = Tuning(train="adapter", adapter=LoraConfig(r=2, target_modules=targets))
    # not kept: a copy of one layer ends before that of the next is made
    assert [name for name, _ in merged_weights(tuning.apply(model))] == names
