"""What is the same but for rounding: a weight that is read from a file may lie elsewhere in memory, by which some CPUs round the last digit."""

from typing import Any

import pytest
import torch


def assert_same(one: Any, other: Any) -> None:
    """Scores, or the rows of a pipeline."""
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        return
    names = [[{key: value for key, value in row.items() if key != "score"} for row in rows] for rows in (one, other)]
    assert names[0] == names[1]
    assert [row["score"] for row in one] == pytest.approx([row["score"] for row in other], rel=1e-5, abs=1e-6)
