"""Reads run folders and reports on them: tables, figures, the page. Needs no model, no GPU and no Hydra.

``compare(folders)`` in ``comparison.py`` returns the data of every table; a notebook starts there.

=====================  ==================================================================================
file                   content
=====================  ==================================================================================
``run_folder.py``      the files of one run: ``read_run``, ``find_runs``
``methods.py``         titles and order of the methods
``fairness.py``        settings in which two compared methods differ
``groups.py``          run groups: one configuration over its seeds, on the same questions
``comparison.py``      rates, paired differences, adjusted tests: ``compare``
``figures.py``         dot plots and training curves
``tables/``            tables for the console, Markdown, LaTeX and CSV
``matrix/``            trained on one domain, tested on all
``sweep/``             statuses, costs and effects of a multirun
``page/``              ``report.html``: verdicts, sections, templates
``traces/``            the trace browser of the page
=====================  ==================================================================================
"""
