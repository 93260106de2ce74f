"""From run folders to a judgement. Reads files only; needs no model, no GPU and no configuration library.

| file | what it does |
|---|---|
| ``run_folder.py`` | reads what one run left behind |
| ``command.py`` | folders and ``--out`` of the commands that read them |
| ``rows.py`` | groups runs by configuration, and refuses runs on different questions |
| ``comparison.py`` | rates, paired differences, adjusted tests |
| ``matrix.py`` | trained on one, tested on all: cells, means, changes between prompts |
| ``matrix_lines.py``, ``matrix_tables.py`` | which runs make a line; tables, CSV and heat map |
| ``fairness.py`` | lists every setting in which two compared methods differ |
| ``controls.py`` | what the controls say, in tables |
| ``tables.py`` | the same cells for the console, Markdown and the page |
| ``paper_tables.py`` | and as LaTeX and CSV |
| ``figures.py`` | curves and dot plots |
| ``verdicts.py`` | leaks, shortcuts, alarms and blindness, in words |
| ``examples.py`` | which questions and which groups of completions are printed |
| ``traces.py`` | every answer and every completion, packed for the trace browser |
| ``page.py``, ``page.html``, ``page.css`` | ``report.html``, one self-contained file |
| ``traces.html``, ``traces.css``, ``traces*.js`` | the trace browser in it |
"""
