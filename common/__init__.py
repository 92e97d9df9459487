"""What the scripts share; see each module's first line."""


class UsageError(ValueError):
    """Bad usage or bad input: one line that says what was wrong and what to do; exit status 2."""
