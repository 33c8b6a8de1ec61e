"""What a metric value means: a result is printed and stored with its protocol, and two results are compared only if theirs are equal."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from hf_seqrec.metrics import check_cutoffs


PARTS = ("validation", "test")


@dataclass(frozen=True)
class Protocol:
    """How a ranking is evaluated.

    Args:
        split: Name of the split, as `hf_seqrec.data` gives it: `"leave_one_out"`, `"user_ratio"`, …
        part: `"validation"` (the only part models and checkpoints may be chosen on) or `"test"`.
        candidates: `"full"` ranks the target among the whole catalogue. `"sampled99"` ranks it among itself and 99 stored, seeded
            negatives; such values do not estimate full ranking and can reverse the order of models, so their names carry the count.
        exclude_seen: Whether items of the history can not be recommended. A target that is itself in the history is then a miss.
        cutoffs: List lengths `k`; stored sorted.
        ties: Rank of a target among items of equal score; only `"average"` exists: the middle of the places it could take.

    Raises:
        ValueError: If a value is not one of these.

    Example:
        >>> Protocol(candidates="sampled99", cutoffs=(10,)).describe()
        'leave_one_out / test / 1 + 99 sampled candidates / seen items excluded / ties averaged / @10'
    """

    split: str = "leave_one_out"
    part: str = "test"
    candidates: str = "full"
    exclude_seen: bool = True
    cutoffs: tuple[int, ...] = (5, 10, 20)
    ties: str = "average"

    def __post_init__(self) -> None:
        if not isinstance(self.split, str) or not self.split:
            raise ValueError(f"`split` must be the name of a split, such as 'leave_one_out', got {self.split!r}.")
        if self.part not in PARTS:
            raise ValueError(f"`part` must be one of {PARTS}, got {self.part!r}.")
        if not re.fullmatch(r"full|sampled[1-9]\d*", str(self.candidates)):
            raise ValueError(
                f"`candidates` must be 'full', or 'sampled99' for 99 sampled negatives, got {self.candidates!r}."
            )
        if not isinstance(self.exclude_seen, bool):
            raise ValueError(f"`exclude_seen` must be True or False, got {self.exclude_seen!r}.")
        if self.ties != "average":
            raise ValueError(f"`ties` must be 'average', got {self.ties!r}.")
        object.__setattr__(self, "cutoffs", check_cutoffs(self.cutoffs))

    @property
    def num_negatives(self) -> int | None:
        """Number of sampled negatives per row, `None` for full ranking."""
        return None if self.candidates == "full" else int(self.candidates.removeprefix("sampled"))

    @property
    def suffix(self) -> str:
        """What metric names end with: empty for full ranking, `"/sampled99"` for sampled candidates."""
        return "" if self.candidates == "full" else f"/{self.candidates}"

    def describe(self) -> str:
        """One line to print beside every result."""
        among = "full ranking" if self.num_negatives is None else f"1 + {self.num_negatives} sampled candidates"
        seen = "seen items excluded" if self.exclude_seen else "seen items allowed"
        cutoffs = ", ".join(map(str, self.cutoffs))
        return f"{self.split} / {self.part} / {among} / {seen} / ties averaged / @{cutoffs}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return asdict(self) | {"cutoffs": list(self.cutoffs)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Protocol":
        """Rebuild a protocol from `to_dict`.

        Raises:
            ValueError: If a key is unknown or missing: a protocol is never completed by guessing.
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            unknown, missing = sorted(set(values) - known), sorted(known - set(values))
            raise ValueError(
                f"A protocol has exactly the keys {sorted(known)}; unknown: {unknown}, missing: {missing}."
            )
        return cls(**values)
