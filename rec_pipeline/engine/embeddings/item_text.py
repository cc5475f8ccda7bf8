"""What an item says about itself, as the one text that is embedded."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from rec_pipeline.engine import columns as c


def item_texts(items: pd.DataFrame) -> list[str]:
    """
    Return one text per item: title, categories and description, as sentences in this order.

    Absent columns and empty values are left out, runs of whitespace become one space, several categories (a list, or a
    string divided by ``|``) are joined with commas. The title comes first because an encoder cuts long texts at their
    end.

    Parameters
    ----------
    items : pd.DataFrame
        One row an item, with any of ``title``, ``categories``, ``description``.

    Returns
    -------
    list of length n_items
        In row order; the empty string where an item says nothing.

    Examples
    --------
    >>> title, categories, description = ["Heat", None], ["Crime|Drama", None], ["A heist. ", " "]
    >>> item_texts(pd.DataFrame({"title": title, "categories": categories, "description": description}))
    ['Heat. Crime, Drama. A heist.', '']
    """
    missing = [""] * len(items)
    title, categories, description = (
        items[column].tolist() if column in items.columns else missing
        for column in (c.TITLE, c.CATEGORIES, c.DESCRIPTION)
    )
    listed = [value.split("|") if isinstance(value, str) else value for value in categories]
    return [
        " ".join(_sentence(entries) for entries in ([name], groups, [body]) if _sentence(entries))
        for name, groups, body in zip(title, listed, description, strict=True)
    ]


def _sentence(entries: Any) -> str:
    if not isinstance(entries, Iterable):  # None, NaN and NA stand for a missing list
        return ""
    text = ", ".join(filter(None, (" ".join(entry.split()) for entry in entries if isinstance(entry, str))))
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."
