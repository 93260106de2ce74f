"""Reading of completions: which part answers, and which option a human reader takes from it.

===============  =======================================================================================
``scope.py``     the part of a completion that answers: behind the reasoning, within answer tags
``plain.py``     that part without Markdown, LaTeX, JSON and quotes
``mentions.py``  where it names an option, by letter or by text
``claims.py``    which of these mentions it denies, doubts or states, rule by rule
``lenient.py``   the letter that a human reader takes, or none
``released.py``  the rules of the papers' released code, for comparison
===============  =======================================================================================
"""
