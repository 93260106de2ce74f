"""Hooks of the documentation's build.

configuration.md ends with the reference of conf/. Pages link files of the repository as GitHub needs it, with
``../``: in the site an image is copied, and a link to another file outside docs/ becomes its text.
"""

import html
import re
from pathlib import Path

from mkdocs.structure.files import File

from medvlm_r1.launch.reference import Group, Key, Option, Reference, read_reference

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)#\s]+)(?:#[^)\s]*)?\)")
# Pages that are files of the top level.
INCLUDED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LONGEST = 64  # characters of a value; a prompt is in its file


def on_page_markdown(markdown, page, config, files):
    path = page.file.src_uri
    if path in INCLUDED:
        markdown = (ROOT / INCLUDED[path]).read_text()
        markdown = re.sub(r"\]\((?!\w+:|#)", "](../", markdown).replace("](../docs/", "](")
    if path == "configuration.md":
        markdown += "\n\n" + "\n\n".join(configuration(read_reference()))

    def in_site(link):
        image, text, target = link.groups()
        if not image:
            return f"`{text}`" if re.fullmatch(r"[\w./-]+", text) else text
        if not files.get_file_from_path(f"files/{target}"):
            files.append(File.generated(config, f"files/{target}", abs_src_path=str(ROOT / target)))
        return f"![{text}](files/{target})"

    return OUTSIDE.sub(in_site, markdown) if "/" not in path else markdown


def configuration(reference: Reference):
    """Markdown of every group, option and key."""
    yield "## Outside the groups\n\nThe keys of `conf/config.yaml`."
    yield table(reference, reference.top.keys)
    for group in reference.groups.values():
        yield f"## {group.name} {{#{anchor(group)}}}"
        plus = "" if group.default or group.name.startswith("hydra") else "+"
        default = f"The default is `{group.default}`. " if group.default else ""
        yield f"{default}Choose one with `{plus}{group.name}=NAME`."
        rows = [f"| [`{o.name}`](#{anchor(group, o)}) | {text(o.summary)} |" for o in group.options.values()]
        yield "\n".join(["| option | |", "|---|---|", *rows])
        for option in group.options.values():
            yield f"### {plus}{group.name}={option.name} {{#{anchor(group, option)}}}"
            yield from description(option)
            if option.parents:
                links = (f"[`{p}`](#{anchor(group, group.options[p])})" for p in option.parents)
                yield f"Starts from {', '.join(links)}, with these keys changed or added."
            if option.choices:
                chosen = (
                    f"[`{g}={o}`](#{anchor(reference.groups[g], reference.groups[g].options[o])})"
                    if g in reference.groups
                    else f"`{g}={o}`"
                    for g, o in option.choices.items()
                )
                yield f"Chooses {', '.join(chosen)}."
            if option.keys:
                yield table(reference, option.keys)


def anchor(group: Group, option: Option | None = None) -> str:
    return "-".join([*group.name.split("/"), *([option.name] if option else [])])


def description(option: Option):
    """Paragraphs of a comment; indented lines that start a command are code."""
    lines = option.comment.splitlines()
    command = re.compile(r"\s+(python|git|pip) ")
    while lines:
        block = [lines.pop(0)]
        is_code = bool(command.match(block[0]))
        while lines and (lines[0].startswith(" ") if is_code else not command.match(lines[0])):
            block.append(lines.pop(0))
        indent = len(block[0]) - len(block[0].lstrip())
        shown = [line[indent:] for line in block]
        yield "\n".join(["```bash", *shown, "```"]) if is_code else text(" ".join(s.strip() for s in block))


def table(reference: Reference, keys: tuple[Key, ...]) -> str:
    rows = [f"| `{key.path}` | {value(key)} | {text(reference.comment_of(key))} |" for key in keys]
    return "\n".join(["| key | value | |", "|---|---|---|", *rows])


def value(key: Key) -> str:
    if key.path.endswith("_target_"):  # a link, if the reference has the object
        name = key.value.rpartition(".")[2]
        return f'<autoref identifier="{key.value}" optional><code>{name}</code></autoref>'
    shown = key.value if len(key.value) <= LONGEST else f"{key.value[: LONGEST - 1]}…"
    return f"<code>{escape(shown)}</code>"


def text(comment: str) -> str:
    """A comment as Markdown that shows all its characters; code stays code."""
    parts = re.split(r"(`[^`]+`)", comment)
    return "".join(part if part.startswith("`") else escape(part) for part in parts)


def escape(written: str) -> str:
    return re.sub(r"[\\*_{}\[\]|~^`]", lambda found: f"&#{ord(found[0])};", html.escape(written, quote=False))
