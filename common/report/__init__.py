"""From verdicts and rows to pages: tables, figures, and the files of the report."""
