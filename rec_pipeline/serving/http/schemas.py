"""Bodies of requests and responses, as OpenAPI shows them."""

from typing import Annotated, Any, Final, Self

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams

from rec_pipeline.serving.params import MAX_EXCLUDED, MAX_SESSION_ITEMS, MAX_TEXT, MAX_TOP_K

ID_PATTERN = (
    r"^[^\x00-\x20\x7f-\xa0\u2028\u2029{}]([^\x00-\x1f\x7f-\x9f\u2028\u2029{}]*[^\x00-\x20\x7f-\xa0\u2028\u2029{}])?$"
)
Id = Annotated[str, Field(min_length=1, max_length=256, pattern=ID_PATTERN, examples=["u0042"])]
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K, description="Length of the list.")]
Text64 = Annotated[str | None, Field(max_length=64)]
Category = Annotated[str, Field(min_length=1, max_length=100)]
EXAMPLE_ITEM: dict[str, Any] = {
    "id": "i0042",
    "title": "The Last Table of Northmere",
    "score": 0.942,
    "sources": ["collaborative", "content"],
    "reason": 'Because you liked "Pickle Jar, Port Avel"',
}


class Context(BaseModel, extra="forbid"):
    """Circumstances of a request."""

    time: str | None = Field(None, max_length=64, examples=["2024-02-10T15:30:00"])
    location: str | None = Field(None, max_length=64, examples=["New York"])
    device: str | None = Field(None, max_length=64, examples=["mobile"])


class ListQuery(BaseModel):
    """A question without a body: the user of the path and what stands behind the question mark."""

    user_id: Id = Field(description="User id.")
    top_k: TopK = 10
    time: Text64 = None
    location: Text64 = None
    device: Text64 = None
    exclude: list[Id] = Field([], max_length=MAX_EXCLUDED, description="Items to leave out.")
    categories: list[Category] = Field([], max_length=20, description="Categories an item must belong to.")
    without_categories: list[Category] = Field([], max_length=20, description="Categories it must not belong to.")
    explain: bool = Field(False, description="Say what part of each score each source gave.")

    @classmethod
    def of(cls, user_id: str, query: QueryParams) -> Self:
        """
        Read a request.

        FastAPI's own reading of nine parameters takes as long as a kept answer itself.

        Raises
        ------
        RequestValidationError
            Naming every part that cannot be.
        """
        given: dict[str, Any] = dict(query)
        for name in _LISTS & given.keys():
            given[name] = query.getlist(name)
        try:
            return cls.model_validate(given | {"user_id": user_id})
        except ValidationError as error:
            found = error.errors(include_url=False)
            in_path = ("user_id",)
            raise RequestValidationError(
                [{**e, "loc": ("path" if e["loc"] == in_path else "query", *e["loc"])} for e in found]
            ) from error

    @classmethod
    def parameters(cls) -> list[dict[str, Any]]:
        """Return them as OpenAPI describes parameters."""
        schema = cls.model_json_schema()
        return [
            {
                "name": name,
                "in": "path" if name == "user_id" else "query",
                "required": name == "user_id",
                "schema": part,
            }
            for name, part in schema["properties"].items()
        ]


_LISTS: Final = frozenset({"exclude", "categories", "without_categories"})


class RecommendationsQuery(BaseModel):
    """A question with a body: for long lists, sessions without an id, taste in words."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"items": ["i0001", "i0042"], "text": "slow-burn space opera", "top_k": 5}]},
    )

    user_id: Id | None = Field(None, description="Left out for a session without one.")
    top_k: TopK = 10
    context: Context = Context()
    exclude: list[Id] = Field([], max_length=MAX_EXCLUDED, description="Items to leave out.")
    categories: list[Category] = Field([], max_length=20, description="Categories an item must belong to.")
    without_categories: list[Category] = Field([], max_length=20, description="Categories it must not belong to.")
    items: list[Id] = Field([], max_length=MAX_SESSION_ITEMS, description="Items just looked at, oldest first.")
    text: str = Field("", max_length=MAX_TEXT, description="Taste in words.")
    explain: bool = Field(False, description="Say what part of each score each source gave.")


class Item(BaseModel):
    """One item of a list."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_ITEM]})

    id: str
    title: str
    score: float
    sources: list[str] = Field(description="What proposed it, the largest share first.")
    reason: str
    shares: dict[str, float] | None = Field(None, description="Part of the score by source; with `explain`.")


class RecommendationList(BaseModel):
    """A list and where it comes from."""

    user_id: str | None
    items: list[Item]
    experiment: str = Field(description="The experiment that runs; empty for a session without id.")
    variant: str = Field(description="The user's variant of it.")
    source: str = Field(description="`cache`, `generated`, `popular` or `snapshot`.")
    generation: int = Field(description="Published generation it was made under; 0 before the first.")
    age_s: float = Field(description="Seconds since it was made.")
    degraded: bool = Field(description="Whether something failed on the way.")
    reason: str = Field(description="What failed.")
    left_out: dict[str, str] = Field(description="Sources that failed or were late, and why.")


class SimilarItem(BaseModel):
    """An item near another one."""

    id: str
    title: str
    score: float = Field(description="Cosine of the texts' vectors.")


class SimilarItems(BaseModel):
    """Items near another one, the nearest first."""

    item_id: str
    title: str
    items: list[SimilarItem]


class HistoryItem(BaseModel):
    """Something the user did."""

    id: str
    title: str
    is_live: bool = Field(description="Whether it came as an event lately.")
    age_s: float | None = Field(description="Seconds since that event; null for what is older.")


class History(BaseModel):
    """What is known of a user, the newest first."""

    user_id: str
    is_known: bool = Field(description="Whether the models were fitted with this user.")
    items: list[HistoryItem]


class EventBody(BaseModel):
    """One event: a user did something with an item."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"user_id": "u0042", "item_id": "i0007", "event_type": "click", "event_id": "9b1c"}]
        },
    )

    user_id: Id
    item_id: Id
    event_type: str = Field(max_length=40, examples=["click"], description="One of the configured types.")
    timestamp: str | float | None = Field(
        None,
        description="ISO 8601 with a zone, or seconds since 1970; now by default.",
        examples=["2024-02-10T15:30:00Z"],
    )
    context: dict[str, str] = Field({}, description="`device`, `location`.", examples=[{"device": "tv"}])
    event_id: Id | None = Field(None, description="The same id counts once, however often it is sent.")
    served: dict[str, Any] | None = Field(
        None, description="Where the item came from: `sources`, `generation`, `variant`, `position`."
    )


class EventBatch(BaseModel, extra="forbid"):
    """Several events at once."""

    events: list[EventBody] = Field(min_length=1, max_length=500)


class Recorded(BaseModel):
    """What became of events."""

    recorded: int = Field(description="Events that are new.")
    duplicates: int = Field(description="Events whose id had been recorded; nothing changed.")
    forgotten: int = Field(description="Events of users who asked to be forgotten; nothing was kept.")


class Health(BaseModel):
    """How the service is."""

    status: str = Field(examples=["ok"])
    store: str = Field(examples=["ok"])
    bundle: str = Field(examples=["6cc21cd0007583a0"])


class Status(BaseModel):
    """What is live."""

    generation: int
    published_at: float = Field(description="Unix seconds; 0 when unknown.")
    age_s: float
    bundle: str
    n_users: int
    n_items: int
    store: str
    metrics: list[dict[str, Any]] = Field(
        description="Of the evaluation before publication: recommender, metric, mean."
    )
    event_types: list[str]
    some_users: list[str] = Field(description="A few ids to try.")
