"""Do digits stay who they are? Names of each digit alone, from one meeting of the two to the next."""

import pytest
import torch

from mavlite.digits import load_digits
from mavlite.evaluation import identity
from mavlite.evaluation.identity import (
    DOUBLES,
    alone,
    changed_in_sight,
    handwriting,
    look,
    third_digit_share,
)
from mavlite.evaluation.judge import pair_logits
from mavlite.moving_mnist import CANVAS, DIGIT, UnlabelledClips, draw

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


# ---------------------------------------------------------------- handwriting

def strokes(shapes, at=((16, 16), (48, 48))):
    """A clip (1, 1, f, 64, 64) with a digit of its own at both places in every frame: "-", "|" or "+"."""
    frames = torch.zeros(1, 1, len(shapes), CANVAS, CANVAS)
    for i, pair in enumerate(shapes):
        for shape, (y, x) in zip(pair, at):
            if shape in "-+":
                frames[0, 0, i, y - 1:y + 1, x - 8:x + 8] = 1
            if shape in "|+":
                frames[0, 0, i, y - 8:y + 8, x - 1:x + 1] = 1
    return frames, torch.tensor(at, dtype=torch.float32).expand(1, len(shapes), 2, 2)


def test_handwriting_in_closed_form():
    """A bar of 16 x 2 pixels has 4 in common with the one across, and all 32 with a cross of 60."""
    across, with_cross = 1 - 4 / 32, 1 - 32 / (32 * 60) ** 0.5
    for shapes, wanted in ((["-|", "-|", "-|"], 0.0), (["-|", "||"], across / 2),
                           (["-|", "+|"], with_cross / 2),
                           (["--", "--", "|-"], across / 3)):    # two of three pairs of frames, one digit
        assert handwriting(*strokes(shapes)).tolist() == pytest.approx([wanted], abs=1e-4)
    frames, centres = strokes(["-|", "||"])
    dim = handwriting(0.5 * frames, centres)
    assert dim.tolist() == pytest.approx([across / 2], abs=1e-4)


def test_who_cannot_tell_of_handwriting_does_not_count():
    frames, centres = strokes(["-|", "-|", "||"])
    near = centres.clone()
    near[:, 1, 1] = near[:, 1, 0] + 10                       # they meet between: nobody is asked
    assert handwriting(frames, near).shape == (0,)
    both = handwriting(torch.cat([frames, frames]), torch.cat([near, centres]))
    assert both.tolist() == pytest.approx([(1 - 4 / 32) / 3], abs=1e-4)
    jumps = centres.clone()
    jumps[:, 2] = centres[:, 2].flip(1)                      # the tracker may name them the other way round
    assert torch.equal(handwriting(frames, jumps), handwriting(frames, centres))


def test_digits_written_anew_in_every_frame_are_told_from_real_ones():
    simulator = UnlabelledClips(load_digits("test", "glyphs").images, seed=3)
    frames = simulator.clips(range(16), 12.0, 8, CANVAS)[0]
    centres = simulator.trajectories(range(16)).positions(torch.arange(8) / 12) + DIGIT / 2
    real = handwriting(frames, centres)
    # In each frame the digits of another clip, where those of this one are.
    others = torch.stack([simulator.trajectories(range(16 * k, 16 * k + 16)).images for k in range(8)], dim=1)
    digits = simulator.simulator.images[others].float() / 255                        # b f 2 28 28
    anew = draw(digits.flatten(0, 1), (centres - DIGIT / 2).flatten(0, 1)[:, None])[:, 0]
    changed = handwriting(anew.unflatten(0, (16, 8))[:, None], centres)
    assert len(real) == len(changed) > 4 and real.max() < 0.05 < 0.2 < changed.min()
