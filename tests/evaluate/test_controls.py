"""Controls ask what they say, share what they can, and expose a model that does not look."""

import dataclasses
import json
import shutil
from collections import Counter

import pytest
import torch
from command import run_here
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer
from models import Noise
from PIL import Image
from training import FORMAT, PROMPT, RECIPE, SHORT, data_of, fit, module_of

from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.audit.shortcuts import shortcuts
from medvlm_r1.data.perturbation import BlankImage
from medvlm_r1.data.sample import VQASample
from medvlm_r1.data.splits import Questions
from medvlm_r1.evaluate.control_metrics import GAINS, summarise_controls
from medvlm_r1.evaluate.controls import (
    CONTROLS,
    CUT,
    PerturbedQuestions,
    check_controls,
    controls_of,
    partners,
    permuted,
)
from medvlm_r1.evaluate.predictions import prior_predictions
from medvlm_r1.inference.endpoint_chat import ChatEncoder
from medvlm_r1.phantom import PhantomSource
from medvlm_r1.policy.loading import resolve
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.prompts import PromptStyle
from medvlm_r1.report.comparison import compare
from medvlm_r1.report.tables.controls import accuracy_under, gain_over

ANSWERED = [control for control in CONTROLS if control != "prior"]
TAGLESS = PromptStyle("simple", "{Question}", "{Question}", tags=False)


@dataclasses.dataclass(frozen=True)
class Counted:
    """A picture that notes each time that it is decoded."""

    seed: int
    loads: list

    @property
    def name(self):
        return f"counted-{self.seed}"

    def load(self):
        self.loads.append(self.seed)
        return Noise(self.seed, 112, 112).load()


def question(number, gold="a", group=None, modality="mri", kind="k", images=1, options=("a", "b", "c")):
    pictures = tuple(Noise(10 * number + k, 56, 56) for k in range(images))
    letter = "ABC"[options.index(gold)]
    return VQASample(
        f"q{number}", pictures, "Which?", options, letter, modality, kind, "test", group or f"g{number}"
    )


DRAWN = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.sampled_from(["mri", "ct"]), st.integers(0, 2)),
    max_size=24,
)


class TestSwapped:
    @given(DRAWN)
    def test_partners_are_alike_and_have_another_answer_and_picture(self, drawn):
        samples = [question(i, g, f"p{p}", m, images=n) for i, (g, p, m, n) in enumerate(drawn)]
        found = partners(samples)
        assert found == partners(samples)
        assert len(set(found.values())) == len(found)
        for place, other in found.items():
            one, two = samples[place], samples[other]
            assert one.answer_text != two.answer_text
            assert one.image_group != two.image_group
            assert (one.modality, len(one.images)) == (two.modality, len(two.images))
            assert one.images

    @given(st.lists(st.sampled_from("abc"), min_size=1, max_size=24))
    def test_no_more_are_left_out_than_have_to_be(self, golds):
        """A gold answer of more than half of the questions meets itself."""
        found = partners([question(i, gold) for i, gold in enumerate(golds)])
        largest = max(Counter(golds).values())
        assert len(golds) - len(found) == max(0, 2 * largest - len(golds))

    def test_questions_on_one_picture_do_not_lend_it_to_each_other(self):
        samples = [question(i, "abc"[i % 3], f"picture{i // 3}") for i in range(12)]
        assert len(partners(samples)) == 12
        assert partners(samples[:3]) == {}

    def test_another_spelling_is_no_other_answer(self):
        names = ("Lung", "lung.", "liver")
        one, two, other = (question(i, name, options=names) for i, name in enumerate(names))
        assert partners([one, two]) == {}
        assert set(partners([one, other])) == {0, 1}

    def test_what_was_asked_about_something_else_is_no_partner(self):
        assert partners([question(0, "a", kind="x"), question(1, "b", kind="y")]) == {}

    def test_the_row_says_whose_picture_it_is(self):
        samples = [question(0, "a"), question(1, "b"), question(2, "a")]
        asked = PerturbedQuestions(samples, ["image", "swapped"], "")
        shown = {v.sample.id: v for i in range(3) for v in asked[i] if v.control == "swapped"}
        assert len(shown) == 2  # the third finds no partner
        for name, perturbation in shown.items():
            assert perturbation.sample.images == next(
                s.images for s in samples if s.id == perturbation.picture_of
            )
            assert perturbation.sample.answer == next(s.answer for s in samples if s.id == name)


class TestPermuted:
    @given(st.integers(2, 10), st.data())
    def test_every_option_gets_another_letter_and_gold_stays_gold(self, count, data):
        options = tuple(f"option {i}" for i in range(count))
        place, number = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, 10**6))
        sample = dataclasses.replace(
            question(0), id=f"q{number}", options=options, answer="ABCDEFGHIJ"[place]
        )
        perturbation = permuted(sample)
        asked = perturbation.sample
        assert asked.answer_text == sample.answer_text
        assert asked.answer != sample.answer
        assert sorted(asked.options) == sorted(options)
        assert not any(a == b for a, b in zip(asked.options, options, strict=True))
        assert asked.options == tuple(options[old] for old in perturbation.order)
        assert perturbation == permuted(sample)

    def test_all_moves_are_drawn(self):
        orders = {permuted(dataclasses.replace(question(0), id=f"q{i}")).order for i in range(40)}
        assert orders == {(1, 2, 0), (2, 0, 1)}

    def test_open_questions_are_left_out(self):
        assert permuted(dataclasses.replace(question(0), options=(), answer="liver")) is None


class TestEncoding:
    def test_a_blank_picture_is_grey_and_of_the_same_size(self, questions, encoder, short_style):
        plain = encoder.encode(questions["two"], "evaluate", short_style)
        images = tuple(BlankImage(image) for image in questions["two"].images)
        blank = dataclasses.replace(questions["two"], images=images)
        there = encoder.encode(blank, "evaluate", short_style)
        assert torch.equal(there.grid, plain.grid)
        assert torch.equal(there.ids, plain.ids)
        grey = [Image.new("RGB", image.load().size, (128, 128, 128)) for image in questions["two"].images]
        assert [image.load().tobytes() for image in images] == [picture.tobytes() for picture in grey]
        for channel in there.pixels.view(len(there.pixels), 3, -1).unbind(1):
            assert channel.unique().numel() == 1

    def test_blank_pictures_of_one_size_are_one_picture(self, encoder, short_style):
        samples = [question(i) for i in range(2)]
        asked = [PerturbedQuestions(samples, ["image", "blank"], "")[i] for i in range(2)]
        made = [[encoder.encode(v.sample, "evaluate", short_style) for v in a] for a in asked]
        pictures = [[prompt.image_digests for prompt in row] for row in made]
        assert pictures[0][0] != pictures[1][0]
        assert pictures[0][1] == pictures[1][1]

    @pytest.mark.parametrize("served", [False, True])
    def test_a_question_decodes_its_picture_once(self, served, encoder):
        loads = []
        sample = dataclasses.replace(question(0), images=(Counted(1, loads),))
        encoder = ChatEncoder(None, 3136, 401408) if served else encoder
        controls = [c for c in ANSWERED if not (served and c == "reasoning-cut")]
        asked, memo = PerturbedQuestions([sample], controls, "<answer>")[0], {}
        made = [
            encoder.encode(v.sample, "evaluate", PROMPT, assistant_prefix=v.assistant_prefix, memo=memo)
            for v in asked
        ]
        assert len(made) == len(controls) - 1  # it has no partner to swap with
        assert loads == [1]

    def test_a_served_answer_cannot_be_begun(self):
        with pytest.raises(ValueError, match="cannot prefill an answer with '<answer>'"):
            ChatEncoder(None, 3136, 401408).encode(
                question(0), "evaluate", PROMPT, assistant_prefix="<answer>"
            )

    def test_an_opening_ends_where_every_letter_goes_on_alike(self, encoder):
        """What is put before an answer is how the tokenizer spells it before any letter."""
        prefix = encoder.prefix_tokens("<answer>")
        for letter in "ABCDEFGHIJ":
            whole = encoder.tokenizer(f"<answer>{letter}</answer>")["input_ids"]
            assert whole[: len(prefix)] == prefix
        prompt = encoder.encode(question(0), "evaluate", PROMPT, assistant_prefix="<answer>")
        plain = encoder.encode(question(0), "evaluate", PROMPT)
        assert prompt.ids.tolist() == [*plain.ids.tolist(), *prefix]
        assert prompt.positions[:, -1].tolist() == [int(plain.positions.max()) + len(prefix)] * 3
        assert "<answer>".startswith(prompt.assistant_prefix)


@pytest.fixture(scope="module")
def thinking(tmp_path_factory):
    """The embedded model with a chat template that opens the think tag: it reasons, and so it looks."""
    folder = tmp_path_factory.mktemp("checkpoint") / "thinking"
    shutil.copytree(resolve.EMBEDDED, folder)
    with (folder / "chat_template.jinja").open("a") as file:
        file.write("{% if add_generation_prompt %}{{ '<think>' }}{% endif %}")
    return folder


def phantoms(n=60):
    return Questions(
        PhantomSource("mri", 24, "train"),
        PhantomSource("mri", 8, "validation"),
        {"mri": PhantomSource("mri", n, "test")},
    )


def evaluate(policy, folder, questions, controls=CONTROLS, batch=16):
    """Zero-shot: the module behind its test, and the section ``controls``."""
    module = module_of(VLMModule, policy)
    data = data_of(policy, questions, controls, batch=batch)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=1, default_root_dir=folder, inference_mode=False, **quiet)
    trainer.test(module, data, verbose=False)
    prior = prior_predictions(questions.train, questions.test, folder.name, 0)
    rows = [*module.predictions, *(prior if "prior" in controls else ())]
    return module, summarise_controls(rows, controls, {}, audit={}, trained=False)


@pytest.fixture(scope="module")
def looked(thinking, tmp_path_factory):
    return evaluate(load_policy(str(thinking), RECIPE), tmp_path_factory.mktemp("run"), phantoms())


@pytest.fixture(scope="module")
def blind(thinking, tmp_path_factory):
    """The same, with a vision tower that gives the same features for everything."""
    policy = load_policy(str(thinking), RECIPE)
    with torch.no_grad():
        policy.model.model.visual.merger.mlp[-1].weight.zero_()
    return evaluate(policy, tmp_path_factory.mktemp("run"), phantoms(), ("image", "blank", "swapped"))


class TestAModelThatLooks:
    def test_is_said_to(self, looked):
        found = looked[1]["mri"]
        assert found["image_gain"]["low"] > 0
        assert found["swap_gain"]["low"] > 0
        assert found["verdict"].startswith("image gain +")
        assert found["verdict"].endswith(": the image is used")
        assert {name: rate["n"] for name, rate in found["rates"].items()} == {
            "image": 60,
            "blank": 60,
            "swapped": 60 - found["rates"]["swapped"]["left_out"],
            "permuted": 60,
            "prior": 60,
            "reasoning-cut": 60,
        }

    def test_is_asked_as_told(self, looked):
        rows = {(p.control, p.sample_id): p for p in looked[0].predictions}
        source = {sample.id: sample for sample in PhantomSource("mri", 60, "test")}
        for (control, name), row in rows.items():
            plain = rows["image", name]
            assert (row.order is None) == (control != "permuted")
            assert (row.picture_of is None) == (control != "swapped")
            if row.order:
                assert row.options == [plain.options[old] for old in row.order]
                assert row.options["ABCD".index(row.gold)] == source[name].answer_text
            else:
                assert (row.options, row.gold) == (plain.options, plain.gold)
            if row.picture_of:
                assert source[row.picture_of].answer_text != source[name].answer_text

    def test_rows_are_sorted_by_control_and_question(self, looked):
        keys = [(p.control, p.sample_id) for p in looked[0].predictions]
        assert keys == sorted(keys, key=lambda key: (CONTROLS.index(key[0]), key[1]))
        assert len(keys) == len(set(keys))

    def test_the_prior_is_the_audits(self, looked):
        questions = phantoms()
        audited = shortcuts(questions.train, questions.test["mri"])["option text"]
        rate = looked[1]["mri"]["rates"]["prior"]["accuracy"]
        assert rate["value"] == pytest.approx(audited.accuracy, abs=1e-6)
        assert rate["n"] == audited.n


class TestAModelThatDoesNotLook:
    def test_is_exposed(self, blind):
        found = blind[1]["mri"]
        for gain in (found["image_gain"], found["swap_gain"]):
            assert gain["low"] <= 0 <= gain["high"]
        assert "interval includes zero: no evidence that the image is used" in found["verdict"]

    def test_says_the_same_whatever_it_is_shown(self, blind):
        texts = {}
        for row in blind[0].predictions:
            texts.setdefault(row.sample_id, set()).add(row.text)
        assert all(len(said) == 1 for said in texts.values())


class TestReasoningCut:
    def test_a_model_that_reasons_answers_without(self, tmp_path):
        """Rewarded for the format it thinks; with the answer tag as prefix, it answers at once."""
        settings = {"steps": 12, "n": 48, "lr": 3e-4, "beta": 0.0, "rewards": FORMAT}
        module = fit(GRPO, tmp_path, controls=("image", "reasoning-cut"), **settings)
        rows = {(p.control, p.test_set, p.sample_id): p for p in module.predictions}
        cut = [p for p in module.predictions if p.control == "reasoning-cut"]
        plain = [rows["image", p.test_set, p.sample_id] for p in cut]
        assert sum(p.well_formed for p in plain) > 0.8 * len(plain)
        assert all(p.text.startswith("<answer") for p in cut)
        assert sum("think" not in p.text and p.answered for p in cut) > 0.8 * len(cut)
        assert sum(p.tokens for p in cut) < 0.7 * sum(p.tokens for p in plain)

    def test_a_tag_that_the_template_opens_is_closed_first(self, thinking, looked):
        cut = [p for p in looked[0].predictions if p.control == "reasoning-cut"]
        assert len(cut) == 60
        assert all(p.text.startswith("<think></think>\n<answer") for p in cut)

    def test_a_model_that_answers_at_once_says_the_same(self, tmp_path):
        module, section = evaluate(
            load_policy("embedded", RECIPE), tmp_path, phantoms(8), ("image", "reasoning-cut")
        )
        plain, cut = ([p.text for p in module.predictions if p.control == k] for k in ("image", CUT))
        same = [text for text in plain if text.startswith("<answer>")]
        assert same
        assert [b for a, b in zip(plain, cut, strict=True) if a in same] == same
        if len(same) == 8:
            assert section["mri"]["reasoning_effect"]["value"] == 0


class TestCost:
    @pytest.mark.parametrize("tuning", [None, Tuning("language_model")], ids=["all", "language_model"])
    def test_each_picture_goes_through_the_tower_once(self, tuning, tmp_path):
        """Trained or frozen: 12 of the questions, and one grey picture."""
        policy = load_policy("embedded", RECIPE, tuning=tuning)
        every, _ = evaluate(policy, tmp_path / "every", phantoms(12), batch=4)
        assert every.computed["images_encoded"] == 12 + 1
        policy.clear_vision_cache()
        plain, _ = evaluate(policy, tmp_path / "plain", phantoms(12), ("image",), batch=4)
        assert plain.computed["images_encoded"] == 12

    def test_plain_answers_do_not_depend_on_other_controls(self, thinking, tmp_path):
        policy = load_policy(str(thinking), RECIPE)
        every, _ = evaluate(policy, tmp_path / "every", phantoms(12), batch=5)
        plain, _ = evaluate(policy, tmp_path / "plain", phantoms(12), ("image",), batch=5)
        assert [p for p in every.predictions if p.control == "image"] == [
            dataclasses.replace(p, run=every.run_name) for p in plain.predictions
        ]
        generating = len(ANSWERED)
        assert every.computed["decode_rows"] <= generating * plain.computed["decode_rows"] * 1.2
        assert every.computed["prefill_tokens"] <= generating * plain.computed["prefill_tokens"] * 1.1

    def test_a_trained_tower_is_not_remembered_behind_the_test(self, tmp_path):
        policy = load_policy("embedded", RECIPE)
        evaluate(policy, tmp_path, phantoms(4), ("image",))
        with torch.no_grad():
            policy.model.model.visual.merger.mlp[-1].weight.zero_()
        again, _ = evaluate(policy, tmp_path, phantoms(4), ("image",))
        assert again.computed["images_encoded"] == 4


class TestChoice:
    def test_all_is_what_the_prompt_and_the_model_have(self):
        assert controls_of("all", PROMPT) == (CONTROLS, {})
        names, left = controls_of("all", TAGLESS)
        assert names == CONTROLS[:-1]
        assert left == {"reasoning-cut": "the prompt simple asks for no reasoning before the answer"}
        after = PromptStyle("after", "{Question}", "{Question} <answer>, then <think>")
        assert controls_of("all", after)[0] == CONTROLS[:-1]  # nothing that could be cut
        names, left = controls_of(["reasoning-cut", "image"], PROMPT, served=True)
        assert (names, list(left)) == (("image",), ["reasoning-cut"])

    @pytest.mark.parametrize(
        ("chosen", "served", "message"),
        [
            (["image", "blnk"], False, "'blnk': use all, or some of image, blank, swapped, permuted"),
            ("everything", False, "unknown control 'everything'"),
            (["blank"], False, "add image, the unchanged questions"),
            (None, False, "add image, the unchanged questions"),
            (["image", "reasoning-cut"], True, "the chat completions API does not take"),
        ],
        ids=str,
    )
    @pytest.mark.usefixtures("unchecked")
    def test_what_cannot_be_is_refused(self, chosen, served, message):
        with pytest.raises(ValueError, match=message):
            check_controls(chosen, served)

    def test_the_others_pass(self):
        for chosen, served in ((["image"], False), ("all", True), (list(CONTROLS), False)):
            check_controls(chosen, served)

    def test_an_unknown_name_stops_the_run_before_the_weights(self, tmp_path):
        stderr = run_here(tmp_path, "model.path=nowhere/at/all", "controls=[image,blnk]", code=2).stderr
        assert "error: controls: unknown control 'blnk': use all, or some of image, blank, swapped" in stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder, and what the run printed."""
    folder = tmp_path_factory.mktemp("run")
    said = run_here(folder, "+experiment=zero_shot", "model=tiny", *SHORT, "workers=0")
    (found,) = (folder / "outputs/runs").iterdir()
    return found, said.stdout


class TestARun:
    def test_leaves_every_control_and_a_verdict(self, finished):
        folder, _ = finished
        metrics = json.loads((folder / "metrics.json").read_text())
        rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        assert list(dict.fromkeys(row["control"] for row in rows)) == list(CONTROLS)
        for name in ("mri", "ct", "xray"):
            found = metrics["controls"][name]
            assert list(found["rates"]) == list(CONTROLS)
            assert found["rates"]["image"]["accuracy"]["value"] == metrics["accuracy"][name]["value"]
            assert found["verdict"].startswith("image gain ")
            for control in CONTROLS:
                asked = [r for r in rows if (r["test_set"], r["control"]) == (name, control)]
                assert found["rates"][control]["n"] == len(asked) == 8 - found["rates"][control]["left_out"]
        assert "controls" not in folder.name

    def test_the_tables_draw_what_the_summary_holds(self, finished, tmp_path):
        folder, _ = finished
        (row,) = compare([folder]).groups
        bare = shutil.copytree(folder, tmp_path / "bare")
        metrics = json.loads((bare / "metrics.json").read_text())
        (bare / "metrics.json").write_text(json.dumps(metrics | {"controls": {}}))
        (again,) = compare([bare]).groups
        for control in CONTROLS:
            assert accuracy_under(row, "mri", control) == accuracy_under(again, "mri", control)
            if control in GAINS:
                assert gain_over(row, "mri", control) == gain_over(again, "mri", control)

    def test_says_so_on_the_console_and_the_page(self, finished):
        folder, said = finished
        assert "Image gain" in said
        assert "image is used" in said or "without the image" in said
        page = (folder / "report.html").read_text()
        for word in ("swapped", "reasoning-cut", "image gain", "gain over the prior"):
            assert word in page
