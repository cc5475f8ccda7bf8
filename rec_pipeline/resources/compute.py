"""Where heavy steps are computed, as Dagster sees it."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Literal

import dagster as dg
from pydantic import Field

from rec_pipeline.engine.compute import LOCAL, Compute
from rec_pipeline.engine.errors import ConfigurationError


class ComputeResource(dg.ConfigurableResource[Compute]):
    """Hands the steps what runs their shards: this process, or the workers of a Ray cluster."""

    backend: Literal["local", "ray"] = Field("local", description="Where shards are computed; changes no result.")
    ray_address: str | None = Field(None, description="Cluster to connect to; one on this machine's cores when unset.")
    ray_workers: int | None = Field(None, description="Workers of that one; as many as cores when unset.")
    ray_trainers: int = Field(1, description="Processes that train a model together.")

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Compute]:
        """
        Yield it, and leave the cluster afterwards.

        Raises
        ------
        ConfigurationError
            If Ray is asked for and not installed.
        """
        if self.backend == "local":
            yield LOCAL
            return
        try:
            from rec_pipeline.resources.ray_compute import RayCompute
        except ImportError as error:
            raise ConfigurationError(f"REC_COMPUTE=ray needs Ray: pip install 'rec-pipeline[ray]' ({error})") from error
        tell = (context.log or dg.get_dagster_logger()).info
        with closing(RayCompute(self.ray_address, self.ray_workers, self.ray_trainers, tell)) as compute:
            yield compute
