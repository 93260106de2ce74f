"""The page ``report.html``.

================  =====================================================================================
file              content
================  =====================================================================================
``render.py``     writes the page: ``write_run_report``, ``write_comparison_report``, ``write_page``
``headline.py``   title, main result and caveat
``sections.py``   one function per section, in order; ``base.html`` loops over them
``verdicts.py``   leaks, shortcuts, alarms and image use in sentences
``examples.py``   choice of the printed questions and completion groups
``audit.py``      marks on numbers, summary of the audit
``*.html``        ``base.html``, ``macros.html`` and one partial template per section
================  =====================================================================================
"""
