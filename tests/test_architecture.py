"""The package keeps its shape: imports point one way, files stay small, the top level is fixed."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medvlm_r1"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Each part of the package, and the parts that it may import.
ALLOWED = {
    "runs": set(),
    "data": {"runs"},
    "phantom": {"data"},
    "audit": {"data", "runs"},
    "reading": {"data"},
    "prompts": {"data", "reading"},
    "rewards": {"data", "prompts"},
    "policy": {"data", "prompts", "runs"},
    "rollout": {"policy", "runs"},
    "evaluate": {"audit", "data", "prompts", "reading", "runs"},
    "inference": {"data", "policy", "prompts", "rollout", "runs"},
    "algorithms": {"data", "evaluate", "policy", "prompts", "rewards", "rollout", "runs"},
    "callbacks": {"algorithms", "data", "prompts", "runs", "tracking"},
    "plan": {"algorithms", "data", "evaluate", "policy", "prompts", "rollout"},
    "report": {"audit", "data", "evaluate", "runs"},
    "tracking": {"artifacts", "data", "report", "runs"},
    "artifacts": {"algorithms", "data", "evaluate", "policy", "report", "runs"},
    "launch": {
        "callbacks",
        "evaluate",
        "inference",
        "plan",
        "policy",
        "reading",
        "report",
        "rollout",
        "runs",
    },
    "cli": {"artifacts", "audit", "data", "inference", "policy", "report", "runs", "tracking"},
    "run": {
        "algorithms",
        "artifacts",
        "callbacks",
        "data",
        "evaluate",
        "inference",
        "launch",
        "rollout",
        "runs",
        "tracking",
    },
    "difficulty": {"algorithms", "cli", "data", "launch", "rollout", "run", "runs"},
    "__main__": {"cli"},
    # python -m medvlm_r1.NAME
    **{name: {"cli"} for name in ("compare", "export", "matrix", "predict", "sweep")},
}


def part_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if path.name == "__main__.py":
        return
    used = {part_of(name) for name in imports(path) if name.startswith("medvlm_r1.")} - {part, ""}
    assert used <= ALLOWED.get(part, set()), f"{part} must not import {used - ALLOWED.get(part, set())}"


def test_no_file_imports_itself_through_others():
    """Imports inside functions count too; ``graphlib.CycleError`` names the files of a circle."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES}
    files = {name.removesuffix(".__init__"): path for path, name in names.items()}
    graph = {name: {used for used in imports(path) - {name} if used in files} for name, path in files.items()}
    for used in graph.values():  # ``from package import module`` imports the module
        used -= {name.rpartition(".")[0] for name in used}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("library", "place"),
    [("hydra", ("launch/", "run.py", "difficulty.py")), ("transformers", "policy/"), ("peft", "policy/")],
)
def test_a_library_stays_in_its_place(library, place):
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in SOURCES
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert all(user.startswith(place) for user in users), users


def test_the_page_needs_no_model():
    """Reading run folders must work on a laptop: no torch behind compare and the page."""
    heavy = {"torch", "transformers", "lightning"}
    for path in [PACKAGE / "cli/compare.py", PACKAGE / "cli/sweep.py", *(PACKAGE / "report").rglob("*.py")]:
        assert not heavy & {name.split(".")[0] for name in imports(path)}, path


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 300


def test_the_training_loop_fits_on_a_screen():
    tree = ast.parse((PACKAGE / "algorithms/grpo.py").read_text())
    step = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "training_step")
    assert step.end_lineno - step.lineno < 30


def test_top_level_is_fixed():
    expected = {
        "pyproject.toml",
        "README.md",
        "Makefile",
        "Dockerfile",
        "run.py",
        "constraints.txt",
        "constraints-vllm.txt",
        "mkdocs.yml",
    }
    expected |= {"medvlm_r1", "conf", "docs", "experiments", "notebooks", "tests"}
    expected |= {
        "LICENSE",
        "CITATION.cff",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "CODE_OF_CONDUCT.md",
        "SECURITY.md",
    }
    found = {
        p.name for p in ROOT.iterdir() if not p.name.startswith(".") and not p.name.endswith(".egg-info")
    }
    assert found - {"outputs", "site"} == expected
    hidden = {".devcontainer", ".dockerignore", ".gitattributes", ".github", ".pre-commit-config.yaml"}
    assert hidden <= {p.name for p in ROOT.iterdir()}


def test_commit_hooks_have_the_versions_of_make_lint():
    hooks = {
        h["repo"]: str(h.get("rev"))
        for h in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    }
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert hooks["https://github.com/astral-sh/ruff-pre-commit"] == f"v{pinned['ruff']}"
    assert hooks["https://github.com/codespell-project/codespell"] == f"v{pinned['codespell']}"


def test_the_package_has_no_other_parts():
    parts = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - {"__init__", "__pycache__"}
    assert parts == {*ALLOWED, "tiny", "py.typed"}
