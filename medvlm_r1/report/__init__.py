"""From run folders to a judgement. Reads files only; needs no model, no GPU and no configuration library.

| file | what it does |
|---|---|
| ``run_folder.py`` | reads what one run left behind |
| ``rows.py`` | groups runs by configuration, and refuses runs on different questions |
| ``comparison.py`` | rates, paired differences, adjusted tests |
| ``fairness.py`` | lists every setting in which two compared methods differ |
| ``controls.py`` | what the controls say, in tables |
| ``tables.py`` | the same cells for the console, Markdown and the page |
| ``figures.py`` | curves and dot plots |
| ``examples.py`` | which questions and which groups of completions are shown |
| ``page.py`` and ``page.html`` | ``report.html``, one self-contained file |
"""
