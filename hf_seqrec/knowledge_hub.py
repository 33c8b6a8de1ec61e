"""SeRALM on the Hub: the recommender, the knowledge it serves from and the adapter that wrote it, as one collection.

Three repositories, because they are used by different people: the recommender serves, the knowledge is a data set that any backbone
reads, the adapter writes about tomorrow's items. Their cards link each other, and a collection holds all of them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitInfo

from hf_seqrec.hub import CARD, load_recommender, push_folder
from hf_seqrec.hub_commit import Destination, clear_errors, hub_api, matching_files
from hf_seqrec.item_vectors import MANIFEST as VECTORS
from hf_seqrec.knowledge import MANIFEST, Knowledge, adapter_hash, load_knowledge


_SECTION = re.compile(r"\n*<!-- seralm -->.*?<!-- /seralm -->\n*", re.DOTALL)
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class PushedSeRALM:
    """What `push_seralm` pushed.

    Attributes:
        recommender, knowledge: Their commits.
        adapter: Its commit; None without an adapter.
        collection: Address of the collection.
    """

    recommender: CommitInfo
    knowledge: CommitInfo
    adapter: CommitInfo | None
    collection: str


def push_knowledge(
    folder: str | os.PathLike,
    repo_id: str,
    links: str = "",
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Push a folder of knowledge as a data set, in one commit; `load_knowledge` reads it back.

    Args:
        folder: Written by `Knowledge.save`, with or without vectors.
        repo_id: `owner/name`, or `name` in your own account; made when missing.
        links: A section for the end of the card.
        private: Visibility of a new repository.
        revision: Branch to push to.
        token: Hub token, by default the one stored by `hf auth login`.

    Returns:
        The commit.

    Raises:
        FileNotFoundError: The folder holds no knowledge. ValueError: its texts are not those of its manifest.
            PermissionError: No token.
    """
    folder = Path(folder)
    load_knowledge(folder)
    patterns = [CARD, MANIFEST, "knowledge/*.parquet"]
    patterns += [VECTORS, "vectors/*.parquet"] if (folder / VECTORS).is_file() else []
    content = matching_files(folder, patterns, "make it with `seqrec knowledge generate`", token)
    content[CARD] = _linked((folder / CARD).read_text(encoding="utf-8"), links).encode()
    old = re.compile(r"(knowledge|vectors)/.+|item_vectors\.json")
    target = Destination(repo_id, "dataset", private, revision, token=token).create()
    return target.commit(content, old, "Item knowledge")


def push_seralm(
    repo_id: str,
    recommender: str | os.PathLike,
    knowledge: str | os.PathLike,
    adapter: str | os.PathLike | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> PushedSeRALM:
    """Push everything that belongs to a SeRALM recommender, and put it into one collection.

    Args:
        repo_id: `owner/name` of the recommender; the others are `owner/name-knowledge` and `owner/name-adapter`.
        recommender: Folder of the recommender, written by `save_recommender` or by training.
        knowledge: Folder of the knowledge whose vectors it holds.
        adapter: Folder of the adapter that wrote the knowledge; None for knowledge of an LLM that was not aligned.
        private: Visibility of new repositories and of the collection.
        revision: Branch to push to.
        token: Hub token, by default the one stored by `hf auth login`.

    Returns:
        The commits and the collection. Pushing again replaces what changed and leaves the collection as it is.

    Raises:
        FileNotFoundError: A folder is not complete. ValueError: the three do not belong together. PermissionError: no token.
            Nothing was pushed then.

    Example:
        >>> push_seralm("user/seralm-ml-1m", "aligned/recommender", "knowledge", "aligned/adapter")  # doctest: +SKIP
    """
    texts = load_knowledge(knowledge)
    check_together(recommender, texts, adapter)
    api = hub_api(token)
    owner, name = repo_id.split("/") if "/" in repo_id else (api.whoami()["name"], repo_id)
    names = {"recommender": f"{owner}/{name}", "knowledge": f"{owner}/{name}-knowledge"}
    if adapter is not None:
        names["adapter"] = f"{owner}/{name}-adapter"
    found: dict[str, Any] = {"adapter": None}
    # The recommender last: whoever sees it finds what its card links to.
    found["knowledge"] = push_knowledge(knowledge, names["knowledge"], _links(names), private, revision, token)
    if adapter is not None:
        found["adapter"] = _push_adapter(Path(adapter), names, texts, private, revision, token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        shutil.copytree(recommender, folder, ignore=shutil.ignore_patterns("checkpoint-*", "*.ranks.parquet", "runs"))
        card = folder / CARD
        if card.is_file():
            card.write_text(_linked(card.read_text(encoding="utf-8"), _links(names)), encoding="utf-8")
        found["recommender"] = push_folder(folder, names["recommender"], private, revision, token=token)
    with clear_errors(repo_id):
        collection = api.create_collection(
            f"SeRALM {name}",
            namespace=owner,
            description="A sequential recommender, what a language model wrote about its items, and the adapter that wrote it."[
                :150
            ],
            private=bool(private),
            exists_ok=True,
        )
        for part, where in names.items():
            kind: Any = "dataset" if part == "knowledge" else "model"
            api.add_collection_item(collection.slug, where, kind, note=_NOTES[part], exists_ok=True)
    return PushedSeRALM(**found, collection=collection.url)


_NOTES = {
    "recommender": "Recommends from stored vectors; needs no language model.",
    "knowledge": "What the language model wrote about each item, and its vectors.",
    "adapter": "Writes about new items.",
}


def check_together(
    recommender: str | os.PathLike, knowledge: Knowledge, adapter: str | os.PathLike | None = None
) -> None:
    """Refuse parts that do not belong together.

    Raises:
        FileNotFoundError: The adapter's folder is not complete. ValueError: the recommender is no SeRALM, knows other items or holds
            the vectors of other knowledge; the knowledge was written by another adapter, or by none.
    """
    model, processor = load_recommender(recommender)
    if not hasattr(model, "knowledge"):
        raise ValueError(f"{recommender} holds a {type(model).__name__}, need a SeRALM recommender.")
    if processor.item_ids != knowledge.table["item_id"].to_pylist():
        raise ValueError(
            f"{recommender} knows {processor.num_items:,} items, the knowledge is about {knowledge.num_items:,}, and they are not the "
            "same in the same order: they do not belong together."
        )
    if model.config.knowledge_key != knowledge.key:
        raise ValueError(
            f"{recommender} holds the vectors of the knowledge {model.config.knowledge_key}, not of {knowledge.key}: give it these "
            "with `seqrec knowledge export`."
        )
    wrote = knowledge.description["adapter"]
    if adapter is None and wrote is not None:
        raise ValueError(
            f"the knowledge was written with the adapter {wrote}: give it, so that new items can be added."
        )
    if adapter is not None:
        missing = [name for name in _ADAPTER if not (Path(adapter) / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{adapter} lacks {', '.join(missing)}: it is no adapter of PEFT.")
        if (found := adapter_hash(str(adapter), None)) != wrote:
            raise ValueError(
                f"{adapter} is the adapter {found}, the knowledge was written with {wrote or 'none'}: generate the knowledge with "
                "this adapter."
            )


def _push_adapter(folder: Path, names: dict[str, str], knowledge: Knowledge, private, revision, token) -> CommitInfo:
    content = matching_files(folder, _ADAPTER, "save the adapter of PEFT again", token)
    config = json.loads((folder / _ADAPTER[0]).read_text(encoding="utf-8"))
    head: dict[str, Any] = {"library_name": "peft", "tags": ["hf_seqrec", "seralm", "lora"]}
    llm = config.get("base_model_name_or_path") or ""
    if os.path.isdir(llm):  # a place on this machine says nothing elsewhere
        config["base_model_name_or_path"] = llm = Path(llm).name
    else:
        head |= {"base_model": llm, "base_model_relation": "adapter"}
    head["datasets"] = [names["knowledge"]]
    made = knowledge.description
    card = "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n# {names['adapter'].split('/')[-1]}\n",
            f"Adapter of {llm}, aligned by the feedback of a sequential recommender to write about items what helps it recommend them",
            "(SeRALM, SIGIR 2024).\n",
            f"Prompt: {json.dumps(made['prompt']['text'], ensure_ascii=False)}\n",
            f"Sampling: {json.dumps(made['sampling'])}\n",
            "```bash",
            f"seqrec knowledge add {names['knowledge']} --items new-items.parquet --recommender {names['recommender']} \\",
            f"    --llm {llm} --adapter {names['adapter']} --output-dir knowledge --save-recommender recommender",
            "```\n",
        ]
    )
    content[_ADAPTER[0]] = json.dumps(config, indent=2).encode()
    content[CARD] = _linked(card, _links(names)).encode()
    target = Destination(names["adapter"], "model", private, revision, token=token).create()
    return target.commit(content, re.compile(r"adapter_model\..+"), "Adapter")


def _links(names: dict[str, str]) -> str:
    lines = ["## Belongs together", ""]
    for part, where in names.items():
        prefix = "datasets/" if part == "knowledge" else ""
        lines.append(f"* {part}: [{where}](https://huggingface.co/{prefix}{where}). {_NOTES[part]}")
    return "\n".join(lines)


def _linked(card: str, links: str) -> str:
    """The card with this section at its end, in the place of an older one."""
    card = _SECTION.sub("\n", card).rstrip() + "\n"
    return f"{card}\n<!-- seralm -->\n{links}\n<!-- /seralm -->\n" if links else card
