r"""Text without its markup: Markdown, LaTeX, JSON, quotes, full-width characters.

==================================  ===============
written                             plain
==================================  ===============
``**B**``, ``"B"``, ``$B$``, ``Ｂ``   ``B``
``\text{B}``                        ``B``
``\boxed{B}``                       ``answer: B``
``{"answer": "B"}``                 ``answer: B``
``~~A~~ B``                         ``B``
==================================  ===============
"""

import re
import unicodedata

LONGEST = 20_000  # characters; of a longer text its beginning and its end are read
_RULES = [
    (re.compile(r"<\|[^|<>]{0,40}\|>|</?[A-Za-z][\w-]{0,20} ?/?>"), " "),  # special tokens, tags
    (re.compile(r"~~[^~\n]{1,200}~~"), " "),
    (re.compile(r"\\f?boxed ?(?=\{)"), " answer: "),
    (re.compile(r"\\[A-Za-z]{1,20} ?(?=\{)|\\[()\[\],;! ]|[{}$*`\"“”„«»「」『』]"), ""),
    (re.compile(r"[’‘]"), "'"),
    (re.compile(r"(?<!\w)'|'(?!\w)|(?<!\w)_{1,3}|_{1,3}(?!\w)"), ""),
    (re.compile(r"(?m)^[ \t]{0,8}(?:#{1,6} |> ?|[-•+] )"), ""),
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
