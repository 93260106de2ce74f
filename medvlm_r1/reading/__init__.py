"""Reading of completions: which part answers, and which option a human reader takes from it.

===============  =======================================================================================
``scope.py``     the part of a completion that answers: behind the reasoning, within answer tags
``plain.py``     that part without Markdown, LaTeX, JSON and quotes
``options.py``   where it has the text of an option
``mentions.py``  where it names an option, by letter or by text
``claims.py``    which of these mentions it denies, doubts or states, rule by rule
``layout.py``    which of them lead, stand alone, or only list the options again
``lenient.py``   the letter that a human reader takes, or none
``words.py``     the words that these rules go by, English and Chinese
``released.py``  the rules of the papers' released code, for comparison
===============  =======================================================================================
"""
