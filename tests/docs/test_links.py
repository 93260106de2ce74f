"""Links, keys, options and files that README.md and the pages name exist."""

import re

import pytest
from command import ROOT
from pages import anchors, inline_code, links

from medvlm_r1.launch.reference import CONF, read_reference

PAGES = {p.relative_to(ROOT).as_posix(): p for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))}
REFERENCE = read_reference(CONF, ROOT / "docs/examples/own_part/conf")
TOP = {key.path for key in REFERENCE.top.keys}
KEYS = TOP | {key.path for g in REFERENCE.groups.values() for o in g.options.values() for key in o.keys}
NODES = {".".join(path.split(".")[:n]) for path in KEYS for n in range(1, path.count(".") + 2)}
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("outputs", "site")}


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_to_a_file_and_a_heading(page):
    path = PAGES[page]
    for link in links(path.read_text()):
        file, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{page}: {link}: there is no {target}"
        if (
            anchor and target.name != "configuration.md"
        ):  # the build checks that one: its headings are generated
            assert anchor in anchors(target.read_text()), f"{page}: {link}: no such heading"


@pytest.mark.parametrize("page", PAGES)
def test_inline_code_names_options_keys_and_files_that_exist(page):
    for word in (word for code in inline_code(PAGES[page].read_text()) for word in code.split()):
        key, equals, value = word.lstrip("+~").partition("=")
        if key in REFERENCE.groups and equals:
            options = {name for name in value.split(",") if re.fullmatch(r"[a-z]\w+", name)} - {"null"}
            unknown = options - REFERENCE.groups[key].options.keys()
            assert not unknown, f"{page}: {word}: {key} has no option {unknown}"
        elif word.startswith("+") or re.search(r"\.(csv|html|json|jsonl|md|py|txt|yaml)$", key):
            continue  # a key that is added, or a file of a run
        elif re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", key) and key.split(".")[0] in NODES | {"hydra"}:
            assert key in NODES, f"{page}: {word}: there is no key {key}"
        elif re.fullmatch(r"[\w.-]+(/[\w.-]*)+", word) and word.split("/")[0] in FOLDERS:
            assert (ROOT / word).exists(), f"{page}: {word}: there is no such file"
