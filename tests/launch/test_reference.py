"""The reference of the configuration is complete: every option, key and comment of ``conf/``."""

import re

import pytest
from command import python
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from medvlm_r1.launch.reference import CONF, read_reference
from medvlm_r1.launch.suggest import keys_of

REFERENCE = read_reference()
OPTIONS = [option for group in REFERENCE.groups.values() for option in group.options.values()]
ids = {"ids": lambda option: f"{option.group}/{option.name}"}


def leaves(cfg) -> set[str]:
    return set(keys_of(OmegaConf.to_container(cfg)))


def listed(group: str, name: str) -> set[str]:
    """Keys of an option, of its parents, and of the options that they choose inside their group."""
    keys = set(REFERENCE.groups[group].keys_of(name))
    chosen = {}

    def choose(name):
        option = REFERENCE.groups[group].options[name]
        for parent in option.parents:
            choose(parent)
        chosen.update({inner: choice for inner, choice in option.choices.items() if inner.startswith(group)})

    choose(name)
    return keys.union(*(listed(inner, choice) for inner, choice in chosen.items()))


@pytest.mark.filterwarnings("ignore:In .*Defaults list is missing")  # Hydra wants _self_ there
@pytest.mark.parametrize("option", [o for o in OPTIONS if not o.group.startswith("hydra")], **ids)
def test_every_key_of_an_option_is_listed(option):
    text = (CONF / option.group / f"{option.name}.yaml").read_text()
    if "@package _global_" in text:
        cfg = OmegaConf.create(re.sub(r"(?m)^defaults:\n( .*\n)+", "", text))
        assert leaves(cfg) == {key.path for key in option.keys}
    elif "defaults:" not in text:
        package = option.group.replace("/", ".")
        assert {f"{package}.{key}" for key in leaves(OmegaConf.create(text))} == listed(
            option.group, option.name
        )
    else:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            assert leaves(compose(f"{option.group}/{option.name}")) == listed(option.group, option.name)


def test_every_key_of_a_launcher_or_sweeper_is_listed():
    for option in (o for o in OPTIONS if o.group.startswith("hydra")):
        file = OmegaConf.load(CONF / option.group / f"{option.name}.yaml")
        package = option.group.replace("/", ".")
        expected = {f"{package}.{key}" for key in leaves(file) if not key.startswith("defaults")}
        assert {key.path for key in option.keys} == expected


@pytest.mark.parametrize("option", OPTIONS, **ids)
def test_an_option_has_a_summary_of_one_line_and_a_comment_for_every_key(option):
    assert re.fullmatch(r".{10,88}[.?]", option.summary), "its file starts with a comment of a short sentence"
    bare = [key.path for key in option.keys if not REFERENCE.comment_of(key)]
    assert not bare, f"conf/{option.group}/{option.name}.yaml has no comment for {bare}"


def test_comments_are_found_above_and_behind_a_value_and_in_other_options(tmp_path):
    (tmp_path / "config.yaml").write_text("defaults:\n  - part: a\n# the top\nseed: 0\n")
    (tmp_path / "part").mkdir()
    (tmp_path / "part/a.yaml").write_text(
        "# An option.\n# More about it.\nfirst: 1  # behind\n"
        "# above, on\n# two lines\nsecond: {x: 2, y: 'é  #'}\nthird:\n  # inside\n  z: [1,\n    2]\n"
    )
    (tmp_path / "part/b.yaml").write_text("# Another.\ndefaults: [a]\nfirst: ???\n")
    own = tmp_path / "own/part"
    own.mkdir(parents=True)
    (own / "empty.yaml").write_text("")
    reference = read_reference(tmp_path, tmp_path / "own")
    group = reference.groups["part"]
    a, b = group.options["a"], group.options["b"]
    assert (group.default, list(group.options)) == ("a", ["a", "b", "empty"])
    assert (a.summary, a.comment) == ("An option.", "An option.\nMore about it.")
    assert [(k.path, k.value, k.comment) for k in a.keys] == [
        ("part.first", "1", "behind"),
        ("part.second.x", "2", "above, on two lines"),
        ("part.second.y", "'é  #'", "above, on two lines"),
        ("part.third.z", "[1, 2]", "inside"),
    ]
    assert b.parents == ("a",)
    assert reference.comment_of(b.keys[0]) == "behind"
    assert list(group.keys_of("b")) == [k.path for k in a.keys]
    assert group.keys_of("b")["part.first"].value == "???"
    assert [k.comment for k in reference.top.keys] == ["the top"]


def test_the_reference_is_read_without_loading_torch(tmp_path):
    python(tmp_path, "-c", "import sys, medvlm_r1.launch.reference; sys.exit('torch' in sys.modules)")
