# /// script
# dependencies = ["hf-seqrec"]
# ///
"""Make item vectors, written shard by shard as a data set that `seqrec train … --item_features` reads; a killed run goes on.

seqrec vectors text --dataset data/beauty --llm sentence-transformers/all-MiniLM-L6-v2 --template all --output-dir vectors
seqrec vectors enhanced --model p2rec-out --dataset data/beauty --output-dir enhanced --push user/beauty-p2rec-vectors
seqrec vectors noise --model p2rec-out --dataset data/beauty --output-dir noise
seqrec train sasrec --dataset data/beauty --item_features user/beauty-p2rec-vectors --output_dir out
"""

import argparse
from pathlib import Path
from typing import Any


KINDS = ("text", "enhanced", "noise", "teacher", "groups")


def make_parser(
    subparsers: "argparse._SubParsersAction | None" = None, prog: str | None = None
) -> argparse.ArgumentParser:
    """Makes the parser, as part of `seqrec` or on its own."""
    description = "Make item vectors with a language model, as a data set for every backbone."
    if subparsers is None:
        parser = argparse.ArgumentParser(prog=prog, description=description)
    else:
        parser = subparsers.add_parser("vectors", help=description, description=description)
    parser.add_argument(
        "kind",
        choices=KINDS,
        help="text: of item texts; enhanced: P2Rec's second stage; noise, teacher, groups: what can stand in for those.",
    )
    parser.add_argument("--dataset", required=True, help="Folder or Hub repository of the data set.")
    parser.add_argument("--dataset-revision", "--dataset_revision", help="Branch, tag or commit of its repository.")
    parser.add_argument(
        "--output-dir",
        "--output_dir",
        type=Path,
        required=True,
        help="Where to; text vectors get a folder in it, named by content.",
    )
    text = parser.add_argument_group("text")
    text.add_argument("--llm", help="Hub id or folder of any model of the Auto classes.")
    text.add_argument("--llm-revision", "--llm_revision", help="Branch, tag or commit of its repository.")
    text.add_argument(
        "--template", default="title", help="A ready template, or a text with columns in braces (default: title)."
    )
    text.add_argument("--pooling", default="mean", choices=("mean", "last", "cls"), help="(default: mean)")
    text.add_argument("--max-tokens", "--max_tokens", type=int, default=256, help="Longest text (default: 256).")
    text.add_argument("--dtype", default="auto", help="Of the weights (default: the checkpoint's).")
    text.add_argument("--token-budget", "--token_budget", type=int, help="Tokens in one pass (default: by device).")
    p2rec = parser.add_argument_group("enhanced, noise, teacher, groups")
    p2rec.add_argument("--model", help="Folder or Hub repository that `seqrec train p2rec` wrote.")
    p2rec.add_argument("--revision", help="Branch, tag or commit of its repository.")
    p2rec.add_argument("--seed", type=int, default=0, help="Of the noise (default: 0).")
    parser.add_argument("--shard-size", "--shard_size", type=int, default=8192, help="Items per file (default: 8192).")
    parser.add_argument("--device", help="For example cpu or cuda:0 (default: a GPU where there is one).")
    parser.add_argument("--push", metavar="REPO", help="Data set repository on the Hub to push the vectors to.")
    parser.add_argument("--private", action="store_true", default=None, help="Make a new repository private.")
    return parser


def main(args: argparse.Namespace) -> None:
    """Makes the vectors, prints where they are, and pushes them when asked to.

    Args:
        args: What `make_parser` parsed.

    Raises:
        ValueError: If options contradict each other, or the model was made for other data.
        OSError: If language model or P2Rec model cannot be found.
    """
    from hf_seqrec.data import load_recommendation_data
    from hf_seqrec.hub import push_item_vectors

    needed = "llm" if args.kind == "text" else "model"
    if not getattr(args, needed):
        raise ValueError(f"{args.kind} vectors need --{needed} FOLDER_OR_REPO.")
    if args.push:
        from huggingface_hub import whoami

        whoami()
    data = load_recommendation_data(args.dataset, revision=args.dataset_revision)
    vectors = _text(args, data) if args.kind == "text" else _of_p2rec(args, data)
    print(f"{vectors.num_items:,} vectors of width {vectors.width}: {vectors.folder}")
    if args.push:
        print(f"Pushed: {push_item_vectors(vectors.folder, args.push, private=args.private).commit_url}")
    print(
        f"  seqrec train sasrec --dataset {args.dataset} --item_features {args.push or vectors.folder} --output_dir out"
    )


def _text(args: argparse.Namespace, data: Any) -> Any:
    from hf_seqrec.text_vectors import encode_items

    return encode_items(
        args.llm, data.catalogue, args.output_dir, args.template, args.pooling, args.max_tokens, args.llm_revision,
        dtype=args.dtype, device=args.device, shard_size=args.shard_size, token_budget=args.token_budget,
    )  # fmt: skip


def _of_p2rec(args: argparse.Namespace, data: Any) -> Any:
    import tempfile

    import torch

    from hf_seqrec.modeling import P2RecModel
    from hf_seqrec.preferences import enhance_items, load_groups, write_control

    model = P2RecModel.from_pretrained(args.model, revision=args.revision)
    if model.config.data_fingerprint not in (None, data.fingerprint):
        raise ValueError(
            f"{args.model} was made for the data with fingerprint {model.config.data_fingerprint}, {data.name} has {data.fingerprint}: "
            "name the data set it was trained on."
        )
    model = model.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.kind == "enhanced":
        return enhance_items(model, data.catalogue, args.output_dir, args.shard_size)
    groups = load_groups(args.model, args.revision)
    with tempfile.TemporaryDirectory() as temporary:
        # Only noise needs the mean and deviation of the enhanced vectors; a few items would not do.
        enhanced = enhance_items(model, data.catalogue, temporary) if args.kind == "noise" else None
        return write_control(
            args.kind, args.output_dir, data.catalogue, enhanced, model.item_vectors, groups, args.seed
        )


if __name__ == "__main__":
    main(make_parser().parse_args())
