import io
import logging
import re

import dagster as dg
import pytest

from rec_pipeline.engine.errors import InputRejectedError
from rec_pipeline.resources.progress_logger import ProgressHandler


@dg.asset
def counted(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    context.log.info("epoch 1: loss [0.5]")
    context.log.debug("not for people")
    context.log.warning("careful\nvery")
    return dg.MaterializeResult(metadata={"dagster/row_count": 12_345})


@dg.asset(deps=[counted])
def consumer() -> None: ...


@dg.asset
def rejected() -> None:
    told = InputRejectedError("column 'user_id' is missing in a.csv: map it")
    told.__cause__ = KeyError("user_id")
    raise dg.Failure("wrapped") from told


def check(
    passed: bool, severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR, **metadata: object
) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=counted, blocking=True, name="numbers_are_right")
    def numbers_are_right() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=passed, severity=severity, metadata=metadata)

    return numbers_are_right


def run(assets: list[dg.AssetsDefinition], *checks: dg.AssetChecksDefinition, verbose: bool = False) -> list[str]:
    stream = io.StringIO()
    names = {f"{key.asset_key.to_python_identifier()}_{key.name}" for check in checks for key in check.check_keys}

    @dg.logger
    def progress(_: dg.InitLoggerContext) -> logging.Logger:
        logger = logging.Logger("progress", logging.DEBUG)
        logger.addHandler(ProgressHandler(stream, len(assets), names, verbose=verbose))
        return logger

    job = dg.define_asset_job("job", executor_def=dg.in_process_executor)
    definitions = dg.Definitions(assets=assets, asset_checks=checks, jobs=[job], loggers={"progress": progress})
    with dg.DagsterInstance.ephemeral() as instance:
        definitions.resolve_job_def("job").execute_in_process(
            instance=instance, run_config={"loggers": {"progress": {}}}, raise_on_error=False
        )
    return stream.getvalue().splitlines()


def test_a_step_is_a_heading_its_own_lines_and_what_it_took() -> None:
    heading, *lines, done = run([counted])

    assert heading == " 1/1 counted"
    assert lines == ["    epoch 1: loss [0.5]", "    careful", "    very"]
    assert re.fullmatch(r"    done in \d+\.\d s, 12,345 rows", done)


def test_a_check_is_one_line_with_its_numbers_and_no_heading() -> None:
    lines = run([counted], check(True, n_rows=1234, share=1 / 3, factory="Flat"))

    assert lines[-1] == "    ✓ numbers_are_right  n_rows 1,234, share 0.3333, factory Flat"
    assert sum("numbers_are_right" in line for line in lines) == 1


def test_the_verdict_of_a_check_replaces_its_numbers() -> None:
    lines = run([counted], check(True, verdict="0.2 is above the bound 0.1.", low=0.2))

    assert lines[-1] == "    ✓ numbers_are_right  0.2 is above the bound 0.1."


@pytest.mark.parametrize(("severity", "mark"), [(dg.AssetCheckSeverity.ERROR, "✗"), (dg.AssetCheckSeverity.WARN, "!")])
def test_a_failed_check_is_marked_by_whether_it_stops_the_run(severity: dg.AssetCheckSeverity, mark: str) -> None:
    lines = run([counted, consumer], check(False, severity, low=0.2))

    assert f"    {mark} numbers_are_right  low 0.2" in lines
    assert (" 2/2 consumer" in lines) == (mark == "!")
    assert not any("failed" in line or "Dependencies" in line for line in lines)


def test_a_failure_says_what_to_do_and_no_more() -> None:
    lines = run([rejected])

    assert lines == [" 1/1 rejected", "    failed column 'user_id' is missing in a.csv: map it"]


def test_verbose_adds_the_stack_of_a_failure() -> None:
    lines = run([rejected], verbose=True)

    assert any("test_progress_logger.py" in line for line in lines)
