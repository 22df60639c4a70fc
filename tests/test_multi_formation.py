"""Multi-formation: decoding and its gradient by hand, labels and class order, both decodings, the mixed start."""

import pytest
import torch
import torch.nn.functional as F

from seqmatch_lib.data.multi_formation import AS_STORED, Formation, enlarge_tiles, store_tiles
from seqmatch_lib.errors import ConfigError
from seqmatch_lib.subsets import SubsetSequence, SyntheticSubset, load_sequence

# Two pixels become four: the outer ones keep their value, the inner ones lie a quarter of the way between.
TWICE = torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]], dtype=torch.float64)


def test_four_tiles_of_a_4x4_image_and_their_gradient_by_hand(generator):
    image = torch.randn(1, 1, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    tiles = [image[0, 0, :2, :2], image[0, 0, :2, 2:], image[0, 0, 2:, :2], image[0, 0, 2:, 2:]]
    decoded = enlarge_tiles(image, 2)
    assert decoded.shape == (4, 1, 4, 4)
    for tile, large in zip(tiles, decoded[:, 0], strict=True):
        torch.testing.assert_close(large, TWICE @ tile @ TWICE.T, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(4, 4, 4, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(decoded, image, upstream[:, None])
    parts = [TWICE.T @ one @ TWICE for one in upstream]
    by_hand = torch.cat([torch.cat(parts[:2], dim=1), torch.cat(parts[2:], dim=1)])
    torch.testing.assert_close(gradient[0, 0], by_hand, rtol=1e-12, atol=1e-12)


def test_a_side_that_does_not_divide_is_filled_up_at_its_end():
    decoded = enlarge_tiles(torch.ones(1, 1, 4, 4), 3)  # tiles of 2x2, of which the last row and column lie outside
    means = decoded.mean((1, 2, 3)).view(3, 3)
    assert (means[:2, :2] == 1).all()
    assert (means[2] == 0).all()
    assert (means[:, 2] == 0).all()


@pytest.mark.parametrize("factor", [2, 3])
def test_every_tile_keeps_the_label_of_its_image(factor):
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    images = labels.float().view(-1, 1, 1, 1).expand(-1, 3, 6, 6).contiguous()  # an image shows its class
    for decode, count in (("single", factor**2), ("multi", sum(f**2 for f in range(1, factor + 1)))):
        decoded, repeated = Formation(factor, decode)(images, labels)
        assert decoded.shape == (6 * count, 3, 6, 6)
        assert torch.equal(decoded.mean((1, 2, 3)), repeated.float())
        soft = Formation(factor, decode)(images, F.one_hot(labels, 3).float())[1]
        assert torch.equal(soft.argmax(1), repeated)


@pytest.mark.parametrize("side", [8, 7])
def test_stored_tiles_are_the_images_made_small(side):
    images = torch.arange(1.0, 5.0).view(1, 4, 1, 1, 1).expand(2, 4, 3, side, side)
    stored = store_tiles(images, 2)
    half = (side + 1) // 2
    assert (stored[:, :, :half, :half] == 1).all()
    assert (stored[:, :, :half, half:] == 2).all()
    assert (stored[:, :, half:, :half] == 3).all()
    assert (stored[:, :, half:, half:] == 4).all()


def test_a_sequence_is_trained_on_with_its_tiles_apart_and_survives_the_file(tmp_path):
    labels = torch.tensor([0, 1])
    first = SyntheticSubset(labels.float().view(2, 1, 1, 1).expand(2, 1, 4, 4).clone(), labels, 0.1, Formation(2))
    sequence = SubsetSequence((first, SyntheticSubset(torch.ones(2, 1, 4, 4), torch.tensor([1, 1]), 0.2)))
    images, all_labels = sequence.union()
    assert all_labels.tolist() == [0, 1] * 4 + [1, 1]
    assert torch.equal(images.mean((1, 2, 3)), all_labels.float())
    assert len(sequence.joint().subsets[0].images) == 10
    assert sequence.joint().subsets[0].formation == AS_STORED
    sequence.save(tmp_path / "set.safetensors")
    loaded = load_sequence(tmp_path / "set.safetensors")
    assert [subset.formation for subset in loaded.subsets] == [Formation(2), AS_STORED]
    assert loaded.sha256() == sequence.sha256()
    plain = SubsetSequence((SyntheticSubset(first.images, labels, 0.1), sequence.subsets[1]))
    assert plain.sha256() != sequence.sha256()


def test_sets_that_are_decoded_differently_have_different_digests(tmp_path):
    images, labels = torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])
    sets = {
        decode: SubsetSequence((SyntheticSubset(images, labels, 0.1, Formation(2, decode)),)) for decode in ("single", "multi")
    }
    assert sets["multi"].sha256() != sets["single"].sha256()
    # as it was when only the factor was part of it: records and state of sets with tiles are found by it
    assert sets["single"].sha256() == "b62d1a31be5b7ab7506a113a672187da5977fee127ae3bd2aeddaf70a22e5051"
    sets["multi"].save(tmp_path / "set.safetensors")
    loaded = load_sequence(tmp_path / "set.safetensors")
    assert (loaded.sha256(), loaded.subsets[0].formation) == (sets["multi"].sha256(), Formation(2, "multi"))


@pytest.mark.parametrize(("settings", "message"), [({"factor": 0}, "factor 0"), ({"decode": "x"}, "decode 'x' is unknown")])
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        Formation(**settings)
