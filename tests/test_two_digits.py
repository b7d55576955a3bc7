"""Two digits in a frame, found, kept in order and cut out without a network."""

import pytest
import torch

from mavlite.digits import load_digits
from mavlite.moving_mnist import CANVAS, MovingMNIST, box_resize, draw
from mavlite.two_digits import (
    cut_out,
    exchanged_names,
    in_order,
    separated,
    third_digit,
    two_centres,
    unlike,
)


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_centres_of_two_blocks_are_found_to_the_rounding(size, dtype):
    frames = torch.zeros(3, CANVAS, CANVAS, dtype=dtype)
    frames[0, 8:16, 20:24], frames[0, 40:44, 28:48] = 0.5, 1.0
    frames[1, 8:16, 8:16], frames[1, 8:16, 40:56] = 1.0, 0.2                         # side by side, one dim
    frames[2, 12:20, 44:52], frames[2, 44:52, 12:20] = 1.0, 1.0                      # on the other diagonal
    true = torch.tensor([[[12.0, 22], [42, 38]], [[12, 12], [12, 48]], [[16, 48], [48, 16]]], dtype=dtype)
    found = two_centres(box_resize(frames, size))
    error = torch.minimum(*((order - true).abs().amax(dim=(1, 2)) for order in (found, found.flip(1))))
    assert found.dtype == dtype and error.max() < 1e-3


def test_real_digits_that_are_apart_are_found_to_two_pixels():
    simulator = MovingMNIST(load_digits("train", "glyphs").images)
    trajectories = simulator.trajectories(3, torch.arange(300))
    positions = trajectories.positions(torch.zeros(300, 1))                          # 300 1 2 2
    digits = simulator.images[trajectories.images].float() / 255                     # 300 2 28 28
    at = torch.arange(28) + 0.5
    mass = torch.stack([(digits * at[:, None]).sum(dim=(2, 3)), (digits * at).sum(dim=(2, 3))], dim=-1)
    true = positions + (mass / digits.sum(dim=(2, 3))[..., None])[:, None]           # of the ink, as drawn
    found = two_centres(box_resize(draw(digits, positions), 32)[:, 0])[:, None]
    apart = separated(positions)[:, 0]
    error = torch.minimum((found - true).norm(dim=-1).mean(dim=-1),
                          (found.flip(2) - true).norm(dim=-1).mean(dim=-1))[apart]
    assert apart.sum() > 50 and error.median() < 0.3 and error.quantile(0.9) < 2


def test_an_empty_frame_and_a_grey_one_have_centres_too():
    found = two_centres(torch.stack([torch.zeros(32, 32), torch.ones(32, 32)]))
    assert found.isfinite().all() and found.min() >= 0 and found.max() <= CANVAS
    assert torch.allclose(found.mean(dim=1), torch.full((2, 2), CANVAS / 2), atol=0.5)


def test_order_is_kept_where_a_tracker_turns_it_round():
    way = torch.linspace(0, 1, 6)[:, None]
    ways = [way * torch.tensor([10.0, 3.0]) + 15, way * torch.tensor([-5.0, 8.0]) + 40]
    true = torch.stack(ways, dim=1)[None]
    found = true.clone()
    found[:, 2:4] = true[:, 2:4].flip(2)
    found[:, 5:] = true[:, 5:].flip(2)
    assert exchanged_names(found).tolist() == [[False, False, True, True, False, True]]
    assert torch.equal(in_order(found), true)
    assert torch.equal(in_order(found.flip(2)), true.flip(2))


def test_each_digit_alone_is_shown_twice_and_the_other_not_at_all():
    frames = torch.zeros(2, CANVAS, CANVAS)
    frames[..., 14:22, 20:24] = 0.5                          # an upright bar of 8 x 4 ...
    frames[..., 40:44, 30:46] = 1.0                          # ... and a lying one of 4 x 16
    centres = torch.tensor([[18.0, 22.0], [42.0, 38.0]]).expand(2, 2, 2)
    shown = cut_out(frames, centres)                         # 2 2 64 64
    upright, lying = torch.zeros(2, CANVAS, CANVAS)
    for at in (16, 48):
        upright[at - 4:at + 4, at - 2:at + 2] = 0.5
        lying[at - 2:at + 2, at - 8:at + 8] = 1.0
    assert torch.allclose(shown[:, 0], upright.expand(2, -1, -1), atol=1e-5)
    assert torch.allclose(shown[:, 1], lying.expand(2, -1, -1), atol=1e-5)
    small = cut_out(box_resize(frames, 32), centres)         # the same at another size
    assert torch.allclose(small, box_resize(shown.flatten(0, 1), 32).view_as(small), atol=1e-5)


def test_nobody_is_shown_what_is_farther_than_a_digit_reaches():
    frames = torch.zeros(1, CANVAS, CANVAS)
    frames[:, 2:4, 60:62] = 1.0
    assert cut_out(frames, torch.tensor([[[40.0, 20.0], [50.0, 50.0]]])).max() == 0


def test_a_third_digit_is_found_where_it_stands_apart():
    frames = torch.zeros(5, CANVAS, CANVAS)
    frames[:, 8:24, 8:20], frames[:, 40:56, 8:20] = 0.8, 1.0                         # two in all of them
    frames[1, 20:36, 44:56] = 0.5                                                    # and a third, dimmer
    frames[2, 36:52, 12:24] = 1.0                                                    # ... over the second
    frames[3, 30:32, 60:62] = 1.0                                                    # ... that is but a dot
    frames[4, 8:24, 20:32] = 0.8                                                     # the first is wide
    for size in (32, 64):
        found = third_digit(box_resize(frames, size))
        assert found.tolist() == [False, True, False, False, False]
    assert not third_digit(torch.zeros(1, 32, 32)).any()


def test_real_frames_seldom_have_a_third_digit_and_frames_of_four_often():
    simulator = MovingMNIST(load_digits("train", "glyphs").images)
    two, other = (draw(simulator.images[t.images].float() / 255, t.positions(torch.zeros(600, 1)))[:, 0]
                  for t in (simulator.trajectories(seed, torch.arange(600)) for seed in (1, 2)))
    assert third_digit(box_resize(two, 32)).float().mean() < 0.01
    assert third_digit(box_resize(two.maximum(other), 32)).float().mean() > 0.2     # of four


def test_the_same_picture_brighter_or_elsewhere_is_not_unlike():
    generator = torch.Generator().manual_seed(0)
    picture = torch.zeros(3, 2, 16, 16)                      # each of two with each, in three clips
    picture[..., 4:12, 4:12] = torch.rand(3, 2, 8, 8, generator=generator)
    flat = picture.flatten(2)
    cosine = torch.cosine_similarity(flat[:, :, None], flat[:, None], dim=-1)        # 3 2 2
    assert torch.allclose(unlike(picture, 0.3 * picture, 0), 1 - cosine, atol=1e-6)
    moved = picture.roll((2, -1), dims=(2, 3))
    found = unlike(moved, picture, 2)
    assert torch.allclose(found.diagonal(dim1=1, dim2=2), torch.zeros(3, 2), atol=1e-6)
    assert (found <= 1 - cosine + 1e-6).all() and found[:, 0, 1].min() > 0.1
    assert (unlike(moved, picture, 1).diagonal(dim1=1, dim2=2) > 0.1).all()          # not that far
    assert torch.allclose(unlike(picture[:, :1], 0 * picture, 1), torch.zeros(3, 1, 2))


def test_a_blank_picture_has_no_gradient_that_is_no_number():
    one = torch.zeros(1, 2, 8, 8)
    one[:, 0, 3:5, 3:5] = 1
    one.requires_grad_()
    other = one.detach().clone().requires_grad_()
    unlike(one, other, 1).sum().backward()
    assert one.grad.isfinite().all() and other.grad.isfinite().all()
