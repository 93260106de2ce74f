"""The generalisation matrix: what its cells and means hold, what it refuses, what it writes."""

import csv
import json

import pandas as pd
import pytest
from PIL import Image
from run_folders import SETS, write_run

from medvlm_r1.cli.matrix import main
from medvlm_r1.evaluate import statistics
from medvlm_r1.report.comparison import compare
from medvlm_r1.report.matrix.assemble import assemble
from medvlm_r1.report.matrix.cells import UNTRAINED
from medvlm_r1.report.matrix.tables import matrices_tables, matrix_table
from medvlm_r1.report.run_folder import RunFolderError

pytestmark = pytest.mark.usefixtures("few_draws")


def trained_on(parent, domain, seed=0, prompt="med_r1", **more):
    changes = {"data.domain": domain, "prompt.name": prompt, "data.train.modality": domain, **more}
    return write_run(parent, "grpo", seed, n=40, name=f"{prompt}-{domain}-{seed}", changes=changes)


def rewrite(folder, correct, prior=None):
    """Other outcomes, by row of each test set, and those of the text prior; the summary follows."""
    path = folder / "predictions.jsonl"
    rows = pd.read_json(path, lines=True).query("control == 'image'")
    number = rows.groupby("test_set").cumcount()
    parts = [rows.assign(correct=correct(rows["test_set"], number))]
    if prior:
        parts.append(rows.assign(control="prior", correct=prior(rows["test_set"], number)))
    metrics = json.loads((folder / "metrics.json").read_text())
    for name, part in parts[0].groupby("test_set"):
        metrics["accuracy"][name]["value"] = float(part["correct"].mean())
    (folder / "metrics.json").write_text(json.dumps(metrics))
    pd.concat(parts).to_json(path, orient="records", lines=True)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three domains, right in domain alone; the text prior is right on every second question there."""
    parent = tmp_path_factory.mktemp("sweeps") / "matrix"
    for domain in SETS:
        for seed in (0, 1):
            folder = trained_on(parent, domain, seed)
            rewrite(
                folder,
                lambda test, number, own=domain: (test == own) | (number % 4 == 0),
                lambda test, number, own=domain: (test == own) & (number % 2 == 0),
            )
    write_run(parent, "zero_shot", n=40, changes={"prompt.name": "med_r1"})
    return parent


def test_cells_and_means(sweep):
    (matrix,) = assemble([sweep]).matrices
    assert list(matrix.rows) == [*SETS, UNTRAINED]
    assert [len(matrix.rows[d].runs) for d in SETS] == [2, 2, 2]
    for domain in SETS:
        for test in SETS:
            cell = matrix.cells[domain][test]
            assert cell.in_domain == (domain == test)
            assert cell.accuracy.value == (1.0 if domain == test else 0.25)
            assert cell.accuracy.low <= cell.accuracy.value <= cell.accuracy.high
            assert cell.prior == (0.5 if domain == test else 0.0)
            assert cell.gain.value == pytest.approx(cell.accuracy.value - cell.prior)
    assert matrix.in_domain.value == 1.0
    assert matrix.outside.value == 0.25
    lost, p = matrix.lost_outside
    assert lost.value == 0.75
    assert p < 0.01


def test_the_mean_outside_averages_lines_before_it_draws_questions(tmp_path):
    """Every line fails on the same questions: three lines are no more evidence than one."""
    for domain in SETS:
        rewrite(trained_on(tmp_path, domain), lambda test, number: number % 2 == 0)
    (matrix,) = assemble([tmp_path]).matrices
    alone = statistics.over_seeds(
        [matrix.rows["ct"].outcomes(test) for test in SETS], [matrix.image_groups(test) for test in SETS]
    )
    assert (matrix.outside.low, matrix.outside.high) == (alone.low, alone.high)


def test_a_test_set_of_open_questions_has_cells_without_a_prior(tmp_path):
    for domain in SETS:
        folder = trained_on(tmp_path, domain)
        rewrite(folder, lambda test, number: number % 2 == 0, lambda test, number: number % 4 == 0)
        path = folder / "predictions.jsonl"
        rows = pd.read_json(path, lines=True)
        told = rows["test_set"] == "xray"
        rows.loc[told, "options"] = rows.loc[told, "options"].map(lambda options: [])
        rows.loc[told, "gold"] = "cyst"
        rows = rows[~(told & (rows["control"] == "prior"))]
        rows.to_json(path, orient="records", lines=True)
    (matrix,) = assemble([tmp_path]).matrices
    assert (matrix.cells["ct"]["ct"].prior, matrix.cells["ct"]["ct"].gain.value) == (0.25, 0.25)
    assert (matrix.cells["ct"]["xray"].prior, matrix.cells["ct"]["xray"].gain) == (None, None)
    assert matrix.cells["ct"]["xray"].accuracy.value == 0.5
    assert main([str(tmp_path)]) == 0  # and every form of the table is written


def test_prompts_stand_side_by_side(tmp_path):
    for domain in SETS:
        trained_on(tmp_path, domain)
        other = trained_on(tmp_path, domain, prompt="med_r1_no_think")
        rewrite(other, lambda test, number: number >= 0)
    matrices = assemble([tmp_path])
    assert [matrix.label for matrix in matrices.matrices] == ["med_r1", "med_r1_no_think"]
    assert len(matrices.changes) == 3 * 3 + 1
    (mean,) = [change for change in matrices.changes if change.domain is None]
    first, second = matrices.matrices
    assert mean.interval.value == pytest.approx(second.outside.value - first.outside.value)
    assert mean.supported
    assert all(change.adjusted >= change.p for change in matrices.changes)


def test_an_incomplete_sweep_compares_the_domains_that_both_have(tmp_path):
    """Alike in every cell that both have: then nothing differs, whatever the third line scores."""
    easy = {"mri": 2, "ct": 2, "xray": 1}  # one question in two is right, or every one
    for domain in SETS:
        rewrite(trained_on(tmp_path, domain), lambda test, number, k=easy[domain]: number % k == 0)
    for domain in ("mri", "ct"):
        other = trained_on(tmp_path, domain, prompt="med_r1_no_think")
        rewrite(other, lambda test, number, k=easy[domain]: number % k == 0)
    matrices = assemble([tmp_path])
    assert {change.interval.value for change in matrices.changes} == {0.0}
    notes = matrices_tables(matrices)[-1].notes
    assert "Left out, as only one of the two matrices has it: X-ray." in notes


def test_means_are_of_the_seeds_that_all_lines_have(tmp_path):
    for domain in SETS:
        for seed in (0, 1, 2) if domain == "ct" else (0, 2):
            rewrite(
                trained_on(tmp_path, domain, seed), lambda test, number, k=seed: number % 4 < 2 + (k == 1)
            )
    (matrix,) = assemble([tmp_path]).matrices
    assert matrix.seeds == [0, 2]
    assert matrix.outside.value == 0.5
    assert matrix.cells["ct"]["mri"].accuracy.value == pytest.approx((0.5 + 0.75 + 0.5) / 3)
    assert "Means are over the seeds that all rows have: 0, 2." in matrix_table(matrix).notes


def test_one_seed_is_tested_exactly(tmp_path):
    """Five questions of forty differ, all one way: a bootstrap would call that p = 0.01."""
    for domain in SETS:
        rewrite(trained_on(tmp_path, domain), lambda test, number: number < 20)
        other = trained_on(tmp_path, domain, prompt="med_r1_no_think")
        rewrite(other, lambda test, number: number < 25)
    changes = [change for change in assemble([tmp_path]).changes if change.domain]
    assert {(change.test, change.p) for change in changes} == {("mcnemar exact", 2 * 0.5**5)}
    assert not any(change.supported for change in changes)


def test_several_domains_at_once_make_no_line(tmp_path):
    for domain in ("mri", ["ct"], ["ct", "xray"]):
        changes = {"data.domain": domain, "data.train.modality": domain}
        write_run(tmp_path, "grpo", n=8, name=f"grpo-{domain}", changes=changes)
    (matrix,) = assemble([tmp_path]).matrices
    assert list(matrix.rows) == ["mri", "ct"]
    assert compare([tmp_path]).in_domain == []  # no column is in domain for every row


def test_the_untrained_line_is_of_the_same_weights(tmp_path):
    for domain in SETS:
        trained_on(tmp_path, domain)
    named = {"prompt.name": "med_r1"}
    write_run(tmp_path, "zero_shot", n=40, name="other", changes=named | {"model.path": "elsewhere"})
    assert UNTRAINED not in assemble([tmp_path]).matrices[0].rows
    write_run(tmp_path, "zero_shot", n=40, name="own", changes=named)
    (run,) = assemble([tmp_path]).matrices[0].rows[UNTRAINED].runs
    assert run.name == "own"


def test_everything_is_written(sweep, tmp_path, capsys):
    assert main([str(sweep), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Mean out of domain: 25.0" in out
    assert out.count("prior 50.0") == 3
    assert "\N{HORIZONTAL ELLIPSIS}" not in out
    written = json.loads((tmp_path / "matrix.json").read_text())
    assert written["matrices"][0]["cells"]["ct"]["ct"]["accuracy"]["value"] == 1.0
    with (tmp_path / "matrix.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3
    assert {row["trained_on"] for row in rows if row["in_domain"] == "True"} == set(SETS)
    latex = (tmp_path / "matrix.tex").read_text()
    assert latex.count("\\toprule") == latex.count("\\bottomrule") == 1
    assert "medvlm-r1 matrix" in (tmp_path / "matrix.md").read_text()
    with Image.open(tmp_path / "matrix.png") as picture:
        assert min(picture.size) > 300


def test_what_cannot_be_assembled(tmp_path, capsys):
    write_run(tmp_path / "a", "grpo", n=20)
    with pytest.raises(RunFolderError, match=r"train with data\.domain=NAME"):
        assemble([tmp_path / "a"])
    trained_on(tmp_path / "b", "ct")
    write_run(
        tmp_path / "b",
        "grpo",
        n=40,
        name="other",
        changes={"data.domain": "ct", "prompt.name": "med_r1", "method.beta": 0.0},
    )
    with pytest.raises(RunFolderError, match=r"both trained on ct .* differ in .*method\.beta"):
        assemble([tmp_path / "b"])
    trained_on(tmp_path / "c", "ct")
    trained_on(tmp_path / "c", "mri", **{"method.beta": 0.0})
    with pytest.raises(
        RunFolderError, match=r"on mri and ct .*, and differ in method\.beta too|on ct and mri"
    ):
        assemble([tmp_path / "c"])
    trained_on(tmp_path / "d", "ct")
    trained_on(tmp_path / "d", "mri", seed=1)
    with pytest.raises(RunFolderError, match=r"no seed was run on every domain"):
        assemble([tmp_path / "d"])
    assert main([str(tmp_path / "b")]) == 2
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "--out" in capsys.readouterr().err
