r"""Text without its markup: Markdown, LaTeX, JSON, quotes, full-width characters.

==================================  ===============
written                             plain
==================================  ===============
``**B**``, ``"B"``, ``$B$``        ``B``
``\text{B}``                        ``B``
``\boxed{B}``                       ``answer: B``
``{"answer": "B"}``                 ``answer: B``
``~~A~~ B``                         ``B``
==================================  ===============
"""

import re
import unicodedata

LONGEST = 10_000  # characters; of a longer text its beginning and its end are read
_RULES = [
    (re.compile(r"<\|[^|<>]{0,40}\|>|</?(?![A-J] ?>)[A-Za-z][\w-]{0,20} ?/?>"), " "),  # special tokens, tags
    (re.compile(r"~~[^~\n]{1,200}~~"), " "),
    (re.compile(r"\\f?boxed ?(?=\{)"), " answer: "),
    (re.compile(r"\\[A-Za-z]{1,20} ?(?=\{)|\\[()\[\],;! ]|[{}$*`\"]"), ""),
    (re.compile("[\u201c-\u201f\u00ab\u00bb\u3008-\u3011\u3014\u3015]"), ""),  # quotes and brackets
    (re.compile(r"[\u2018\u2019]"), "'"),
    (re.compile(r"(?<!\w)'|'(?!\w)|(?<!\w)_{1,3}|_{1,3}(?!\w)"), ""),
    (re.compile(r"(?m)^[ \t]{0,8}(?:#{1,6} |> ?|[-\u2022+] )"), ""),
    (re.compile(r"(?i)(?<=option|choice|answer)[-_](?=[a-j]\b)"), " "),
    (re.compile(r"[^\S\n]+"), " "),
    (re.compile(r" ?\n[ \n]*"), "\n"),
]


def plain(text: str) -> str:
    """Remove markup, normalise characters (NFKC) and white space; line breaks stay."""
    text = text.strip()
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}\n{text[-LONGEST // 2 :]}"
    text = unicodedata.normalize("NFKC", text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text.strip()
