"""Position embeddings, every kind: against torch's resizing, formulas by hand, and each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from navit_clip.batch import PackedImages
from navit_clip.errors import ConfigError, DataError
from navit_clip.model import ImageTower, ImageTowerConfig, PositionConfig
from navit_clip.model.initialization import initialize
from navit_clip.model.position_tables import resize_weights
from navit_clip.model.position_waves import rotate
from navit_clip.model.positions import make_positions
from navit_clip.model.segments import segment_index
from tests.packs import noise_images, pack

WIDTH = 8
RNG = np.random.default_rng(0)
GRIDS = [(1, 1), (1, 64), (64, 1), (7, 7), (11, 22), (40, 40)] + [
    (int(rows), int(columns)) for rows, columns in RNG.integers(1, 50, (50, 2))
]
MEASURES = ("absolute", "fractional", "fractional_longer")
COMBINATIONS = ("sum", "stack", "product")
CONFIGS = [
    *(PositionConfig(coordinates=c, combination=how) for c in MEASURES for how in COMBINATIONS),
    *(PositionConfig(kind="sinusoidal", coordinates=c, combination="stack") for c in MEASURES),
    *(PositionConfig(kind=kind, coordinates=c) for kind in ("fourier", "rope") for c in MEASURES),
    PositionConfig(kind="learned_2d"),
    PositionConfig(kind="grid"),
]


def name(config: PositionConfig) -> str:
    return f"{config.kind}-{config.coordinates}-{config.combination}"


def has_end(config: PositionConfig) -> bool:
    """Whether a table ends somewhere, and longer images are refused."""
    return config.kind == "learned_2d" or (config.kind, config.coordinates) == ("learned", "absolute")


every_kind = pytest.mark.parametrize("config", CONFIGS, ids=name)


def with_side(config: PositionConfig, side: int) -> PositionConfig:
    """The same with another table, where there is one or a side to count in."""
    tableless = config.kind in ("sinusoidal", "rope") and config.coordinates == "absolute"
    return config if tableless else replace(config, table_side=side)


def make(seed: int = 0, **settings):
    torch.manual_seed(seed)
    positions = make_positions(PositionConfig(**settings), WIDTH, num_heads=1)
    for parameter in positions.parameters():
        torch.nn.init.normal_(parameter)
    return positions


def made(config: PositionConfig):
    return make(**{field: getattr(config, field) for field in config.__dataclass_fields__})


def embed(positions, images):
    packed = images if isinstance(images, PackedImages) else pack(images)
    return positions(packed, segment_index(packed.offsets, packed.num_tokens))


def small_tower(position: PositionConfig) -> ImageTower:
    torch.manual_seed(0)
    tower = ImageTower(
        ImageTowerConfig(width=32, depth=2, num_heads=2, mlp_dim=48, patch_size=2, position=position)
    )
    initialize(tower)
    return tower


@every_kind
def test_packed_equals_single_on_grids_of_any_shape(config):
    images = noise_images([grid for grid in GRIDS if max(grid) <= 24], patch_size=2, keep=0.6)
    tower = small_tower(with_side(config, 24))
    packed, single = tower(pack(images)), torch.cat([tower(pack([image])) for image in images])
    torch.testing.assert_close(packed, single, atol=1e-5, rtol=0)
    gradients = []
    for output in (packed, single):
        tower.zero_grad()
        output.square().sum().backward()
        gradients.append([p.grad.clone() for p in tower.parameters() if p.grad is not None])
    for together, alone in zip(*gradients, strict=True):
        assert (together - alone).norm() / alone.norm().clamp(min=1e-3) < 1e-5


@every_kind
def test_unseen_grids_run_or_are_refused_by_name(config):
    tower = small_tower(with_side(config, 8))
    unseen = pack(noise_images([(3, 11), (9, 2), (1, 1)], patch_size=2))
    if has_end(config):
        with pytest.raises(DataError, match=r"table_side: .* reach 8 patches a side, found an image of 11"):
            tower(unseen)
    else:
        assert tower(unseen).isfinite().all()


@every_kind
def test_nothing_waits_for_the_device(config):
    """On the meta device there is no value to fetch: whatever asked for one would fail."""
    images = pack(noise_images([(3, 5), (5, 2), (1, 1)], 1)).to("meta")
    found = embed(made(config).to("meta"), images)
    assert len(found) == images.num_tokens


@every_kind
def test_where_a_patch_is_makes_a_difference(config):
    """Also between (i, j) and (j, i), and between kept patches: it is the place, not the order."""
    found = embed(made(config), noise_images([(5, 5)], 1)).flatten(1)
    assert torch.cdist(found, found).add(torch.eye(25)).min() > 1e-3
    image = noise_images([(5, 5)], 1)[0]
    kept = np.array([3, 7, 20])
    some = replace(image, pixels=image.pixels[kept], position=image.position[kept])
    torch.testing.assert_close(embed(made(config), [some]).flatten(1), found[kept], atol=1e-6, rtol=0)


@given(
    st.integers(8, 40),
    st.integers(8, 40),
    st.sampled_from([3, 5]),
    st.sampled_from(
        [config for config in CONFIGS if config.coordinates != "absolute" and not has_end(config)]
    ),
)
def test_fractions_do_not_depend_on_the_number_of_patches(rows, columns, times, config):
    """The middle patch of each `times` x `times` is where the coarse patch is, once no table is shrunk."""
    positions = made(with_side(config, 8))
    coarse = embed(positions, noise_images([(rows, columns)], 1))
    fine = embed(positions, noise_images([(times * rows, times * columns)], 1))
    middle = fine.unflatten(0, (rows, times, columns, times))[:, times // 2, :, times // 2].flatten(0, 1)
    torch.testing.assert_close(middle, coarse, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sinusoidal", "fourier", "rope"])
def test_fractional_waves_do_so_on_any_grid(kind):
    positions = make(kind=kind, combination="stack" if kind == "sinusoidal" else "sum")
    assert torch.equal(
        embed(positions, noise_images([(1, 1)], 1))[0], embed(positions, noise_images([(3, 3)], 1))[4]
    )


def test_fractions_of_the_longer_side_keep_the_shape():
    own, longer = (make(coordinates=c) for c in ("fractional", "fractional_longer"))
    square, half = noise_images([(12, 12), (6, 12)], 1)
    whole = embed(longer, [square])
    assert torch.equal(embed(longer, [half]), whole[:72]), "the upper half of the square"
    assert torch.equal(embed(own, [square]), whole)
    assert not torch.allclose(embed(own, [half]), whole[:72])


def test_coordinates_agree_on_an_image_of_the_table_s_side():
    images = noise_images([(8, 8)], 1)
    for kind, how in [
        ("learned", "sum"),
        ("learned", "product"),
        ("sinusoidal", "stack"),
        ("fourier", "sum"),
    ]:
        configs = (PositionConfig(kind=kind, combination=how, coordinates=c) for c in MEASURES)
        absolute, *others = (embed(made(with_side(config, 8)), images) for config in configs)
        for other in others:
            torch.testing.assert_close(other, absolute)


def test_combinations_by_hand():
    for how, expected in [
        ("sum", lambda row, column: row + column),
        ("stack", lambda row, column: torch.cat([row, column])),
        ("product", lambda row, column: row * column),
    ]:
        positions = make(coordinates="absolute", combination=how, table_side=5)
        found = embed(positions, noise_images([(2, 5)], 1))
        by_hand = [expected(positions.row[i], positions.column[j]) for i in range(2) for j in range(5)]
        assert torch.equal(found, torch.stack(by_hand))


def test_learned_2d_is_a_vector_for_each_place():
    positions = make(kind="learned_2d", table_side=5)
    found = embed(positions, noise_images([(2, 4)], 1))
    assert torch.equal(found, positions.table.unflatten(0, (5, 5))[:2, :4].flatten(0, 1))


def test_sinusoidal_by_hand():
    found = embed(
        make(kind="sinusoidal", coordinates="absolute", combination="stack"), noise_images([(4, 3)], 1)
    )
    row, column = [f(3 * w) for f in (np.sin, np.cos) for w in (1, 0.01)], [0, 0, 1, 1]
    np.testing.assert_allclose(found[9], [*row, *column], atol=1e-6)


def test_fourier_is_one_linear_map_of_both_coordinates():
    positions = make(kind="fourier", coordinates="absolute")
    place = torch.tensor([3.0, 2.0])
    angles = place @ positions.frequencies
    found = embed(positions, noise_images([(4, 3)], 1))
    torch.testing.assert_close(found[11], torch.cat([angles.sin(), angles.cos()]))


def test_rotary_products_depend_on_differences_alone():
    """q at p against k at p' is the same for any shift of both, along either axis."""
    turns = embed(make(kind="rope", coordinates="absolute"), noise_images([(9, 9)], 1))
    query, key = torch.randn(2, 1, 1, WIDTH).expand(-1, 81, -1, -1)
    products = (rotate(query, turns).squeeze(1) @ rotate(key, turns).squeeze(1).T).unflatten(0, (9, 9))
    products = products.unflatten(2, (9, 9))  # [row, column] of the query, then of the key
    torch.testing.assert_close(products[:-1, :, :-1], products[1:, :, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(products[:, :-3, :, :-3], products[:, 3:, :, 3:], atol=1e-5, rtol=0)
    assert (products[0, 0] - products[0, 1]).abs().max() > 1e-2


def torch_resize(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """torch's bilinear antialiased resize of a [side, side, width] table, row by row.

    torch's CPU kernel is wrong where the output is one column wide, so such a grid is resized lying down.
    """
    if columns == 1 < rows:
        return torch_resize(table.transpose(0, 1), 1, rows)
    resized = F.interpolate(
        table.permute(2, 0, 1)[None], size=(rows, columns), mode="bilinear", antialias=True
    )
    return resized[0].permute(1, 2, 0).flatten(0, 1)


@pytest.mark.parametrize("table_side", [1, 4, 16, 27])
def test_grid_table_equals_torch_resize(table_side):
    positions = make(kind="grid", table_side=table_side)
    found = embed(positions, noise_images(GRIDS, 1))
    table = positions.table.double().unflatten(0, (table_side, table_side))
    expected = torch.cat([torch_resize(table, *grid) for grid in GRIDS])
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)


def test_grid_table_is_vit_s_learned_1d_at_its_own_resolution():
    positions = make(kind="grid", table_side=14)
    torch.testing.assert_close(embed(positions, noise_images([(14, 14)], 1)), positions.table)


def test_a_fractional_sum_is_a_grid_table():
    fractional, grid = make(table_side=16), make(kind="grid", table_side=16)
    grid.table.data = (fractional.row[:, None] + fractional.column[None, :]).flatten(0, 1).detach()
    images = noise_images(GRIDS, 1, keep=0.5)
    torch.testing.assert_close(embed(fractional, images), embed(grid, images), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 16, 40])
def test_resize_weights_of_every_output_sum_to_one(size):
    weights = resize_weights(torch.arange(size, dtype=torch.int32), torch.full((size,), size).int(), 16)
    torch.testing.assert_close(weights.sum(-1), torch.ones(size))
    assert (weights >= 0).all()


@pytest.mark.parametrize(
    "config", [c for c in CONFIGS if c.kind in ("learned", "learned_2d", "grid")], ids=name
)
def test_a_learned_position_starts_as_large_as_its_patch(config):
    tower = ImageTower(ImageTowerConfig(position=config, width=384))
    initialize(tower)
    spread = embed(tower.position, noise_images([(16, 16)], 1)).std().item()
    assert spread == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"table_side": 0}, "table_side: expected at least 1, found 0"),
        (
            {"kind": "rope", "coordinates": "absolute", "table_side": 8},
            "table_side: absolute rope positions are waves of the patch's index, .* at 16, found 8",
        ),
        (
            {
                "kind": "sinusoidal",
                "coordinates": "absolute",
                "combination": "stack",
                "table_side": 8,
            },
            "table_side: absolute sinusoidal positions",
        ),
        (
            {"kind": "grid", "coordinates": "absolute"},
            "coordinates: grid positions are fractional by definition",
        ),
        ({"kind": "learned_2d", "coordinates": "fractional_longer"}, "coordinates: learned_2d .* absolute"),
        (
            {"kind": "sinusoidal"},
            r"combination: .* sum would be the same at \(i, j\) and \(j, i\); set stack",
        ),
        ({"kind": "sinusoidal", "combination": "product"}, r"combination: .* product would be the same"),
        ({"kind": "fourier", "combination": "stack"}, "combination: fourier positions have no row's"),
        ({"kind": "rope", "combination": "product"}, "combination: rope positions have no row's"),
        ({"kind": "grid", "combination": "stack"}, "combination: grid positions have no row's"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_reason(settings, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        PositionConfig(**settings)


@pytest.mark.parametrize(
    ("width", "num_heads", "position", "message"),
    [
        (9, 3, {"combination": "stack"}, "width: learned .* multiple of 2, found 9"),
        (6, 3, {"kind": "sinusoidal", "combination": "stack"}, "width: sinusoidal .* multiple of 4, found 6"),
        (9, 3, {"kind": "fourier"}, "width: fourier .* multiple of 2, found 9"),
        (12, 2, {"kind": "rope"}, "num_heads: rope .* multiple of 4 values, found 6"),
    ],
)
def test_a_width_that_cannot_be_divided_is_refused(width, num_heads, position, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        ImageTowerConfig(width=width, num_heads=num_heads, position=PositionConfig(**position))


def test_a_kind_may_be_given_the_coordinates_that_it_has():
    assert PositionConfig(kind="learned_2d", coordinates="absolute").reach == 16
    assert PositionConfig(kind="grid", coordinates="fractional").reach == 0
