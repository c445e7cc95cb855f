"""The report of a study: HTML, Markdown, LaTeX, CSV and terminal."""
