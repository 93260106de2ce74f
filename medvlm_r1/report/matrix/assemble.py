"""From run folders to generalisation matrices: which runs make a line, and which lines a matrix."""

from collections.abc import Collection, Sequence
from pathlib import Path

from medvlm_r1.report.fairness import settings
from medvlm_r1.report.groups import RunGroup, check_same_questions, group_runs
from medvlm_r1.report.matrix.cells import UNTRAINED, Matrices, Matrix
from medvlm_r1.report.run_folder import Run, RunFolderError, find_runs, method_title


def assemble(folders: Sequence[Path]) -> Matrices:
    """Read runs that were trained on one domain each, and put them in order; see :func:`arranged`.

    Raises:
        UnpairedError: the runs answered different questions.
        RunFolderError: a folder cannot be read, or the runs make no matrix.
    """
    runs, unfinished = find_runs(folders)
    check_same_questions(runs)
    return Matrices(arranged(runs), unfinished)


def arranged(runs: Sequence[Run]) -> list[Matrix]:
    """One matrix of each method and prompt, from runs on the same questions.

    What a run was trained on is its ``data.domain``.

    Raises:
        RunFolderError: no run names its domain, two configurations of one method and prompt differ in more
            than domain and seed, or they share no seed.
    """
    rows = group_runs([run for run in runs if run.method == "zero_shot" or _domain(run)])
    trained = [row for row in rows if row.method != "zero_shot"]
    if not trained:
        raise RunFolderError(
            "no run says what domain it was trained on: train with data.domain=NAME, once for each domain "
            "(data=phantom_modality, phantom_task, med_r1_modality or med_r1_task)"
        )
    made: dict[tuple[str, str], dict[str, RunGroup]] = {}
    for row in trained:
        lines = made.setdefault(_kind(row), {})
        domain = _domain(row.runs[0])
        if domain in lines:
            raise RunFolderError(
                f"{lines[domain].runs[0].folder} and {row.runs[0].folder} were both trained on {domain} by "
                f"{' under prompt '.join(_kind(row))}, and differ in {_odd(lines[domain], row)}: assemble "
                "them one after the other"
            )
        lines[domain] = row
    for kind, lines in made.items():
        _check_alike(kind, lines)
    untrained = [row for row in rows if row.method == "zero_shot"]
    return [_matrix(kind, made, untrained, runs[0].test_sets) for kind in made]


def matrices_among(runs: Sequence[Run]) -> Matrices | None:
    """The matrices that compared runs make; ``None`` where fewer than two domains were trained on."""
    if len({_domain(run) for run in runs} - {None}) < 2:
        return None
    try:
        return Matrices(arranged(runs))
    except RunFolderError:  # further settings differ: their comparison stands in the other tables
        return None


def _check_alike(kind: tuple[str, str], lines: dict[str, RunGroup]) -> None:
    """All lines must differ in the domain alone, and have a seed in common."""
    (domain, first), *rest = lines.items()
    for other, row in rest:
        if odd := _odd(first, row, {domain, other}):
            raise RunFolderError(
                f"{first.runs[0].folder} and {row.runs[0].folder} were trained on {domain} and {other} by "
                f"{' under prompt '.join(kind)}, and differ in {odd} too: a matrix needs one configuration"
            )
    if not set.intersection(*(set(row.seeds) for row in lines.values())):
        had = "; ".join(f"{name}: {', '.join(map(str, row.seeds))}" for name, row in lines.items())
        raise RunFolderError(f"no seed was run on every domain ({had}): run the missing ones")


def _untrained(line: RunGroup, prompt: str, candidates: Sequence[RunGroup]) -> RunGroup | None:
    """The zero-shot row of a line's prompt and starting weights."""

    def start(row: RunGroup) -> dict:
        flat = settings(row.runs[0])
        return {k: v for k, v in flat.items() if k.startswith("model.") and not k.startswith("model.tuning")}

    fitting = [row for row in candidates if _kind(row)[1] == prompt and start(row) == start(line)]
    if len(fitting) > 1:
        a, b = fitting[:2]
        raise RunFolderError(
            f"{a.runs[0].folder} and {b.runs[0].folder} are both untrained under prompt {prompt}, and differ "
            f"in {_odd(a, b)}: give one of them"
        )
    return fitting[0] if fitting else None


def _matrix(kind: tuple[str, str], made: dict, zero_shot: Sequence[RunGroup], tests: list[str]) -> Matrix:
    method, prompt = kind
    lines = {domain: made[kind][domain] for domain in [*tests, *made[kind]] if domain in made[kind]}
    if untrained := _untrained(next(iter(lines.values())), prompt, zero_shot):
        lines[UNTRAINED] = untrained
    parts = [method_title(method)] if len({m for m, _ in made}) > 1 or len(made) == 1 else []
    parts += [prompt] if len({p for _, p in made}) > 1 else []
    return Matrix(", ".join(parts), lines, tests)


def _kind(row: RunGroup) -> tuple[str, str]:
    return row.method, str(row.runs[0].config.get("prompt", {}).get("name"))


def _domain(run: Run) -> str | None:
    """The one domain that a run was trained on, if it names one and no more."""
    named = (run.config.get("data") or {}).get("domain")
    if isinstance(named, list) and len(named) == 1:
        named = named[0]
    return named if isinstance(named, str) else None


def _odd(a: RunGroup, b: RunGroup, domains: Collection[str] = ()) -> str:
    """Keys in which two configurations differ, but for those that say what was trained on."""
    one, other = (settings(row.runs[0]) for row in (a, b))
    said = {repr(value) for name in domains for value in (name, [name])}
    return ", ".join(
        sorted(
            key
            for key in one.keys() | other.keys() - {"experiment"}
            if one.get(key) != other.get(key) and not {repr(one.get(key)), repr(other.get(key))} <= said
        )
    )
