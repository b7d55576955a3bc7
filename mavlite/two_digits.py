"""Where the two digits of a frame are, and what each looks like by itself: geometry, nothing is learned.

Positions are in px of the 64-px canvas, whatever the frames' size.
"""

import torch
import torch.nn.functional as F

from mavlite.moving_mnist import CANVAS

APART = 20                                   # px: boxes that far apart overlap little
REACH = 20                                   # px: half a digit's diagonal, so no part of a digit is farther
SHOWN_AT = (16.0, 48.0)                      # px, y and x alike, of the two copies: far enough apart
ROUNDS = 6                                   # of 2-means, which hardly moves any more after that
LUMPS_APART, LUMP = 16, 0.12                 # px, share of the ink: two lumps that near may be one digit


def _places(grey):
    """The centre of each pixel of frames (n, h, w), y and x: (h, w, 2) px."""
    y, x = ((torch.arange(n, device=grey.device, dtype=grey.dtype) + 0.5) * (CANVAS / n)
            for n in grey.shape[1:])
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)


def _ink(grey):
    """Each pixel's share of a frame's ink, (n, hw); of an empty frame all have the same."""
    ink = grey.flatten(1) + 1e-8
    return ink / ink.sum(dim=1, keepdim=True)


def two_centres(grey):
    """The two centres of a frame's ink, by 2-means: (n, h, w) in [0, 1] -> (n, 2, 2) px, y and x.

    It begins one deviation either way along the ink's longest axis, so equal frames have equal centres. Good
    to 2 px where digits are apart; where they overlap it still cuts the ink in two.
    """
    places, ink = _places(grey).flatten(0, 1), _ink(grey)                            # hw 2, n hw
    middle = ink @ places                                                            # n 2
    off = places - middle[:, None]                                                   # n hw 2
    y, x = off.unbind(dim=-1)
    yy, xy, xx = ((ink * product).sum(dim=1) for product in (y * y, x * y, x * x))   # the ink's covariance
    angle = torch.atan2(2 * xy, yy - xx) / 2
    spread = ((yy + xx) / 2 + (((yy - xx) / 2) ** 2 + xy**2).sqrt()).sqrt()
    axis = spread[:, None] * torch.stack([angle.cos(), angle.sin()], dim=-1)
    centres = torch.stack([middle - axis, middle + axis], dim=1)                     # n 2 2
    return _means(centres, ink, places)[0]


def _means(centres, ink, places):
    """k-means of ink (n, hw) at places (hw, 2), from centres (n, k, 2): (centres, their shares (n, k)).

    What is equally near to two counts for both.
    """
    columns = torch.cat([places, torch.ones_like(places[:, :1])], dim=1)             # hw 3
    for _ in range(ROUNDS):
        near = _nearness(places, centres)
        own = ink[:, None] * (near >= near.amax(dim=1, keepdim=True))                # n k hw
        sums = own @ columns                                                         # n k 3: y, x, share
        centres, share = sums[..., :2] / sums[..., 2:].clamp(min=1e-12), sums[..., 2]
    return centres, share


def _nearness(places, centres):
    """p.c - |c|^2 / 2 = (|p|^2 - |p - c|^2) / 2, a product of matrices: (n, k, hw)."""
    return centres @ places.T - centres.square().sum(dim=-1, keepdim=True) / 2


def third_digit(grey):
    """Does a frame show more than two digits? (n, h, w) in [0, 1] -> bool (n,).

    By 3-means, which begins at `two_centres` and at what is farthest from both: yes, if it finds three lumps
    with 12 % of the ink each, 16 px and more from one another. Halves of one digit are nearer, but for some
    of the widest: of real clips of two digits, 1 in 100 has such a frame. What overlaps is not seen.
    """
    places, ink, two = _places(grey).flatten(0, 1), _ink(grey), two_centres(grey)
    bright = ink > 0.3 * ink.amax(dim=1, keepdim=True)
    far = places.square().sum(dim=-1) / 2 - _nearness(places, two).amax(dim=1)       # n hw, px^2 / 2
    farthest = (far * bright).argmax(dim=1)                                          # n
    lumps, share = _means(torch.cat([two, places[farthest][:, None]], dim=1), ink, places)           # n 3 2
    between = (lumps - lumps.roll(1, dims=1)).norm(dim=-1)                           # n 3
    lit = grey.flatten(1).amax(dim=1) > 0.1                  # nothing at all has three thirds, too
    return lit & (between.amin(dim=1) > LUMPS_APART) & (share.amin(dim=1) > LUMP)


def separated(centres):
    """Frames in which the two boxes overlap little: Chebyshev distance >= 20 px -> bool (b, f)."""
    return (centres[:, :, 0] - centres[:, :, 1]).abs().amax(dim=-1) >= APART


def between_meetings(apart):
    """Pairs of frames in which the digits are apart, as in all frames between: bool (b, f) -> (b, f, f)."""
    span = (~apart).long().cumsum(dim=1)                     # a new one whenever they meet
    return apart[:, :, None] & apart[:, None] & (span[:, :, None] == span[:, None])


def exchanged_names(centres):
    """Whether a frame's two centres must change places to go on from the first frame's: bool (b, f).

        |p_1[t+1] - p_1[t]| + |p_2[t+1] - p_2[t]|

    must be the smaller of both orders. Between frames with the digits 20 px apart the other is impossible:
    too far to go.
    """
    now, then = centres[:, 1:], centres[:, :-1]
    turned = ((now.flip(2) - then).norm(dim=-1).sum(dim=-1)
              < (now - then).norm(dim=-1).sum(dim=-1))                               # b f-1
    return F.pad(turned.long().cumsum(dim=1), (1, 0)) % 2 == 1


def in_order(centres):
    """Centres (b, f, 2, 2) px whose digits are called the same in neighbouring frames."""
    return torch.where(exchanged_names(centres)[..., None, None], centres.flip(2), centres)


def cut_out(grey, centres):
    """Each digit of a frame by itself, shown twice: (n, h, w) in [0, 1], (n, 2, 2) px -> (n, 2, h, w).

    A pixel belongs to the digit whose centre is nearer, if within 20 px. Two copies, since who has learnt to
    look at pairs knows how to name a pair of equals.
    """
    n, h, w = grey.shape
    places, centres = _places(grey), centres.to(grey.dtype)                          # h w 2
    distance = (places - centres[:, :, None, None]).norm(dim=-1)                     # n 2 h w
    own = (distance <= distance.flip(1)) & (distance < REACH)
    cut = (grey[:, None] * own).view(-1, 1, h, w)
    copies = []
    for place in SHOWN_AT:
        source = places + (centres - place)[:, :, None, None]                        # n 2 h w 2
        source = source.flip(-1).view(-1, h, w, 2) * (2 / CANVAS) - 1                # as x and y in [-1, 1]
        copies.append(F.grid_sample(cut, source, align_corners=False))
    return torch.maximum(*copies).view(n, 2, h, w)


def unlike(ones, others, reach):
    """How differently digits are written: 1 - the normalised cross-correlation of two pictures, of all pairs.

        1 - max over shifts d of  sum_p a(p + d) b(p) / (|a, seen through b's window| |b|)

    ones (b, s, h, w), others (b, t, h, w), 0 or more; d: up to `reach` pixels either way along both axes. ->
    (b, s, t) in [0, 1]: 0 for the same picture, brighter or elsewhere as well, and for nothing but zeros.
    """
    b, s, h, w = ones.shape
    windows = F.unfold(ones.flatten(0, 1)[:, None], (h, w), padding=reach)           # (b s) hw d
    windows, others = windows.view(b, s, h * w, -1), others.flatten(2)               # b s hw d, b t hw
    both = torch.einsum("b s p d, b t p -> b s t d", windows, others)
    own = windows.square().sum(dim=2).clamp(min=1e-12).sqrt()                        # b s d
    size = own[:, :, None] * others.norm(dim=2)[:, None, :, None]                    # b s t d
    return 1 - torch.where(size > 1e-6, both / size.clamp(min=1e-6), 1.0).amax(dim=3)
