"""The teacher of a distilled model: any backbone of the library, frozen, known by place, revision and fingerprint.

All backbones are imported here, so their code travels with a distilled model and its teacher loads without the library.
"""

from __future__ import annotations

import copy
import hashlib
import os
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig

from .base import SequentialRecommender
from .bert4rec import BERT4RecForSequentialRecommendation
from .caser import CaserForSequentialRecommendation
from .fmlprec import FMLPRecForSequentialRecommendation
from .gru4rec import GRU4RecForSequentialRecommendation
from .lightsans import LightSANsForSequentialRecommendation
from .llm import config_as_dict, resolve_revision
from .nextitnet import NextItNetForSequentialRecommendation
from .sasrec import SASRecForSequentialRecommendation


BACKBONES = {
    backbone.config_class.model_type: backbone
    for backbone in (
        BERT4RecForSequentialRecommendation,
        CaserForSequentialRecommendation,
        FMLPRecForSequentialRecommendation,
        GRU4RecForSequentialRecommendation,
        LightSANsForSequentialRecommendation,
        NextItNetForSequentialRecommendation,
        SASRecForSequentialRecommendation,
    )
}


def load_teacher(name_or_path: str | os.PathLike, revision: str | None = None, **access) -> SequentialRecommender:
    """Load a trained backbone as a teacher.

    Args:
        name_or_path: Folder or Hub repository.
        revision: Commit, tag or branch.
        access: `token`, `cache_dir`, `local_files_only`, `force_download`.

    Returns:
        The frozen backbone in evaluation mode.
    """
    values, _ = PreTrainedConfig.get_config_dict(str(name_or_path), revision=revision, **access)
    # A backbone of somebody's own, registered with the Auto classes, is welcome too.
    backbone: Any = BACKBONES.get(values.get("model_type", ""), AutoModel)
    return freeze_teacher(backbone.from_pretrained(str(name_or_path), revision=revision, **access))


def build_teacher(config: dict[str, Any]) -> SequentialRecommender:
    """A backbone from its configuration as a dictionary, to load stored weights into.

    Raises:
        ValueError: The configuration is no backbone's.
    """
    backbone = BACKBONES.get(config.get("model_type", ""))
    if backbone is None:
        raise ValueError(
            f"{config.get('model_type')!r} is no backbone; a stored teacher is one of {', '.join(BACKBONES)}."
        )
    values = {key: value for key, value in config.items() if key != "model_type"}
    return freeze_teacher(backbone(backbone.config_class.from_dict(values)))


def freeze_teacher(teacher: SequentialRecommender) -> SequentialRecommender:
    """Switch off gradients and dropout."""
    return teacher.requires_grad_(False).eval()


def teacher_fingerprint(teacher: torch.nn.Module) -> str:
    """First 16 hexadecimal digits of the sha256 over a teacher's weights, names included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def check_teacher(teacher: SequentialRecommender, num_items: int, data_fingerprint: str | None = None) -> None:
    """Refuse a teacher that cannot teach.

    Args:
        teacher: A trained backbone.
        num_items: Size of the catalogue it must know.
        data_fingerprint: Fingerprint of the data set, when known.

    Raises:
        TypeError: It is no backbone with item and user vectors. ValueError: another catalogue, or weights that are not finite.
    """
    if not getattr(teacher, "is_dot_product", False) or not hasattr(teacher, "item_representations"):
        raise TypeError(
            f"a teacher needs item and user vectors, {type(teacher).__name__} has none: use one of "
            f"{', '.join(sorted(backbone.__name__ for backbone in BACKBONES.values()))}."
        )
    if teacher.config.num_items != num_items:
        raise ValueError(
            f"the teacher knows {teacher.config.num_items:,} items, the catalogue has {num_items:,}: train the teacher on the "
            "same data set."
        )
    known = getattr(teacher.config, "data_fingerprint", None)
    if None not in (known, data_fingerprint) and known != data_fingerprint:
        raise ValueError(
            f"the teacher was trained on the data set with fingerprint {known}, this one has {data_fingerprint}: train the "
            "teacher on the same data set."
        )
    for name, tensor in [*teacher.named_parameters(), *teacher.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"the teacher's {name} holds values that are not finite (NaN or infinite): train it again."
            )


def adopt_teacher(
    teacher: str | os.PathLike | SequentialRecommender,
    num_items: int,
    data_fingerprint: str | None = None,
    revision: str | None = None,
    store: bool | None = None,
) -> tuple[SequentialRecommender, dict[str, Any]]:
    """A teacher for a new model, and the fields of the model's configuration that bring it back.

    Args:
        teacher: Hub id or folder of a trained backbone, or the backbone itself, which is copied.
        num_items: Size of the catalogue it must know.
        data_fingerprint: Fingerprint of the data set; a teacher trained on another one is refused.
        revision: Commit, tag or branch; the commit is what is kept.
        store: Save the teacher's weights with the model; None: exactly when others could not find it.

    Returns:
        The frozen teacher, and `teacher_name_or_path`, `teacher_revision`, `teacher_fingerprint`, `teacher_config`, `store_teacher`.

    Raises:
        TypeError: No backbone with item and user vectors. ValueError: another catalogue or data set, or weights that are not finite.
    """
    name = None
    if isinstance(teacher, str | os.PathLike):
        name = str(teacher)
        revision = resolve_revision(name, revision)
        taught = load_teacher(name, revision)
        # A folder is found on this machine only, so its weights travel with the model.
        store = os.path.isdir(name) if store is None else store
        name = None if os.path.isdir(name) and store else name
    else:
        taught = freeze_teacher(copy.deepcopy(teacher))  # it must not change when the caller's goes on training
        store, revision = True, None
    check_teacher(taught, num_items, data_fingerprint)
    return taught, {
        "teacher_name_or_path": name,
        "teacher_revision": revision,
        "teacher_fingerprint": teacher_fingerprint(taught),
        "teacher_config": config_as_dict(taught.config),
        "store_teacher": store,
    }


def restore_teacher(
    config: Any,
    state: dict[str, torch.Tensor],
    teacher: str | os.PathLike | SequentialRecommender | None = None,
    **access,
) -> SequentialRecommender:
    """The teacher of a saved model: stored with it, or found by name.

    Args:
        config: The model's configuration, with the fields of [`adopt_teacher`].
        state: The model's saved weights; those of a stored teacher begin with `teacher.`.
        teacher: Another place of the same teacher, or the loaded one.
        access: `token`, `cache_dir`, `local_files_only`, `force_download`.

    Returns:
        The frozen teacher.

    Raises:
        ValueError: There is none, or it is not the one the model was made with.
    """
    if teacher is None and any(name.startswith("teacher.") for name in state):
        found = build_teacher(config.teacher_config)
        stored = {
            name.removeprefix("teacher."): tensor for name, tensor in state.items() if name.startswith("teacher.")
        }
        found.load_state_dict(stored)
    elif teacher is None or isinstance(teacher, str | os.PathLike):
        if (name := teacher or config.teacher_name_or_path) is None:
            raise ValueError("the saved model holds no teacher and names none: pass `teacher=`.")
        found = load_teacher(name, config.teacher_revision if teacher is None else None, **access)
    else:
        found = freeze_teacher(teacher)
    fingerprint = teacher_fingerprint(found)
    if fingerprint != config.teacher_fingerprint:
        raise ValueError(
            f"the teacher has the fingerprint {fingerprint}, the model was made with {config.teacher_fingerprint} "
            f"({config.teacher_name_or_path}): pass that one as `teacher=`."
        )
    return found
