"""Fréchet distances against closed forms and another way to the same number; corruptions do as they say."""

import math

import pytest
import torch

from mavlite.digits import load_digits
from mavlite.evaluation.distances import (
    CORRUPTIONS,
    all_worse,
    corrupted_features,
    frechet_distance,
    kernel_distance,
)
from mavlite.moving_mnist import UnlabelledClips


def seed(number):
    return torch.Generator().manual_seed(number)


def exact_features(mean, deviation):
    """Features (2d, d) with exactly this mean and diagonal covariance, in float64."""
    d = len(mean)
    axes = torch.diag(torch.as_tensor(deviation, dtype=torch.float64)) * math.sqrt((2 * d - 1) / 2)
    return torch.cat([axes, -axes]) + torch.as_tensor(mean, dtype=torch.float64)


def correlated_features(n, d, number):
    return torch.randn(n, d, generator=seed(number)) @ torch.randn(d, d, generator=seed(number + 1)) + number


# --- the distance

@pytest.mark.parametrize("mean_b, deviation_b", [
    ((0.0, 0.0, 0.0), (1.0, 2.0, 3.0)),
    ((3.0, 0.0, -4.0), (1.0, 2.0, 3.0)),
    ((0.0, 0.0, 0.0), (2.0, 0.5, 3.0)),
    ((1.0, -2.0, 0.5), (4.0, 0.0, 1.0)),                     # one of the covariances is singular
])
def test_the_distance_of_diagonal_normals_is_the_closed_form(mean_b, deviation_b):
    mean_a, deviation_a = (0.0, 0.0, 0.0), (1.0, 2.0, 3.0)
    expected = sum((p - q) ** 2 for p, q in zip(mean_a + deviation_a, mean_b + deviation_b))
    distance = frechet_distance(exact_features(mean_a, deviation_a), exact_features(mean_b, deviation_b))
    assert distance == pytest.approx(expected, abs=1e-6)


def test_one_feature_is_enough():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[10.0], [16.0]])              # variances 2 and 18
    assert frechet_distance(a, b) == pytest.approx(144 + 8, abs=1e-9)


def test_the_distance_agrees_with_the_eigenvalues_of_the_product():
    a, b = correlated_features(50, 6, 0), correlated_features(80, 6, 2)
    cov_a, cov_b = a.double().T.cov(), b.double().T.cov()
    trace_of_root = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    means = (a.double().mean(dim=0) - b.double().mean(dim=0)).square().sum()
    expected = (means + cov_a.trace() + cov_b.trace() - 2 * trace_of_root).item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    commuting = (means + (cov_a.diag().sqrt() - cov_b.diag().sqrt()).square().sum()).item()
    assert abs(frechet_distance(a, b) - commuting) > 0.1     # correlations count


def test_the_distance_agrees_with_scipys_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = correlated_features(50, 6, 0).double(), correlated_features(80, 6, 2).double()
    root = torch.as_tensor(linalg.sqrtm((a.T.cov() @ b.T.cov()).numpy()).real)
    expected = (a.mean(dim=0) - b.mean(dim=0)).square().sum() + (a.T.cov() + b.T.cov() - 2 * root).trace()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)


def test_the_distance_is_symmetric_and_zero_for_equal_sets():
    a, b = correlated_features(40, 8, 0), correlated_features(60, 8, 5)
    distance = frechet_distance(a, b)
    assert distance == pytest.approx(frechet_distance(b, a), rel=1e-9) and distance > 1
    assert 0 <= frechet_distance(a, a) < 1e-6 and 0 <= frechet_distance(a, a.flip(0)) < 1e-6
    few = torch.randn(5, 16)                                 # fewer rows than features
    assert 0 <= frechet_distance(few, few) < 1e-5


@pytest.mark.parametrize("bad, message", [
    (torch.zeros(1, 3), "at least 2 rows"),
    (torch.zeros(7), "at least 2 rows"),
    (torch.full((4, 3), float("nan")), "NaN"),
    (torch.tensor([[0.0, 0.0, 0.0], [0.0, float("inf"), 0.0]]), "NaN"),
    (torch.zeros(4, 1), "cannot be compared"),
])
def test_features_that_have_no_distance_are_refused(bad, message):
    good = torch.randn(5, 3)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match=message):
            frechet_distance(*pair)


# --- the kernel distance

def normal(n, number, shift=0.0):
    return torch.randn(n, 8, generator=seed(number), dtype=torch.float64) + shift


def test_the_kernel_distance_is_the_mean_over_pairs():
    x, y = normal(7, 0), normal(5, 1, 0.5)
    mean, unit = x.mean(dim=0), (x - x.mean(dim=0)).square().mean().sqrt()

    def kernel(a, b):
        return (((a - mean) / unit) @ ((b - mean) / unit) / 8 + 1).item() ** 3

    def between(rows):
        among = [kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        return sum(among) / len(among)
    expected = between(x) + between(y) - 2 * sum(kernel(a, b) for a in x for b in y) / 35
    value, (low, high) = kernel_distance(x, y)
    assert value == pytest.approx(expected, rel=1e-9) and low < value < high


def test_few_rows_make_the_frechet_distance_larger_but_not_the_kernel_distance():
    reference = normal(1000, 0)
    for shift in (0.0, 0.5):
        few = [normal(20, 1 + k, shift) for k in range(200)]
        many = kernel_distance(reference, normal(4000, 999, shift))[0]
        found = torch.tensor([kernel_distance(reference, rows)[0] for rows in few])
        assert abs(found.mean() - many) < 4 * found.std() / 200**0.5
        frechet = torch.tensor([frechet_distance(reference, rows) for rows in few])
        assert frechet.mean() > frechet_distance(reference, normal(4000, 999, shift)) + 0.5


def test_the_interval_of_the_kernel_distance_covers_it_about_as_often_as_it_says():
    reference = normal(1000, 0)
    truth = kernel_distance(reference, normal(5000, 999, 0.5))[0]
    intervals = [kernel_distance(reference, normal(50, k, 0.5))[1] for k in range(200)]
    assert 172 <= sum(low < truth < high for low, high in intervals) <= 199


# --- corruptions

@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [32, 48, 64])
def test_a_corruption_keeps_shape_and_range_and_is_a_function_of_its_generator(name, size):
    clips = torch.rand(3, 2, 6, size, size)
    before = clips.clone()
    made = CORRUPTIONS[name](clips, seed(1))
    assert made.shape == clips.shape and made.dtype == clips.dtype
    assert -1e-6 <= made.min() and made.max() <= 1 + 1e-6
    assert torch.equal(clips, before) and not torch.equal(made, clips)
    assert torch.equal(made, CORRUPTIONS[name](clips, seed(1)))
    assert torch.equal(made, CORRUPTIONS[name](clips, seed(2))) == (name not in ("shuffle", "jitter"))


def test_freeze_repeats_the_first_frame():
    clips = torch.rand(2, 1, 4, 8, 8)
    frozen = CORRUPTIONS["freeze"](clips, seed(0))
    assert (frozen.diff(dim=2) == 0).all() and torch.equal(frozen[:, :, 0], clips[:, :, 0])


def test_shuffle_keeps_the_set_of_frames_and_orders_each_clip_anew():
    clips = torch.rand(8, 2, 6, 5, 5)
    shuffled = CORRUPTIONS["shuffle"](clips, seed(0))
    same = (shuffled[:, :, :, None] == clips[:, :, None]).all(dim=1).flatten(3).all(dim=3)           # b f f
    assert (same.sum(dim=1) == 1).all() and (same.sum(dim=2) == 1).all()
    orders = same.float().argmax(dim=2)
    assert len({tuple(order) for order in orders.tolist()}) > 4


@pytest.mark.parametrize("size, reach", [(64, 3), (48, 2), (32, 2), (16, 1)])
def test_jitter_moves_every_frame_by_whole_pixels_up_to_three_of_64(size, reach):
    clips = torch.zeros(12, 2, 10, size, size)
    clips[:, :, :, size // 2, size // 4] = 0.7
    moved = CORRUPTIONS["jitter"](clips, seed(0))
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert (moved.flatten(3).sum(dim=3) == clips[0, 0, 0].sum()).all()
    where = (moved[:, 0] > 0).nonzero()                                              # b f y x
    offsets = where[:, 2:] - torch.tensor([size // 2, size // 4])
    for axis in range(2):
        assert set(offsets[:, axis].tolist()) == set(range(-reach, reach + 1))
    assert not torch.equal(offsets[:, 0], offsets[:, 1])
    assert offsets.unflatten(0, (12, 10)).diff(dim=1).ne(0).any(dim=(1, 2)).all()    # frames of a clip differ


def test_jitter_leaves_black_behind():
    shown = CORRUPTIONS["jitter"](torch.ones(6, 1, 8, 64, 64), seed(0))
    assert set(shown.unique().tolist()) == {0.0, 1.0} and (shown[..., 3:-3, 3:-3] == 1).all()
    rows, columns = shown.amax(dim=4).sum(dim=3), shown.amax(dim=3).sum(dim=3)
    assert rows.min() == columns.min() == 61 and torch.equal(shown.sum(dim=(3, 4)), rows * columns)


@pytest.mark.parametrize("size, sigma", [(64, 1.5), (48, 1.125), (32, 0.75)])
def test_blur_spreads_a_point_over_its_frame_only(size, sigma):
    clips = torch.zeros(2, 1, 3, size, size)
    clips[0, 0, 1, 15, 14] = 1
    blurred = CORRUPTIONS["blur"](clips, seed(0))
    spot = blurred[0, 0, 1]
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5)
    assert spot.sum().item() == pytest.approx(1, abs=1e-5)
    pixel = torch.arange(size)
    for light, centre in ((spot.sum(dim=1), 15), (spot.sum(dim=0), 14)):
        assert (light * (pixel - centre)).sum().abs() < 1e-4
        assert (light * (pixel - centre) ** 2).sum().sqrt().item() == pytest.approx(sigma, rel=0.01)


def test_mix_takes_odd_frames_from_the_next_clip():
    clips = torch.rand(3, 2, 5, 4, 4)
    mixed = CORRUPTIONS["mix"](clips, seed(0))
    assert torch.equal(mixed[:, :, ::2], clips[:, :, ::2])
    assert torch.equal(mixed[:, :, 1::2], clips[[1, 2, 0], :, 1::2])


# --- the table

def motion_and_detail(clips):
    """Features (n, 3): mean change between frames, its unevenness, mean step between pixels."""
    change = clips.diff(dim=2).abs().mean(dim=(1, 3, 4))                             # b f-1
    detail = clips.diff(dim=4).abs().flatten(1).mean(dim=1)
    return 100 * torch.stack([change.mean(dim=1), change.std(dim=1), detail], dim=1)


@pytest.fixture(scope="module")
def real():
    clips = UnlabelledClips(load_digits("train", "glyphs").images, seed=0).clips(range(300), 6.0, 8, 32)[0]
    return clips[:150], clips[150:]


def table_of(reference, clips, number):
    found = corrupted_features(motion_and_detail, clips, number)
    return {name: frechet_distance(motion_and_detail(reference), x) for name, x in found.items()}


def test_features_of_motion_and_detail_rank_every_corruption_as_worse(real):
    table = table_of(*real, 0)
    assert all_worse(table) and list(table) == ["real", *CORRUPTIONS] and min(table, key=table.get) == "real"
    for name, corrupt in CORRUPTIONS.items():
        alone = frechet_distance(motion_and_detail(real[0]), motion_and_detail(corrupt(real[1], seed(0))))
        assert table[name] == pytest.approx(alone, rel=1e-6, abs=1e-9)
    other = table_of(*real, 1)
    assert table_of(*real, 0) == table
    assert other["shuffle"] != table["shuffle"] and other["freeze"] == table["freeze"]


def test_a_distance_that_prefers_a_corruption_is_told(real):
    table = table_of(CORRUPTIONS["freeze"](real[0], seed(0)), real[1], 0)
    assert not all_worse(table) and table["freeze"] < table["real"]
