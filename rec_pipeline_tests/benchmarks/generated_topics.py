"""
Users and items of generated benchmarks: items lie in topics, users mix a few of these.

Within a topic items are popular by Zipf's law, but a third of what users take is anything of the topic, so that the
whole catalogue is used.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from rec_pipeline.engine.data.batches import IdxVector

N_TOPICS = 200
TOPICS_PER_USER = 5
TOPIC_DECAY = 0.4  # chance that the first topic of those left is the one
ELSEWHERE_SHARE = 0.2
UNIFORM_SHARE = 0.35


@dataclass(frozen=True)
class Topics:
    """
    Items by topic.

    Attributes
    ----------
    by_topic : int64 of shape (n_items,)
        Item rows, those of a topic together, the most popular first.
    starts : int64 of shape (N_TOPICS + 1,)
        Where each topic begins.
    """

    by_topic: IdxVector
    starts: IdxVector

    @classmethod
    def draw(cls, rng: np.random.Generator, n_items: int) -> Self:
        """Put every item in a topic."""
        topic_of = rng.integers(N_TOPICS, size=n_items)
        by_topic = np.argsort(topic_of, kind="stable")
        return cls(by_topic, np.searchsorted(topic_of[by_topic], np.arange(N_TOPICS + 1)))

    def of_users(self, rng: np.random.Generator, users: IdxVector, n_users: int) -> IdxVector:
        """Return one of the user's topics for each entry of ``users``."""
        tastes = rng.integers(N_TOPICS, size=(n_users, TOPICS_PER_USER))
        return tastes[users, np.minimum(rng.geometric(TOPIC_DECAY, len(users)), TOPICS_PER_USER) - 1]

    def wander(self, rng: np.random.Generator, topics: IdxVector) -> IdxVector:
        """Return ``topics`` with some of them changed for any."""
        elsewhere, changed = rng.random(len(topics)) < ELSEWHERE_SHARE, topics.copy()
        changed[elsewhere] = rng.integers(N_TOPICS, size=elsewhere.sum())
        return changed

    def items(self, rng: np.random.Generator, topics: IdxVector) -> IdxVector:
        """Return an item of each topic."""
        sizes = self.starts[topics + 1] - self.starts[topics]
        places = np.clip((sizes ** rng.random(len(topics))).astype(int) - 1, 0, sizes - 1)
        uniform = rng.random(len(topics)) < UNIFORM_SHARE
        places[uniform] = (rng.random(uniform.sum()) * sizes[uniform]).astype(int)
        return self.by_topic[self.starts[topics] + places]
