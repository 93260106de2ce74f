"""Encoding: the positions that the model computes, padding on the left, no truncation."""

import ast
import copy
import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from models import FAMILIES, random_model
from PIL import Image
from training import PROMPT, module_of
from transformers import Qwen2VLImageProcessorPil, Qwen2VLProcessor
from transformers.image_utils import load_image
from transformers.processing_utils import ProcessorMixin

from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.inference.confidence import option_probabilities
from medvlm_r1.policy.encode import collate
from medvlm_r1.policy.policy import Policy
from medvlm_r1.policy.positions import rope_positions
from medvlm_r1.prompts import PromptStyle

NAMES = ["square", "wide", "flat", "two", "text"]
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def image_tokens(encoder, ids):
    return (ids == encoder.tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()


class TestPositions:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("name", NAMES)
    def test_are_the_models_own(self, name, family, prompts_of, policy_of):
        """Qwen2.5-VL too: it scales the temporal axis of videos only."""
        policy = policy_of(family)
        prompt = prompts_of(policy)[name]
        kinds = image_tokens(policy.encoder, prompt.ids)[None]
        theirs, _ = policy.model.model.get_rope_index(
            prompt.ids[None], kinds, prompt.grid if len(prompt.grid) else None
        )
        assert torch.equal(prompt.positions, theirs[:, 0])

    def test_on_paper(self):
        # text, an image of 1 x 2 x 3 merged patches, text: the image starts at position 1, the text after it
        # at 1 + max(2, 3) = 4
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
        assert prompt.pixels.shape[1] == 3 * 14 * 14
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

    def test_an_image_token_of_the_prompt_template_is_refused(self, questions, encoder):
        style = PromptStyle("forged", train="<|image_pad|> {Question}", evaluate="{Question}")
        with pytest.raises(ValueError, match="square: the chat template made 2 images of 1"):
            encoder.encode(questions["square"], "train", style)

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


class TestATagThatTheTemplateOpens:
    """As in Thinking checkpoints: completions close a think tag that they do not open."""

    @pytest.fixture(params=["<think>\n", "<think>"])
    def opened(self, request):
        return request.param

    @pytest.fixture
    def thinking(self, encoder, opened):
        tokenizer = copy.deepcopy(encoder.tokenizer)
        tokenizer.chat_template += "{% if add_generation_prompt %}{{ " + repr(opened) + " }}{% endif %}"
        return dataclasses.replace(encoder, tokenizer=tokenizer)

    def test_the_parser_reads_it(self, thinking, opened, questions, short_style):
        prompt = thinking.encode(questions["square"], "train", short_style)
        assert thinking.decode(prompt.ids).endswith(opened)
        assert prompt.assistant_prefix == opened
        policy = Policy(random_model(thinking), thinking)
        module = module_of(VLMModule, policy)
        _, (answer,) = module.parse([prompt], ["So it is B.</think>\n<answer>B</answer>"])
        assert (answer.reasoning, answer.letter, answer.well_formed) == ("So it is B.", "B", True)
        # and to score the options, it does not stand in the prompt twice
        each = PROMPT.alternatives(answer, questions["square"])
        bare = dataclasses.replace(prompt, assistant_prefix="")
        cut = dataclasses.replace(each, texts=tuple(text.removeprefix(opened) for text in each.texts))
        scores = [option_probabilities(policy, [p], [a]) for p, a in ((prompt, each), (bare, cut))]
        assert scores[0] == scores[1]

    def test_an_answer_without_reasoning_closes_it(self, thinking, opened, questions, short_style):
        sample = questions["square"]
        prompt = thinking.encode(sample, "evaluate", short_style, assistant_prefix="<answer>")
        assert prompt.assistant_prefix.startswith(f"{opened}</think>\n<answer")
        assert thinking.decode(prompt.ids).endswith(prompt.assistant_prefix)
        target = thinking.decode(thinking.encode_target(sample, short_style))
        assert target == "</think>\n<answer>B</answer>"
        assert short_style.parse(opened + target, sample).well_formed

    def test_without_it_nothing_changes(self, encoder, questions, short_style):
        assert encoder.opened == ""
        assert encoder.encode(questions["square"], "train", short_style).assistant_prefix == ""
        assert encoder.decode(encoder.encode_target(questions["square"], short_style)) == "<answer>B</answer>"


class StockProcessor(Qwen2VLProcessor):
    """Qwen2-VL's own processor without the video processor, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def noise(width, height, mode="RGB", seed=0):
    """An image of random values in all bands of a mode."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "1":
        return Image.fromarray(values[..., 0]).convert("1")
    if mode == "P":
        return Image.fromarray(values[..., :3]).convert("P", palette=Image.Palette.ADAPTIVE)
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.merge(mode, [Image.fromarray(values[..., band]) for band in range(bands)])


# file name -> image
PICTURES = {
    "ordinary.png": lambda: noise(300, 220),
    "ordinary.jpg": lambda: noise(300, 220),
    "one.png": lambda: noise(1, 1),
    "tiny.png": lambda: noise(3, 5),
    "tiny-flat.png": lambda: noise(5, 3),
    "line.png": lambda: noise(40, 1),
    "wide.png": lambda: noise(1990, 10),
    "widest.png": lambda: noise(2000, 10),
    "tall.png": lambda: noise(7, 1393),
    "grey.png": lambda: noise(90, 120, "L"),
    "grey-alpha.png": lambda: noise(90, 120, "LA"),
    "alpha.png": lambda: noise(90, 120, "RGBA"),
    "palette.png": lambda: noise(90, 120, "P"),
    "palette.gif": lambda: noise(90, 120, "P"),
    "bits.png": lambda: noise(90, 120, "1"),
    "ink.jpg": lambda: noise(90, 120, "CMYK"),
    "ink.tiff": lambda: noise(90, 120, "CMYK"),
    # one tile of noise, repeated to be fast
    "huge.jpg": lambda: Image.fromarray(np.tile(np.asarray(noise(500, 375)), (24, 24, 1))),
}


class TestStock:
    """The model gets the pixels of the checkpoint's own processor."""

    @pytest.fixture
    def stock(self, encoder):
        return StockProcessor(
            encoder.image_processor, encoder.tokenizer, chat_template=encoder.tokenizer.chat_template
        )

    @pytest.fixture
    def about(self, questions):
        """A question about image files."""

        def about(*paths):
            return dataclasses.replace(questions["square"], images=tuple(map(ImageFile, paths)))

        return about

    def agree(self, encoder, stock, sample, style, pictures):
        """Our input from files, and the stock processor's from ``pictures``."""
        ours = encoder.encode(sample, "train", style)
        text = stock.apply_chat_template(style.render(sample, "train"), add_generation_prompt=True)
        theirs = stock(text=[text], images=pictures or None, return_tensors="pt")
        assert ours.ids.tolist() == theirs["input_ids"][0].tolist()
        if pictures:
            assert ours.grid.tolist() == theirs["image_grid_thw"].tolist()
            pixels = encoder.pixel_values(ours.pixels)
            assert torch.equal(pixels, theirs["pixel_values"])
            assert pixels.std() > 0
        return ours

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    @pytest.mark.parametrize("name", PICTURES)
    def test_files(self, name, encoder, stock, about, short_style, tmp_path):
        path = tmp_path / name
        picture = PICTURES[name]()
        picture.save(path)
        if name == "huge.jpg":
            assert picture.size == (12000, 9000)
        with Image.open(path) as opened:
            self.agree(encoder, stock, about(path), short_style, [opened])

    @pytest.mark.parametrize("name", ["p.png", "p.gif", "rgb.png", "l.png"])
    def test_a_transparent_colour_is_white(self, name, encoder, stock, about, short_style, tmp_path):
        picture = {"p": noise(90, 120, "P"), "rgb": noise(90, 120), "l": noise(90, 120, "L")}[name[:-4]]
        first = picture.getpixel((0, 0))
        picture.save(tmp_path / name, transparency=first)
        with Image.open(tmp_path / name) as opened:
            assert "transparency" in opened.info
            self.agree(encoder, stock, about(tmp_path / name), short_style, [opened])
        assert ImageFile(tmp_path / name).load().getpixel((0, 0)) == (255, 255, 255)

    @pytest.mark.parametrize(
        "options",
        [{}, {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.3]}, {"do_normalize": False}],
    )
    @pytest.mark.parametrize("limits", [(3136, 401408), (3136, 12845056)])  # Qwen2-VL's, Qwen2.5-VL's
    def test_pixel_values_are_the_processors_bit_for_bit(
        self, limits, options, encoder, questions, short_style, tmp_path
    ):
        path = tmp_path / "a.png"
        noise(800, 600).save(path)
        processor = Qwen2VLImageProcessorPil(min_pixels=limits[0], max_pixels=limits[1], **options)
        ours = dataclasses.replace(encoder, image_processor=processor, max_prompt_tokens=9999)
        sample = dataclasses.replace(questions["square"], images=(ImageFile(path),))
        pixels = ours.encode(sample, "train", short_style).pixels
        assert pixels.dtype == torch.uint8
        assert pixels.unique().numel() == 256
        theirs = processor([Image.open(path)], return_tensors="pt")["pixel_values"]
        assert torch.equal(ours.pixel_values(pixels), theirs)
        assert theirs.nbytes == 8 * pixels.nbytes

    def test_several_and_none(self, encoder, stock, about, short_style, tmp_path):
        noise(140, 60).save(tmp_path / "a.png")
        noise(60, 90, "L").save(tmp_path / "b.png")
        paths = [tmp_path / "a.png", tmp_path / "b.png"]
        both = self.agree(encoder, stock, about(*paths), short_style, [Image.open(p) for p in paths])
        assert len(both.grid) == 2
        self.agree(encoder, stock, about(), short_style, [])

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_pictures_are_turned_upright(self, orientation, encoder, stock, about, short_style, tmp_path):
        """As transformers' ``load_image``, which reads the paths in a processor's chat template."""
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "turned.jpg"
        noise(168, 56).save(path, exif=exif)
        ours = self.agree(encoder, stock, about(path), short_style, [load_image(str(path))])
        assert ours.grid.tolist() == ([[1, 4, 12]] if orientation < 5 else [[1, 12, 4]])

    @pytest.mark.parametrize("size", [(2010, 10), (3, 700)])
    def test_a_strip_is_refused(self, size, encoder, stock, about, short_style, tmp_path):
        noise(*size).save(tmp_path / "strip.png")
        with pytest.raises(ValueError, match="aspect ratio"):
            stock.image_processor([noise(*size)])
        message = (
            f"^square: image .*strip.png is {size[0]} x {size[1]} pixels.*200 times.*: crop it, or set model"
        )
        with pytest.raises(BadRowError, match=message) as caught:
            encoder.encode(about(tmp_path / "strip.png"), "train", short_style)
        assert "\n" not in str(caught.value)
        square = dataclasses.replace(encoder, image_size=56)
        assert square.encode(about(tmp_path / "strip.png"), "train", short_style).grid.tolist() == [[1, 4, 4]]

    def test_the_image_processor_is_named(self):
        """No automatic choice: with torchvision it is a class that resizes to other pixels."""
        named = set()
        for path in (ROOT / "medvlm_r1").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers"):
                    named |= {alias.name for alias in node.names}
                elif isinstance(node, ast.Attribute):
                    named.add(node.attr)
        assert {n for n in named if "Processor" in n and n != "LogitsProcessor"} == {
            "Qwen2VLImageProcessorPil"
        }


class TestDepth:
    """Grey images of more than 8 bits, as from scanners."""

    SCAN = np.array([[0, 1000, 2000], [3000, 4000, 4095]])

    @pytest.mark.parametrize(
        ("name", "kind"),
        [("s.png", np.uint16), ("s.tiff", np.uint16), ("s.tiff", np.int32), ("s.tiff", np.float32)],
    )
    def test_are_windowed_from_darkest_to_brightest(self, name, kind, tmp_path):
        Image.fromarray((self.SCAN + 300).astype(kind)).save(tmp_path / name)
        with Image.open(tmp_path / name) as opened:
            assert opened.mode in ("I;16", "I", "F")
            # the stock processor clips at 255: a scan becomes white
            assert np.unique(np.asarray(opened.convert("RGB"))).tolist() == [255]
        ours = ImageFile(tmp_path / name).load()
        assert ours.mode == "RGB"
        # 255 * 1000 / 4095 = 62.27 and so on
        expected = [[0, 62, 125], [187, 249, 255]]
        assert all(np.asarray(band).tolist() == expected for band in ours.split())

    @pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
    def test_of_a_single_value_are_black(self, kind, tmp_path):
        Image.fromarray(np.full((4, 5), 700, kind)).save(tmp_path / "s.tiff")
        assert not np.asarray(ImageFile(tmp_path / "s.tiff").load()).any()

    def test_what_is_no_number_is_dark(self, tmp_path):
        values = np.array([[np.nan, -1.0, 1.0], [np.inf, -np.inf, 0.0]], np.float32)
        Image.fromarray(values).save(tmp_path / "s.tiff")
        grey = np.asarray(ImageFile(tmp_path / "s.tiff").load())[..., 0]
        assert grey.tolist() == [[0, 0, 255], [255, 0, 128]]
        Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "n.tiff")
        assert not np.asarray(ImageFile(tmp_path / "n.tiff").load()).any()

    def test_eight_bits_stay_as_they_are(self, tmp_path):
        values = np.array([[10, 20], [30, 40]], np.uint8)
        Image.fromarray(values).save(tmp_path / "s.png")
        assert np.array_equal(np.asarray(ImageFile(tmp_path / "s.png").load())[..., 0], values)

    def test_are_turned_upright_too(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(self.SCAN.astype(np.uint16)).save(tmp_path / "s.png", exif=exif)
        turned = np.asarray(ImageFile(tmp_path / "s.png").load())[..., 0]
        assert turned.tolist() == [[187, 0], [249, 62], [255, 125]]


class TestSquare:
    def test_med_r1s_square_is_the_same_in_training_and_evaluation(self, encoder, questions, short_style):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            recipe = compose("config", overrides=["model=med_r1", "model.path=x"]).model.recipe
        assert recipe.image_size == 384
        processor = Qwen2VLImageProcessorPil(min_pixels=recipe.min_pixels, max_pixels=recipe.max_pixels)
        square = dataclasses.replace(encoder, image_processor=processor, image_size=384)
        train, evaluate = (square.encode(questions["flat"], p, short_style) for p in ("train", "evaluate"))
        assert torch.equal(train.pixels, evaluate.pixels)
        # 384 is no multiple of 28: the image processor makes it 392 = 28 patches of 14
        assert train.grid.tolist() == evaluate.grid.tolist() == [[1, 28, 28]]
        picture = questions["flat"].images[0].load().resize((384, 384), Image.Resampling.BICUBIC)
        expected = processor([picture], return_tensors="pt")["pixel_values"]
        assert torch.equal(square.pixel_values(train.pixels), expected)


class TestCollate:
    def test_stands_without_padding_and_pads_on_the_left(self, prompts):
        chosen = [prompts[name] for name in NAMES]
        batch = collate(chosen, pad_id=0, device=CPU)
        assert batch.lengths == tuple(len(p.ids) for p in chosen)
        assert len(set(batch.lengths)) > 2
        assert torch.equal(batch.ids, torch.cat([p.ids for p in chosen]))
        assert torch.equal(batch.ids[batch.ends], torch.stack([p.ids[-1] for p in chosen]))
        assert batch.next_positions.tolist() == [int(p.positions.max()) + 1 for p in chosen]
        ids, mask, positions = batch.padded()
        assert ids.shape == mask.shape == positions.shape[1:] == (5, max(batch.lengths))
        for row, prompt in enumerate(chosen):
            pads = ids.shape[1] - len(prompt.ids)
            assert mask[row].tolist() == [False] * pads + [True] * len(prompt.ids)
            assert ids[row, :pads].tolist() == [0] * pads
            assert torch.equal(ids[row, pads:], prompt.ids)
            assert torch.equal(positions[:, row, pads:], prompt.positions)

    def test_a_picture_is_known_by_its_patches(self, prompts, questions, encoder, short_style):
        again = encoder.encode(questions["two"], "evaluate", short_style)
        assert again.image_digests == prompts["two"].image_digests
        every = [picture for p in prompts.values() for picture in p.image_digests]
        assert len(set(every)) == len(every) == 5

    def test_pictures_stand_in_the_order_of_the_prompts(self, prompts):
        chosen = [prompts[name] for name in ("two", "text", "wide", "square")]
        batch = collate(chosen, pad_id=0, device=CPU)
        assert batch.grid.tolist() == [[1, 4, 10], [1, 4, 4], [1, 8, 12], [1, 8, 8]]
        assert torch.equal(batch.pixels, torch.cat([p.pixels for p in chosen]))

    def test_text_alone_needs_no_picture(self, prompts):
        batch = collate([prompts["text"], prompts["text"]], pad_id=0, device=CPU)
        assert batch.grid.shape == (0, 3)
        assert len(batch.pixels) == 0
