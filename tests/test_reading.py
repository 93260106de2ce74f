"""The letter that a human reader takes: written answers with their letters, single rules, any text."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from medvlm_r1.data.sample import BadRowError, Question
from medvlm_r1.prompts import PromptStyle
from medvlm_r1.reading.lenient import affirmed_options, lenient_letter
from medvlm_r1.reading.plain import plain
from medvlm_r1.reading.scope import answering_part

STYLE = PromptStyle("plain", train="{Question}", evaluate="{Question}")
READINGS = Path(__file__).parent / "data" / "readings"
ORGAN = Question("q", (), "Which organ?", ("liver", "kidney", "left kidney", "spleen"))
CHEST = Question("q", (), "What is seen?", ("pneumonia", "normal", "effusion", "fracture"))
FRACTURE = Question("q", (), "Is there a fracture?", ("Yes", "No"))


def read(text, question=ORGAN):
    return STYLE.parse(text, question).lenient


@pytest.mark.parametrize("file", sorted(READINGS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_written_answers_are_read_as_a_human_reads_them(file):
    """Precision: share of the letters read that are right. Recall: share of the letters to read that are."""
    counts, wrong = Counter(), []
    for row in map(json.loads, file.read_text().splitlines()):
        letter = read(row["text"], Question("q", (), row["question"], tuple(row["options"])))
        counts["read"] += letter is not None
        counts["to read"] += row["gold"] is not None
        counts["right"] += letter is not None and letter == row["gold"]
        if letter != row["gold"]:
            wrong.append(f"{row['category']}: {row['text']!r} is {row['gold']}, read as {letter}")
    precision, recall = counts["right"] / counts["read"], counts["right"] / counts["to read"]
    print(f"{file.stem}: precision {precision:.3f}, recall {recall:.3f}", *wrong, sep="\n")
    assert precision >= 0.97, wrong
    assert recall >= 0.90, wrong


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("It is <answer>B.</answer>", "B."),
        ("<think>maybe A</think>B", "B"),
        ("maybe A</think>B", "B"),  # the chat template has opened the tag
        ("<THINK>A</Think>\n\nB", "B"),
        ("B <think>since it is round</think>", "B"),
        ("B <think>since it", "B"),
        ("<think>The answer is B or", ""),
        ("<think>A</think><think>The answer is B", ""),
        ("<think>A</think>", ""),
        ("A</think>\n</ans", ""),
        ("<think>so</think><answer>B", "B"),
        ("<think>so</think><answer>B</ans", "B"),
        ("<think>so <answer>B.</answer>", "B."),
        ("<think>I use <answer> tags</think><answer>B.</answer>", "B."),
        ("B <answer>", "B"),
    ],
)
def test_the_part_that_answers(text, part):
    assert answering_part(text) == part


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("**B**", "B"),
        (r"$\boxed{\text{B}}$", "answer: B"),
        ("\uff22", "B"),
        ('{"answer": "B"}', "answer: B"),
        ("# Answer\n\n  - `B`<|im_end|>", "Answer\nB"),
        ("it isn\u2019t \u201cB\u201d", "it isn't B"),
        ("~~A~~ B", "B"),
        ("x" * 30_000 + "B", "x" * 5_000 + "\n" + "x" * 4_999 + "B"),
    ],
)
def test_markup_is_removed(text, without):
    assert plain(text) == without


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a liver", [0]),
        ("no liver", []),
        ("not the liver but the kidney", [1]),
        ("is it the liver?", []),
        ("The left kidney. A kidney", [2]),
        ("liver and spleen", [0, 3]),
    ],
)
def test_affirmed_options(text, options):
    assert affirmed_options(text, ORGAN.options) == options


def test_the_same_text_answers_another_question_otherwise():
    assert read("There is no fracture.", CHEST) is None
    assert read("There is no fracture.", FRACTURE) == "B"
    healthy = Question("q", (), "Is the bone free of fractures?", ("Yes", "No"))
    assert read("There is no fracture.", healthy) is None
    assert read("No fracture", Question("q", (), "What is seen?", ("Fracture", "No fracture"))) == "B"


def test_an_option_that_is_a_letter_is_none_by_its_text():
    blood = Question("q", (), "Which blood group?", ("B", "A", "AB", "0"))
    assert [read(text, blood) for text in ("The answer is B.", "AB", "0")] == ["B", "C", "D"]


def test_options_that_differ_in_markup_alone_are_read_by_letter_alone():
    marked = Question("q", (), "Which?", ("T2", "T2*", "T1"))
    assert [read(text, marked) for text in ("A T2 image", "B) T2*", "A T1 image")] == [None, "B", "C"]


PIECES = (
    *("<answer>", "</answer>", "<think>", "</think>", "</think>B<think>", "<answer>B", "<", "</", "<a", "<|"),
    *(
        "A or ",
        "not ",
        "no ",
        "left kidney ",
        "kidney, ",
        "A, ",
        "B ",
        "b) ",
        "(A) ",
        "answer is ",
        "is ",
        "so ",
    ),
    *(
        "wait ",
        "actually ",
        "The answer is B. ",
        "B\n",
        "if ",
        "but ",
        "neither ",
        "\n",
        "- ",
        "# ",
        ", \n",
        "\t",
        "a.",
        "~~a",
        "\\boxed{",
    ),
    *("$", "*", "_", "'", "(", "\u7b54\u6848", "\u9009", "\u4e0d", "\u3002", "can be ", "n't ", "e.g. "),
)


@pytest.mark.parametrize("start", ["", "<think>", "<answer>"])
@pytest.mark.parametrize("piece", PIECES)
def test_a_megabyte_takes_linear_time(start, piece):
    """Ten times the text may take ten times as long; a quadratic rule would take minutes here."""
    text = start + piece * (1_000_000 // len(piece))
    begun = time.process_time()
    for question in (ORGAN, FRACTURE):
        STYLE.parse(text, question)
    assert time.process_time() - begun < 5.0


WORDS = (
    *("A", "B", "E", "b", "a", "I", "(", ")", ".", ",", ":", ";", "?", "!", "\n", "-", "$", "\\boxed{", "}"),
    *(
        "not",
        "no",
        "isn't",
        "is",
        "are",
        "the",
        "answer",
        "option",
        "so",
        "if",
        "because",
        "than",
        "but",
        "and",
    ),
    *("or", "neither", "liver", "kidney", "left", "spleen", "yes", "wait", "actually", "excluded", "correct"),
    *("<think>", "</think>", "<answer>", "</answer>", "\u7b54\u6848\u662f", "\u4e0d\u662f", "\uff22"),
)
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=30).map(" ".join)


@given(TEXTS, st.sampled_from([ORGAN, FRACTURE]))
def test_any_text_is_read_without_an_error(text, question):
    parsed = STYLE.parse(text, question)
    assert parsed.lenient in (None, *question.letters)
    assert parsed.letter in (None, parsed.lenient)


@given(st.text(), st.lists(st.text(min_size=1), min_size=2, max_size=10, unique=True))
def test_any_options_are_read_without_an_error(text, options):
    try:
        question = Question("q", (), "Which?", tuple(options))
    except BadRowError:  # options that differ in case or white space alone
        reject()
    assert read(f"{text} {options[0]}", question) in (None, *question.letters)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("There is a fracture of the left rib.", "A"),
        ("The image shows a fracture of the left rib", "A"),
        ("Fractures of the left rib are visible.", "A"),
        ("There is no fracture of the left rib.", "B"),
        ("Is there a fracture of the left rib?", None),
        ("There is a left rib.", None),
        ("There is a fracture of the right rib.", None),
        ("There may be a fracture of the left rib.", None),
        ("A fracture of the left rib is absent.", None),
        ("The question is whether there is a fracture of the left rib.", None),
    ],
)
def test_a_statement_answers_yes_or_no(text, letter):
    """Both ways: to read denials alone would favour the questions whose answer is no."""
    question = Question("q", (), "Is there a fracture of the left rib?", ("yes", "no"))
    assert lenient_letter(text, question) == letter


def test_a_statement_with_the_words_turned_round_answers_nothing():
    question = Question("q", (), "Is the lesion larger than the kidney?", ("yes", "no"))
    assert lenient_letter("The lesion is larger than the kidney.", question) == "A"
    assert lenient_letter("The kidney is larger than the lesion.", question) is None
