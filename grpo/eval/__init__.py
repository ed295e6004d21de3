"""Accuracy on benchmarks: rows, answers, verdicts, scores with their intervals, comparisons."""
