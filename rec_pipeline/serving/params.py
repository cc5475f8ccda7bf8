"""How an application says what it wants: configuration of the recommenders, and one request."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import BaseModel, Field, SecretStr, ValidationError

from rec_pipeline.engine.data.experiment import Experiment
from rec_pipeline.engine.data.ids import check_id
from rec_pipeline.engine.errors import ConfigurationError

MAX_TOP_K: Final = 100
MAX_EXCLUDED: Final = 100
MAX_SESSION_ITEMS: Final = 50
MAX_TEXT: Final = 2000


class CollaborativeConfig(BaseModel, frozen=True, extra="forbid"):
    """The collaborative source. Stated sizes must be those of the bundle; without a bundle they make a new network."""

    num_users: int | None = Field(None, ge=1, description="Users the model knows.")
    num_items: int | None = Field(None, ge=1, description="Items of the catalogue.")
    embedding_dim: int | None = Field(None, ge=1, description="Width of the GMF branch.")
    learning_rate: float = Field(3e-3, gt=0, description="Rate of Adam in `train_epoch`.")


class ContentConfig(BaseModel, frozen=True, extra="forbid"):
    """The content source. What is stated must be what the bundle was made with."""

    feature_extractor: str | None = Field(None, description="Text encoder; the one the bundle names by default.")
    embedding_dim: int | None = Field(None, ge=1, description="Length of a text vector.")


class RealtimeConfig(BaseModel, frozen=True, extra="forbid"):
    """The store that answers come from first, and how long they are good."""

    redis_host: str | None = Field(None, description="Host of the store; REC_REDIS_URL or the embedded one by default.")
    redis_port: int = Field(6379, ge=1, le=65535, description="Port, where a host is given.")
    redis_url: SecretStr | None = Field(None, description="The URL instead of host and port; Sentinel and Cluster too.")
    update_interval: float = Field(
        300,
        ge=0,
        description="Seconds for which an answer is served as it is; older, it is served and made anew behind.",
    )
    cache_ttl: float = Field(3600, gt=0, description="Seconds after which an answer is gone.")


class RecommenderConfig(BaseModel, frozen=True, extra="forbid"):
    """Everything a recommender can be told; each part has a default that works in a project folder."""

    cf_config: CollaborativeConfig = CollaborativeConfig()
    cb_config: ContentConfig = ContentConfig()
    rt_config: RealtimeConfig = RealtimeConfig()
    bundle: str | Path | None = Field(None, description="Where the serving bundle is; the project's own by default.")
    source_budget: float = Field(0.1, gt=0, description="Seconds each source has to answer before it is left out.")
    text_budget: float = Field(60, gt=0, description="Seconds to read taste in words; the encoder loads at first.")
    experiment: Experiment | None = Field(
        None,
        description="The experiment that runs; that of REC_EXPERIMENT, REC_VARIANTS, REC_VARIANT_PARAMS by default.",
    )
    impressions: bool = Field(
        False,
        description="Record every answer to a user as shown; leave it off if the application records what it shows.",
    )
    strict: bool = Field(False, description="Raise when store or bundle fail, instead of answering with less.")

    @classmethod
    def of(cls, config: "RecommenderConfig | Mapping[str, Any] | None") -> "RecommenderConfig":
        """
        Return ``config`` checked.

        Raises
        ------
        ConfigurationError
            Naming each field that is unknown or out of range.
        """
        if isinstance(config, RecommenderConfig):
            return config
        try:
            return cls.model_validate(dict(config or {}))
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
            raise ConfigurationError(f"the recommender's configuration cannot be used: {found}") from error


@dataclass(frozen=True)
class Request:
    """
    One question: what to recommend, to whom, under which circumstances.

    Attributes
    ----------
    user_id
        Catalogue id; None for somebody without one, who is known by ``items`` and ``text`` alone.
    top_k
        Length of the list, 1 to 100.
    context
        ``time``, ``location``, ``device``; unknown keys and values change nothing.
    exclude
        Item ids that must not be in the answer, at most 100.
    categories, without_categories
        Categories an item must, or must not, belong to.
    items
        What was just looked at in this session, oldest first, at most 50; comes after what the store knows.
    text
        Taste in words, for somebody without history.
    """

    user_id: str | None
    top_k: int = 10
    context: Mapping[str, str] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    without_categories: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    text: str = ""

    def __post_init__(self) -> None:
        if self.user_id is not None:
            check_id(self.user_id, "user_id")
        for item_id in (*self.exclude, *self.items):
            check_id(item_id, "item_id")
        limits = {
            "top_k": (self.top_k, 1, MAX_TOP_K),
            "number of excluded items": (len(self.exclude), 0, MAX_EXCLUDED),
            "number of session items": (len(self.items), 0, MAX_SESSION_ITEMS),
            "length of the text": (len(self.text), 0, MAX_TEXT),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise ConfigurationError(f"{name} is {value}, expected {low} to {high}")

    @property
    def is_plain(self) -> bool:
        """Whether the published list can answer it: nothing but a user and a length."""
        narrowing = self.exclude or self.categories or self.without_categories
        return not (self.context or narrowing or self.items or self.text)

    def cache_field(self, kind: str, bucket: str) -> str:
        """
        Return the name under which an answer to this is kept: equal for questions with equal answers.

        Parameters
        ----------
        kind
            Which recommender answers.
        bucket
            What the context means to it, so that two times of one evening share an answer.
        """
        narrowing = (sorted(self.exclude), sorted(self.categories), sorted(self.without_categories))
        if not any(narrowing) and not self.items and not self.text and not bucket:
            return f"{kind}:{self.top_k}"
        rest = orjson.dumps([bucket, *narrowing, self.items, self.text])
        return f"{kind}:{self.top_k}:{hashlib.blake2b(rest, digest_size=12).hexdigest()}"
