# /// script
# dependencies = ["hf-seqrec"]
# ///
"""What a language model writes about items: generate it, encode it for serving, add new items, compare, push.

seqrec knowledge generate --dataset data/ml-1m --llm meta-llama/Llama-2-7b-chat-hf --domain movie --output-dir unaligned
seqrec knowledge export --dataset data/ml-1m --llm meta-llama/Llama-2-7b-chat-hf --adapter aligned/adapter --domain movie \
    --recommender aligned/recommender --output-dir knowledge --save-recommender serving
seqrec knowledge add knowledge --items new-items.parquet --recommender serving --llm meta-llama/Llama-2-7b-chat-hf \
    --adapter aligned/adapter --output-dir knowledge-today --save-recommender serving-today
seqrec knowledge diff unaligned knowledge --recommender serving --dataset data/ml-1m
seqrec knowledge push me/seralm-ml-1m --recommender serving --knowledge knowledge --adapter aligned/adapter
"""

import argparse
from pathlib import Path
from typing import Any


def make_parser(
    subparsers: "argparse._SubParsersAction | None" = None, prog: str | None = None
) -> argparse.ArgumentParser:
    """Makes the parser, as part of `seqrec` or on its own."""
    description = "What a language model writes about items: generate, encode, extend, compare, push."
    if subparsers is None:
        parser = argparse.ArgumentParser(prog=prog, description=description)
    else:
        parser = subparsers.add_parser("knowledge", help=description, description=description)
    actions = parser.add_subparsers(dest="action", required=True, metavar="{generate,export,add,diff,push}")

    generate = actions.add_parser("generate", help="write a text about each item")
    _add_dataset(generate)
    _add_llm(generate)
    _add_asking(generate)
    _add_output(generate)

    export = actions.add_parser(
        "export", help="texts and their vectors as a data set, and a recommender that serves from them"
    )
    _add_dataset(export)
    export.add_argument("--knowledge", help="Folder or repository of texts to encode, instead of generating them.")
    _add_llm(export, required=False)
    _add_asking(export)
    export.add_argument(
        "--recommender", required=True, help="Folder or repository of the SeRALM recommender whose encoder is taken."
    )
    _add_output(export)
    _add_recommender_output(export)

    add = actions.add_parser("add", help="texts and vectors of new items, for knowledge and recommender")
    add.add_argument("knowledge", help="Folder or repository of the knowledge that the items join.")
    add.add_argument(
        "--items", required=True, help="Catalogue that holds the new items: a data set, a parquet or a csv file."
    )
    _add_llm(add, required=False)
    add.add_argument("--recommender", required=True, help="Folder or repository of the SeRALM recommender.")
    _add_output(add)
    _add_recommender_output(add, required=True)

    diff = actions.add_parser(
        "diff", help="an item's text before and after, and what it did to the rank of a user's next item"
    )
    diff.add_argument("before", help="Folder or repository of knowledge.")
    diff.add_argument("after", help="Folder or repository of other knowledge of the same items.")
    diff.add_argument("--item", help="Item id whose texts are shown; by default the next item of the user.")
    diff.add_argument(
        "--recommender", help="SeRALM recommender that ranks with `after`; and with `before`, unless told otherwise."
    )
    diff.add_argument("--recommender-before", help="SeRALM recommender that ranks with `before`.")
    _add_dataset(diff, required=False)
    diff.add_argument("--user", help="User id; by default the one whose next item gained or lost most.")
    diff.add_argument("--split", default="leave_one_out", help="Which split's test part names the next items.")
    diff.add_argument(
        "--users", type=int, default=1000, help="Users among which that one is looked for (default: 1000)."
    )

    push = actions.add_parser("push", help="recommender, knowledge and adapter as one collection")
    push.add_argument("repo_id", metavar="repo", help="Repository of the recommender, owner/name.")
    push.add_argument("--recommender", type=Path, required=True, help="Folder of the recommender.")
    push.add_argument("--knowledge", type=Path, required=True, help="Folder of the knowledge.")
    push.add_argument("--adapter", type=Path, help="Folder of the adapter.")
    push.add_argument("--private", action="store_true", default=None, help="Make new repositories private.")
    return parser


def _add_dataset(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--dataset", required=required, help="Folder or Hub repository of the data set.")
    parser.add_argument("--dataset-revision", help="Branch, tag or commit of its repository.")


def _add_llm(parser: argparse.ArgumentParser, required: bool = True) -> None:
    group = parser.add_argument_group("language model")
    group.add_argument("--llm", required=required, help="Hub id or folder of a decoder-only or encoder-decoder LLM.")
    group.add_argument("--llm-revision", help="Branch, tag or commit of its repository.")
    group.add_argument("--adapter", help="Hub id or folder of an adapter, such as the one that alignment trains.")
    group.add_argument("--adapter-revision", help="Branch, tag or commit of its repository.")
    group.add_argument("--dtype", default="auto", help="Of the weights (default: the checkpoint's).")
    group.add_argument("--device", help="For example cpu or cuda:0 (default: a GPU where there is one).")
    group.add_argument("--engine", default="torch", choices=("torch", "vllm"), help="(default: torch)")
    group.add_argument(
        "--token-budget", type=int, help="Tokens of prompts and texts in one batch (default: by device)."
    )
    group.add_argument("--shard-size", type=int, default=256, help="Texts per file of the cache (default: 256).")
    group.add_argument(
        "--cache", type=Path, help="Folder in which texts are kept between runs (default: in the Hub client's home)."
    )


def _add_asking(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompt and sampling")
    group.add_argument(
        "--prompt",
        default="describe",
        help="describe, audience, continue, or a text with {metadata} and {domain} (default: describe).",
    )
    group.add_argument(
        "--metadata", default="all", help="What is told of an item: a template of item texts (default: all)."
    )
    group.add_argument(
        "--domain", default="product", help="What the items are: product, movie, book, … (default: product)."
    )
    group.add_argument("--max-new-tokens", type=int, default=128, help="Longest text (default: 128).")
    group.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token (default: 1).")
    group.add_argument("--top-p", type=float, default=1.0, help="(default: 1)")
    group.add_argument("--top-k", type=int, default=0, help="0 draws from all tokens (default: 0).")
    group.add_argument("--repetition-penalty", type=float, default=1.0, help="(default: 1)")
    group.add_argument("--seed", type=int, default=0, help="(default: 0)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", type=Path, required=True, help="Folder of knowledge to write.")
    parser.add_argument("--overwrite", action="store_true", help="Replace what is in the output folders.")


def _add_recommender_output(parser: argparse.ArgumentParser, required: bool = False) -> None:
    parser.add_argument(
        "--save-recommender",
        type=Path,
        required=required,
        help="Folder to write: the recommender with the new vectors.",
    )


def main(args: argparse.Namespace) -> None:
    """Runs `seqrec knowledge`.

    Args:
        args: What `make_parser` parsed.

    Raises:
        ValueError: If parts do not belong together, a catalogue has no metadata, or an LLM says nothing.
        OSError: If something cannot be found, or an output folder holds something.
    """
    {"generate": _generate, "export": _export, "add": _add, "diff": _diff, "push": _push}[args.action](args)


def _generate(args: argparse.Namespace) -> None:
    from hf_seqrec.data import load_recommendation_data
    from hf_seqrec.data.files import check_writable_folder

    check_writable_folder(args.output_dir, args.overwrite)
    data = load_recommendation_data(args.dataset, revision=args.dataset_revision)
    knowledge = _ask(args, data.catalogue)
    knowledge.save(args.output_dir, overwrite=args.overwrite)
    _report(knowledge, args.output_dir)
    print(
        f"  seqrec train seralm-warmup --dataset {args.dataset} --knowledge {args.output_dir} "
        "--text_encoder sentence-transformers/all-MiniLM-L6-v2 --output_dir out"
    )


def _ask(args: argparse.Namespace, catalogue: Any, prompt: Any = None, sampling: Any = None) -> Any:
    """Texts of a catalogue, by the options of the command line or as other texts were made."""
    import time

    from hf_seqrec.knowledge import KnowledgePrompt, Sampling, generate_knowledge, load_generator

    prompt = prompt or KnowledgePrompt(args.prompt, args.metadata, args.domain)
    sampling = sampling or Sampling(
        args.max_new_tokens, args.temperature, args.top_p, args.top_k, args.repetition_penalty, args.seed
    )
    prompt.render(catalogue)  # a catalogue without metadata is refused before an LLM is loaded
    generator = load_generator(
        args.llm, args.llm_revision, args.adapter, args.adapter_revision, args.dtype, args.device, args.engine
    )
    begin = time.perf_counter()
    found = generate_knowledge(generator, catalogue, args.cache, prompt, sampling, args.shard_size, args.token_budget)
    if generator.tokens_generated:
        seconds = time.perf_counter() - begin
        print(
            f"{generator.tokens_generated:,} tokens in {seconds:.1f} s: {generator.tokens_generated / seconds:,.0f} tokens/s, "
            f"{catalogue.num_items / seconds:,.1f} items/s"
        )
    return found


def _report(knowledge: Any, folder: Path) -> None:
    counts = knowledge.counts
    handled = ", ".join(
        f"{counts[name]:,} {name.replace('_', ' ')}" for name in ("ok", "cut", "repeated", "empty", "no_metadata")
    )
    print(
        f"{knowledge.num_items:,} texts ({handled}; {counts['distinct']:,} different), key {knowledge.key}: {folder}"
    )
    row = knowledge.table["status"].to_pylist().index("ok") if counts["ok"] else 0
    print(
        f"  {knowledge.table['title'][row].as_py() or knowledge.table['item_id'][row].as_py()}: {knowledge.texts[row]}"
    )


def _load_seralm(path: str, text_encoder: bool) -> Any:
    """Model and processor, with the text encoder when asked for."""
    from hf_seqrec.hub import load_recommender

    model, processor = load_recommender(path)
    if not hasattr(model, "knowledge"):
        raise ValueError(
            f"{path} holds a {type(model).__name__}, need a SeRALM recommender: `seqrec train seralm-warmup`."
        )
    if text_encoder:
        model.load_text_encoder(path, own=True)
    return model, processor


def _encoder_of(model: Any) -> dict[str, Any]:
    """What encoded the texts, for the data set: name, and a hash of weights and scale."""
    import hashlib

    from hf_seqrec.modeling.teacher import teacher_fingerprint

    scale = hashlib.sha256(
        model.knowledge_mean.cpu().numpy().tobytes() + model.knowledge_scale.cpu().numpy().tobytes()
    )
    config = model.config
    return {
        "name": config.text_encoder_name_or_path, "fingerprint": teacher_fingerprint(model.text_encoder),
        "scale": scale.hexdigest()[:16], "pooling": config.pooling, "max_text_tokens": config.max_text_tokens,
    }  # fmt: skip


def _export(args: argparse.Namespace) -> None:
    import torch

    from hf_seqrec.data import load_recommendation_data
    from hf_seqrec.data.files import check_writable_folder
    from hf_seqrec.knowledge import load_knowledge
    from hf_seqrec.scripts.evaluate import check_same_data

    if (args.knowledge is None) == (args.llm is None):
        raise ValueError("give either --llm, to write texts, or --knowledge, whose texts are encoded.")
    _check_outputs(args)
    check_writable_folder(args.output_dir, args.overwrite)
    data = load_recommendation_data(args.dataset, revision=args.dataset_revision)
    model, processor = _load_seralm(args.recommender, text_encoder=True)
    check_same_data(args.recommender, model, processor, data)
    knowledge = load_knowledge(args.knowledge) if args.knowledge else _ask(args, data.catalogue)
    knowledge.check(data.catalogue)
    vectors = model.encode_all(model.tokenize(knowledge.texts))
    knowledge.save(args.output_dir, vectors, _encoder_of(model), args.overwrite)
    _report(knowledge, args.output_dir)
    if args.save_recommender:
        model.set_knowledge(torch.arange(1, data.catalogue.num_items + 1), vectors)
        model.config.knowledge_key = knowledge.key
        _save(args, model, processor)


def _check_outputs(args: argparse.Namespace) -> None:
    from hf_seqrec.data.files import check_writable_folder

    check_writable_folder(args.output_dir, args.overwrite)
    if args.save_recommender:
        check_writable_folder(args.save_recommender, args.overwrite)
        if args.save_recommender.resolve() == args.output_dir.resolve():
            raise ValueError("--output-dir and --save-recommender must be two folders.")


def _save(args: argparse.Namespace, model: Any, processor: Any) -> None:
    from hf_seqrec.hub import save_recommender

    save_recommender(args.save_recommender, model, processor, overwrite=args.overwrite)
    print(
        f"The recommender with these vectors: {args.save_recommender}. Serving reads no language model and no text encoder:"
    )
    print(f"  seqrec recommend {args.save_recommender} --history …")


def _add(args: argparse.Namespace) -> None:
    import torch

    from hf_seqrec.data import Catalogue
    from hf_seqrec.item_vectors import MANIFEST, load_item_vectors
    from hf_seqrec.knowledge import KnowledgePrompt, Sampling, extend_knowledge, load_knowledge
    from hf_seqrec.modeling.processing import SequentialRecommendationProcessor

    _check_outputs(args)
    before = load_knowledge(args.knowledge)
    made = before.description
    if before.folder is None or not (before.folder / MANIFEST).is_file():
        raise ValueError(
            f"{args.knowledge} holds texts without vectors: encode them with `seqrec knowledge export` first."
        )
    if made["adapter"] is not None and args.adapter is None:
        raise ValueError(f"the knowledge was written with the adapter {made['adapter']}: give it with --adapter.")
    args.llm = args.llm or made["llm"]
    catalogue, fingerprint = _catalogue(args.items)
    known = before.table["item_id"].to_pylist()
    new = [row for row, item_id in enumerate(catalogue.item_ids.to_pylist()) if item_id not in set(known)]
    if not new:
        raise ValueError(f"{args.items} holds no item that {args.knowledge} does not know: there is nothing to add.")
    model, processor = _load_seralm(args.recommender, text_encoder=True)
    if processor.item_ids != known:
        raise ValueError(
            f"{args.recommender} knows {processor.num_items:,} items, {args.knowledge} {len(known):,}, and they are not the same in the "
            "same order: take the recommender that was saved with this knowledge."
        )
    if model.config.knowledge_key != before.key:
        raise ValueError(
            f"{args.recommender} holds the vectors of the knowledge {model.config.knowledge_key}, not of {before.key} "
            f"({args.knowledge}): take the recommender that was saved with this knowledge."
        )
    prompt = {name: made["prompt"][name] for name in ("metadata", "domain")}
    added = _ask(
        args,
        Catalogue(catalogue.table.take(new)),
        KnowledgePrompt(made["prompt"]["text"], **prompt),
        Sampling(**made["sampling"]),
    )
    # The same words, whether they came by the name of a ready prompt or as text.
    added.description["prompt"].update(made["prompt"])
    after = extend_knowledge(before, added)
    vectors = model.encode_all(model.tokenize(added.texts))
    old = torch.from_numpy(load_item_vectors(before.folder).read())
    after.save(args.output_dir, torch.cat([old, vectors]), _encoder_of(model), args.overwrite)
    _report(after, args.output_dir)
    whole = catalogue.item_ids.to_pylist() == after.table["item_id"].to_pylist()
    fingerprint = fingerprint if whole else None  # of a data set only where it has exactly these items
    model.add_items(vectors, fingerprint)
    model.config.knowledge_key = after.key
    items = SequentialRecommendationProcessor(
        [*processor.item_ids, *added.table["item_id"].to_pylist()],
        [*processor.titles, *added.table["title"].to_pylist()],
        processor.max_length,
        fingerprint,
    )
    print(f"{len(new):,} new items.")
    _save(args, model, items)


def _catalogue(path: str) -> tuple[Any, str | None]:
    """The catalogue of a data set, or of a single file, and the data set's fingerprint."""
    from hf_seqrec.data import Catalogue, load_recommendation_data

    if path.endswith(".parquet"):
        import pyarrow.parquet as pq

        return Catalogue(pq.read_table(path)), None
    if path.endswith(".csv"):
        import pyarrow as pa
        from pyarrow import csv

        # Ids such as 0042 are text, whatever they look like.
        columns = {name: pa.string() for name in ("item_id", "title")}
        return Catalogue(
            csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=columns, strings_can_be_null=True))
        ), None
    data = load_recommendation_data(path)
    return data.catalogue, data.fingerprint


def _diff(args: argparse.Namespace) -> None:
    from rich.console import Console

    from hf_seqrec.data import load_recommendation_data
    from hf_seqrec.knowledge import load_knowledge

    before, after = load_knowledge(args.before), load_knowledge(args.after)
    ids = before.table["item_id"].to_pylist()
    if after.table["item_id"].to_pylist() != ids:
        raise ValueError(f"{args.before} and {args.after} are about different items, or have them in another order.")
    item, console = args.item, Console(soft_wrap=True, highlight=False)
    if item is not None and item not in ids:
        raise ValueError(f"no item has the id {item!r}.")
    if args.recommender:
        if args.dataset is None:
            raise ValueError("--recommender needs --dataset, whose test part names the next items.")
        data = load_recommendation_data(args.dataset, revision=args.dataset_revision)
        after.check(data.catalogue)
        changes = _changes(args, before, after, data)
        change = max(changes, key=lambda one: abs(one.score_after - one.score_before))
        item = item or change.item_id
        gained = sum(one.after < one.before for one in changes)
        lost = sum(one.after > one.before for one in changes)
        if len(changes) > 1:
            console.print(f"{len(changes):,} users: the next item gained ranks for {gained:,}, lost for {lost:,}.")
        console.print(
            f"User {change.user_id}: next item {change.title or change.item_id}: rank {change.before:g} -> {change.after:g}, "
            f"log p {change.score_before:.3f} -> {change.score_after:.3f}",
            markup=False,
        )
    same = sum(a == b for a, b in zip(before.texts, after.texts, strict=True))
    console.print(f"{len(ids) - same:,} of {len(ids):,} texts differ.")
    differing = [row for row, (a, b) in enumerate(zip(before.texts, after.texts, strict=True)) if a != b]
    row = ids.index(item) if item is not None else (differing or [0])[0]
    console.print(f"{before.table['title'][row].as_py() or ids[row]} ({ids[row]})", markup=False)
    for name, knowledge in (("before", before), ("after", after)):
        console.print(f"  {name}: {knowledge.texts[row]}", markup=False)


def _changes(args: argparse.Namespace, before: Any, after: Any, data: Any) -> list[Any]:
    import numpy as np
    import torch

    from hf_seqrec.data.splits import make_split
    from hf_seqrec.knowledge import rank_changes
    from hf_seqrec.scripts.evaluate import check_same_data

    scores = []
    recommenders = (args.recommender_before or args.recommender, args.recommender)
    for name, knowledge in zip(recommenders, (before, after), strict=True):
        model, processor = _load_seralm(name, text_encoder=False)
        check_same_data(name, model, processor, data)
        if model.config.knowledge_key != knowledge.key:
            model.load_text_encoder(name, own=True)
            vectors = model.encode_all(model.tokenize(knowledge.texts))
            model.set_knowledge(torch.arange(1, data.catalogue.num_items + 1), vectors)
        scores.append(model.score)
    split = make_split(args.split, data.sequences)
    users = data.sequences.user_ids.to_pylist()
    rows = np.arange(len(split.test))
    if args.user is not None:
        if args.user not in users:
            raise ValueError(f"no user has the id {args.user!r}.")
        rows = np.flatnonzero(np.asarray(split.test.user) == users.index(args.user))
        if not len(rows):
            raise ValueError(f"user {args.user!r} has no row in the test part of {args.split}.")
    elif len(rows) > args.users:
        rows = np.sort(np.random.default_rng(0).choice(rows, args.users, replace=False))
    return rank_changes(
        scores[0], scores[1], split.test, data.catalogue, users, rows.tolist(), model.config.max_length
    )


def _push(args: argparse.Namespace) -> None:
    from hf_seqrec.knowledge_hub import push_seralm

    pushed = push_seralm(args.repo_id, args.recommender, args.knowledge, args.adapter, args.private)
    for name in ("knowledge", "adapter", "recommender"):
        if (commit := getattr(pushed, name)) is not None:
            print(f"{name}: {commit.commit_url}")
    print(f"collection: {pushed.collection}")


if __name__ == "__main__":
    main(make_parser().parse_args())
