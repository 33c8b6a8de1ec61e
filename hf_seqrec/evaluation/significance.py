"""Is one model better than another on the same users? The interval of the difference, and two paired tests."""

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_seqrec.metrics import ranking_scores

from .evaluator import bootstrap_intervals
from .record import EvaluationRecord


@dataclass(frozen=True)
class Comparison:
    """One metric of two records on the same users; differences are second minus first.

    Attributes:
        metric: Name of the metric.
        first: Value of the first record.
        second: Value of the second record.
        difference: `second - first`.
        low: Lower end of the bootstrap 95 % interval of the difference, resampling users.
        high: Upper end.
        relative_gain: `difference / first`; None where `first` is 0.
        p_randomisation: Two-sided p-value of the paired randomisation test: how often a difference at least as large comes out when the
            two values of every user are swapped at random.
        p_wilcoxon: Two-sided p-value of Wilcoxon's signed-rank test over users; users without a difference take no part.
        num_users: Number of users.
        num_better: Users for whom the second is better.
        num_worse: Users for whom the second is worse.
    """

    metric: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    relative_gain: float | None
    p_randomisation: float
    p_wilcoxon: float
    num_users: int
    num_better: int
    num_worse: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return asdict(self)


def compare_records(
    first: EvaluationRecord,
    second: EvaluationRecord,
    metric: str = "ndcg@10",
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two records of the same rows under the same protocol.

    One record is one run: a difference between two seeds of the same model can be as large as one between two models, so a claim
    about methods needs several seeds of both.

    Args:
        first: The record to compare with.
        second: The record that is hoped to be better.
        metric: Metric with cut-off, such as `"ndcg@10"`; any cut-off, as it is computed from the ranks. The suffix of a sampled protocol
            may be left out.
        num_resamples: Bootstrap replicates, and random swaps.
        seed: Seed of both.

    Returns:
        The comparison.

    Raises:
        ValueError: If the records differ in anything that makes their values incomparable, naming it, or the metric is unknown.

    Example:
        >>> compare_records(EvaluationRecord.load("sasrec.json"), EvaluationRecord.load("llm.json"), "ndcg@10")  # doctest: +SKIP
        Comparison(metric='ndcg@10', first=0.1758, second=0.1803, difference=0.0045, low=0.0012, high=0.0079, …)
    """
    from scipy import stats  # imported late: it takes longer to load than everything else here

    check_comparable(first, second)
    suffix = first.protocol.suffix
    match = re.fullmatch(r"([a-z]+)@([1-9]\d*)", metric.removesuffix(suffix) if suffix else metric)
    if not match:
        raise ValueError(f"A metric is a name with a cut-off, such as 'ndcg@10{suffix}', got {metric!r}.")
    name, cutoff = match[1], int(match[2])
    values = [
        next(iter(ranking_scores(record.ranks, [cutoff], metrics=[name]).values())) for record in (first, second)
    ]
    # Rows of one user rise and fall together, so users are what is resampled and swapped.
    _, user = np.unique(first.loaded_rows()["user_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    row_difference = values[1] - values[0]
    per_user = np.bincount(user, weights=row_difference).astype(np.float64)
    value, other = float(values[0].mean()), float(values[1].mean())
    low, high = bootstrap_intervals({name: row_difference}, user, num_resamples=num_resamples, seed=seed)[name]
    return Comparison(
        metric=f"{name}@{cutoff}{suffix}",
        first=value,
        second=other,
        difference=other - value,
        low=low,
        high=high,
        relative_gain=(other - value) / value if value else None,
        p_randomisation=randomisation_test(per_user, num_resamples, seed),
        p_wilcoxon=float(stats.wilcoxon(per_user, method="asymptotic").pvalue) if per_user.any() else 1.0,
        num_users=len(per_user),
        num_better=int((per_user > 0).sum()),
        num_worse=int((per_user < 0).sum()),
    )


def check_comparable(first: EvaluationRecord, second: EvaluationRecord) -> None:
    """Refuse two records whose values do not mean the same or do not belong to the same rows.

    Cut-offs may differ: they are lists of values to print.

    Raises:
        ValueError: Naming every field that differs, with both values; or the first row that does.
    """
    different = []
    for name in ("dataset_fingerprint", "num_items", "candidates"):
        different.append((name, getattr(first, name), getattr(second, name)))
    protocols = first.protocol.to_dict(), second.protocol.to_dict()
    different += [
        (f"protocol.{key}", protocols[0][key], protocols[1][key]) for key in protocols[0] if key != "cutoffs"
    ]
    different = [(name, a, b) for name, a, b in different if a != b]
    if different:
        listed = "; ".join(f"{name}: {a!r} and {b!r}" for name, a, b in different)
        raise ValueError(
            f"The records of {first.model} and {second.model} can not be compared, they differ in {listed}."
        )
    rows = first.loaded_rows(), second.loaded_rows()
    if len(rows[0]) != len(rows[1]):
        raise ValueError(f"The records hold {len(rows[0])} and {len(rows[1])} rows; evaluate both on the same users.")
    for column in ("user_id", "item_id", "history_length"):
        a, b = (table[column].to_numpy(zero_copy_only=False) for table in rows)
        if (a != b).any():
            row = int(np.argmax(a != b))
            raise ValueError(
                f"The records differ in {column} from row {row} on: {a[row]!r} and {b[row]!r}; evaluate both on the same rows."
            )


def randomisation_test(difference: NDArray[np.float64], num_resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of a paired difference when the sign of every pair is a coin toss.

    Pairs with equal absolute difference are interchangeable, so one binomial draw per distinct value replaces a toss per pair.

    Args:
        difference: (num_pairs,) differences.
        num_resamples: Number of random assignments of signs.
        seed: Seed of the signs.

    Returns:
        The share of assignments, the observed one among them, whose sum is at least as far from 0.

    Example:
        >>> import numpy as np
        >>> randomisation_test(np.zeros(5)), randomisation_test(np.ones(30)) < 0.001
        (1.0, True)
    """
    size, how_many = np.unique(np.abs(difference[difference != 0]), return_counts=True)
    observed = abs(difference.sum())
    rng = np.random.default_rng(seed)
    as_far, block = 0, max(1, 2**22 // max(len(size), 1))
    for begin in range(0, num_resamples, block):
        positive = rng.binomial(how_many, 0.5, size=(min(block, num_resamples - begin), len(size)))
        sums = np.abs((2 * positive - how_many) @ size)
        as_far += int((sums >= observed * (1 - 1e-12)).sum())  # equal sums may round differently
    return (as_far + 1) / (num_resamples + 1)
