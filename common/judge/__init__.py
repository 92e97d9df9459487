"""From rows of the log to verdicts: statistics, comparisons, claims, findings. Never torch."""
