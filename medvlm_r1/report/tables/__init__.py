"""Tables for the console, Markdown, LaTeX, CSV and the page."""
