"""The data source as Dagster sees it: typed, visible in the Launchpad, one for a run."""

import dagster as dg

from rec_pipeline.engine.data.source import InteractionSource, SourceParams, open_source


class Source(dg.ConfigurableResource[None], SourceParams):
    """Where interactions and items are read from."""

    def open(self) -> InteractionSource:
        """Return the reader of the configured data set."""
        return open_source(SourceParams(**self.model_dump()))
