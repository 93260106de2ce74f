"""Every disagreement with the papers' released reward and evaluation functions is a numbered departure.

The oracle below restates the released functions. Generated completions go through both; each disagreement
must fall under one of the departures that the docstring of ``medvlm_r1.prompts`` numbers.
"""

import random
import re
from collections import Counter
from pathlib import Path

import pytest

from medvlm_r1 import prompts
from medvlm_r1.data.sample import VQASample
from medvlm_r1.prompts import PromptStyle, is_correct
from medvlm_r1.reading.released import RULES
from medvlm_r1.rewards import answer_format, exact_accuracy, letter_accuracy, think_format

TAGS = PromptStyle("tags", train="{Question}", evaluate="{Question}")
SIMPLE = PromptStyle("simple", train="{Question}", evaluate="{Question}", tags=False)
OPTIONS = ("liver", "kidney", "left kidney", "spleen")
SAMPLES = [VQASample("q", (), "Which organ?", OPTIONS, gold, "ct", "t", "s", "q") for gold in "ABCD"]
COMPLETIONS = 20_000


# The released functions, as (text, gold) -> number.


def medvlm_accuracy_reward(text, gold):
    """Letters A to J in the first pair of tags, upper-cased: the gold one alone earns 1, 0.5 beside text."""
    pair = re.search("<answer>(.*?)</answer>", text, re.DOTALL | re.IGNORECASE)
    content = pair[1].strip().upper() if pair else ""
    if [character for character in content if character in "ABCDEFGHIJ"] != [gold]:
        return 0.0
    return 1.0 if content == gold else 0.5


def med_r1_accuracy_reward(text, gold):
    """The first pair of small tags on one line, or else the whole text, must be the gold letter."""
    pair = re.search("<answer>(.*?)</answer>", text)
    return float((pair[1] if pair else text).strip() == gold)


def think_format_reward(text, gold):
    """Think tags, then answer tags, and nothing else."""
    return float(re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL) is not None)


def answer_format_reward(text, gold):
    """Answer tags and nothing behind them."""
    return float(re.fullmatch(r"\s*<answer>.*?</answer>", text, re.DOTALL) is not None)


def medvlm_evaluation(text, gold):
    """The first capital that stands alone in small tags."""
    found = re.findall(r"<answer>\s*([A-Z])\s*</answer>", text)
    return float(found[:1] == [gold])


def med_r1_evaluation(text, gold):
    """The first word that stands alone in small tags."""
    found = re.findall(r"<answer>\s*(\w+)\s*</answer>", text)
    return float(found[:1] == [gold])


def raw_evaluation(text, gold):
    """The whole text is the letter."""
    return float(text == gold)


# Departure -> whether it applies to a text.


def first_pair(text):
    """The first pair of tags in any case: opening tag, contents, closing tag."""
    return re.search("(<answer>)(.*?)(</answer>)", text, re.DOTALL | re.IGNORECASE)


def other_case(text):
    pair = first_pair(text)
    return bool(pair) and (f"{pair[1]}{pair[3]}" != "<answer></answer>" or pair[2].strip().islower())


def not_alone_in_first_pair(text):
    """The first pair holds something else than a capital; another tag opens within it or behind it."""
    pair = first_pair(text)
    return bool(pair) and not re.fullmatch("[A-Z]", pair[2].strip()) and "<answer>" in text[pair.start(2) :]


def more_than_a_bare_letter(text):
    spaced, tagged = text != text.strip(), re.search("</think>|<answer>", text, re.IGNORECASE)
    return bool(spaced or tagged or text.islower())


def tagged_or_bare(text):
    return first_pair(text) is not None or text in "ABCD"


def without_tags(text):
    return first_pair(text) is None


def first_pair_is_not_plain(text):
    """The first pair has other tags than small ones, or a line break; or the first small one is another."""
    pair, plain = first_pair(text), re.search("<answer>(.*?)</answer>", text)
    return bool(pair) and (plain is None or plain[1].strip() != pair[2].strip())


DEPARTURES = {
    1: other_case,
    2: not_alone_in_first_pair,
    3: more_than_a_bare_letter,
    4: tagged_or_bare,
    5: without_tags,
    6: first_pair_is_not_plain,
}
# Ours, the released function, and the departures that may explain a disagreement of the two.
PAIRS = {
    "MedVLM-R1's accuracy reward": (letter_accuracy, medvlm_accuracy_reward, TAGS, ()),
    "format reward": (think_format, think_format_reward, TAGS, ()),
    "format reward without thinking": (answer_format, answer_format_reward, TAGS, ()),
    "Med-R1's accuracy reward": (exact_accuracy, med_r1_accuracy_reward, TAGS, (5, 6)),
    "MedVLM-R1's evaluation": (is_correct, medvlm_evaluation, TAGS, (1, 2)),
    "Med-R1's evaluation": (is_correct, med_r1_evaluation, TAGS, (1, 2)),
    "evaluation of a simple prompt": (is_correct, raw_evaluation, SIMPLE, (3,)),
    "evaluation without thinking": (is_correct, raw_evaluation, TAGS, (4,)),
}
EVALUATION = {
    "medvlm_r1": medvlm_evaluation,
    "med_r1": med_r1_evaluation,
    "med_r1_think_after": med_r1_evaluation,
    "medvlm_r1_simple": raw_evaluation,
    "med_r1_simple": raw_evaluation,
    "med_r1_no_think": raw_evaluation,
}

PIECES = (
    *(
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "<ANSWER>",
        "</Answer>",
        "<Think>",
        "</ans",
        "<answer",
        "<",
    ),
    *(
        "A",
        "B",
        "C",
        "D",
        "E",
        "J",
        "a",
        "b",
        "K",
        "AB",
        "B.",
        "(B)",
        "A) liver",
        "b) kidney",
        "A or B",
        "7",
        "é",
    ),
    *(
        "liver",
        "kidney",
        "left kidney",
        "spleen",
        "The answer is B",
        "not",
        "I use <answer> tags",
        "...",
        "_",
    ),
    *("\n", " ", "\t", "\n\n", "\x85", "\u3000", ", ", "."),
)
FRAMES = (
    *(
        "{}",
        "<answer>{}</answer>",
        "<think>{}</think><answer>{}</answer>",
        "<think>{}</think>\n<answer>{}</answer>",
    ),
    *(
        " <think>{}</think> <answer> {} </answer>",
        "<answer>{}</answer><think>{}</think>",
        "<ANSWER>{}</ANSWER>",
    ),
    *(
        "<answer>{}</answer> {}",
        "{}<answer>{}</answer>",
        "<answer>{}<answer>{}</answer>",
        "<think>{}</think>{}",
    ),
    *("<answer>{}</answer><answer>{}</answer>", "<answer>\n{}\n</answer>", "<think>{}<answer>{}", "{}\n{}"),
)


def completions(number, seed=0):
    """Tag soup: frames as the prompts ask for, filled with a few pieces; a third is pieces alone."""
    draw = random.Random(seed)

    def pieces(most):
        return "".join(draw.choices(PIECES, k=draw.randint(0, most)))

    for _ in range(number):
        if draw.random() < 1 / 3:
            yield pieces(8)
        else:
            frame = draw.choice(FRAMES)
            yield frame.format(
                *(draw.choice("ABCDab") if draw.random() < 0.5 else pieces(3) for _ in range(2))
            )


def disagreements(texts):
    """Every disagreement: name of the function, departure that explains it (or ``None``), text, gold."""
    for text in texts:
        answers = {style.name: style.parse(text, SAMPLES[0]) for style in (TAGS, SIMPLE)}
        for name, (ours, released, style, allowed) in PAIRS.items():
            for sample in SAMPLES:
                if float(ours(answers[style.name], sample)) != released(text, sample.answer):
                    number = next((n for n in allowed if DEPARTURES[n](text)), None)
                    yield name, number, text, sample.answer


def test_every_disagreement_is_a_numbered_departure():
    found = list(disagreements(completions(COMPLETIONS)))
    unexplained = [(name, text, gold) for name, number, text, gold in found if number is None]
    assert unexplained[:5] == []
    counts = Counter((name, number) for name, number, _, _ in found)
    for (name, number), count in sorted(counts.items(), key=str):
        print(f"{name}: departure {number}, {count} of {COMPLETIONS * len(SAMPLES)}")
    allowed = {(name, number) for name, (_, _, _, numbers) in PAIRS.items() for number in numbers}
    assert set(counts) == allowed  # the generator reaches each departure
    assert min(counts.values()) >= 20


def test_every_departure_is_written_down():
    listed = {int(n) for n in re.findall(r"(?m)^(\d+)\. ", prompts.__doc__)}
    assert listed >= set(DEPARTURES)
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
    section = page.split("## Departures from the released code", 1)[1].split("\n## ", 1)[0]
    assert {int(n) for n in re.findall(r"(?m)^(\d+)\. ", section)} == listed


def test_the_released_reading_is_that_of_the_released_code():
    assert set(EVALUATION) == set(RULES)
    for text in completions(COMPLETIONS, seed=1):
        for name, evaluation in EVALUATION.items():
            read = RULES[name](text)
            assert [float(read == gold) for gold in "ABCD"] == [evaluation(text, gold) for gold in "ABCD"], (
                text
            )


@pytest.mark.parametrize(
    ("number", "name", "text"),
    [
        (1, "MedVLM-R1's evaluation", "<answer>b</answer>"),
        (1, "Med-R1's evaluation", "<Answer>B</Answer>"),
        (2, "MedVLM-R1's evaluation", "<think>I write it in <answer> tags</think>\n<answer>B</answer>"),
        (3, "evaluation of a simple prompt", "<answer>B</answer>"),
        (3, "evaluation of a simple prompt", " B"),
        (4, "evaluation without thinking", "<answer>B</answer>"),
        (5, "Med-R1's accuracy reward", "B"),
        (6, "Med-R1's accuracy reward", "<answer>\nB\n</answer>"),
        (6, "Med-R1's accuracy reward", "<ANSWER>A</ANSWER><answer>B</answer>"),
    ],
)
def test_an_example_of_each_departure(number, name, text):
    assert (name, number, text, "B") in disagreements([text])


def test_the_released_rules_take_linear_time():
    """A megabyte of tags, of spaces and of letters within one tag."""
    for piece in ("<answer>", "<answer> ", "<answer>B ", "B", " ", "</answer>"):
        for start in ("", "<answer>", "<answer>B"):
            text = start + piece * (1_000_000 // len(piece))
            for read in RULES.values():
                read(text)
