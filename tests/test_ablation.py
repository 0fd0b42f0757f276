"""What the ablation's table rests on: where curves meet, and what a run costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.ablation import STEP, Course, Outcome, mean_curve, reaching
from navit_clip.data.dropping import DropConfig
from navit_clip.data.resolution import ResolutionConfig
from navit_clip.model.flops import image_tower_flops, text_tower_flops
from tests.data_builders import pair, small_tokenizer, write_shard
from tests.training_builders import small_run


def outcome(curve, operations=(20.0, 40.0, 60.0, 80.0, 100.0)):
    return Outcome(
        variant="",
        seed=0,
        pairs=0,
        tokens_per_image=0,
        operations=list(operations),
        curve=curve,
        scores={},
    )


def test_curves_are_means_at_equal_shares_of_the_compute():
    runs = [outcome([0.1, 0.2, 0.3, 0.4, 0.5]), outcome([0.3, 0.4, 0.5, 0.6, 0.7], (2, 4, 6, 8, 10))]
    shares, scores = mean_curve(runs)
    assert shares[[0, -1]] == pytest.approx([0.2, 1.0])
    np.testing.assert_allclose(scores, shares / 2 + 0.1)


def test_a_goal_is_reached_where_the_mean_curve_first_has_it():
    baseline = [outcome([0.0, 0.1, 0.2, 0.25, 0.3])]
    better = [outcome([0.1, 0.2, 0.3, 0.4, 0.5])]
    assert reaching(better, baseline) == "60 %"
    assert reaching([outcome([0.3] * 5)], baseline) == "20 %"
    assert reaching(baseline, better) == "not reached"
    assert reaching(baseline, baseline) == ""


def test_a_run_costs_what_its_images_and_captions_do(tmp_path):
    """Squares of 4 x 4 patches, all kept, and captions of one length: the same in every step."""
    write_shard(tmp_path / "s.tar", [pair(f"x{number}", number, "a dog") for number in range(6)])
    config = small_run(tmp_path)
    data = replace(
        config.data,
        shards=[str(tmp_path / "s.tar")],
        resolution=ResolutionConfig(kind="patches", patches=[16], shape="square"),
        drop=DropConfig(),
    )
    config, tokenizer = replace(config, data=data), small_tokenizer()
    (ids,) = tokenizer.encode(["a dog"], config.model.text.context_length)
    image = image_tower_flops(config.model.image, torch.tensor([16]), backward=True)
    text = text_tower_flops(
        config.model.text, config.model.image.width, torch.tensor([len(ids)]), backward=True
    )
    course = Course(config, tokenizer, 2.5 * STEP * (image + text))
    assert course.pairs == 2.5 * STEP
    assert course.tokens_per_image == 16
    assert course.operations_at(1.25 * STEP) == pytest.approx(1.25 * STEP * (image + text))
