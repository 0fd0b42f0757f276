"""A run's settings agree with each other."""

from __future__ import annotations

import pytest

from navit_clip.errors import ConfigError
from tests.training_builders import TOWER, small_run


@pytest.mark.parametrize("position", [{"kind": "learned_2d"}, {"coordinates": "absolute"}])
def test_where_positions_end_no_image_may_be_longer(tmp_path, position):
    """Else the first long image would end a run that has gone on for days."""
    image = {**TOWER, "patch_size": 8, "position": {**position, "table_side": 9}}
    model = {"image": image, "text": {**TOWER, "vocab_size": 512}}
    for longest in (0, 10):
        with pytest.raises(ConfigError, match=r"max_grid_side: expected from 1 to 9, where the table"):
            small_run(tmp_path, model=model, **resolution(tmp_path, max_grid_side=longest))
    small_run(tmp_path, model=model, **resolution(tmp_path, max_grid_side=9))
    square = {"shape": "square", "min_side": 72, "max_side": 72}
    small_run(tmp_path, model=model, **resolution(tmp_path, **square))


def test_muon_and_clipping_do_not_go_together(tmp_path):
    with pytest.raises(ConfigError, match=r"engine.gradient_clipping: expected 0 .* muon, found 1\.0"):
        small_run(tmp_path, optimizer={"kind": "muon"})
    small_run(tmp_path, optimizer={"kind": "muon"}, engine={"gradient_clipping": 0.0})


def test_muon_is_not_offloaded_to_nvme(tmp_path):
    nvme = {"gradient_clipping": 0.0, "zero_stage": 3, "offload_optimizer": "nvme", "offload_folder": "/x"}
    with pytest.raises(ConfigError, match=r"engine.offload_optimizer: expected none or cpu .* found nvme"):
        small_run(tmp_path, optimizer={"kind": "muon"}, engine=nvme)


def test_a_run_that_trains_or_evaluates_nothing_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"optimizer\.image\.freeze, text\.freeze: expected one tower at least"
    ):
        small_run(tmp_path, optimizer={"image": {"freeze": True}, "text": {"freeze": True}})
    with pytest.raises(ConfigError, match=r"evaluate_every: expected 0 where there are neither .*, found 5"):
        small_run(tmp_path, evaluate_every=5)
    small_run(tmp_path, evaluate_every=5, validation={"data": {"shards": ["x.tar"]}})


@pytest.mark.parametrize("warmup", [120, 1000])
def test_a_run_that_ends_before_its_rate_has_risen_is_refused(tmp_path, warmup):
    with pytest.raises(ConfigError, match=r"fewer than pairs \(120\), found \d+; .*warmup_pairs=6$"):
        small_run(tmp_path, schedule={"warmup_pairs": warmup})
    small_run(tmp_path, schedule={"warmup_pairs": 119})


def resolution(folder, **settings) -> dict:
    return {"data": {"shards": [str(folder / "shards")], "resolution": settings}}
