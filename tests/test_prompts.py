"""Rendering of questions and parsing of completions: tables first, then arbitrary text."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medvlm_r1.data.sample import BadRowError, VQASample
from medvlm_r1.prompts import PromptStyle, is_correct, is_correct_leniently, normalize_answer

STYLE = PromptStyle("plain", train="T {Question} T", evaluate="E {Question} E")
INLINE = PromptStyle("inline", train="{Question}", evaluate="{Question}", layout="inline")
# The formats as the papers' released code spells them.
PAPER_THINK = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
PAPER_ANSWER_ONLY = re.compile(r"\s*<answer>.*?</answer>", re.DOTALL)
ANSWER_FIRST = re.compile(r"<answer>.*?</answer>\s*<think>.*?</think>", re.DOTALL)
PAPER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


def ask_about(question="Which organ?", options=("liver", "kidney", "left kidney", "spleen"), answer="B"):
    return VQASample("q", (), question, tuple(options), answer, "mri", "anatomy", "test", "q")


ORGAN = ask_about()


class TestStrictReading:
    @pytest.mark.parametrize(
        ("text", "letter"),
        [
            ("<answer>B</answer>", "B"),
            ("<answer>b</answer>", "B"),
            ("<answer>\n B \n</answer>", "B"),
            ("<ANSWER>B</ANSWER>", "B"),
            ("<think>A</think><answer>D</answer>", "D"),
            ("<answer>A</answer><answer>B</answer>", "A"),
            ("so: <answer>C</answer> indeed", "C"),
            # no single letter of this question
            ("<answer>B.</answer>", None),
            ("<answer>(B)</answer>", None),
            ("<answer>B) kidney</answer>", None),
            ("<answer>kidney</answer>", None),
            ("<answer>AB</answer>", None),
            ("<answer>A, B</answer>", None),
            ("<answer></answer>", None),
            ("<answer>...</answer>", None),
            ("<answer>\uff22</answer>", None),  # full-width B
            # no pair of tags
            ("B", None),
            ("<answer>B", None),
            ("</answer>B<answer>", None),
            ("<think>B</think>", None),
            ("", None),
        ],
    )
    def test_letter(self, text, letter):
        assert STYLE.parse(text, ORGAN).letter == letter

    @pytest.mark.parametrize("letter", ["E", "J", "K", "1"])
    def test_a_letter_beyond_the_options_is_none(self, letter):
        parsed = STYLE.parse(f"<answer>{letter}</answer>", ORGAN)
        assert (parsed.content, parsed.letter, parsed.lenient) == (letter, None, None)

    def test_two_options_have_two_letters(self):
        yes_no = ask_about("Is there a lesion?", ("yes", "no"))
        assert [STYLE.parse(f"<answer>{a}</answer>", yes_no).letter for a in "ABCD"] == ["A", "B", None, None]

    def test_ten_options_have_ten(self):
        ten = ask_about(options=[f"organ {i}" for i in range(10)])
        assert STYLE.parse("<answer>J</answer>", ten).letter == "J"

    def test_reasoning_is_what_stands_in_the_first_think_tag(self):
        assert STYLE.parse("<think> so\nso </think><think>2</think>", ORGAN).reasoning == "so\nso"
        assert STYLE.parse("so so <answer>B</answer>", ORGAN).reasoning is None


class TestLenientReading:
    @pytest.mark.parametrize(
        ("text", "letter"),
        [
            # it leads with a letter
            ("B", "B"),
            ("b", "B"),
            ("B.", "B"),
            (" (B)", "B"),
            ("**B**", "B"),
            ("B) kidney", "B"),
            ("B: kidney", "B"),
            ("b) kidney", "B"),
            ("B is correct", "B"),
            ("A\nThe image shows the spleen.", "A"),
            ("B. kidney, not liver", "B"),
            ("A. A mass of the spleen", "A"),
            # it states one
            ("The answer is B", "B"),
            ("the answer is b.", "B"),
            ("Answer: (B)", "B"),
            ("The correct choice is **B**", "B"),
            ("The answer is: B) kidney", "B"),
            ("I would say option D, as it is bright", "D"),
            ("Option B is wrong, option C is right", "C"),
            # it names an option
            ("kidney", "B"),
            ("It shows the Kidney.", "B"),
            ("I see the liver", "A"),
            ("the left kidney", "C"),
            ("B kidney", "B"),
            # an article is no letter, nor is the first person, nor part of a word
            ("A lesion of the spleen", "D"),
            ("The answer is a kidney", "B"),
            ("The answer is a cyst", None),
            ("I think so", None),
            ("C-shaped", None),
            ("Bladder", None),
            # it does not choose
            ("A or B", None),
            ("A, B", None),
            ("(A) or (B)", None),
            ("A/B", None),
            ("ABCD", None),
            ("The answer is B or C", None),
            ("kidney or liver", None),
            ("The answer is not B", None),
            # it says nothing of this question
            ("E", None),
            ("The answer is E", None),
            ("", None),
            ("   ", None),
            ("None of these", None),
        ],
    )
    def test_letter(self, text, letter):
        parsed = STYLE.parse(text, ORGAN)
        assert parsed.lenient == letter
        assert parsed.letter is None  # none of these has answer tags

    def test_answer_tags_go_before_what_stands_around_them(self):
        assert STYLE.parse("A. <answer>B</answer>", ORGAN).lenient == "B"
        assert STYLE.parse("A. <answer>B) kidney</answer>", ORGAN).lenient == "B"
        assert STYLE.parse("The answer is B <answer></answer>", ORGAN).lenient is None

    def test_option_texts_are_no_patterns(self):
        grades = ask_about(options=("grade 1 (low)", "grade 1+", ".*", "[a"))
        assert STYLE.parse("grade 1 (low)", grades).lenient == "A"
        assert STYLE.parse("grade 1+", grades).lenient == "B"


class TestFormat:
    @pytest.mark.parametrize(
        ("text", "thinks", "answers"),
        [
            ("<think>x</think><answer>B</answer>", True, False),
            ("<think>x\ny</think> \n <answer>B</answer>", True, False),
            ("<think></think><answer></answer>", True, False),
            (" <think>x</think><answer>B</answer>", False, False),
            ("<think>x</think><answer>B</answer>\n", False, False),
            ("<think>x</think>, <answer>B</answer>", False, False),
            ("<think>x</think><answer>B", False, False),
            ("<THINK>x</THINK><ANSWER>B</ANSWER>", False, False),
            ("<think></think><answer>", False, False),
            ("<think></think><answer></think><answer></answer>", True, False),
            ("<think></think></answer>", False, False),
            ("<answer>B</answer>", False, True),
            ("\n <answer></answer>", False, True),
            ("<answer>B</answer> ", False, False),
            ("<answer>", False, False),
            ("", False, False),
        ],
    )
    def test_well_formed(self, text, thinks, answers):
        parsed = STYLE.parse(text, ORGAN)
        assert (parsed.well_formed, parsed.answer_only) == (thinks, answers)


FRAGMENTS = ["<think>", "</think>", "<answer>", "</answer>", "<ANSWER>", "</Answer>", *"AbBJ", "A)", "answer"]
TEXTS = st.lists(st.sampled_from([*FRAGMENTS, "is", " ", "\n", "\x1c", "kidney", "{Question}"]) | st.text())


class TestAnyText:
    @given(TEXTS.map("".join))
    @example("<think></think>\x85<answer></answer>")
    @example("<answer></think><answer></answer>")
    def test_formats_and_contents_are_those_of_the_papers_patterns(self, text):
        parsed = STYLE.parse(text, ORGAN)
        assert parsed.well_formed == (PAPER_THINK.fullmatch(text) is not None)
        assert parsed.answer_only == (PAPER_ANSWER_ONLY.fullmatch(text) is not None)
        assert parsed.answer_first == (ANSWER_FIRST.fullmatch(text) is not None)
        tag = PAPER_TAG.search(text)
        assert parsed.content == (tag.group(1).strip() if tag else None)

    @given(TEXTS.map("".join))
    def test_a_letter_written_down_again_reads_the_same(self, text):
        parsed = STYLE.parse(text, ORGAN)
        assert parsed.letter in (None, *"ABCD")
        assert parsed.lenient in (None, *"ABCD")
        assert parsed.letter in (None, parsed.lenient)
        if parsed.lenient:
            again = STYLE.parse(f"<answer>{parsed.lenient}</answer>", ORGAN)
            assert (again.letter, again.lenient) == (parsed.lenient, parsed.lenient)

    @pytest.mark.parametrize(
        "piece",
        [
            *("<think>", "<answer>", "</answer>", "</think><answer>", "</think><answer></answer>x"),
            *(" ", "\n", "answer ", "answer is ", "*", "(", "A", "A, ", "A or ", "answer A or ", "kidney "),
        ],
    )
    @pytest.mark.parametrize("start", ["", "<think>", "answer", "<answer>", "A"])
    def test_a_hundred_thousand_characters_are_read_at_once(self, start, piece):
        text = start + piece * (100_000 // len(piece))
        start = time.process_time()
        STYLE.parse(text, ORGAN)
        assert time.process_time() - start < 1.0


class TestAsking:
    def test_lines_layout(self):
        assert STYLE.problem(ask_about("Is it bright?", ("yes", "no"))) == "Is it bright?\nA) yes\nB) no"

    def test_inline_layout(self):
        assert INLINE.problem(ask_about("Is it bright?", ("yes", "no"))) == "Is it bright? A)yes, B)no"

    def test_each_phase_has_its_template(self):
        sample = ask_about("Is it bright?", ("yes", "no"))
        for phase, letter in (("train", "T"), ("evaluate", "E")):
            text = f"{letter} Is it bright?\nA) yes\nB) no {letter}"
            assert STYLE.render(sample, phase) == [
                {"role": "user", "content": [{"type": "text", "text": text}]}
            ]

    def test_images_come_first(self, questions):
        content = STYLE.render(questions["two"], "train")[0]["content"]
        assert [part["type"] for part in content] == ["image", "image", "text"]

    @pytest.mark.parametrize("odd", ["{}", "{0}", "{Question}", "{a:b}", "50 %s", "\\1", "$x"])
    def test_braces_in_a_question_are_left_alone(self, odd):
        text = STYLE.render(ask_about(f"What is {odd}?", (f"{odd}1", "no")), "train")[0]["content"][0]["text"]
        assert text == f"T What is {odd}?\nA) {odd}1\nB) no T"

    def test_braces_in_a_template_are_left_alone(self):
        style = PromptStyle("boxed", train="{Question} \\boxed{A} {}", evaluate="{Question}")
        text = style.render(ask_about("Is it?", ("yes", "no")), "train")[0]["content"][0]["text"]
        assert text == "Is it?\nA) yes\nB) no \\boxed{A} {}"

    def test_the_sft_target_reads_as_gold(self):
        for letter in "ABCD":
            sample = ask_about(answer=letter)
            assert STYLE.parse(STYLE.target(sample), sample).letter == letter

    @pytest.mark.parametrize("phase", ["train", "evaluate"])
    def test_a_template_without_place_holder_is_refused(self, phase):
        with pytest.raises(ValueError, match=rf"prompt\.{phase} of 'odd' lacks .*Question"):
            PromptStyle("odd", **{"train": "{Question}", "evaluate": "{Question}"} | {phase: "{question}"})

    def test_an_unknown_layout_is_refused(self):
        with pytest.raises(ValueError, match="'lines' or 'inline'"):
            PromptStyle("odd", "{Question}", "{Question}", layout="columns")

    def test_the_problem_is_the_released_problem(self):
        folder = os.environ.get("MEDVLM_R1_REAL_QUESTIONS")
        if not folder:
            pytest.skip("MEDVLM_R1_REAL_QUESTIONS is not set: no released questions to compare with")
        rows = json.loads((Path(folder) / "medvlm_r1_test_900.json").read_text())
        assert len(rows) == 900
        for row in rows:
            sample = ask_about(row["question"], row["options"], row["solution"])
            assert STYLE.problem(sample) == row["problem"]
            assert sample.answer_text == row["answer"]


class TestOpenQuestions:
    WHERE = ask_about("Where is it?", (), "The left lung")
    OPEN = PromptStyle("open", "T {Question}", "E {Question}", open="O {Question} O")

    def test_the_question_stands_alone_in_its_own_template(self):
        for phase in ("train", "evaluate"):
            assert self.OPEN.render(self.WHERE, phase)[0]["content"][0]["text"] == "O Where is it? O"
        closed = self.OPEN.render(ask_about("Is it?", ("yes", "no")), "train")[0]["content"][0]["text"]
        assert closed == "T Is it?\nA) yes\nB) no"

    def test_a_prompt_for_letters_is_refused(self):
        with pytest.raises(ValueError, match=r"prompt 'plain' asks for a letter: take prompt=open"):
            STYLE.render(self.WHERE, "train")
        with pytest.raises(ValueError, match=r"prompt\.open of 'odd' lacks"):
            PromptStyle("odd", "{Question}", "{Question}", open="Where?")

    @pytest.mark.parametrize(
        ("text", "right", "leniently"),
        [
            ("<think>x</think><answer>left lung</answer>", True, True),
            ("<answer>Left Lung.</answer>", True, True),
            ("the left lung", False, True),  # without tags
            ("<answer>lung</answer>", False, False),
            ("<answer></answer>left lung", False, False),
            (
                "<think>the right lung?</think>left lung",
                False,
                True,
            ),  # the answer stands behind the reasoning
            ("<think>left lung", False, False),  # cut inside it
            ("", False, False),
        ],
    )
    def test_readings(self, text, right, leniently):
        parsed = STYLE.parse(text, self.WHERE)
        assert (is_correct(parsed, self.WHERE), is_correct_leniently(parsed, self.WHERE)) == (
            right,
            leniently,
        )
        assert (parsed.letter, parsed.lenient) == (None, None)

    def test_the_sft_target_reads_as_gold(self):
        assert is_correct(STYLE.parse(STYLE.target(self.WHERE), self.WHERE), self.WHERE)

    @pytest.mark.parametrize(
        ("text", "plain"),
        [
            ("The  Left-lung, a lobe!", "leftlung lobe"),  # SQuAD's script removes punctuation, not spaces it
            ("Theatre and analysis", "theatre and analysis"),
            ("an", "an"),
            ("...", "..."),
            ("", ""),
        ],
    )
    def test_normalised(self, text, plain):
        assert normalize_answer(text) == plain

    def test_an_open_sample(self):
        assert (self.WHERE.is_open, self.WHERE.letters, self.WHERE.answer_text) == (True, "", "The left lung")
        with pytest.raises(BadRowError, match="an open question needs a text"):
            ask_about("Where?", (), " ")


def test_without_answer_tags_an_answer_stands_behind_the_reasoning():
    style = PromptStyle("simple", train="{Question}", evaluate="{Question}", tags=False)
    answer = style.parse("<think>\nA or B.</think>\nB", ORGAN)
    assert (answer.letter, answer.reasoning) == ("B", "A or B.")
    assert style.alternatives(answer, ORGAN).texts[0] == "<think>\nA or B.</think>\nA"
    cut = style.parse("<think>A or", ORGAN)
    assert cut.letter is None
    assert style.alternatives(cut, ORGAN).texts[3] == "<think>A or</think>D"
