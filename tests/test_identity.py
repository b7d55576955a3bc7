"""Do digits stay who they are? Names of each digit alone, from one meeting of the two to the next."""

import pytest
import torch

from mavlite.evaluation import identity
from mavlite.evaluation.identity import DOUBLES, alone, changed_in_sight, look, third_digit_share
from mavlite.evaluation.judge import pair_logits
from mavlite.moving_mnist import CANVAS

APART = torch.tensor([[True, True, True, False, True, True]])


def named(first, second, p=0.99):
    """The judge's log-probabilities (1, f, 2, 55) for two strings of digits, one a frame; '.' is no idea."""
    log_p = torch.full((1, len(first), 2, 55), (1 - p) / 54).log()
    for k, digits in enumerate((first, second)):
        for i, digit in enumerate(digits):
            if digit == ".":
                log_p[0, i, k] = torch.zeros(55).log_softmax(dim=-1)
            else:
                log_p[0, i, k, DOUBLES[int(digit)]] = torch.tensor(p).log()
    return log_p


@pytest.mark.parametrize("first, second, share, told", [
    ("222222", "666666", 0, 1),                              # nothing happens
    ("226666", "662222", 1, 1),                              # they exchange in sight: the pair stays
    ("222.66", "666.22", 0, 1),                              # ... while one hides the other: not asked
    ("222222", "666688", 0, 1),                              # another digit after the meeting
    ("222277", "666666", 0, 1),
    ("222227", "666666", 1, 1),                              # ... and after that, in sight
    ("2.7...", "......", 1, 1),                              # unsure in between, and still not hidden
    ("2..7..", "......", 0, 0),                              # one name at most in each span: cannot tell
    ("......", "......", 0, 0),
])
def test_names_must_stay_from_one_meeting_to_the_next(first, second, share, told):
    assert changed_in_sight(named(first, second), APART) == (share, told)


def test_a_judge_in_doubt_names_nobody():
    assert changed_in_sight(named("226666", "662222", p=0.89), APART) == (0, 0)


def test_the_share_is_of_the_clips_that_can_tell():
    clips = [named("222222", "666666"), named("226666", "662222"), named("......", "......")]
    assert changed_in_sight(torch.cat(clips), APART.expand(3, -1)) == (0.5, 2)


def test_small_and_coloured_clips_are_looked_at_as_the_judge_does():
    frames = torch.rand(1, 1, 3, 32, 32)
    centres = torch.tensor([[15.0, 15.0], [45.0, 45.0]]).expand(1, 3, 2, 2)
    grey = alone(frames, centres)
    assert torch.allclose(alone(frames.expand(-1, 3, -1, -1, -1), centres), grey, atol=1e-6)
    assert grey.shape == (1, 3, 2, CANVAS, CANVAS) and grey.min() >= 0 and grey.max() <= 1


def test_a_look_at_clips_whose_two_blocks_exchange_their_shades():
    class Shades(torch.nn.Module):                           # calls a bright block 1 and a dim one 0
        def __init__(self):
            super().__init__()
            self.none = torch.nn.Parameter(torch.zeros(1))

        def forward(self, frames):
            bright = frames.amax(dim=(1, 2, 3)) > 0.7
            double = torch.full((len(frames), 10), -30.0)
            double[range(len(frames)), bright.long()] = 30.0
            return pair_logits(torch.full((len(frames), 10), -30.0), double)

    frames = torch.zeros(2, 1, 4, CANVAS, CANVAS)
    frames[..., 10:20, 10:20], frames[..., 40:50, 40:50] = 1.0, 0.4
    frames[1, :, 2:, 10:20, 10:20], frames[1, :, 2:, 40:50, 40:50] = 0.4, 1.0        # exchanged half way
    centres = torch.tensor([[15.0, 15.0], [45.0, 45.0]]).expand(2, 4, 2, 2)
    assert look(Shades(), frames, centres) == (0.5, 2)
    assert look(Shades(), frames[:1], centres[:1]) == (0, 1)


def test_thousands_of_clips_are_looked_at_a_few_at_a_time(monkeypatch):
    """All at once they would need tens of gigabytes."""
    frames, seen = torch.zeros(7, 1, 3, 32, 32), []
    frames[2:4, :, :, 2:8, 2:8] = frames[2:4, :, :, 2:8, 24:30] = frames[2:4, :, :, 24:30, 12:18] = 1.0
    centres = torch.tensor([[16.0, 16.0], [48.0, 48.0]]).expand(7, 3, 2, 2)
    monkeypatch.setattr(identity, "CLIPS", 2)
    monkeypatch.setattr(identity, "alone", lambda part, own: (seen.append(len(part)), alone(part, own))[1])
    assert third_digit_share(frames) == (pytest.approx(2 / 7), 7)
    uniform = torch.nn.Module()
    uniform.w = torch.nn.Parameter(torch.zeros(()))
    uniform.forward = lambda x: torch.zeros(len(x), 55)
    assert look(uniform, frames, centres)[1] == 0 and seen == [2, 2, 2, 1]
