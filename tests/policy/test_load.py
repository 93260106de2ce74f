"""Loading: tensors, image size, encoder, class, and merged adapters."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import COMMIT, LIMITS, change, in_cache, recipe, refused, write
from models import CLASSES, encoder_for, random_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration
from transformers.utils import logging

from medvlm_r1.policy.encode import collate
from medvlm_r1.policy.loading.load import load_encoder, load_policy
from medvlm_r1.policy.loading.resolve import EMBEDDED, MissingWeightsError, check_weights
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.loading.validate import FAMILY, UnusableWeightsError
from medvlm_r1.policy.policy import Policy

# as on the hub: limits far above any recipe's
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


def test_weights_in_the_dtype_of_the_run_are_mapped_from_their_file():
    """The ranks of a host share its pages; none holds a copy before the weights are on the device."""
    policy = load_policy("embedded", recipe())
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [
        [int(end, 16) for end in line[0].split("-")] for line in lines if line[-1].endswith(".safetensors")
    ]
    for parameter in policy.parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in spans)


class TestTensors:
    """Weights that do not fit their configuration; transformers would initialise them at random."""

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
    """A checkpoint with an image size in its record gets images of that size."""

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
        with pytest.raises(ValueError, match=f"another size .medvlm_r1.json.*{remedy}") as caught:
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

    def test_limits_beyond_the_context_are_refused(self):
        limits = recipe(max_completion_tokens=24, max_prompt_tokens=4096 - 24)
        load_policy("embedded", limits)
        remedy = r"context of 4096 tokens: lower model\.recipe\.max_prompt_tokens=4073"
        with pytest.raises(ValueError, match=remedy):
            load_policy("embedded", dataclasses.replace(limits, max_prompt_tokens=4073))

    def test_without_a_chat_template_it_says_so(self, checkpoint):
        (checkpoint / "chat_template.jinja").unlink()
        with pytest.raises(ValueError, match="no chat template: take an Instruct checkpoint"):
            load_encoder(checkpoint, recipe())


class TestFamilies:
    @pytest.mark.parametrize("family", FAMILY)
    def test_the_checkpoint_names_its_class(self, family, encoder, tmp_path):
        encoder = encoder_for(encoder, family)
        start = Policy(random_model(encoder, family=family), encoder, "repeated")
        start.save(tmp_path)
        check_weights(str(tmp_path), None, "auto")
        loaded = load_policy(str(tmp_path), recipe(), layout="repeated")
        assert type(loaded.model) is CLASSES[family][1]
        assert loaded.model.training
        assert loaded.encoder.image_processor.patch_size == encoder.image_processor.patch_size
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
        """An adapter as PEFT saves it: without tokenizer and image processor."""
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
        with pytest.raises(ValueError, match=r"medvlm-r1 export --merge"):
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
        refused(second, "itself an adapter", "medvlm-r1 export --merge")

    def test_whose_tensors_have_other_names(self, adapter):
        """Names of an older transformers: PEFT warns, and loads an adapter without effect."""
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
