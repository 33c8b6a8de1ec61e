"""One training from a command line: everything is checked before it, and it is evaluated, saved and pushed after it."""

import copy
import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml


_JSON_OPTIONS = ("lora", "adapter")  # hyper-parameters that are JSON objects on a command line
_EXAMPLE = {"lora": '{"r": 8}', "adapter": '{"type": "adalora"}', "backbone_config": '{"hidden_size": 64}'}


@dataclass
class TrainingRun:
    """What a training script works on, from the command line to the finished output folder.

    Attributes:
        script_args: What to train on what.
        training_args: The trainer's arguments; `output_dir` receives everything.
        hyper_parameters: Of the model, for the model and for `run.yaml`.
        data: The data set.
        split: Its split; a script may take less of it.
        resume: Where to go on: False, True for the last checkpoint, or a folder.
        notes: For the records.
        name: Of the model in the records; None for that of its class.

    Example:
        >>> from hf_seqrec.scripts.train import parse
        >>> run = TrainingRun.open(*parse(["sasrec", "--dataset", "data", "--output_dir", "out"]))  # doctest: +SKIP
        >>> run.introduce()  # doctest: +SKIP
    """

    script_args: Any
    training_args: Any
    hyper_parameters: dict[str, Any]
    data: Any
    split: Any
    resume: Any
    notes: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    _begin: float = field(default_factory=time.perf_counter)

    @classmethod
    def open(cls, script_args: Any, training_args: Any, model_args: Any = None) -> "TrainingRun":
        """Checks the output folder and the access to the Hub, and loads the data.

        Args:
            script_args: `ScriptArguments` of the method.
            training_args: The trainer's arguments.
            model_args: Hyper-parameters of the model, a dataclass.

        Raises:
            FileExistsError: If the output folder holds something and neither `overwrite` nor a resume was asked for.
            ValueError: If the data set, the split or a hyper-parameter is wrong.
        """
        from transformers.utils import logging

        from hf_seqrec.data import load_recommendation_data
        from hf_seqrec.data.splits import make_split
        from hf_seqrec.evaluation.diagnostics import shuffle_training

        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > 1 and training_args.world_size != started:
            raise ValueError(
                f"{started} processes were started, but each would train alone and write over the others: pass --use_cpu to train "
                "on CPUs, or start as many processes as there are GPUs."
            )
        logging.disable_progress_bar()  # of every file that is read or written; training keeps its own
        resume = training_args.resume_from_checkpoint
        resume = True if resume in ("last", "true", "True") else resume
        _check_output(Path(training_args.output_dir), overwrite=script_args.overwrite or bool(resume))
        data = load_recommendation_data(script_args.dataset, revision=script_args.dataset_revision)
        split = make_split(script_args.split, data.sequences)
        if script_args.shuffle_training is not None:
            split = shuffle_training(split, script_args.shuffle_training)
        values = asdict(model_args) if model_args is not None else {}
        values |= {name: read_json(values[name], name) for name in _JSON_OPTIONS if name in values}
        if training_args.push_to_hub:  # a missing or wrong token is found now, and not after hours of training
            from huggingface_hub import whoami

            whoami(token=training_args.hub_token)
        parts = {name: getattr(script_args, name, None) for name in ("llm", "teacher", "backbone")}
        notes = {"preset": script_args.preset, "hyper_parameters": values}
        notes |= {name: value for name, value in parts.items() if value is not None}
        return cls(script_args, training_args, values, data, split, resume, notes)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.training_args.process_index == 0

    @property
    def output_dir(self) -> Path:
        """The folder that receives everything."""
        return Path(self.training_args.output_dir)

    @property
    def base_models(self) -> list[str]:
        """What the model is made from, as far as it is on the Hub, for the card; nothing of folders."""
        names = (getattr(self.script_args, name, None) for name in ("llm", "text_encoder", "first", "second"))
        return [name for name in names if name is not None and not os.path.isdir(name)]

    def processor(self, model: Any) -> Any:
        """A processor for a model whose items are those of the data."""
        from hf_seqrec.modeling.processing import SequentialRecommendationProcessor

        return SequentialRecommendationProcessor.from_catalogue(
            self.data.catalogue, model.config.max_length, self.data.fingerprint
        )

    def sampled_candidates(self) -> Any:
        """Candidates for a record on sampled negatives; None where `num_sampled` is 0.

        Raises:
            ValueError: More are asked for than there are.
        """
        from hf_seqrec.data import draw_candidates

        if not self.script_args.num_sampled:
            return None
        try:
            return draw_candidates(
                self.split.test,
                self.data.catalogue.num_items,
                self.script_args.num_sampled,
                self.script_args.candidates_seed,
            )
        except ValueError as error:
            error.add_note("--num_sampled sets how many are drawn; 0 leaves the record on sampled candidates out.")
            raise

    def trainer(self, trainer_class: type, model: Any, processor: Any, training_args: Any = None, **more: Any) -> Any:
        """A trainer on the training part that prints a line per evaluation and leaves the push to `finish`.

        Args:
            trainer_class: Which.
            model: What to train.
            processor: What its checkpoints hold.
            training_args: Other arguments than the run's, of a second training.
            more: Further arguments of the trainer.
        """
        from transformers import PrinterCallback, ProgressCallback

        from hf_seqrec.scripts.reporting import EpochLines

        # The whole repository is pushed once, at the end, with card and metrics; not a checkpoint at every save.
        arguments = copy.copy(training_args or self.training_args)
        arguments.push_to_hub = False
        trainer = trainer_class(
            model,
            arguments,
            train_dataset=self.split.train,
            eval_dataset=self.split.validation if arguments.eval_strategy != "no" else None,
            processing_class=processor,
            **more,
        )
        trainer.split_name = self.split.name
        if not arguments.disable_tqdm:
            trainer.remove_callback(ProgressCallback)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(EpochLines())
        return trainer

    def introduce(self, model: Any = None) -> None:
        """Says on the main process what is trained on what, and starts the clock of the training."""
        self._begin = time.perf_counter()
        if not self.is_main:
            return
        data, split = self.data, self.split
        print(
            f"{data.name}: {len(data.sequences):,} users, {data.catalogue.num_items:,} items, "
            f"{data.sequences.num_interactions:,} interactions; {split.name} gives {len(split.train):,} training sequences"
            f"{' (shuffled)' if 'shuffled_training_seed' in split.params else ''} and {len(split.test):,} test rows"
        )
        if model is not None:
            total = model.num_parameters()
            trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            of_which = "" if trained == total else f", of which {trained:,} are trained"
            print(f"{type(model).__name__} with {total:,} parameters{of_which}")

    def train(self, trainer: Any) -> None:
        """Trains, going on where the run was told to, and notes what that did."""
        trainer.train(resume_from_checkpoint=self.resume)
        self.notes |= what_training_did(trainer)

    @property
    def seconds(self) -> float:
        """Since `introduce`."""
        return round(time.perf_counter() - self._begin, 2)

    def finish(self, model: Any, processor: Any, trainer: Any = None, candidates: Any = None) -> None:
        """Evaluates, saves, reports, pushes: what comes after training.

        Args:
            model: The trained recommender.
            processor: Its processor.
            trainer: The trainer; None for models that are fitted, which only the main process evaluates.
            candidates: Sampled candidates of the test part for a third record; they are stored beside it.
        """
        if trainer is None and not self.is_main:
            return
        self.notes.setdefault("training_seconds", self.seconds)
        if self.script_args.shuffle_training is not None:
            self.notes["shuffled_training_seed"] = self.script_args.shuffle_training
        records = self._evaluate(model, trainer, candidates)
        if self.is_main:
            self._save(model, processor, records, {} if trainer is None else self.training_args)
            if candidates is not None:
                candidates.save(self.output_dir / "records" / f"candidates-{candidates.num_negatives}.parquet")
            self.write("run.yaml", self.run_file())
            self._report(records, getattr(model, "needs_timestamps", False))
            if self.training_args.push_to_hub:
                self._push()
        if trainer is not None:
            trainer.end()

    def write(self, name: str, text: str) -> None:
        """Writes a text file into the output folder, whole or not at all."""
        from hf_seqrec.data.files import atomic_path

        with atomic_path(self.output_dir / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def run_file(self) -> str:
        """The run as a file for `--config`: everything that differs from the classes' defaults, and no secret."""
        plain = type(self.training_args)(output_dir=self.training_args.output_dir).to_dict()
        left_out = {"push_to_hub", "hub_token", "resume_from_checkpoint"}
        training = {
            key: value
            for key, value in self.training_args.to_dict().items()
            if key not in left_out and (value != plain[key] or key in ("output_dir", "seed"))
        }
        script = {
            key: value for key, value in asdict(self.script_args).items() if value is not None and key != "overwrite"
        }
        header = "# This run again: seqrec train --config run.yaml --output_dir another-folder\n"
        return header + yaml.safe_dump(
            {**script, **self.hyper_parameters, **training}, sort_keys=False, allow_unicode=True
        )

    def _evaluate(self, model: Any, trainer: Any, candidates: Any) -> dict[str, Any]:
        """Records of the test part: once without and once with the items of the history, once on sampled candidates if there are some."""
        from hf_seqrec.scripts.reporting import evaluate_model

        several = trainer is not None and self.training_args.world_size > 1
        parts: list[tuple[str, bool, Any]] = [("test", True, None), ("test-seen-allowed", False, None)]
        if candidates is not None:
            parts.append((f"test-sampled{candidates.num_negatives}", True, candidates))
        return {
            name: evaluate_model(
                model,
                self.data,
                self.split,
                exclude_seen=exclude_seen,
                candidates=chosen,
                cutoffs=self.training_args.cutoffs,
                batch_size=self.training_args.ranking_batch_size,
                name=self.name,
                seed=self.training_args.seed if trainer is not None else None,
                notes=self.notes,
                accelerator=trainer.accelerator if several else None,
            )
            for name, exclude_seen, chosen in parts
        }

    def _save(self, model: Any, processor: Any, records: dict[str, Any], training: Any) -> None:
        """The complete recommender into the output folder, beside the checkpoints, and the records with their ranks."""
        from hf_seqrec.hub import save_recommender

        folder, dataset = self.output_dir, self.script_args.dataset
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            complete = save_recommender(
                Path(temporary) / folder.resolve().name,
                model,
                processor,
                list(records.values()),
                repo_id=self.training_args.hub_model_id,
                dataset_id=None if Path(dataset).is_dir() else dataset,
                base_model=self.base_models,
                training=training,
            )
            for path in complete.iterdir():
                if path.is_dir():
                    shutil.rmtree(folder / path.name, ignore_errors=True)
                path.replace(folder / path.name)
        # The card's copies are without the ranks of single users, which comparisons need.
        shutil.rmtree(folder / "records", ignore_errors=True)
        for name, record in records.items():
            record.save(folder / "records" / f"{name}.json")

    def _report(self, records: dict[str, Any], dated: bool) -> None:
        from hf_seqrec.evaluation.tables import print_table

        print()
        print_table(records.values(), metrics=("ndcg@10", "hr@10", "mrr@10"))
        catalogue, folder = self.data.catalogue, self.output_dir
        ids, titles = (column[:2].to_pylist() for column in (catalogue.item_ids, catalogue.titles))
        history = [_quoted(title or item_id) for item_id, title in zip(ids, titles, strict=True)]
        print(f"Model, processor and records are in {folder}. Next:")
        times = f" --times {' '.join(['2024-01-31'] * len(history))}" if dated else ""
        print(f"  seqrec recommend {folder} --history {' '.join(history)}{times}")
        print(f"  seqrec evaluate {folder} --dataset {self.script_args.dataset} --sampled 99")
        print(f"  seqrec push {folder} USER/NAME")

    def _push(self) -> None:
        from hf_seqrec.hub import push_folder

        commit = push_folder(self.output_dir, self.repo_id, **self.hub_options)
        print(f"Pushed: {commit.commit_url}")

    @property
    def repo_id(self) -> str:
        """The repository that a push goes to."""
        return self.training_args.hub_model_id or self.output_dir.resolve().name

    @property
    def hub_options(self) -> dict[str, Any]:
        """How a push goes there."""
        args = self.training_args
        return {"private": args.hub_private_repo, "revision": args.hub_revision, "token": args.hub_token}


def _check_output(folder: Path, overwrite: bool) -> None:
    from hf_seqrec.data.files import check_writable_folder

    try:
        check_writable_folder(folder, overwrite=overwrite)
    except FileExistsError as error:
        raise FileExistsError(
            f"{folder} is not empty: choose another --output_dir, go on with --resume_from_checkpoint last, or write into "
            "it with --overwrite."
        ) from error


def read_json(value: str | dict[str, Any] | None, option: str) -> dict[str, Any] | None:
    """An option that is a JSON object on the command line (or `none`) and a mapping in a file.

    Args:
        value: As it was given.
        option: Its name, for the error.

    Raises:
        ValueError: If the text is no JSON object.

    Example:
        >>> read_json('{"r": 8}', "lora"), read_json("none", "lora")
        ({'r': 8}, None)
    """
    if value is None or isinstance(value, dict):
        return value
    if value.lower() in ("none", "null", ""):
        return None
    need = f"--{option} {value}: need a JSON object such as '{_EXAMPLE.get(option, '{}')}', or none"
    try:
        found = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{need} ({error}).") from error
    if not isinstance(found, dict):
        raise ValueError(f"{need}.")
    return found


@contextmanager
def clear_configuration_errors() -> Iterator[None]:
    """What is wrong with a hyper-parameter as a `ValueError` with the message of whoever found it."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error)) from error


def what_training_did(trainer: Any) -> dict[str, Any]:
    """Epochs, and the best validation value with its epoch, for the record."""
    metric = f"eval_{(trainer.args.metric_for_best_model or 'ndcg@10').removeprefix('eval_')}"
    values = [(entry[metric], entry["epoch"]) for entry in trainer.state.log_history if metric in entry]
    did: dict[str, Any] = {"epochs": trainer.state.epoch, "steps": trainer.state.global_step}
    if values:
        best, epoch = (max if trainer.args.greater_is_better else min)(values, key=lambda pair: pair[0])
        did |= {"best_epoch": epoch, f"best_validation_{metric.removeprefix('eval_')}": best}
    return did


def _quoted(text: str) -> str:
    """For a shell; in double quotes where these are enough, which an apostrophe survives."""
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'
