"""Hooks of the documentation's build.

Pages link files of the repository as GitHub needs it, with ``../``. In the site an image is copied, and a
link to another file outside docs/ becomes its text.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)#\s]+)(?:#[^)\s]*)?\)")
# Pages that are files of the top level.
INCLUDED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_page_markdown(markdown, page, config, files):
    path = page.file.src_uri
    if path in INCLUDED and (source := ROOT / INCLUDED[path]).exists():
        markdown = source.read_text()
        markdown = re.sub(r"\]\((?!\w+:|#)", "](../", markdown).replace("](../docs/", "](")

    def in_site(link):
        image, text, target = link.groups()
        if not image:
            return f"`{text}`" if re.fullmatch(r"[\w./-]+", text) else text
        if not files.get_file_from_path(f"files/{target}"):
            files.append(File.generated(config, f"files/{target}", abs_src_path=str(ROOT / target)))
        return f"![{text}](files/{target})"

    return OUTSIDE.sub(in_site, markdown) if "/" not in path else markdown
