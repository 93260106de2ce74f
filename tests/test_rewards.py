"""Rewards: both papers' tables row by row, and what must never pay."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medvlm_r1.data.sample import VQASample
from medvlm_r1.prompts import PromptStyle
from medvlm_r1.rewards import (
    Rewards,
    answer_format,
    answer_then_think_format,
    bleu,
    exact_accuracy,
    exact_match,
    letter_accuracy,
    rouge_l,
    think_format,
    token_f1,
)

STYLE = PromptStyle("plain", train="{Question}", evaluate="{Question}")
LETTERS = "ABCDEFGHIJ"


def gold(letter, options=4):
    return VQASample(
        "q", (), "Which?", tuple(f"part {i}" for i in range(options)), letter, "mri", "t", "s", "q"
    )


def pay(term, text, letter="A", options=4):
    sample = gold(letter, options)
    return term(STYLE.parse(text, sample), sample)


class TestMedVLMR1:
    @pytest.mark.parametrize(
        ("content", "reward"),
        [
            ("A", 1.0),
            ("a", 1.0),
            (" A\n", 1.0),
            ("A.", 0.5),
            ("(A)", 0.5),
            ("**A**", 0.5),
            ("a)", 0.5),
            ("A) Brain", 0.0),  # B R A I N: four more letters A to J
            ("A) lung", 0.0),  # G
            ("A) L5", 0.5),
            ("Option A", 0.0),  # the I of "option"
            ("A or B", 0.0),
            ("AA", 0.0),
            ("B", 0.0),
            ("b.", 0.0),
            ("", 0.0),
            ("...", 0.0),
            ("K", 0.0),
        ],
    )
    def test_accuracy(self, content, reward):
        assert pay(letter_accuracy, f"<think>x</think><answer>{content}</answer>") == reward

    @pytest.mark.parametrize("text", ["A", "A.", "The answer is A", "<answer>A", "<think>A</think>", ""])
    def test_without_tags_accuracy_is_zero(self, text):
        assert pay(letter_accuracy, text) == 0.0

    def test_tags_may_be_in_any_case(self):
        assert pay(letter_accuracy, "<Answer>A</ANSWER>") == 1.0

    @pytest.mark.parametrize(
        ("text", "reward"),
        [
            ("<think>x</think><answer>B</answer>", 1.0),
            ("<think>x\ny</think>\n\n<answer>none\nof these</answer>", 1.0),
            ("<think></think><answer></answer>", 1.0),  # empty tags pass
            (" <think>x</think><answer>A</answer>", 0.0),  # leading space
            ("<think>x</think><answer>A</answer>\n", 0.0),  # trailing newline
            ("<think>x</think> so <answer>A</answer>", 0.0),
            ("<answer>A</answer>", 0.0),
            ("<Think>x</Think><answer>A</answer>", 0.0),
            ("", 0.0),
        ],
    )
    def test_format(self, text, reward):
        assert pay(think_format, text) == reward


class TestMedR1:
    @pytest.mark.parametrize(
        ("content", "reward"),
        [
            ("A", 1.0),
            (" A ", 1.0),
            ("a", 0.0),
            ("A.", 0.0),
            ("(A)", 0.0),
            ("A) Brain", 0.0),
            ("AB", 0.0),
            ("B", 0.0),
            ("", 0.0),
        ],
    )
    def test_accuracy_gives_no_partial_credit(self, content, reward):
        assert pay(exact_accuracy, f"<answer>{content}</answer>") == reward

    @pytest.mark.parametrize(
        ("text", "reward"),
        [
            ("<answer>A</answer>", 1.0),
            ("\n <answer>A</answer>", 1.0),
            ("<answer></answer>", 1.0),
            ("<answer>A</answer> ", 0.0),
            ("so <answer>A</answer>", 0.0),
            ("A", 0.0),
            ("", 0.0),
        ],
    )
    def test_format_without_thinking(self, text, reward):
        assert pay(answer_format, text) == reward

    @pytest.mark.parametrize(
        ("text", "reward"),
        [
            ("<answer>A</answer><think>so</think>", 1.0),
            ("<answer>A</answer> \n <think></think>", 1.0),
            ("<answer>A</answer>", 0.0),
            ("<think>so</think><answer>A</answer>", 0.0),
            ("<answer>A</answer>, <think>so</think>", 0.0),
            ("<answer>A</answer><think>so</think>.", 0.0),
            ("<answer>A</answer><think>", 0.0),
        ],
    )
    def test_format_with_thinking_afterwards(self, text, reward):
        assert pay(answer_then_think_format, text) == reward


TEMPLATE = (
    "Your task: \n1. Think through the question step by step, enclose your reasoning process in "
    "<think>...</think> tags. \n2. Then provide the correct single-letter choice (A, B, C, D,...) inside "
    "<answer>...</answer> tags.\n"
)
HACKS = {
    "empty answer": "<think></think><answer></answer>",
    "blank answer": "<think>x</think><answer> \n </answer>",
    "all letters": "<think>x</think><answer>ABCD</answer>",
    "all letters, listed": "<think>x</think><answer>A, B, C, D</answer>",
    "all letters, one a line": "<answer>A\nB\nC\nD</answer>",
    "the instruction's list": "<answer>(A, B, C, D,...)</answer>",
    "template echoed": TEMPLATE,
    "template echoed, then all": TEMPLATE + "<answer>A</answer><answer>B</answer><answer>C</answer>",
    "place holder": "<think>...</think><answer>...</answer>",
    "tags nested": "<answer><answer>{gold}</answer></answer>",
    "think nested in answer": "<answer><think>{gold}</think>{gold}</answer>",
    "letter only in think": "<think>{gold}</think><answer></answer>",
    "letter only before the tags": "{gold}<answer></answer>",
    "letter only behind the tags": "<answer></answer>{gold}",
    "answer in a second tag": "<answer>?</answer><answer>{gold}</answer>",
    "unclosed": "<think>x</think><answer>{gold}",
    "unopened": "{gold}</answer>",
    "closed before it opens": "</answer>{gold}<answer>",
    "other brackets": "[answer]{gold}[/answer]",
    "letter beyond the options": "<answer>J</answer>",
    "letter twice": "<answer>{gold}{gold}</answer>",
    "letter with its text": "<answer>{gold}) brain</answer>",
    "not that letter's rivals": "<answer>{gold} not ABCD</answer>",
    "boxed": "<answer>\\boxed{{gold}}</answer>",
    "index": "<answer>1</answer>",
    "very long, letters": "<think>x</think><answer>" + "ABCD" * 25_000 + "</answer>",
    "very long, open tags": "<answer>" * 12_500 + "{gold}",
}


@pytest.mark.parametrize("text", HACKS.values(), ids=HACKS)
@pytest.mark.parametrize("term", [letter_accuracy, exact_accuracy])
def test_hacking_pays_no_accuracy(term, text):
    for letter in "ABCD":
        assert pay(term, text.replace("{gold}", letter), letter) == 0.0


@pytest.mark.parametrize("term", [letter_accuracy, exact_accuracy])
def test_several_answer_tags_pay_for_the_first_alone(term):
    text = "".join(f"<answer>{letter}</answer>" for letter in "CABD")
    assert [pay(term, text, letter) for letter in "ABCD"] == [0.0, 0.0, 1.0, 0.0]


FRAGMENTS = ["<think>", "</think>", "<answer>", "</answer>", "<ANSWER>", *LETTERS, "a", ")", ".", " ", "\n"]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=8)).map("".join)


class TestAnyText:
    @given(TEXTS, st.integers(2, 10))
    def test_rewards_stay_in_their_range(self, text, options):
        for letter in LETTERS[:options]:
            assert pay(think_format, text, letter, options) in (0.0, 1.0)
            assert pay(answer_format, text, letter, options) in (0.0, 1.0)
            assert pay(exact_accuracy, text, letter, options) in (0.0, 1.0)
            assert pay(letter_accuracy, text, letter, options) in (0.0, 0.5, 1.0)

    @given(TEXTS)
    def test_no_text_pays_for_two_answers(self, text):
        for term in (letter_accuracy, exact_accuracy):
            assert sum(pay(term, text, letter) > 0 for letter in "ABCD") <= 1

    @given(TEXTS)
    def test_full_accuracy_is_a_right_letter(self, text):
        for letter in "ABCD":
            sample = gold(letter)
            parsed = STYLE.parse(text, sample)
            assert (letter_accuracy(parsed, sample) == 1.0) == (parsed.letter == letter)
            assert exact_accuracy(parsed, sample) <= letter_accuracy(parsed, sample)


class TestWeightedSum:
    rows = (("<think>x</think><answer>A.</answer>", "A"), ("<answer>B</answer>", "B"), ("no", "C"))

    def score(self, weights):
        rewards = Rewards({"format": think_format, "accuracy": letter_accuracy}, weights)
        samples = [gold(letter) for _, letter in self.rows]
        answers = [STYLE.parse(text, s) for (text, _), s in zip(self.rows, samples, strict=True)]
        return rewards.score(answers, samples)

    def test_terms_are_kept_apart_unweighted(self):
        table = self.score({"format": 0.25})
        assert table.terms["format"].tolist() == [1.0, 0.0, 0.0]
        assert table.terms["accuracy"].tolist() == [0.5, 1.0, 0.0]

    def test_total_is_the_weighted_sum(self):
        # format 1 0 0, accuracy 0.5 1 0
        assert self.score({}).total.tolist() == [1.5, 1.0, 0.0]
        assert self.score({"format": 0.5, "accuracy": 2.0}).total.tolist() == [1.5, 2.0, 0.0]
        assert self.score({"format": 0.0}).total.tolist() == [0.5, 1.0, 0.0]

    def test_total_is_a_float_even_without_rows(self):
        table = Rewards({"accuracy": exact_accuracy}, {}).score([], [])
        assert table.total.dtype == torch.float32
        assert len(table.total) == 0

    def test_an_unknown_weight_is_refused(self):
        with pytest.raises(ValueError, match=r"\['acuracy'\], but the terms are \['accuracy'\]"):
            Rewards({"accuracy": exact_accuracy}, {"acuracy": 1.0})

    @pytest.mark.parametrize("name", ["std", "format_right", "format_wrong"])
    def test_a_term_with_the_name_of_another_metric_is_refused(self, name):
        with pytest.raises(ValueError, match=f"train/reward_{name} is another metric: rename the term"):
            Rewards({"format": exact_accuracy, name: exact_accuracy}, {})

    def test_no_term_is_refused(self):
        with pytest.raises(ValueError, match="at least one reward term"):
            Rewards({}, {})

    def test_rows_and_samples_must_pair(self):
        sample = gold("A")
        with pytest.raises(ValueError, match="zip"):
            Rewards({"a": exact_accuracy}, {}).score([STYLE.parse("A", sample)] * 2, [sample])

    def test_a_failing_term_is_not_a_zero(self):
        def broken(answer, sample):
            raise ZeroDivisionError("the judge is gone")

        with pytest.raises(ZeroDivisionError, match="the judge is gone"):
            Rewards({"broken": broken}, {}).score([STYLE.parse("A", gold("A"))], [gold("A")])


def ask_openly(answer):
    return VQASample("q", (), "Where?", (), answer, "mri", "t", "s", "q")


class TestOpenQuestions:
    @pytest.mark.parametrize(
        ("text", "gold", "exact", "f1", "bleu_1", "rouge"),
        [
            ("left lung", "left lung", 1, 1, 1, 1),
            ("The Left  lung.", "left lung", 1, 1, 1, 1),  # article, case, space, full stop
            ("lung", "left lung", 0, 2 / 3, math.exp(-1), 2 / 3),  # BLEU's brevity penalty exp(1 - 2/1)
            ("left lower lung", "left lung", 0, 0.8, 2 / 3, 0.8),
            ("lung left", "left lung", 0, 1, 1, 0.5),  # only ROUGE-L minds the order
            ("left left left", "left lung", 0, 0.4, 1 / 3, 0.4),  # repetition does not pay twice
            ("spleen", "left lung", 0, 0, 0, 0),
            ("", "left lung", 0, 0, 0, 0),
            ("", "A", 0, 0, 0, 0),  # an article alone is kept, so that saying nothing is not right
            ("a", "A", 1, 1, 1, 1),
        ],
    )
    def test_terms(self, text, gold, exact, f1, bleu_1, rouge):
        sample = ask_openly(gold)
        answer = STYLE.parse(f"<think>x</think><answer>{text}</answer>", sample)
        earned = [term(answer, sample) for term in (exact_match, token_f1, bleu, rouge_l)]
        assert earned == pytest.approx([exact, f1, bleu_1, rouge], abs=1e-6)

    def test_without_tags_nothing_is_earned(self):
        sample = ask_openly("lung")
        for term in (exact_match, token_f1, bleu, rouge_l):
            assert term(STYLE.parse("lung", sample), sample) == 0.0

    @pytest.mark.parametrize("term", [exact_match, token_f1, bleu, rouge_l])
    def test_a_closed_question_pays_for_its_letter(self, term):
        assert [pay(term, f"<answer>{text}</answer>") for text in ("A", "a", "B", "part 0")] == [1, 1, 0, 0]

    @pytest.mark.parametrize("term", [letter_accuracy, exact_accuracy])
    def test_a_term_for_letters_refuses_texts(self, term):
        sample = ask_openly("lung")
        with pytest.raises(ValueError, match="take reward=open"):
            term(STYLE.parse("<answer>lung</answer>", sample), sample)

    @given(TEXTS, TEXTS.filter(str.strip))
    def test_all_stay_in_their_range(self, text, answer):
        sample = ask_openly(answer)
        for term in (exact_match, token_f1, bleu, rouge_l):
            assert 0.0 <= term(STYLE.parse(text, sample), sample) <= 1.0 + 1e-6
