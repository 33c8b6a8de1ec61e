"""The items of a data set with their texts, and the map between item ids and item indices."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .columns import ITEM_ID, TITLE


class Catalogue:
    """The items, one row each. The item in row `r` has the item_index `r + 1`; 0 is padding.

    Args:
        table: Columns `item_id` (string, unique), `title` (string, may be null) and any further texts.

    Raises:
        ValueError: If the table breaks a rule of `hf_seqrec.data.validate_items`.

    Example:
        >>> import pyarrow as pa
        >>> from hf_seqrec.data import Catalogue
        >>> catalogue = Catalogue(pa.table({"item_id": ["b7", "a2"], "title": ["Heat", "Alien"]}))
        >>> catalogue.to_index(["a2", "b7"]).tolist()
        [2, 1]
        >>> catalogue.to_item_ids([2]).to_pylist()
        ['a2']
    """

    def __init__(self, table: pa.Table):
        from .validation import validate_items

        self.table = validate_items(table)

    def __len__(self) -> int:
        return self.table.num_rows

    def __repr__(self) -> str:
        return f"Catalogue({self.num_items:,} items, columns {', '.join(self.table.column_names)})"

    @property
    def num_items(self) -> int:
        """Number of items N; valid item indices are 1…N."""
        return self.table.num_rows

    @cached_property
    def item_ids(self) -> pa.Array:
        """The owner's item ids, pyarrow string array of length N; entry `r` belongs to item_index `r + 1`."""
        return self.table[ITEM_ID].combine_chunks()

    @cached_property
    def titles(self) -> pa.Array:
        """Titles, pyarrow string array of length N, null where the owner has none."""
        return self.table[TITLE].combine_chunks()

    def to_index(self, item_ids: Sequence[str] | np.ndarray | pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Item indices of item ids.

        Args:
            item_ids: Ids, shape `(n,)`.

        Returns:
            int32, values 1…N, shape `(n,)`.

        Raises:
            TypeError: If the ids are not strings.
            KeyError: If an id is not in the catalogue; near matches among ids and titles are named.
        """
        if isinstance(item_ids, str):
            raise TypeError(f"item_ids is the single string {item_ids!r}: pass a list of ids, [{item_ids!r}].")
        array = item_ids if isinstance(item_ids, pa.Array | pa.ChunkedArray) else pa.array(item_ids, from_pandas=True)
        if len(array) == 0:
            return np.zeros(0, dtype=np.int32)
        if not pa.types.is_string(array.type) and not pa.types.is_large_string(array.type):
            raise TypeError(f"item ids must be strings, got {array.type}: convert them with str() first.")
        rows = pc.index_in(array.cast(pa.string()), value_set=self.item_ids)
        if rows.null_count:
            unknown = pc.unique(array.filter(rows.is_null())).to_pylist()
            raise KeyError(self._unknown_message(unknown))
        if isinstance(rows, pa.ChunkedArray):
            rows = rows.combine_chunks()
        return rows.to_numpy() + np.int32(1)

    def to_item_ids(self, item_index: Sequence[int] | np.ndarray) -> pa.Array:
        """Item ids of item indices.

        Args:
            item_index: Values 1…N, shape `(n,)`.

        Returns:
            pyarrow string array of length n.

        Raises:
            IndexError: If a value is padding (0) or outside 1…N.
        """
        return self.item_ids.take(self._rows(item_index))

    def to_titles(self, item_index: Sequence[int] | np.ndarray) -> pa.Array:
        """Titles of item indices; arguments and errors as in `to_item_ids`, null where there is no title."""
        return self.titles.take(self._rows(item_index))

    def title_collisions(self) -> dict[str, int]:
        """Titles that more than one item has, with the number of such items.

        Scores must therefore belong to items, never to title strings.

        Returns:
            Title to number of items (2 or more); empty when all titles differ. Missing titles do not count.
        """
        counts = pc.value_counts(self.titles.drop_null())
        titles, numbers = counts.field("values"), counts.field("counts")
        shared = pc.greater(numbers, 1)
        return dict(zip(titles.filter(shared).to_pylist(), numbers.filter(shared).to_pylist(), strict=True))

    def _rows(self, item_index: Sequence[int] | np.ndarray) -> pa.Array:
        index = np.asarray(item_index, dtype=np.int64)
        outside = index[(index < 1) | (index > self.num_items)]
        if outside.size:
            raise IndexError(
                f"item_index {outside.flat[0]} is not an item: need 1 to {self.num_items} (0 is padding). "
                "Was the index made with another catalogue?"
            )
        return pa.array(index - 1)

    def _unknown_message(self, unknown: list[str | None]) -> str:
        from rapidfuzz import fuzz, process

        first = unknown[0]
        message = f"{len(unknown)} unknown item id(s), first {first!r}; the catalogue has {self.num_items} items."
        if first is None:
            return message + " Ids must not be null."
        ids = process.extract(first, self.item_ids.to_pylist(), scorer=fuzz.ratio, limit=3, score_cutoff=60)
        near = [match for match, _, _ in ids]
        if near:
            message += f" Near ids: {', '.join(near)}."
        titles = self.titles.to_pylist()
        near_titles = process.extract(first, titles, scorer=fuzz.ratio, limit=3, score_cutoff=70)
        if near_titles:
            named = [f"{title!r} is item_id {self.item_ids[row].as_py()}" for title, _, row in near_titles]
            message += f" Near titles: {'; '.join(named)}."
        return message
