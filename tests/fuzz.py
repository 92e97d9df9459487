"""Coverage-guided fuzzing of the readers of files that others may have written.

    pip install atheris
    python tests/fuzz.py image -max_total_time=120
    python tests/fuzz.py log -max_total_time=120

Not part of the test suite, of which it takes the properties: it ends at the first input that breaks
one. What libFuzzer's other flags do: -help=1.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["common"]):
    import test_properties as properties

TARGETS = {
    "image": properties.test_bytes_that_are_no_image_are_unreadable_and_no_other_error,
    "log": properties.test_a_log_of_anything_gives_its_rows_and_names_the_other_lines,
}
atheris.Setup(sys.argv, TARGETS[sys.argv.pop(1)].hypothesis.fuzz_one_input)
atheris.Fuzz()
