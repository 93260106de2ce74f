"""Griffe extension: makes docstrings render well.

Sphinx roles become links to the reference, where it has the object. One entry for several parameters
("a, b: text") becomes one for each, so that each has its type.
"""

import re

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|attr):`(~?)([\w.]+)`")
SEVERAL = re.compile(r"^ {4}(\w+(?:, \w+)+):(.*(?:\n {5,}.*)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj, **kwargs):
        if not obj.docstring:
            return
        extra = {p.name for p in getattr(obj, "parameters", ()) if p.kind is griffe.ParameterKind.var_keyword}

        def one_each(entry):
            names = (f"**{name}" if name in extra else name for name in entry[1].split(", "))
            return "\n".join(f"    {name}:{entry[2]}" for name in names)

        text = SEVERAL.sub(one_each, obj.docstring.value)
        obj.docstring.value = ROLE.sub(lambda role: link(obj, *role.groups()), text)


def link(scope, short, name):
    try:
        path = scope.resolve(name)
    except griffe.NameResolutionError:
        path = name
    text = name.rpartition(".")[2] if short else name
    return f'<autoref identifier="{path}" optional><code>{text}</code></autoref>'
