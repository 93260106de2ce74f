"""Options and answers in every shape, and the letter that they give."""

import numpy as np
import pytest

from medvlm_r1.data.formats.options import answer_letter, letter_in, list_in_text, option_texts
from medvlm_r1.data.sample import BadRowError

THREE = ["a liver", "b's", "c, d"]


@pytest.mark.parametrize(
    "value",
    [
        THREE,
        tuple(THREE),
        np.array(THREE, object),
        [*THREE, None],
        [*THREE, "", float("nan")],
        {"A": "a liver", "B": "b's", "C": "c, d"},
        {"C": "c, d", "A": "a liver", "B": " b's "},
        {"a": "a liver", "b.": "b's", "(C)": "c, d", "D": None, "E": ""},
        [("B", "b's"), ("A", "a liver"), ("C", "c, d")],
        [{"key": "A", "value": "a liver"}, {"key": "C", "value": "c, d"}, {"key": "B", "value": "b's"}],
        '["a liver", "b\'s", "c, d"]',
        "['a liver', \"b's\", 'c, d']",
        "('a liver', \"b's\", 'c, d')",
        "['a liver' \"b's\" 'c, d']",
        "['a liver'\n \"b's\"\n 'c, d']",
        "array(['a liver', \"b's\", 'c, d'], dtype=object)",
        '{"A": "a liver", "B": "b\'s", "C": "c, d"}',
        "{'B': \"b's\", 'A': 'a liver', 'C': 'c, d'}",
        "a liver|b's| c, d ",
        "a liver|b's|c, d||",
    ],
)
def test_options_in_every_shape(value):
    assert option_texts(value, "|") == THREE


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ([1, 2.0, 0.5], ["1", "2", "0.5"]),
        ([True, False], ["True", "False"]),
        ("[1 2 30]", ["1", "2", "30"]),
        ("[1, 2]", ["1", "2"]),
        (np.array([1.0, 2.5], np.float32), ["1", "2.5"]),
        ("['left', 'it is \\'so\\'']", ["left", "it is 'so'"]),
        ("[\"['a', 'b']\", 'c']", ["['a', 'b']", "c"]),  # adjacent within a string only
    ],
)
def test_numbers_and_quotes(value, texts):
    assert option_texts(value) == texts


@pytest.mark.parametrize("value", [None, "", " ", [], {}, float("nan"), [None, ""], {"A": None}, "[]", "||"])
def test_missing_options(value):
    assert option_texts(value, "|") == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["a", None, "b"], r"options is \['a', None, 'b'\], of which number 2 is missing"),
        ("a||b", "number 2 is missing"),
        (
            {"A": "x", "C": "y"},
            "options has the keys 'A', 'C': give A, B and so on, each once, without a gap",
        ),
        ({"A": "x", "B": "", "C": "y"}, "without a gap"),
        ({"A": "x", "a": "y"}, "each once"),
        ({"first": "x", "second": "y"}, "options has the keys 'first', 'second'"),
        ({"0": "x", "1": "y"}, "options has the keys '0', '1'"),
        ("{'A': 'x', 'K': 'y'}", "options has the keys 'A', 'K'"),
        (["a", ["b"]], "not of lists or objects"),
        ("['a' 'b', 'c']", "two strings without a comma between them: write a JSON list"),
        (7, "options is 7: give a list"),
        (True, "options is True: give a list"),
    ],
)
def test_options_that_cannot_be(value, message):
    with pytest.raises(BadRowError, match=message):
        option_texts(value, "|")


def test_text_without_a_separator_is_no_list():
    with pytest.raises(BadRowError, match="options is 'brain, liver': give a list of options"):
        option_texts("brain, liver")
    for text in (
        "[1].png",
        "(a) or (b)",
        "[left] lung",
        "{",
        "[" * 10**5 + "]",
        "[__import__('os').getcwd()]",
    ):
        assert list_in_text(text) is None


@pytest.mark.parametrize(
    "text",
    ["B", "b", " b ", "B.", "(B)", "[b]", "B)", "B:", "b,", "\uff22", "\uff42\uff0e", "\uff08\uff22\uff09"],
)
def test_a_letter(text):
    assert letter_in(text) == "B"


@pytest.mark.parametrize("value", ["K", "AB", "A B", "", "1", 1, None, True, ["B"], "Answer", "B" * 10**6])
def test_no_letter(value):
    assert letter_in(value) is None


@pytest.mark.parametrize(
    ("answer", "options", "letter"),
    [
        (" YES.", ("yes", "no"), "A"),
        ("Yes", ("yes", "no"), "A"),
        ("NO。", ("yes", "no"), "B"),
        ("left  Lung", ("Left lung", "right lung"), "A"),
        (["no"], ("yes", "no"), "B"),
        (2, ("1.0", "2.0"), "B"),
        (2.0, ("1", "2"), "B"),
        ("2.0", ("1", "2"), "B"),
        (np.int64(2), ("1", "2"), "B"),
        (True, ("True", "False"), "A"),
        (np.bool_(False), ("true", "false"), "B"),
        ("e.g.", ("e.g", "e.g."), "B"),  # an exact match precedes
    ],
)
def test_an_answer_is_matched_as_options_are(answer, options, letter):
    assert answer_letter(answer, options) == letter


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            "Liverr",
            r"answer 'Liverr' is not among the options \['liver', 'brain'\]; the closest is 'liver': give",
        ),
        (None, "answer None is not among"),
        ("B", "answer 'B' is not among"),
        (["liver", "brain"], r"answer \['liver', 'brain'\] is not among"),
    ],
)
def test_an_answer_that_is_no_option(answer, message):
    with pytest.raises(BadRowError, match=message):
        answer_letter(answer, ("liver", "brain"))


def test_an_answer_that_is_two_options():
    with pytest.raises(
        BadRowError, match=r"answer 'YES' is more than one of the options .*: give an option's text"
    ):
        answer_letter("YES", ("yes", "yes.", "no"))
