"""Gates a generation passes before it is sealed: what rules about single lists cannot see."""

from typing import Final

from rec_pipeline.engine.errors import GateRefusedError
from rec_pipeline.engine.store.generation import Generation

MAX_USER_CHANGE: Final = 0.2
MAX_POPULAR_SHARE: Final = 0.9


def require_plausible(
    n_users: int, n_popular_users: int, last: Generation | None, *, origin: str = "", accept_variance: bool
) -> None:
    """
    Refuse a generation that differs from the last one in a way that is rarely meant.

    Parameters
    ----------
    n_users, n_popular_users
        Lists of the new one, and those among them that are the popular list.
    last
        The generation that is live, or None before the first.
    origin
        Where the interactions came from; generations of different origins are not compared.
    accept_variance
        Whether a person has said that the change is meant.

    Raises
    ------
    GateRefusedError
        If the number of users changed by more than a fifth, or nearly everybody would get the popular list.
    """
    if accept_variance:
        return
    if (
        last is not None
        and _origin(last, origin) == origin
        and abs(n_users - last.n_users) > MAX_USER_CHANGE * last.n_users
    ):
        raise GateRefusedError(
            f"{n_users:,} users have a list, {n_users / last.n_users - 1:+.0%} against generation {last.number} with "
            f"{last.n_users:,}: beyond ±{MAX_USER_CHANGE:.0%}; `--accept-variance` publishes it all the same"
        )
    if n_popular_users > MAX_POPULAR_SHARE * n_users:
        raise GateRefusedError(
            f"{n_popular_users:,} of {n_users:,} users would get the popular list, over {MAX_POPULAR_SHARE:.0%}: "
            "`--accept-variance` publishes it all the same"
        )


def _origin(generation: Generation, unknown: str) -> str:
    """Return where the interactions came from that a generation was made of; ``unknown`` where it does not say."""
    return str(generation.metadata.get("lineage", {}).get("data", {}).get("origin", unknown))
