"""Named sets of hyper-parameters per method: `paper`, `paper-code` where the authors published code, `default` (ours)."""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml


@dataclass(frozen=True)
class Preset:
    """Hyper-parameters of one method and where they come from.

    Attributes:
        method: Name of the method, for example `sasrec`.
        name: Name of the preset.
        model: Fields of the method's configuration, all but `num_items`; for `llm_srec` arguments of `from_parts`.
        training: Fields of `NextItemTrainingArguments` (`llm_srec`: `DistillationTrainingArguments`); empty for methods that are fitted by counting.
        source: Where the values come from, and what of the original they cannot express.
    """

    method: str
    name: str
    model: dict[str, Any]
    training: dict[str, Any]
    source: str


@cache
def _methods() -> dict[str, Any]:
    files = {file.name: file for file in resources.files(__name__).iterdir()}
    return {name.removesuffix(".yaml"): files[name] for name in sorted(files) if name.endswith(".yaml")}


def _read(method: str) -> dict[str, dict[str, Any]]:
    if method not in _methods():
        raise KeyError(f"no presets for the method {method!r}; there are some for: {', '.join(_methods())}.")
    return yaml.safe_load(_methods()[method].read_text(encoding="utf-8"))


def list_presets(method: str | None = None) -> dict[str, list[str]]:
    """Names of presets.

    Args:
        method: One method, or None for all.

    Returns:
        Preset names by method.

    Raises:
        KeyError: A method without presets; the message lists the others.

    Example:
        >>> list_presets("sasrec")["sasrec"][:3]
        ['paper', 'paper-code', 'default']
    """
    return {name: list(_read(name)) for name in ([method] if method is not None else _methods())}


def load_preset(method: str, name: str = "default") -> Preset:
    """Hyper-parameters by name.

    Args:
        method: Name of a method, for example `sasrec`.
        name: `paper`, `paper-code`, `default`, or another one that the method has.

    Returns:
        The [`Preset`]; its dictionaries are the caller's to change.

    Raises:
        KeyError: An unknown method or preset; the message lists the choices.

    Example:
        >>> from hf_seqrec.modeling import SASRecConfig
        >>> SASRecConfig(num_items=100, **load_preset("sasrec").model).hidden_size
        64
    """
    presets = _read(method)
    if name not in presets:
        raise KeyError(f"{method} has no preset {name!r}; it has: {', '.join(presets)}.")
    return Preset(method=method, name=name, **presets[name])


__all__ = ["Preset", "list_presets", "load_preset"]
