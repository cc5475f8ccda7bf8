import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_do_not_spin_for_long_unless_told_to(given: dict[str, str], expected: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    program = "import os, rec_pipeline; print(os.environ.get('GOMP_SPINCOUNT'))"

    printed = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-c", program], env=inherited | given, capture_output=True, text=True, check=True
    ).stdout

    assert printed.strip() == expected
