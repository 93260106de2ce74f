"""Pass rates of training questions, and the band of them that a run trains on."""

import dataclasses
import json

import pytest
from command import run_here
from training import PROMPT, RECIPE, SHORT, phantoms

from medvlm_r1 import difficulty
from medvlm_r1.data.difficulty import PassRate, PassRateFile, TrainingBand
from medvlm_r1.phantom import PhantomSource
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine

OF = {"model": "embedded", "group_size": 4}


def write(path, passes, samples=4, source=None):
    """Rates of the first training questions."""
    source = source or PhantomSource("mri", len(passes), "train")
    rows = [PassRate(s.id, s.question, s.answer, n, samples, 40) for s, n in zip(source, passes, strict=True)]
    PassRateFile(path, OF).add(rows)
    return path


def keep(path, low, high, n, seed=0, **settings):
    return TrainingBand(str(path), [low, high], **settings)(phantoms(n), seed)


PASSES = [0, 1, 2, 3, 4, 4, 0, 2, 1, 3]


@pytest.mark.parametrize("band", [(0.2, 0.8), (0.25, 0.75), (0, 0), (0.5, 1), (0, 1)], ids=str)
def test_the_band_against_brute_force(tmp_path, band):
    path = write(tmp_path / "rates.jsonl", PASSES)
    questions = phantoms(len(PASSES))
    kept, line = TrainingBand(str(path), band)(questions, 0)
    ids = [sample.id for sample in questions.train]
    expected = [name for name, n in zip(ids, PASSES, strict=True) if band[0] * 4 <= n <= band[1] * 4]
    assert [sample.id for sample in kept.train] == expected
    assert line.startswith(f"{len(expected)} of 10 training questions")
    assert dataclasses.replace(kept, train=questions.train) == questions  # nothing else changes


def test_the_random_subset_is_as_large_and_seeded(tmp_path):
    path = write(tmp_path / "rates.jsonl", PASSES)
    drawn = [[s.id for s in keep(path, 0.2, 0.8, 10, seed, subset="random")[0].train] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    band = [s.id for s in keep(path, 0.2, 0.8, 10)[0].train]
    ids = [s.id for s in phantoms(10).train]
    assert all(len(set(names)) == len(band) == 6 for names in drawn)
    assert all(names == [name for name in ids if name in names] for names in drawn)  # in their order
    some = {name for seed in range(30) for name in _ids(path, seed)}
    assert some == set(ids)  # from all questions, not from the band


def _ids(path, seed):
    return [s.id for s in keep(path, 0.2, 0.8, 10, seed, subset="random")[0].train]


def test_without_a_file_nothing_changes():
    questions = phantoms(4)
    assert TrainingBand()(questions, 0)[0] is questions


def test_a_question_without_samples_is_in_no_band(tmp_path):
    path = write(tmp_path / "rates.jsonl", [0] * 4, samples=0)
    other = PhantomSource("mri", 5, "train")[4]
    PassRateFile(path, OF).add([PassRate(other.id, other.question, other.answer, 0, 4, 40)])
    assert [s.id for s in keep(path, 0, 1, 5)[0].train] == [other.id]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": [0.8, 0.2]}, r"difficulty\.keep is \[0\.8, 0\.2\]: give the least and most"),
        ({"keep": [0.2]}, r"difficulty\.keep is \[0\.2\]"),
        ({"keep": [20, 80]}, r"difficulty\.keep is \[20, 80\]"),
        (
            {"keep": None},
            r"difficulty\.pass_rates needs difficulty\.keep: add 'difficulty\.keep=\[0\.2,0\.8\]'",
        ),
        (
            {"pass_rates": None},
            r"difficulty\.keep needs difficulty\.pass_rates: add difficulty\.pass_rates=FILE",
        ),
        ({"subset": "easy"}, r"difficulty\.subset is 'easy': use band or random"),
        (
            {"keep": None, "pass_rates": None, "subset": "random"},
            r"subset=random needs difficulty\.pass_rates",
        ),
    ],
    ids=["order", "one", "percent", "no band", "no file", "subset", "random alone"],
)
def test_settings_that_are_no_band_are_refused(tmp_path, settings, message):
    path = write(tmp_path / "rates.jsonl", PASSES)
    with pytest.raises(ValueError, match=message):
        TrainingBand(**{"pass_rates": str(path), "keep": [0.2, 0.8], **settings})


def test_a_missing_file_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*rates\.jsonl: `medvlm-r1 difficulty --out"):
        TrainingBand(str(tmp_path / "rates.jsonl"), [0.2, 0.8])
    assert not list(tmp_path.iterdir())


def test_questions_without_a_rate_are_counted(tmp_path):
    path = write(tmp_path / "rates.jsonl", PASSES)
    with pytest.raises(
        ValueError, match=r"has pass rates of 10 of 12 training questions \(not of 'mri-train"
    ):
        keep(path, 0.2, 0.8, 12)
    other = tmp_path / "ct.jsonl"
    write(other, PASSES, source=PhantomSource("ct", 10, "train"))
    with pytest.raises(ValueError, match=r"has pass rates of 0 of 10 training questions"):
        keep(other, 0.2, 0.8, 10)
    changed = tmp_path / "changed.jsonl"
    text = path.read_text()
    changed.write_text(text.replace('"gold": "A"', '"gold": "E"'))
    count = text.count('"gold": "A"')
    with pytest.raises(
        ValueError, match=rf"of {10 - count} of 10 .* {count} of them with another question or answer"
    ):
        keep(changed, 0.2, 0.8, 10)


def test_an_empty_band_says_what_there_is(tmp_path):
    path = write(tmp_path / "rates.jsonl", [0, 0, 0, 4])
    with pytest.raises(ValueError, match=r"keep is \[0\.2, 0\.8\].*\(3 at 0/4, 1 at 4/4\): widen it"):
        keep(path, 0.2, 0.8, 4)


@pytest.mark.parametrize(
    "line", ['{"of": {}}\n{"id": "a"}\n', "passes\n1\n", '{"of": {}}\n{"id": "a\n', "\xff\n"]
)
def test_another_file_is_refused_with_its_line(tmp_path, line):
    path = tmp_path / "rates.jsonl"
    path.write_bytes(line.encode("latin-1"))
    with pytest.raises(ValueError, match=r"rates\.jsonl, line [12] has no pass rate"):
        TrainingBand(str(path), [0.2, 0.8])
    assert path.read_bytes() == line.encode("latin-1")  # and left as it is


def test_rates_of_other_settings_are_not_mixed(tmp_path):
    path = write(tmp_path / "rates.jsonl", PASSES)
    with pytest.raises(ValueError, match=r"\(group_size was 4 and is 8\): give another file as --out"):
        PassRateFile(path, {**OF, "group_size": 8})


SMALL = ("model=tiny", *SHORT, "workers=0")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = tmp_path_factory.mktemp("rates") / "rates.jsonl"
    assert difficulty.main(["--out", str(path), "--samples", "5", *SMALL]) == 0
    return path


class TestCommand:
    """``medvlm-r1 difficulty``, and a run on the band."""

    def test_rates_are_those_of_single_questions(self, measured):
        policy = load_policy("embedded", dataclasses.replace(RECIPE, max_completion_tokens=32))
        file = PassRateFile(measured)
        source = PhantomSource("mri", 16, "train")
        assert list(file.rates) == [s.id for s in source]
        some = 0
        for sample in source:
            prompt = policy.encoder.encode(sample, "train", PROMPT)
            rollout = SharedPrefixEngine()(policy, [prompt], Sampling(5, 32), NoiseKey(0, 0))
            right = [PROMPT.parse(text, sample).letter == sample.answer for text in rollout.texts]
            rate = file.rates[sample.id]
            assert (rate.passes, rate.samples, rate.tokens) == (sum(right), 5, int(rollout.lengths.sum()))
            assert rate.fits(sample)
            some += 0 < sum(right) < 5
        assert some

    def test_a_stopped_measurement_goes_on(self, measured, tmp_path, capsys):
        lines = measured.read_text().splitlines(keepends=True)
        path = tmp_path / "rates.jsonl"
        path.write_text("".join(lines[:6]) + lines[6][:30])  # torn in the sixth question
        assert difficulty.main(["--out", str(path), "--samples", "5", *SMALL]) == 0
        assert path.read_text() == measured.read_text()
        assert f"{path}: 16 training questions, 5 completions each" in capsys.readouterr().out
        before = path.stat().st_mtime_ns
        assert difficulty.main(["--out", str(path), "--samples", "5", *SMALL]) == 0
        assert path.stat().st_mtime_ns == before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--samples", "4"], "(group_size was 5 and is 4): give another file"),
            (["--samples", "5", "seed=1"], "(seed was 0 and is 1): give another file"),
            (["method=sft"], "the method samples no training questions: take method=grpo"),
            (["seed=0,1"], "seed"),
            (["modle=tiny"], "modle"),
        ],
        ids=["samples", "seed", "sft", "sweep", "misspelt"],
    )
    def test_errors_are_one_line(self, measured, capsys, arguments, message):
        assert difficulty.main(["--out", str(measured), *arguments, *SMALL]) == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert line.startswith("error: ")
        assert message in line

    def test_the_overrides_of_the_run_that_needs_the_file_write_it(self, measured, tmp_path):
        path = tmp_path / "rates.jsonl"
        band = (f"difficulty.pass_rates={path}", "difficulty.keep=[0.1,0.9]", "difficulty.subset=random")
        assert difficulty.main(["--out", str(path), "--samples", "5", *SMALL, *band]) == 0
        assert path.read_text() == measured.read_text()

    def test_a_run_trains_on_the_band_or_on_as_many(self, measured, tmp_path):
        rates = [rate.value for rate in PassRateFile(measured).rates.values()]
        inside = sum(0.1 <= value <= 0.9 for value in rates)
        assert 4 <= inside < 16
        small = (*SMALL, "audit=null", "controls=[image]", "model.recipe.prompts_per_step=2")
        band = (
            f"difficulty.pass_rates={measured}",
            "difficulty.keep=[0.1,0.9]",
            "difficulty.subset=band,random",
        )
        printed = run_here(tmp_path, "-m", *small, *band, "sweep=s", "trainer.max_steps=1")
        assert (
            f"difficulty: {inside} of 16 training questions have a pass rate of 0.1 to 0.9" in printed.stdout
        )
        facts = [
            json.loads(p.read_text())["run"] for p in sorted(tmp_path.glob("outputs/sweeps/s/*/metrics.json"))
        ]
        assert [f["training_questions"] for f in facts] == [inside, inside]
