"""`navit-clip eval`: a model and data sets -> a table, and a line of JSON per task.

The flags and the JSON are CLIP_benchmark's where it has them. Alone or under torchrun, with equal scores.
An evaluation that was interrupted goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from eval.fingerprint import fingerprint
from eval.loading import load_judged, model_home
from eval.model import JudgedModel, PackedModel
from eval.records import check_writable, read_records, write_record
from eval.result import TaskResult, shown_metric
from eval.store import Store
from eval.task_config import EvalConfig, TaskConfig
from eval.tasks import check_tasks, evaluate
from navit_clip.config import build_config, load_config
from navit_clip.distributed import World
from navit_clip.errors import ConfigError
from navit_clip.model.attention import choose_backend
from navit_clip.remote_option import add_remote_option, remote_config
from navit_clip.weights import usual_tokens, weights_hash

OUTPUT = "{folder}/eval/results.jsonl"
VECTORS = "{folder}/eval/vectors"

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

TASK_FLAGS = {
    "dataset_root": "dataset_root",
    "incomplete": "incomplete",
    "split": "split",
    "task": "task",
    "label_key": "label_key",
    "caption_key": "caption_key",
    "custom_classname_file": "class_names",
    "custom_template_file": "templates",
    "canonicalize": "canonicalize",
    "border": "border",
    "center": "center",
    "cost_tokens": "cost_tokens",
}
"""Flags that describe a task -> the setting of `TaskConfig` that they set."""

IMAGE_FLAGS = ("tokens_per_image", "upscale", "keep", "token_budget", "num_workers")


def main(argv: Sequence[str]) -> int:
    """Evaluates, prints and writes; the exit code is 0. Errors are NavitClipErrors."""
    if argv and not argv[0].startswith("-"):
        raise ConfigError(f"{argv[0]}: a model follows --model: navit-clip eval --model {argv[0]} …")
    arguments = _parser().parse_args(argv)
    config = _config(arguments)
    remote = remote_config(arguments.remote)
    home = model_home(arguments.model)
    outputs = _outputs(arguments.output, arguments.model, home, config.tasks)
    vectors = Path(arguments.vectors.replace("{folder}", str(home)))
    check_writable(vectors / "any", flag="--vectors")
    check_tasks(config.tasks, remote)
    with World.join() as world:
        dtype = PRECISIONS[arguments.precision]
        backend = choose_backend("auto", world.device, dtype)
        model = load_judged(arguments.model, world.device, dtype)
        weights = weights_hash(model.module)
        store = Store(vectors, weights, fingerprint(model, config), arguments.precision, world.device.type)
        if world.is_main:
            print(_heading(model, world, arguments.precision, backend))
        results = evaluate(model, config, world, store, remote)
        for result, output in zip(results, outputs, strict=True):
            if world.is_main:
                write_record(result.as_json(model.name, model.pretrained, weights), output)
                print(f"\n{result_table(result)}\n  {output}")
        world.barrier()
        if world.is_main:
            store.discard("images")  # class embeddings stay: they are small, and serve the next data set
    return 0


def result_table(result: TaskResult) -> str:
    """A result for the terminal: each score, where it may lie, and what guessing gets."""
    heading = (
        f"{result.config.dataset}  {result.config.task}  {result.num_samples} images, "
        f"{result.mean_tokens:.0f} tokens each"
    )
    width = max(map(len, result.metrics))
    rows = []
    for name, value in result.metrics.items():
        low, high = (shown_metric(name, bound) for bound in result.intervals[name])
        chance = f"   chance {shown_metric(name, result.chance[name])}" if name in result.chance else ""
        rows.append(f"  {name:<{width}}  {shown_metric(name, value):>9}   95 %: {low} to {high}{chance}")
    scoring = f"  scoring: {result.scoring}"
    return "\n".join([heading, *rows, scoring, *(f"  note: {note}" for note in result.notes)])


def _heading(model: JudgedModel, world: World, precision: str, backend: str) -> str:
    attention = f", {backend} attention" if isinstance(model, PackedModel) else ""
    return f"{model.name} ({model.pretrained}): {precision} on {world.size} x {world.device.type}{attention}"


class _Flags(argparse.ArgumentParser):
    """Says what is wrong in one line, without the flags that there are."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {self.prog} --help lists the flags")


def _parser() -> argparse.ArgumentParser:
    parser = _Flags(prog="navit-clip eval", description="Zero-shot evaluation of a model.")
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="a run, a checkpoint or a model folder; a Hugging Face folder (CLIP, SigLIP, SigLIP 2, export); "
        "or open_clip:NAME[,PRETRAINED|FILE]",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--suite", help="YAML of tasks, such as configs/eval/stamps.yaml")
    what.add_argument(
        "--dataset", nargs="+", help="names (imagenet1k, wds/imagenet1k), shard patterns, or folders"
    )
    add("--dataset_root", help="where a data set lies; {dataset} and {dataset_cleaned} stand for its name")
    add("--incomplete", action="store_true", default=None, help="judge a named data set that is not whole")
    add("--split", help="subfolder of a CLIP_benchmark folder (test)")
    add("--task", choices=["zeroshot_classification", "zeroshot_retrieval"], help="what to ask of --dataset")
    add("--label_key", help="where shards have labels: cls, or the json.KEY that holds a class name (cls)")
    add("--caption_key", help="where shards have captions: txt or json.KEY (txt)")
    add("--custom_classname_file", help="class names: one a line, or JSON")
    add(
        "--custom_template_file",
        nargs="+",
        help="openai-80, openai-7, clip-paper, clip-best, plain, files, or templates with {}",
    )
    add(
        "--canonicalize", action="store_true", default=None, help="prompts in lower case, without punctuation"
    )
    add("--border", type=int, help="pixels cut off on each side (0; ObjectNet by name: 2)")
    add("--center", type=float, help="share of height and width kept around the middle (1)")
    add("--cost_tokens", type=int, nargs="+", help="also judge at each of these tokens per image")
    add("--tokens_per_image", type=int, help="patches of an image at most (the model's own number, or 256)")
    add("--no_upscale", dest="upscale", action="store_false", default=None, help="leave small images small")
    add("--keep", type=float, help="share of patches shown, drawn at random (1)")
    add("--token_budget", type=int, help="tokens of a forward pass at most, instead of a batch size (16384)")
    add("--num_workers", type=int, help="decoding processes on each rank (2)")
    add_remote_option(parser)
    add(
        "--precision",
        choices=list(PRECISIONS),
        default="fp32",
        help="of matrix products and attention (fp32)",
    )
    add(
        "--output",
        default=OUTPUT,
        help="file of JSON lines, where a result replaces an earlier one of the same; {folder} is --model or "
        f"stands for it under runs/; {{model}}, {{dataset}}, {{task}}, {{language}} are theirs ({OUTPUT})",
    )
    add(
        "--vectors",
        default=VECTORS,
        help=f"folder of what is computed, so that an interrupted evaluation goes on ({VECTORS})",
    )
    return parser


def _config(arguments: argparse.Namespace) -> EvalConfig:
    given = {flag: value for flag, value in vars(arguments).items() if value is not None}
    task_flags = [flag for flag in TASK_FLAGS if flag in given]
    images = {flag: given[flag] for flag in IMAGE_FLAGS if flag in given}
    tokens = usual_tokens(arguments.model)
    usual = {"tokens_per_image": tokens} if tokens else {}
    if arguments.suite is not None:
        if task_flags:
            raise ConfigError(f"--{task_flags[0]} describes a --dataset; in a --suite each task has its own")
        settings = [f"{flag}={value}" for flag, value in images.items()]
        return load_config(EvalConfig, arguments.suite, settings, usual=usual)
    if arguments.task is None:
        raise ConfigError("--task: expected zeroshot_classification or zeroshot_retrieval, found nothing")
    own: dict[str, Any] = {TASK_FLAGS[flag]: given[flag] for flag in task_flags}
    tasks = [{"dataset": dataset, **own} for dataset in arguments.dataset]
    config = build_config(EvalConfig, {**usual, **images, "tasks": tasks}, where="the command line")
    if len({task.path for task in config.tasks}) < len(tasks):
        raise ConfigError(
            "--dataset_root: several data sets need a {dataset} in it, to lie in different places"
        )
    return config


def _outputs(template: str, model: str, home: Path, tasks: Sequence[TaskConfig]) -> list[Path]:
    """Where each task's result goes; known, and found to take it, before the work is done."""
    if not tasks:
        raise ConfigError("tasks: the suite has none")
    outputs = [Path(_fill_output(template, model, home, task)) for task in tasks]
    for path in outputs:
        check_writable(path, flag="--output")
        if path.exists():
            read_records(path)  # what is there stays, so it has to be results
    return outputs


def _fill_output(template: str, model: str, home: Path, task: TaskConfig) -> str:
    places = {
        "folder": str(home),
        "model": home.name if model == str(home) else Path(model).name,
        "dataset": task.name.strip("/").replace("/", "_"),
        "task": task.task,
        "language": task.language,
    }
    try:
        return template.format(**places)
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"--output: {template!r}: expected places among {', '.join(places)}") from error
