"""Does each digit stay who it is, and the pair what it is, from frame to frame? C is asked; nobody is told.

The mean of C_y over a clip's frames cannot tell: a 2 and a 6 that turn into a 6 and a 2 before one's eyes
remain a 2 and a 6. And no label is needed to tell: from one meeting of the digits to the next, each must look
more like itself than like the other. That is for choosing among clips (candidates.py), not for teaching: a
D^t that heard it hid its digits behind each other (benchmarks/README.md). What D^t and upF were taught
(adversarial.py) is that a digit is written the same way in all frames, and upF that the two of a frame are as
unlike as those of the real clip, too; no network is asked for either. Nothing of this is in the paper.
"""

import torch
import torch.nn.functional as F

from mavlite.device import full_precision
from mavlite.moving_mnist import SPEED
from mavlite.two_digits import (
    APART,
    between_meetings,
    cut_out,
    exchanged_names,
    separated,
    third_digit,
    two_centres,
    unlike,
)

MOST = 4.0                                   # of a margin: two cosines of 1 less two of -1
SLOWEST = 2 * SPEED / APART                  # frames/s: below, digits 20 px apart may have changed places
NEAR = 2                                     # px of 32: so near lie copies of one digit that was cut out
USUAL = 0.1                                  # distance of two frames: of 19 real clips in 20 below 0.11


def _grey(clips):
    """Clips (b, c, f, h, w) in [-1, 1] -> grey frames (b f) h w in [0, 1]."""
    clips = clips if clips.dtype == torch.float64 else clips.float()
    return ((clips.mean(dim=1) + 1) / 2).clamp(0, 1).flatten(0, 1)


def _found(clips):
    """Clips (b, c, f, h, w) in [-1, 1] -> grey frames (b f) h w in [0, 1], centres b f 2 2, apart b f."""
    grey = _grey(clips)
    centres = two_centres(grey).unflatten(0, (len(clips), -1))
    return grey, centres, separated(centres)


def margins(clip, clips, fps):
    """How much more each digit is like itself than like the other, in frames s and t: (b, f, f) in [-4, 4].

        sum_k cosine(e_k[s], e_k[t]) - sum_k cosine(e_k[s], e_(3-k)[t]),    e_k = C_y(digit k alone)

    Near 2 where both stay, near -2 where they are exchanged, 0 if nothing speaks for either (equal digits).
    4 where nothing can be told: unless the digits are apart in s, in t and in all frames between, and at
    rates below 3.6 frames/s, at which it is not sure who is who; and where s = t. clips (b, c, f, h, w) in
    [-1, 1]; fps (b,).
    """
    with full_precision(clips.device):
        grey, centres, apart = _found(clips)
        alone = cut_out(grey, centres.flatten(0, 1)).flatten(0, 1)[:, None]          # (b f 2) 1 h w
        embeds = F.normalize(clip.image_embeds(alone), dim=-1).view(*centres.shape[:3], -1)          # b f 2 d
        embeds = torch.where(exchanged_names(centres)[..., None, None], embeds.flip(2), embeds)
        same, other = (torch.einsum("b s k d, b t k d -> b s t", embeds, x) for x in (embeds, embeds.flip(2)))
    return torch.where(_told(apart, fps), same - other, MOST)


def _told(apart, fps):
    """The pairs of frames between which the digits never meet, and it is sure who is who: bool (b, f, f)."""
    others = ~torch.eye(apart.shape[1], device=apart.device).bool()
    return between_meetings(apart) & (fps >= SLOWEST)[:, None, None] & others


def handwriting(clips, fps):
    """How differently each digit is written in the frames of a clip, (b,) in [0, 1]; 0 where nobody can tell.

        mean over frames s < t with the digits apart of  u[s, t] = mean_k unlike(digit k in s, digit k in t)

    Across a meeting, and at rates below 3.6 frames/s, nobody knows who is who: the order of the two counts in
    which they are more alike. Of real clips about 0.015: what part of a pixel does to a stroke. Gradients go
    to what is drawn, not to where it is. clips (b, c, f, h, w) in [-1, 1]; fps (b,).
    """
    with full_precision(clips.device):
        first, second, apart = _digits(clips)
        u = [[unlike(one, other, NEAR) for other in (first, second)] for one in (first, second)]     # b f f
        same, turned = (u[0][0] + u[1][1]) / 2, (u[0][1] + u[1][0]) / 2
        changed = torch.where(_told(apart, fps), same, torch.minimum(same, turned))
        pairs = (apart[:, :, None] & apart[:, None]).triu(1)                         # b f f
        return (changed * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)


def sameness(clips, real):
    """How much more alike the two digits of a frame are than those of the real clip, (b,) in [0, 1].

        mean over frames with the digits apart of  max(0, U - u),    u = unlike(digit 1, digit 2)

    U: the mean u of the real clip's frames. A digit is written the same way in all frames most easily where
    both are the same one; this is what keeps them two. 0 where they are never apart in one of the clips.
    clips, real (b, c, f, h, w) in [-1, 1].
    """
    def between(clips):
        first, second, apart = _digits(clips)                                        # b f h/2 w/2, b f
        first, second = (digit.flatten(0, 1)[:, None] for digit in (first, second))  # (b f) 1 h/2 w/2
        u = (unlike(first, second, NEAR) + unlike(second, first, NEAR)) / 2          # (b f) 1 1
        return u.view_as(apart), apart, apart.sum(dim=1)
    with full_precision(clips.device):
        made, apart, count = between(clips)
        with torch.no_grad():
            true, seen, times = between(real)
            wanted = (true * seen).sum(dim=1) / times.clamp(min=1)                   # b; 0 asks for nothing
        return (F.relu(wanted[:, None] - made) * apart).sum(dim=1) / count.clamp(min=1)


def _digits(clips):
    """Both digits of each frame, cut out, and whether they are apart: (b, f, h/2, w/2) twice, bool (b, f).

    The first of a frame goes on from the first of the one before. Gradients go to strokes, not to places.
    """
    grey, centres, apart = _found(clips)
    centres, (h, w) = centres.detach(), grey.shape[1:]
    cut = cut_out(grey, centres.flatten(0, 1))[..., :h // 2, :w // 2]                # (b f) 2 h/2 w/2
    cut = cut.unflatten(0, centres.shape[:2])                                        # b f 2 h/2 w/2
    cut = torch.where(exchanged_names(centres)[..., None, None, None], cut.flip(2), cut)
    return *cut.unbind(dim=2), apart


def third_digits(clips):
    """How many frames of clips (b, c, f, h, w) in [-1, 1] show more than two digits: (b,)."""
    with full_precision(clips.device):                       # 16 bits are too few for squares of 64
        return third_digit(_grey(clips)).unflatten(0, (len(clips), -1)).sum(dim=1)


def changes(embeds, clips):
    """How far a clip's frames are from one another, beyond what is usual, where the digits are apart: (b,).

        max(0, max over frames s, t of (1 - cosine(C_y(s), C_y(t))) - 0.1)

    embeds (b, f, d): C_y of the frames of clips (b, c, f, h, w) in [-1, 1]. A pair that turns into another.
    """
    with full_precision(clips.device):
        apart = _found(clips)[2]
    embeds = F.normalize(embeds, dim=-1)
    distance = (1 - embeds @ embeds.mT) * (apart[:, :, None] & apart[:, None])       # b f f
    return (distance.flatten(1).amax(dim=1) - USUAL).clamp(min=0)
