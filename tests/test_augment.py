"""Each operation against a slow literal version; ranges, determinism and gradients."""

import math

import pytest
import torch

from seqmatch_lib.engine.augment import (
    DSA_STRATEGY,
    OPERATIONS,
    Operation,
    apply_augmentation,
    augment_alike,
    draw_augmentation,
)
from seqmatch_lib.errors import ConfigError

BATCH, SIZE = 6, (9, 8)


def test_color_is_brightness_then_saturation_then_contrast(generator):
    x = torch.randn(BATCH, 3, *SIZE, generator=generator)
    drawn = draw_augmentation("color", BATCH, SIZE, generator)
    expected = []
    for image, (brightness, saturation, contrast) in zip(x, drawn[0].values.T, strict=True):
        image = image + brightness
        grey = image.mean(0)
        image = (image - grey) * saturation + grey
        expected.append((image - image.mean()) * contrast + image.mean())
    torch.testing.assert_close(apply_augmentation(x, drawn), torch.stack(expected))


def test_crop_shifts_by_whole_pixels_and_fills_with_zero(generator):
    x = torch.randn(BATCH, 3, 16, 24, generator=generator)
    drawn = draw_augmentation("crop", BATCH, (16, 24), generator)
    result = apply_augmentation(x, drawn)
    for image, moved, (down, right) in zip(x, result, drawn[0].values.T.int().tolist(), strict=True):
        expected = torch.zeros_like(image)
        for row in range(16):
            for column in range(24):
                if 0 <= row + down < 16 and 0 <= column + right < 24:
                    expected[:, row, column] = image[:, row + down, column + right]
        assert torch.equal(moved, expected)


def test_cutout_erases_a_square_of_half_the_side(generator):
    x = torch.ones(BATCH, 1, *SIZE)
    drawn = draw_augmentation("cutout", BATCH, SIZE, generator)
    for image, (row, column) in zip(apply_augmentation(x, drawn), drawn[0].values.T.int().tolist(), strict=True):
        expected = torch.ones(1, *SIZE)
        # sides 9 and 8 give squares of 5 and 4 pixels
        expected[:, max(0, row - 2) : row + 3, max(0, column - 2) : column + 2] = 0
        assert torch.equal(image, expected)


def test_flip_mirrors_the_chosen_images():
    x = torch.arange(12.0).view(2, 1, 2, 3)
    result = apply_augmentation(x, (Operation("flip", torch.tensor([[1.0, 0.0]])),))
    assert torch.equal(result[0], x[0].flip(2))
    assert torch.equal(result[1], x[1])


def test_rotation_by_a_right_angle_and_by_nothing():
    x = torch.randn(2, 3, 8, 8)
    result = apply_augmentation(x, (Operation("rotate", torch.tensor([[math.pi / 2, 0.0]])),))
    torch.testing.assert_close(result[0], x[0].rot90(1, (1, 2)), atol=1e-4, rtol=0)
    torch.testing.assert_close(result[1], x[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(5, 9), (9, 5), (6, 10)], ids=str)
def test_rotation_keeps_the_shape_of_what_is_in_an_image_that_is_not_square(size, generator):
    x = torch.randn(1, 3, *size, generator=generator)
    result = apply_augmentation(x, (Operation("rotate", torch.tensor([[math.pi / 2]])),))
    top, left = ((side - min(size)) // 2 for side in size)
    middle = (..., slice(top, top + min(size)), slice(left, left + min(size)))
    torch.testing.assert_close(result[middle], x[middle].rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_scale_samples_the_grid_at_the_given_factors():
    x = torch.linspace(-1, 1, 9).expand(2, 1, 9, 9)  # the value of a pixel is its x coordinate
    result = apply_augmentation(x, (Operation("scale", torch.tensor([[0.5, 1.0], [1.0, 1.0]])),))
    torch.testing.assert_close(result[0], 0.5 * x[0])
    torch.testing.assert_close(result[1], x[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("operation", "size", "low", "high"),
    [
        ("color", (32, 32), (-0.5, 0.0, 0.5), (0.5, 2.0, 1.5)),
        ("crop", (32, 64), (-4, -8), (4, 8)),
        ("cutout", (32, 32), (0, 0), (32, 32)),
        ("flip", (32, 32), (0,), (1,)),
        ("scale", (32, 32), (1 / 1.2, 1 / 1.2), (1.2, 1.2)),
        ("rotate", (32, 32), (-math.radians(15),), (math.radians(15),)),
    ],
)
def test_parameters_fill_the_published_range(operation, size, low, high, generator):
    values = draw_augmentation(operation, 20_000, size, generator)[0].values
    low, high = torch.tensor(low), torch.tensor(high)
    slack = 0.01 * (high - low)
    assert (values.amin(1) >= low - 1e-6).all()
    assert (values.amin(1) <= low + slack).all()
    assert (values.amax(1) <= high + 1e-6).all()
    assert (values.amax(1) >= high - slack).all()
    torch.testing.assert_close(values.mean(1), (low + high) / 2, atol=0.03 * (high - low).max().item(), rtol=0)


def test_every_operation_of_the_strategy_is_drawn_about_equally_often(generator):
    drawn = [draw_augmentation(DSA_STRATEGY, 1, SIZE, generator)[0].name for _ in range(1200)]
    counts = [drawn.count(operation) for operation in OPERATIONS]
    assert sum(counts) == 1200
    assert min(counts) > 140, counts  # 200 expected, standard deviation 13


def test_shared_parameters_are_equal_and_others_are_not(generator):
    for operation in OPERATIONS:
        shared = draw_augmentation(operation, 50, SIZE, generator, shared=True)[0].values
        single = draw_augmentation(operation, 50, SIZE, generator)[0].values
        assert (shared == shared[:, :1]).all(), operation
        assert not (single == single[:, :1]).all(), operation


def test_same_generator_state_gives_the_same_augmentation(generator):
    state = generator.get_state()
    first = draw_augmentation(DSA_STRATEGY, BATCH, SIZE, generator)
    second = draw_augmentation(DSA_STRATEGY, BATCH, SIZE, generator)
    generator.set_state(state)
    again = draw_augmentation(DSA_STRATEGY, BATCH, SIZE, generator)
    assert (first[0].name, first[0].values.tolist()) == (again[0].name, again[0].values.tolist())
    assert (first[0].name, first[0].values.tolist()) != (second[0].name, second[0].values.tolist())


def test_drawing_leaves_the_global_generator_alone(generator):
    before = torch.get_rng_state()
    draw_augmentation(DSA_STRATEGY, BATCH, SIZE, generator)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradient_in_the_images(operation, generator, float64):
    x = torch.randn(2, 3, 6, 5, generator=generator, requires_grad=True)
    drawn = draw_augmentation(operation, 2, (6, 5), generator)
    assert torch.autograd.gradcheck(lambda images: apply_augmentation(images, drawn), x)


def test_groups_follow_one_another(generator):
    x = torch.randn(BATCH, 3, *SIZE, generator=generator)
    drawn = draw_augmentation("flip+color+crop_scale+cutout", BATCH, SIZE, generator)
    names = [operation.name for operation in drawn]
    assert (names[:2], names[3:]) == (["flip", "color"], ["cutout"])
    assert names[2] in ("crop", "scale")
    one_by_one = x
    for operation in drawn:
        one_by_one = apply_augmentation(one_by_one, (operation,))
    assert torch.equal(apply_augmentation(x, drawn), one_by_one)


def test_batches_augmented_alike_get_one_draw(generator):
    image = torch.randn(1, 3, *SIZE, generator=generator)
    first, second = augment_alike([image.repeat(2, 1, 1, 1), image.repeat(3, 1, 1, 1)], "color+crop+cutout", generator)
    assert (len(first), len(second)) == (2, 3)
    for other in (*first, *second):
        torch.testing.assert_close(other, first[0])
    assert not torch.allclose(first[0], image[0])


def test_none_returns_the_images_themselves(generator):
    x = torch.randn(2, 3, 6, 5)
    assert apply_augmentation(x, draw_augmentation("none", 2, (6, 5), generator)) is x


def test_unknown_operation_is_named(generator):
    with pytest.raises(ConfigError, match=r"\['crpo'\].*color_crop_cutout.*joined by"):
        draw_augmentation("color_crpo", 2, (6, 5), generator)
