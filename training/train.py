"""`navit-clip train`: a YAML and `key=value` overrides in, a run folder out.

Alone, or on every rank that torchrun or deepspeed starts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from eval.model import PackedModel
from eval.tasks import evaluate
from navit_clip.cli import exit_code
from navit_clip.config import load_config, save_config
from navit_clip.data import Faults, TrainLoader, validation_batches
from navit_clip.data.counts import counts_line
from navit_clip.distributed import World
from navit_clip.errors import CheckpointError, DataError
from navit_clip.model import TwoTowers, choose_backend
from navit_clip.run_settings import RUN_CONFIG_FILE
from navit_clip.tokenizer import Tokenizer, load_tokenizer
from training.checkpoint import LATEST, CheckpointWriter, Progress, go_back_to
from training.config import RunConfig, add_run_arguments
from training.engine import Engine
from training.initial_weights import load_initial_weights
from training.lock import run_lock
from training.loop import End, train
from training.metrics import Recorder
from training.optimizer import freeze_towers, make_optimizer
from training.resume import find_checkpoint
from training.startup import changes, check_folder, check_settings, naming, remarks
from training.stop import STOPPED, StopRequest
from training.validation import validation_loss


def main(argv: Sequence[str]) -> int:
    """Trains; the exit code is 0, or STOPPED where the run was asked to stop. Errors are NavitClipErrors."""
    with StopRequest.listening() as stop:  # to the end: a second request is no other than the first
        arguments = _parser().parse_intermixed_args(argv)
        config = load_config(RunConfig, arguments.config, arguments.overrides)
        with World.join() as world:
            end = run_training(config, world, arguments.resume, stop)
    return STOPPED if end.stopped else 0


def run_training(
    config: RunConfig, world: World, resume: str | None = None, stop: StopRequest | None = None
) -> End:
    """Builds everything that a config names and trains to its end.

    Args:
        config: the run.
        world: the ranks; all call this together.
        resume: what `find_checkpoint` takes, or None to start afresh.
        stop: where signals ask to stop; without it none do.

    Raises:
        NavitClipError: the config, the data or the checkpoint cannot be used; says what and where.
    """
    run = Path(config.folder)
    check_folder(run)
    with run_lock(run, world) as unlocked:
        return _run(config, world, resume, stop or StopRequest(), unlocked)


def _run(config: RunConfig, world: World, resume: str | None, stop: StopRequest, unlocked: str) -> End:
    run = Path(config.folder)
    checkpoint, passed_over = (None, []) if resume is None else find_checkpoint(run, resume, world)
    own = checkpoint is not None and run.resolve() in checkpoint.folder.resolve().parents
    if (run / "checkpoints" / LATEST).exists() and not own:
        raise CheckpointError(
            f"{run}: holds a run already; go on with --resume latest, or set another folder="
        )
    tokenizer = load_tokenizer(config.tokenizer)
    check_settings(config, tokenizer)
    backend = choose_backend(config.attention, world.device, config.engine.compute_dtype)
    with naming("data.shards", DataError):
        loader = TrainLoader(
            config.data,
            tokenizer,
            config.model.image.patch_size,
            config.model.text.context_length,
            config.seed,
            world.rank,
            world.size,
        )

    torch.manual_seed(config.seed)
    model = TwoTowers(config.model)
    if checkpoint is None:
        load_initial_weights(config.init_from, model, tokenizer)
    else:
        checkpoint.check_fits(config.model, tokenizer)
        checkpoint.load_weights(model)
    freeze_towers(config.optimizer, model)
    sizes = [(parameter.numel() / 1e6, parameter.requires_grad) for parameter in model.parameters()]
    optimizer = make_optimizer(config.optimizer, model, config.init_from.undecayed)
    engine = Engine(config.engine, model, optimizer, world)
    progress = Progress()
    origin = ", ".join(f"{tower} tower from {folder}" for tower, folder in config.init_from.folders.items())
    if checkpoint is not None:
        checkpoint.restore(engine)
        progress = checkpoint.progress
        origin = f"from {checkpoint.folder}{checkpoint.place(loader, config.data.num_workers, world)}"
        folders = checkpoint.folder.parent.glob("step-*")
        later = [folder for folder in folders if folder.name > checkpoint.folder.name]
        if own and later:
            origin += f", whose {len(later)} later checkpoints are given up, and called given-up-…"
        elif not own:
            origin += f", where the rows of its first {progress.step} steps stay"

    at_its_end = progress.pairs >= config.pairs
    changed = []
    if world.is_main:
        if checkpoint is not None:
            changed = list(changes(checkpoint.folder, config))
        if not (at_its_end and (run / RUN_CONFIG_FILE).exists()):
            save_config(config, run / RUN_CONFIG_FILE)
        if checkpoint is not None and own:
            go_back_to(checkpoint.folder)
    recorder = Recorder(run, progress, config, world)
    if unlocked:
        recorder.say(unlocked)
    for reason in passed_over:
        recorder.say(f"passed over: {reason}")
    recorder.say(
        f"{run}: {sum(size for size, _ in sizes):.1f}M parameters, "
        f"{sum(size for size, trained in sizes if trained):.1f}M trained, ZeRO {config.engine.zero_stage}, "
        f"{config.engine.precision} on {world.size} x {world.device.type}, {world.ranks_per_node} a node, "
        f"{backend} attention, "
        f"{origin or 'from the start'}"
    )
    for change in changed:
        recorder.say(f"changed since it was saved: {change}")
    for remark in remarks(config, tokenizer):
        recorder.say(remark)
    if at_its_end:
        recorder.say(f"already at its end, {progress.pairs} of {config.pairs} pairs: only evaluated again")
    elif checkpoint is not None:
        recorder.resumed(progress)
    try:
        with CheckpointWriter(
            run, config.checkpoint, config.model, tokenizer, world, recorder.say, stop.ask
        ) as checkpoints:
            return train(
                config,
                engine,
                loader,
                checkpoints,
                recorder,
                lambda at: _evaluate(config, engine, tokenizer, recorder, stop, at, world),
                stop,
                progress,
                world,
            )
    finally:
        _say_counts(loader, recorder, world)
        recorder.close()


def _evaluate(
    config: RunConfig,
    engine: Engine,
    tokenizer: Tokenizer,
    recorder: Recorder,
    stop: StopRequest,
    progress: Progress,
    world: World,
) -> None:
    """Validation loss and evaluation tasks on the model as it is now; no further ones once asked to stop."""
    at = {"step": progress.step, "pairs": progress.pairs}
    model = engine.whole_model()
    if config.validation.data.shards:
        faults = Faults()
        batches = validation_batches(
            config.validation.data,
            tokenizer,
            config.model.image.patch_size,
            config.model.text.context_length,
            world.rank,
            world.size,
            faults,
            config.model.image.position.reach,
            config.data.remote,
        )
        loss = validation_loss(config.validation, config.loss, model, batches, world)
        recorder.score("validation", {**at, "loss": loss, "skipped": sum(faults.counts.values())})
    if stop.asked(world):
        return
    for result in evaluate(
        PackedModel(model, tokenizer), config.evaluation, world, remote=config.data.remote
    ):
        record = result.as_json(model=config.folder, pretrained=f"step {progress.step}")
        recorder.score("eval", {**at, **{name: record[name] for name in _EVAL_ROW}})
        if stop.asked(world):
            return


_EVAL_ROW = ("dataset", "task", "metrics", "chance", "num_samples", "skipped", "tokens_per_image")


def _say_counts(loader: TrainLoader, recorder: Recorder, world: World) -> None:
    """What became of each source's samples, as far as batches came of them. The main rank's own alone."""
    whose = "samples" if world.size == 1 else "rank 0's samples"
    counts = loader.counts
    if not counts["read"]:
        return
    waiting = counts["read"] - counts["used"] - sum(counts["skipped"].values())
    rest = f"; the other {waiting} waited for a batch" if waiting else ""
    recorder.say(f"{whose} up to the last batch: {counts_line(counts)}{rest}")
    if len(loader.source_counts) > 1:
        for source, counts in loader.source_counts.items():
            recorder.say(f"{whose} of {source} up to the last batch: {counts_line(counts)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="navit-clip train",
        description="Trains a pair of towers. Several ranks: torchrun --nproc_per_node N -m training.train …",
    )
    add_run_arguments(parser, example="configs/run/demo.yaml")
    parser.add_argument(
        "--resume",
        metavar="auto|latest|CHECKPOINT",
        help="go on from the run's latest checkpoint, or from the one named; auto: from the newest that is "
        "whole, or from the start where there is none yet",
    )
    parser.add_argument(
        "--local_rank",
        type=int,
        help=argparse.SUPPRESS,  # deepspeed's launcher adds it; LOCAL_RANK says it too
    )
    return parser


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
