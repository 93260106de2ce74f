"""``report.html``: one file for a run or a comparison."""
