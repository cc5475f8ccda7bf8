"""The stream of events recorded online, and the log it is drained into."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from rec_pipeline.engine.data.event_log import DayOfEvents, EventLog
from rec_pipeline.engine.data.events import EventRules
from rec_pipeline.engine.data.experiment import Experiment
from rec_pipeline.engine.data.remote_event_log import open_event_log
from rec_pipeline.resources.days import days_of, log_days
from rec_pipeline.resources.redis_store import RedisStore

if TYPE_CHECKING:
    from rec_pipeline.engine.store.drain import Backlog, Drained


class EventStream(dg.ConfigurableResource[None]):
    """Drains the stream into the log, by day."""

    log_dir: str = Field(description="Folder of the log, one sub-folder a day.")
    log_url: str | None = Field(None, description="fsspec URL where the log is, of which log_dir then holds copies.")
    weights: dict[str, float] = Field(description="Weight of each event type; 0: recorded, but no interaction.")
    experiment: str = Field(description="Name of the experiment that runs.")
    variants: dict[str, float] = Field(description="Shares of the users in its variants.")

    @property
    def log(self) -> EventLog:
        """The log."""
        return open_event_log(Path(self.log_dir), self.log_url)

    @property
    def rules(self) -> EventRules:
        """Which events there are."""
        return EventRules(weights=self.weights)

    @property
    def running_experiment(self) -> Experiment:
        """The experiment that runs."""
        return Experiment(name=self.experiment, shares=self.variants)

    def drain(self, store: RedisStore) -> "Drained":
        """Move what is in the stream to the log."""
        from rec_pipeline.engine.store.drain import drain

        with store.publisher() as client:
            return drain(client, self.log, self.rules)

    def backlog(self, store: RedisStore) -> "Backlog":
        """Return what waits in the stream."""
        from rec_pipeline.engine.store.drain import backlog

        with store.publisher() as client:
            return backlog(client)

    def forget(self, store: RedisStore, user_id: str) -> int:
        """Remove a user's events from the log, those still in the stream too; returns how many."""
        self.drain(store)
        return self.log.forget(user_id)

    def materialised(self, context: dg.AssetExecutionContext, drained: "Drained") -> dg.MaterializeResult[Any]:
        """
        Return what became of the partitions of the run; other days that got events are logged beside it.

        A run without a partition is for whatever days the drain brought events of.
        """
        asked = days_of(context)
        found = {day: self._settled(day) for day in sorted(asked | drained.n_by_day.keys())}
        log_days(context, {day: self._metadata([events]) for day, events in found.items() if day not in asked})
        events_of_run = [events for day, events in found.items() if day in asked or not asked]
        about_the_drain = {
            "n_drained": drained.n_entries,
            "n_refused": drained.n_refused,
            "drain_seconds": drained.seconds,
        }
        version = dg.DataVersion("-".join(events.digest for events in events_of_run)) if asked else None
        return dg.MaterializeResult(metadata=self._metadata(events_of_run) | about_the_drain, data_version=version)

    def _settled(self, day: str) -> DayOfEvents:
        self.log.compact(day)
        return self.log.read_day(day)

    def _metadata(self, days: list[DayOfEvents]) -> dict[str, Any]:
        return {
            "dagster/partition_row_count": sum(len(day.table) for day in days),
            "dagster/uri": self.log_dir,
            "n_repeated": sum(day.n_repeated for day in days),
            "n_segments": sum(day.n_segments for day in days),
            "n_bytes": sum(day.n_bytes for day in days),
        }
