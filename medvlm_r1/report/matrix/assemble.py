"""Assembles generalisation matrices from run folders."""

from collections.abc import Collection, Sequence
from pathlib import Path

from medvlm_r1.report.fairness import settings
from medvlm_r1.report.groups import RunGroup, check_same_questions, group_runs
from medvlm_r1.report.matrix.cells import UNTRAINED, Matrices, Matrix
from medvlm_r1.report.methods import method_title
from medvlm_r1.report.run_folder import Run, RunFolderError, find_runs

Kind = tuple[str, str]  # method and prompt of a matrix


def assemble(folders: Sequence[Path]) -> Matrices:
    """Read runs that were trained on one domain each, and assemble their matrices.

    Raises:
        UnpairedError: the runs answered different questions.
        RunFolderError: a folder cannot be read, or see :func:`build_matrices`.
    """
    runs, unfinished = find_runs(folders)
    check_same_questions(runs)
    return Matrices(build_matrices(runs), unfinished)


def build_matrices(runs: Sequence[Run]) -> list[Matrix]:
    """One matrix per method and prompt, from runs on the same questions.

    The training domain of a run is its ``data.domain``.

    Raises:
        RunFolderError: no run has a domain, two configurations of one method and prompt differ in more than
            domain and seed, or they share no seed.
    """
    groups = group_runs([run for run in runs if run.method == "zero_shot" or _domain(run)])
    trained = [group for group in groups if group.method != "zero_shot"]
    if not trained:
        raise RunFolderError(
            "no run was trained on one domain: train with data.domain=NAME, once for each domain "
            "(data=phantom_modality, phantom_task, med_r1_modality or med_r1_task)"
        )
    by_kind: dict[Kind, dict[str, RunGroup]] = {}
    for group in trained:
        rows = by_kind.setdefault(_kind(group), {})
        domain = _domain(group.runs[0])
        if domain in rows:
            raise RunFolderError(
                f"{rows[domain].runs[0].folder} and {group.runs[0].folder} were both trained on {domain} by "
                f"{' under prompt '.join(_kind(group))}, and differ in {_differing(rows[domain], group)}: "
                "assemble them one after the other"
            )
        rows[domain] = group
    for kind, rows in by_kind.items():
        _check_comparable(kind, rows)
    untrained = [group for group in groups if group.method == "zero_shot"]
    return [_matrix(kind, by_kind, untrained, runs[0].test_sets) for kind in by_kind]


def matrices_among(runs: Sequence[Run]) -> Matrices | None:
    """The matrices that compared runs form; ``None`` with fewer than two training domains."""
    if len({_domain(run) for run in runs} - {None}) < 2:
        return None
    try:
        return Matrices(build_matrices(runs))
    except RunFolderError:  # further settings differ: the other tables compare them
        return None


def _check_comparable(kind: Kind, rows: dict[str, RunGroup]) -> None:
    """All rows must differ in the domain alone, and have a seed in common."""
    (domain, first), *rest = rows.items()
    for other, group in rest:
        if differing := _differing(first, group, {domain, other}):
            raise RunFolderError(
                f"{first.runs[0].folder} and {group.runs[0].folder} were trained on {domain} and {other} by "
                f"{' under prompt '.join(kind)}, and differ in {differing} too: a matrix needs one "
                "configuration"
            )
    if not set.intersection(*(set(group.seeds) for group in rows.values())):
        seeds = "; ".join(f"{name}: {', '.join(map(str, group.seeds))}" for name, group in rows.items())
        raise RunFolderError(f"no seed was run on every domain ({seeds}): run the missing ones")


def _untrained(row: RunGroup, prompt: str, candidates: Sequence[RunGroup]) -> RunGroup | None:
    """The zero-shot group with the prompt and the initial weights of a trained row."""

    def start(group: RunGroup) -> dict:
        flat = settings(group.runs[0])
        return {k: v for k, v in flat.items() if k.startswith("model.") and not k.startswith("model.tuning")}

    matches = [group for group in candidates if _kind(group)[1] == prompt and start(group) == start(row)]
    if len(matches) > 1:
        a, b = matches[:2]
        raise RunFolderError(
            f"{a.runs[0].folder} and {b.runs[0].folder} are both untrained under prompt {prompt}, and differ "
            f"in {_differing(a, b)}: give only one of them"
        )
    return matches[0] if matches else None


def _matrix(kind: Kind, by_kind: dict, zero_shot: Sequence[RunGroup], test_sets: list[str]) -> Matrix:
    method, prompt = kind
    groups = by_kind[kind]
    rows = {domain: groups[domain] for domain in [*test_sets, *groups] if domain in groups}
    if untrained := _untrained(next(iter(rows.values())), prompt, zero_shot):
        rows[UNTRAINED] = untrained
    parts = [method_title(method)] if len({m for m, _ in by_kind}) > 1 or len(by_kind) == 1 else []
    parts += [prompt] if len({p for _, p in by_kind}) > 1 else []
    return Matrix(", ".join(parts), rows, test_sets)


def _kind(group: RunGroup) -> Kind:
    return group.method, str(group.runs[0].config.get("prompt", {}).get("name"))


def _domain(run: Run) -> str | None:
    """The training domain of a run, if its configuration has exactly one."""
    domain = (run.config.get("data") or {}).get("domain")
    if isinstance(domain, list) and len(domain) == 1:
        domain = domain[0]
    return domain if isinstance(domain, str) else None


def _differing(a: RunGroup, b: RunGroup, domains: Collection[str] = ()) -> str:
    """Keys in which two configurations differ, without keys whose values are the training domains."""
    one, other = (settings(group.runs[0]) for group in (a, b))
    names = {repr(value) for name in domains for value in (name, [name])}
    keys = sorted(k for k in one.keys() | other.keys() - {"experiment"} if one.get(k) != other.get(k))
    return ", ".join(k for k in keys if not {repr(one.get(k)), repr(other.get(k))} <= names)
