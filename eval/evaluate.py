"""`navit-clip eval`: a model and data sets -> a table, and one JSON file per task.

The flags and the JSON are CLIP_benchmark's where it has them. Alone or under torchrun, with equal scores.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eval.tasks import EvalConfig, TaskConfig, TaskResult, evaluate
from navit_clip.config import build_config, load_config
from navit_clip.distributed import World
from navit_clip.errors import ConfigError
from navit_clip.model.attention import choose_backend
from navit_clip.weights import load_model, resolve_model_folder

OUTPUT = "{folder}/eval/{dataset}_{task}.json"

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

TASK_FLAGS = {
    "dataset_root": "dataset_root",
    "split": "split",
    "task": "task",
    "label_key": "label_key",
    "caption_key": "caption_key",
    "custom_classname_file": "class_names",
    "custom_template_file": "templates",
}
"""Flags that describe a task -> the setting of `TaskConfig` that they set."""

EMBED_FLAGS = ("tokens_per_image", "token_budget", "num_workers")


def main(argv: Sequence[str]) -> int:
    """Evaluates, prints and writes; the exit code is 0. Errors are NavitClipErrors."""
    arguments = _parser().parse_args(argv)
    config = _config(arguments)
    folder = resolve_model_folder(arguments.model)
    outputs = _outputs(arguments.output, arguments.model, folder, config.tasks)
    with World.join() as world:
        dtype = PRECISIONS[arguments.precision]
        backend = choose_backend("auto", world.device, dtype)
        model, tokenizer = load_model(folder)
        model.to(world.device)
        model.compute_dtype = dtype
        if world.is_main:
            print(
                f"{folder}: {arguments.precision} on {world.size} x {world.device.type}, {backend} attention"
            )
        results = evaluate(model, tokenizer, config, world)
        if world.is_main:
            for result, output in zip(results, outputs, strict=True):
                record = result.as_json(model=arguments.model, pretrained=str(folder))
                _write(record, output)
                print(f"\n{result_table(result)}\n  {output}")
    return 0


def result_table(result: TaskResult) -> str:
    """A result for the terminal: each score beside what guessing gets, in per cent."""
    heading = (
        f"{result.config.dataset}  {result.config.task}  "
        f"{result.num_samples} images, at most {result.tokens_per_image} tokens each"
    )
    width = max(map(len, result.metrics))
    rows = [
        f"  {name:<{width}}  {100 * value:6.2f} %   chance {100 * result.chance[name]:6.2f} %"
        for name, value in result.metrics.items()
    ]
    return "\n".join([heading, *rows, *(f"  note: {note}" for note in result.notes)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="navit-clip eval", description="Zero-shot evaluation of a model.")
    add = parser.add_argument
    add("--model", required=True, help="a run, a checkpoint or a model folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--suite", help="YAML of tasks, such as configs/eval/stamps.yaml")
    what.add_argument("--dataset", nargs="+", help="names (wds/imagenet1k), shard patterns, or folders")
    add("--dataset_root", help="where a data set lies; {dataset} and {dataset_cleaned} stand for its name")
    add("--split", help="subfolder of a CLIP_benchmark folder (test)")
    add("--task", choices=["zeroshot_classification", "zeroshot_retrieval"], help="what to ask of --dataset")
    add("--label_key", help="where shards have labels: cls, or the json.KEY that holds a class name (cls)")
    add("--caption_key", help="where shards have captions: txt or json.KEY (txt)")
    add("--custom_classname_file", help="class names: one a line, or JSON")
    add("--custom_template_file", nargs="+", help="openai-80, openai-7, files, or templates with {}")
    add("--tokens_per_image", type=int, help="patches of an image at most (256)")
    add("--token_budget", type=int, help="tokens of a forward pass at most, instead of a batch size (16384)")
    add("--num_workers", type=int, help="decoding processes on each rank (2)")
    add(
        "--precision",
        choices=list(PRECISIONS),
        default="fp32",
        help="of matrix products and attention (fp32)",
    )
    add(
        "--output",
        default=OUTPUT,
        help="JSON to write; {folder} is --model; {model}, {dataset}, {task}, {language} are theirs "
        f"({OUTPUT})",
    )
    return parser


def _config(arguments: argparse.Namespace) -> EvalConfig:
    given = {flag: value for flag, value in vars(arguments).items() if value is not None}
    task_flags = [flag for flag in TASK_FLAGS if flag in given]
    embed = {flag: given[flag] for flag in EMBED_FLAGS if flag in given}
    if arguments.suite is not None:
        if task_flags:
            raise ConfigError(f"--{task_flags[0]} describes a --dataset; in a --suite each task has its own")
        return load_config(EvalConfig, arguments.suite, [f"{flag}={value}" for flag, value in embed.items()])
    if arguments.task is None:
        raise ConfigError("--task: expected zeroshot_classification or zeroshot_retrieval, found nothing")
    settings: dict[str, Any] = {TASK_FLAGS[flag]: given[flag] for flag in task_flags}
    tasks = [{"dataset": dataset, **settings} for dataset in arguments.dataset]
    config = build_config(EvalConfig, {**embed, "tasks": tasks}, where="the command line")
    if len({task.path for task in config.tasks}) < len(tasks):
        raise ConfigError(
            "--dataset_root: several data sets need a {dataset} in it, to lie in different places"
        )
    return config


def _outputs(template: str, model: str, pretrained: Path, tasks: Sequence[TaskConfig]) -> list[Path]:
    """Where each task's result goes; known before the work is done."""
    if not tasks:
        raise ConfigError("tasks: the suite has none")
    outputs = [Path(_fill_output(template, model, pretrained, task)) for task in tasks]
    twice = [path for path in outputs if outputs.count(path) > 1]
    if twice:
        raise ConfigError(
            f"--output: {twice.count(twice[0])} results would go to {twice[0]}; see its {{places}}"
        )
    for path in outputs:
        _check_writable(path)
    return outputs


def _check_writable(path: Path) -> None:
    """Makes the folder of a result; an evaluation may take hours, and is not to be lost at its end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output: {path} cannot be written: {error.strerror}") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--output: {path} cannot be written: it is a folder, or in a read-only one")


def _fill_output(template: str, model: str, pretrained: Path, task: TaskConfig) -> str:
    places = {
        "folder": model.rstrip("/"),
        "model": Path(model).name,
        "pretrained": pretrained.name,
        "dataset": task.name.strip("/").replace("/", "_"),
        "task": task.task,
        "language": task.language,
    }
    try:
        return template.format(**places)
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"--output: {template!r}: expected places among {', '.join(places)}") from error


def _write(record: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
