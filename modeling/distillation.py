"""The objective of LLM-SRec: retrieve the next item, come close to the teacher's user vector, keep users apart.

Sums over the rows of a micro-batch are divided by the rows of the whole optimizer step, so gradient accumulation leaves the
retrieval and the squared-error terms unchanged. The uniformity and InfoNCE terms compare the rows of one micro-batch with
each other (of all processes, when there are several); they belong to the batch size by definition.

Notation: s (rows, candidates) scores with the target in `target`; u (rows, dim) user vectors of the LLM, c of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed
import torch.nn.functional as F


DISTILLATIONS = ("mse", "infonce", "none")


@dataclass(frozen=True)
class DistillationObjective:
    """L = L_Retrieval + w_d L_Distill + w_u L_Uniform (LLM-SRec, equations 1 to 4).

    Args:
        distillation: `mse` (eq. 2), `infonce` (eq. 10) or `none`.
        distillation_weight: w_d.
        uniformity_weight: w_u; 0 leaves the term out.
        normalize: Use unit vectors in the distillation and uniformity terms (published code; eqs 2, 3 and 10 do not).
        mse_reduction: `mean` over the dimensions (published code), or `sum`: the squared distance.
        temperature: Of InfoNCE.
        include_self: Uniformity also counts the pair of each user with itself, a constant 1 / rows (eq. 3 as written).

    Raises:
        ValueError: An unknown kind or reduction, or a temperature that is not positive.
    """

    distillation: str = "mse"
    distillation_weight: float = 1.0
    uniformity_weight: float = 1.0
    normalize: bool = True
    mse_reduction: str = "mean"
    temperature: float = 0.07
    include_self: bool = False

    def __post_init__(self):
        if self.distillation not in DISTILLATIONS:
            raise ValueError(f"`distillation` must be one of {', '.join(DISTILLATIONS)}, got {self.distillation!r}.")
        if self.mse_reduction not in ("mean", "sum"):
            raise ValueError(f"`mse_reduction` must be 'mean' or 'sum', got {self.mse_reduction!r}.")
        if self.temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {self.temperature}.")

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's user vectors are needed."""
        return self.distillation != "none"

    def __call__(
        self,
        scores: torch.Tensor,
        target: torch.Tensor,
        user: torch.Tensor,
        teacher: torch.Tensor | None = None,
        count: torch.Tensor | int | None = None,
    ) -> dict[str, torch.Tensor]:
        """The terms of the loss.

        Args:
            scores: (rows, candidates); -inf for what is no candidate of a row.
            target: (rows,) column of the true item.
            user: (rows, dim) f_user(h_U).
            teacher: (rows, dim) f_CF-user(O_u); may be None without distillation.
            count: Rows of the whole optimizer step; those of this call when None.

        Returns:
            `retrieval`, `distillation`, `uniformity` (those in use), weighted; the loss is their sum.

        Raises:
            ValueError: Distillation without the teacher's vectors.
        """
        count = len(scores) if count is None else count
        terms = {"retrieval": retrieval_loss(scores, target) / count}
        if not self.needs_teacher and self.uniformity_weight == 0:
            return terms
        if self.needs_teacher and teacher is None:
            raise ValueError(
                f"distillation={self.distillation!r} needs a teacher, this model has none: build it with `teacher=…`, or "
                "train with distillation='none' and uniformity_weight=0."
            )
        vectors = [user] if teacher is None else [teacher, user]
        if self.normalize:
            vectors = [F.normalize(vector, dim=-1) for vector in vectors]
        if self.distillation == "mse":
            term = squared_error(vectors[1], vectors[0], self.mse_reduction)
            terms["distillation"] = self.distillation_weight * term / count
        elif self.distillation == "infonce":
            term = infonce(vectors[1], vectors[0], self.temperature)
            terms["distillation"] = self.distillation_weight * term / count
        if self.uniformity_weight:
            term = torch.stack([uniformity(vector, self.include_self) for vector in vectors]).sum()
            terms["uniformity"] = self.uniformity_weight * term / count
        return terms


def retrieval_loss(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Eq. 1: Σ over rows of −log softmax(scores)[target]."""
    return F.cross_entropy(scores.float(), target, reduction="sum")


def squared_error(user: torch.Tensor, teacher: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Eq. 2: Σ over rows of the mean (or sum) over dimensions of (u − c)²."""
    squared = (user.float() - teacher.float()).square()
    return squared.mean(-1).sum() if reduction == "mean" else squared.sum()


def infonce(user: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Eq. 10: Σ over rows u of −log of exp(u·c_u / τ) / Σ_k exp(u·c_k / τ), k over the batch."""
    others, first = gather_rows(teacher.float())
    target = torch.arange(first, first + len(user), device=user.device)
    return F.cross_entropy(user.float() @ others.T / temperature, target, reduction="sum")


def uniformity(vectors: torch.Tensor, include_self: bool = False) -> torch.Tensor:
    """Eq. 3, one term: Σ over rows u of the mean over u' of exp(−2 ‖v_u − v_u'‖²), u' ≠ u unless `include_self`.

    Divided by the number of rows this is the mean over pairs.
    """
    vectors = vectors.float()
    others, first = gather_rows(vectors)
    distance = vectors.square().sum(-1, keepdim=True) + others.square().sum(-1) - 2 * vectors @ others.T
    similar = torch.exp(-2 * distance.clamp(min=0))
    if include_self:
        return similar.mean(-1).sum()
    if len(others) == 1:
        return similar.sum() * 0  # a single user has nobody to be apart from
    row = torch.arange(len(vectors), device=vectors.device)
    own = torch.zeros_like(similar, dtype=torch.bool)
    own[row, row + first] = True
    return similar.masked_fill(own, 0).sum() / (len(others) - 1)


def gather_rows(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The rows of all processes, with gradients, and where this process's begin; numbers of rows may differ."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows, 0
    from torch.distributed.nn.functional import all_gather

    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    sizes = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world)]
    torch.distributed.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = [int(size) for size in sizes]
    padded = F.pad(rows, (0, 0, 0, max(counts) - len(rows)))
    gathered = all_gather(padded)
    return torch.cat([part[:size] for part, size in zip(gathered, counts, strict=True)]), sum(counts[:rank])
