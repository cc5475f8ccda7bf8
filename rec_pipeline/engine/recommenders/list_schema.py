"""What a stored list of recommendations is: the one schema that the makers, the sealed files and the store share."""

from typing import Final

import pyarrow as pa

from rec_pipeline.engine import columns as c

PERSONAL: Final = "personal"
POPULAR: Final = "popular"
POPULAR_USER_ID: Final = ""
"""The list for everybody is kept under the one text that no user id can be."""

SOURCE_TYPE: Final = pa.struct([(c.NAME, pa.string()), (c.RANK, pa.int32()), (c.SHARE, pa.float32())])
LIST_SCHEMA: Final = pa.schema(
    {
        c.USER_ID: pa.string(),
        c.ITEM_ID: pa.list_(pa.string()),
        c.SCORE: pa.list_(pa.float32()),
        c.SOURCES: pa.list_(pa.list_(SOURCE_TYPE)),
        c.REASON: pa.list_(pa.string()),
        c.ORIGIN: pa.string(),
    }
)
"""
One row a user; the four lists are parallel, best item first. The sources of an item are those that ranked it, largest
share first; shares sum to 1. ``origin`` is ``popular`` where every item comes from the fallback, else ``personal``.
"""
