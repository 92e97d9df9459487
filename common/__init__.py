"""What the scripts share; see each module's first line."""


class UsageError(ValueError):
    """Bad usage or bad input: one line that says what was wrong and what to do; exit status 2."""


def first_line(error: BaseException) -> str:
    """An error in one line: its type, and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:200]}" if said else type(error).__name__
