"""What the commands of P2Rec and E4SRec share: a language model that reads the item table of a trained backbone."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from typing import Any

from .train import ScriptArguments, model_arguments


@dataclass(kw_only=True)
class ItemPromptScriptArguments(ScriptArguments):
    """What to train on what, around which language model, with whose item vectors.

    Args:
        llm: Hub id or folder of the language model.
        backbone: Hub id or folder of a trained recommender, whose item table is read.
        llm_revision: Branch, tag or commit of the language model's repository.
        backbone_revision: The same of the backbone's.
    """

    llm: str = field(metadata={"help": "Hub id or folder of the language model."})
    backbone: str = field(
        metadata={"help": "Hub id or folder of a trained recommender, whose item table the language model reads."}
    )
    llm_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the language model's repository."}
    )
    backbone_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the backbone's repository."}
    )


def item_prompt_arguments(model_class: type) -> type:
    """A dataclass with what `model_class.from_parts` lets a person choose."""
    found = ("prompt", "num_title_tokens", "llm_name_or_path", "llm_revision", "llm_config", "hidden_size", "lora")
    lora = (
        "Arguments of `peft.LoraConfig` as JSON, such as '{\"r\": 8}'; none keeps every weight of the language model."
    )
    own: list[tuple[str, Any, Any]] = [("lora", str | None, field(default=None, metadata={"help": lora}))]
    return make_dataclass(f"{model_class.__name__}Arguments", own, bases=(model_arguments(model_class, found),))


def open_item_table(script_args: ItemPromptScriptArguments, data: Any) -> Any:
    """The backbone's scoring table, (num_items + 1, width), row 0 zeros.

    Args:
        script_args: Names backbone and language model.
        data: The data set, which must be the one the backbone was trained on.

    Returns:
        A detached tensor.

    Raises:
        OSError: No such backbone. ValueError: no language model or backbone is named, the backbone has no item table, or it
            belongs to other data.
    """
    import torch

    from hf_seqrec.hub import load_recommender

    from .evaluate import check_same_data

    for option in ("llm", "backbone"):
        if not getattr(script_args, option):
            raise ValueError(f"no {option} is named: give --{option} FOLDER_OR_REPO.")
    backbone, processor = load_recommender(script_args.backbone, revision=script_args.backbone_revision)
    check_same_data(script_args.backbone, backbone, processor, data)
    if not getattr(backbone, "is_dot_product", False):
        raise ValueError(
            f"{type(backbone).__name__} in {script_args.backbone} has no item table: name a backbone such as SASRec or GRU4Rec."
        )
    with torch.no_grad():
        table = backbone.item_representations().detach().float().clone()
    table[0] = 0
    return table
