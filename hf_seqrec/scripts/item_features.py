"""Item vectors on the command line: how `seqrec train` opens, checks and hands them to a backbone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


FUSIONS = ("gate", "concat", "add", "init", "align")
CONTROLS = ("noise", "teacher", "groups", "text")


@dataclass
class ItemFeatureArguments:
    """Which item vectors join the ID table of a backbone.

    Args:
        item_features: Folder or Hub repository of item vectors: of texts, of P2Rec, or a control; or the folder of a P2Rec run, whose
            enhanced vectors are meant.
        item_features_revision: Branch, tag or commit of the repository.
        control: What of a P2Rec run stands in for its enhanced vectors: `noise`, `teacher`, `text`, or `groups`, the paper's variant
            CI, which adds a learnable vector per group instead of using `fusion`.
        fusion: How they join, see [`~hf_seqrec.modeling.ItemEncoder`]; `init` starts the ID table from their principal axes, as
            LLM2BERT4Rec does; `align` moves the new ID table towards them by contrast before training, as CTRL does
            ([`~hf_seqrec.trainers.align_items_with_texts`] with its defaults).
        scale_item_features: Move them to the mean 0 and a mean squared length of 1 first; off for one-hot groups.
    """

    item_features: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub repository of item vectors that join the ID table, or the folder of a P2Rec run."
        },
    )
    item_features_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the item vectors' repository."}
    )
    control: str | None = field(
        default=None,
        metadata={
            "help": "What of a P2Rec run stands in for its enhanced vectors: noise, teacher, text, or groups (variant CI)."
        },
    )
    fusion: str = field(
        default="gate",
        metadata={
            "help": "How they join: gate, concat, add, init (principal axes as start values, LLM2BERT4Rec), or align (the ID table "
            "meets them by contrast before training, CTRL)."
        },
    )
    scale_item_features: bool = field(
        default=True, metadata={"help": "Move them to mean 0 and a mean squared length of 1 first."}
    )


@dataclass(frozen=True)
class ItemFeatures:
    """Opened item vectors and how they join.

    Attributes:
        vectors: The [`~hf_seqrec.item_vectors.ItemVectors`].
        fusion: `gate`, `concat`, `add`, `init` or `align`.
        scale: Whether they are centred and scaled.
    """

    vectors: Any
    fusion: str
    scale: bool

    @classmethod
    def open(cls, arguments: Any, head: type) -> ItemFeatures | None:
        """The vectors that the command line names, or None.

        Args:
            arguments: With the fields of [`ItemFeatureArguments`].
            head: The recommender's class.

        Raises:
            FileNotFoundError: No such vectors. ValueError: half-written ones, an unknown fusion or control, or a method without a
                table.
        """
        from hf_seqrec.item_vectors import MANIFEST, load_item_vectors

        if arguments.item_features is None:
            for option, default in (("fusion", "gate"), ("control", None)):
                if (value := getattr(arguments, option)) != default:
                    raise ValueError(f"--{option} {value} needs item vectors: name them with --item_features.")
            return None
        if arguments.fusion not in FUSIONS:
            raise ValueError(f"--fusion must be one of {', '.join(FUSIONS)}, got {arguments.fusion!r}.")
        if hasattr(head, "fit"):
            raise ValueError(f"{head.__name__} has no item table that --item_features could join: leave them out.")
        source, control = Path(arguments.item_features), arguments.control
        if control not in (None, *CONTROLS):
            raise ValueError(f"--control must be one of {', '.join(CONTROLS)}, got {control!r}.")
        run = source / "vectors" if source.is_dir() and not (source / MANIFEST).exists() else None
        if control is not None and (run is None or not (run / control).is_dir()):
            raise ValueError(
                f"{source} holds no control {control!r}: write it with `seqrec train p2rec … --controls {control}` and give the folder "
                "of that run."
            )
        if run is not None and not (run / (control or "enhanced")).is_dir():
            raise FileNotFoundError(
                f"{source} holds no item vectors ({MANIFEST} is missing) and is no finished run of `seqrec train p2rec`; text vectors lie in "
                "a folder of their own, named by their content."
            )
        vectors = load_item_vectors(
            run / (control or "enhanced") if run else arguments.item_features, arguments.item_features_revision
        )
        if control == "groups":
            return cls(vectors, "add", scale=False)
        return cls(vectors, arguments.fusion, arguments.scale_item_features)

    @property
    def config(self) -> dict[str, Any]:
        """Fields of the recommender's configuration."""
        if self.fusion == "init":
            return {"fusion": "init"}
        if self.fusion == "align":
            return {"fusion": "none"}
        return {"fusion": self.fusion, "item_features": {"item": self.vectors.width}}

    @property
    def name(self) -> str:
        """What stands behind the backbone's name in records: the kind of vectors, and how they join if not by the gate."""
        kind = self.vectors.description.get("kind", "item vectors")
        return {"p2rec": "P2Rec"}.get(kind, kind) + ("" if self.fusion == "gate" else f" ({self.fusion})")

    @property
    def notes(self) -> dict[str, Any]:
        """What a record says about them."""
        return {**self.vectors.description, "key": self.vectors.key, "fusion": self.fusion, "scaled": self.scale}

    def read(self, catalogue, training_items, hidden_size: int):
        """What joins the table; everything fitted on the vectors sees training items only.

        Args:
            catalogue: The items.
            training_items: item_index of the training part, repeats counting once.
            hidden_size: Width of the backbone's item vectors.

        Returns:
            (num_items, width) float32 tensor; with `init`, width is `hidden_size`.

        Raises:
            ValueError: Vectors of another catalogue, damaged ones, or narrower ones than `hidden_size` for `init`.
        """
        import torch

        from hf_seqrec.text_vectors import centre_and_scale, reduce_by_pca

        if self.fusion == "init":
            return torch.from_numpy(reduce_by_pca(self.vectors, hidden_size, catalogue, training_items))
        values = self.vectors.read(catalogue=catalogue)
        return torch.from_numpy(centre_and_scale(values, training_items) if self.scale else values)

    def give(self, model, values, seed: int = 0) -> None:
        """Put what `read` returned into a new model.

        Args:
            model: The new backbone.
            values: From [`read`].
            seed: Of the alignment, with `align`.
        """
        encoder = model.model.item_encoder
        if self.fusion == "init":
            encoder.initialize_from(values, std=model.config.initializer_range)
        elif self.fusion == "align":
            from hf_seqrec.trainers import align_items_with_texts

            align_items_with_texts(model, values, seed=seed)
        else:
            encoder.set_features("item", values)
