"""Views, prediction, score files, metrics, fusion and reports."""
