"""Encoding: positions as the model would find them, padding on the left, and nothing cut."""

import dataclasses
import pickle

import pytest
import torch

from medvlm_r1.dialogue import PromptStyle
from medvlm_r1.policy.encode import collate, rope_positions

NAMES = ["square", "wide", "flat", "two", "text"]
CPU = torch.device("cpu")


def image_tokens(encoder, ids):
    return (ids == encoder.tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()


class TestPositions:
    @pytest.mark.parametrize("name", NAMES)
    def test_are_the_models_own(self, name, prompts, random_policy):
        prompt = prompts[name]
        kinds = image_tokens(random_policy.encoder, prompt.ids)[None]
        theirs, _ = random_policy.model.model.get_rope_index(
            prompt.ids[None], kinds, prompt.grid if len(prompt.grid) else None
        )
        assert torch.equal(prompt.positions, theirs[:, 0])

    def test_on_paper(self):
        # text, a picture of 1 x 2 x 3 merged patches, text: the picture starts at position 1, the text
        # behind it goes on from 1 + max(2, 3) = 4
        ids = torch.tensor([5, 9, 9, 9, 9, 9, 9, 6, 7])
        assert rope_positions(ids, torch.tensor([[1, 4, 6]]), image_id=9, merge=2).tolist() == [
            [0, 1, 1, 1, 1, 1, 1, 4, 5],
            [0, 1, 1, 1, 2, 2, 2, 4, 5],
            [0, 1, 2, 3, 1, 2, 3, 4, 5],
        ]

    def test_without_an_image_are_a_count(self, prompts):
        count = torch.arange(len(prompts["text"].ids))
        assert torch.equal(prompts["text"].positions, count.expand(3, -1))


class TestEncoding:
    @pytest.mark.parametrize(
        ("name", "grids"),
        [
            ("square", [[1, 8, 8]]),
            ("wide", [[1, 8, 12]]),
            ("flat", [[1, 4, 10]]),
            ("two", [[1, 4, 10], [1, 4, 4]]),
            ("text", []),
        ],
    )
    def test_each_picture_keeps_its_size(self, name, grids, prompts, encoder):
        prompt = prompts[name]
        assert prompt.grid.tolist() == grids
        assert len(prompt.pixels) == sum(t * h * w for t, h, w in grids)
        assert prompt.pixels.shape[1] == 3 * 2 * 14 * 14
        assert image_tokens(encoder, prompt.ids).sum() == sum(t * h * w for t, h, w in grids) // 4

    def test_pictures_stand_in_the_order_of_the_sample(self, prompts, questions, encoder, short_style):
        first, second = questions["two"].images
        turned = dataclasses.replace(questions["two"], images=(second, first))
        other = encoder.encode(turned, "train", short_style)
        assert torch.equal(other.pixels, torch.cat([prompts["two"].pixels[40:], prompts["two"].pixels[:40]]))
        assert other.grid.tolist() == [[1, 4, 4], [1, 4, 10]]

    def test_a_picture_above_the_limit_is_made_smaller(self, questions, encoder, short_style):
        large = dataclasses.replace(questions["square"].images[0], width=672, height=448)
        prompt = encoder.encode(
            dataclasses.replace(questions["square"], images=(large,)), "train", short_style
        )
        t, h, w = prompt.grid[0].tolist()
        assert t * h * w * 14 * 14 <= encoder.image_processor.size["longest_edge"]
        assert h < w

    @pytest.mark.parametrize("name", ["square", "text"])
    def test_an_over_long_prompt_says_which_and_what_to_do(
        self, name, prompts, questions, encoder, short_style
    ):
        length = len(prompts[name].ids)
        exact = dataclasses.replace(encoder, max_prompt_tokens=length)
        assert len(exact.encode(questions[name], "train", short_style).ids) == length
        images = 16 if name == "square" else 0
        tight = dataclasses.replace(encoder, max_prompt_tokens=length - 1)
        message = (
            f"^{name}: the prompt has {length} tokens \\({images} of them image tokens\\), above "
            f"max_prompt_tokens={length - 1}: raise model.recipe.max_prompt_tokens or lower "
            "model.recipe.max_pixels$"
        )
        with pytest.raises(ValueError, match=message):
            tight.encode(questions[name], "train", short_style)

    def test_an_image_token_in_the_question_is_refused(self, questions, encoder, short_style):
        forged = dataclasses.replace(questions["square"], question="What is <|image_pad|>?")
        with pytest.raises(ValueError, match="square: the chat template made 2 images of 1"):
            encoder.encode(forged, "train", short_style)

    def test_the_phase_chooses_the_template(self, questions, encoder):
        style = PromptStyle("phases", train="{Question} now", evaluate="{Question} later, much later")
        train, evaluate = (encoder.encode(questions["text"], p, style) for p in ("train", "evaluate"))
        assert "now" in encoder.decode(train.ids)
        assert "much later" in encoder.decode(evaluate.ids)

    def test_a_worker_can_receive_and_return_it(self, questions, prompts, encoder, short_style):
        there = pickle.loads(pickle.dumps(encoder))
        back = pickle.loads(pickle.dumps(there.encode(questions["two"], "train", short_style)))
        assert torch.equal(back.ids, prompts["two"].ids)
        assert torch.equal(back.pixels, prompts["two"].pixels)
        assert back.sample == questions["two"]


class TestCollate:
    def test_pads_on_the_left(self, prompts):
        chosen = [prompts[name] for name in NAMES]
        batch = collate(chosen, pad_id=0, device=CPU)
        assert batch.ids.shape == (5, max(len(p.ids) for p in chosen))
        for row, prompt in enumerate(chosen):
            pads = batch.ids.shape[1] - len(prompt.ids)
            assert batch.mask[row].tolist() == [False] * pads + [True] * len(prompt.ids)
            assert batch.ids[row, :pads].tolist() == [0] * pads
            assert torch.equal(batch.ids[row, pads:], prompt.ids)
            assert torch.equal(batch.positions[:, row, pads:], prompt.positions)
        assert len({len(p.ids) for p in chosen}) > 2

    def test_pictures_stand_in_the_order_of_the_prompts(self, prompts):
        chosen = [prompts[name] for name in ("two", "text", "wide", "square")]
        batch = collate(chosen, pad_id=0, device=CPU)
        assert batch.grid.tolist() == [[1, 4, 10], [1, 4, 4], [1, 8, 12], [1, 8, 8]]
        assert torch.equal(batch.pixels, torch.cat([p.pixels for p in chosen]))

    def test_text_alone_needs_no_picture(self, prompts):
        batch = collate([prompts["text"], prompts["text"]], pad_id=0, device=CPU)
        assert batch.grid.shape == (0, 3)
        assert len(batch.pixels) == 0
