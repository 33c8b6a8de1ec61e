"""Names of the columns of the two tables of a data set, spelled once.

Example:
    >>> from hf_seqrec.data import columns
    >>> columns.USER_ID, columns.ITEM_ID
    ('user_id', 'item_id')
"""

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
POSITION = "position"
RATING = "rating"

TITLE = "title"
DESCRIPTION = "description"
CATEGORIES = "categories"
BRAND = "brand"
GENRES = "genres"
RELEASE_DATE = "release_date"

ITEMS = "items"
INTERACTIONS = "interactions"
