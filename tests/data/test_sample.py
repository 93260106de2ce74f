"""Questions: options that are nearly equal, images of refused rows, reasons of skipped rows."""

import pytest

from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.sample import BadRowError, Question, VQASample, keep_images
from medvlm_r1.data.skipped import reason_counts, reason_of, reason_summary


def question(*options, images=()):
    return Question("q", tuple(images), "What is seen?", options)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Pneumonia", "pneumonia "),
        ("left lung", "left  lung"),
        ("left lung", " Left\tlung"),
        ("left lung", "left\xa0lung"),
        ("Köhler", "Ko\u0308hler"),
        ("normal", "normal\u200b"),
    ],
)
def test_options_that_differ_in_case_or_spaces_only(first, second):
    with pytest.raises(
        BadRowError, match=r"differ only in case or spaces, so they are a duplicate: make each"
    ):
        question("normal chest", first, second)


def test_options_that_differ():
    for options in (("10 mm²", "10 mm2"), ("T1", "T 1"), ("yes", "yes, but"), ("a-b", "ab")):
        assert question(*options).options == options


def test_a_refused_row_keeps_its_images(tmp_path):
    images = (ImageFile(tmp_path / "1.png"),)
    for make in (
        lambda: question("a", "A", images=images),
        lambda: VQASample("q", images, "q", ("a", "b"), "C", "mri", "t", "s", "g"),
        lambda: VQASample("q", images, "q", (), " ", "mri", "t", "s", "g"),
    ):
        with pytest.raises(BadRowError) as failure:
            make()
        assert failure.value.images == images
    with pytest.raises(BadRowError) as failure, keep_images(images):
        raise BadRowError("answer is missing")
    assert failure.value.images == images


LINES = [
    (
        "/a b/c.json row 3: answer 'x y' is not among ['a', \"b's\"]: give",
        "answer ... is not among ...: give",
    ),
    (
        "a.json row 1: image /tmp/a b/c.png does not exist; set data.images",
        "image ... does not exist; set data.images",
    ),
    (
        "a row 2: has 6 fields where the header has 5 (line 3: 'x,y'): quote",
        "has ... fields where the header has ...: quote",
    ),
    ("a row 3: 1 options: a question needs 2 to 10", "... options: a question needs ... to ..."),
    (
        "a row 4: id 'a-k0' is already used by /x y/a.csv row 0: make",
        "id ... is already used by ... row ...: make",
    ),
    ("a row 5: answer 'aa ... a' (1,000,000 characters) is not a letter", "answer ... is not a letter"),
    ("a row 6: options {'A': 'x', 'B': ['y']} is bad", "options ... is bad"),
]


@pytest.mark.parametrize(("line", "reason"), LINES)
def test_a_reason_is_what_rows_have_in_common(line, reason):
    assert reason_of(line) == reason


def test_reasons_are_counted_most_frequent_first():
    missing = [f"a.json row {i}: image /data/{i}.png does not exist" for i in range(1200)]
    wrong = [f"a.json row {i}: answer '{i}' is not among the options" for i in range(3)]
    others = [f"a.json row 9: {word} is unknown" for word in "abcd"]
    counts = reason_counts([*others, *wrong, *missing])
    assert list(counts.items())[:2] == [
        ("image ... does not exist", 1200),
        ("answer ... is not among the options", 3),
    ]
    assert reason_summary([*wrong, *missing, *others], most=2) == (
        "1,200 x image ... does not exist; 3 x answer ... is not among the options; 4 for other reasons"
    )
    assert len(reason_summary(f"a row 0: {'x' * 10**6}{i}" for i in range(9))) < 1000
