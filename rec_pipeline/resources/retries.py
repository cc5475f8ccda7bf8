"""When a step is tried again: only after errors that may pass by themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from rec_pipeline.engine.errors import RecPipelineError

NETWORK = dg.RetryPolicy(max_retries=3, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


@contextmanager
def only_transient_errors_retry() -> Iterator[None]:
    """Fail the step for good on errors that trying again cannot mend, whatever its retry policy."""
    try:
        yield
    except RecPipelineError as error:
        if error.is_transient:
            raise
        raise dg.Failure(str(error), allow_retries=False) from error
