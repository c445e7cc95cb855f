"""The report of a study as HTML, Markdown, LaTeX and CSV, and on the terminal."""
