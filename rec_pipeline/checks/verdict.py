"""One way to say what a check found."""

from typing import Any

import dagster as dg

WARN = dg.AssetCheckSeverity.WARN


def verdict(
    passed: object, *, severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR, **numbers: Any
) -> dg.AssetCheckResult:
    """Return a result with the numbers that decided it, numpy's scalars turned into Python's."""
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in numbers.items()}
    return dg.AssetCheckResult(passed=bool(passed), severity=severity, metadata=plain)
