"""``make docs``: the strict build passes, and no page loads anything from elsewhere."""

import html
import logging
import re

import pytest
from command import ROOT
from mkdocs.commands.build import build
from mkdocs.config import load_config


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    counter = logging.getLogger("mkdocs")
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            found.append(record.getMessage())

    keep = Keep(logging.WARNING)
    counter.addHandler(keep)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            patch.setenv("NO_MKDOCS_2_WARNING", "1")
            config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
            config.plugins.on_startup(command="build", dirty=False)
            build(config)
            config.plugins.on_shutdown()
    finally:
        counter.removeHandler(keep)
    return folder, found


@pytest.mark.filterwarnings("default")
def test_the_build_has_no_warning(site):
    assert site[1] == []


def test_a_page_loads_nothing_from_elsewhere(site):
    pages = [*site[0].rglob("*.html")]
    assert len(pages) > 20
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|iframe)\b[^>]*\bsrc="([^"]+)"', text)
        loaded += [re.search(r'href="([^"]+)"', tag)[1] for tag in re.findall(r"<link\b[^>]*>", text)]
        assert loaded
        assert not [url for url in loaded if re.match(r"(\w+:)?//", url)], page
    styles = "".join(path.read_text() for path in site[0].rglob("*.css"))
    assert not re.findall(r"""(?:@import|url\()\s*["']?(?:https?:)?//""", styles)


def test_the_configuration_page_lists_options_keys_and_comments(site):
    text = html.unescape(re.sub(r"<[^>]+>", "", (site[0] / "configuration.html").read_text()))
    for shown in ("method=dapo", "method.loss.clip_high", "0.28", "the importance ratio is clipped to [1 -"):
        assert shown in text
