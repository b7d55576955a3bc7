"""Checks of assignment 5: noise that frames share in part, augmentation, the network's input, flicker."""

import math

import torch

from mavlite.teaching.checks.common import call, close, expect, name_of, normal, tensor_like

PIXELS = 20_000                                              # enough of them for statistics to 5 deviations


def drawn(make_noise, shape, rho, seed=1):
    """The noise a function makes, in float64, drawn from its generator and from no other."""
    name, state = name_of(make_noise), torch.get_rng_state()
    result = call(make_noise, shape, rho, torch.Generator().manual_seed(seed))
    expect(torch.equal(state, torch.get_rng_state()),
           f"{name}: it draws from the global generator. Pass generator= to every torch.randn.")
    return tensor_like(result, shape, name).double()


def large(shape):
    """The shape, with frames high enough for statistics."""
    b, c, f, h, w = shape
    return (b, c, f, max(h, math.ceil(PIXELS / (b * c * w))), w)


def correlations(noise):
    """Between frames: (f, f), over all videos, channels and pixels."""
    return torch.corrcoef(noise.movedim(2, 0).flatten(1))


def check_noise(make_noise, shape, rho, wanted):
    """What both kinds of noise have in common. wanted: rho -> (f, f) correlations."""
    name, shape = name_of(make_noise), large(shape)
    b, c, f, h, w = shape
    noise, slack = drawn(make_noise, shape, rho), 6 / math.sqrt(b * c * h * w)
    own, shared = drawn(make_noise, shape, 0.0), drawn(make_noise, shape, 1.0)
    # This comes first: with noise shared too widely, the statistics below are less exact than `slack`.
    for part, at in ((own, 0), (shared, 1)):
        common = []
        for dim, what in ((0, "videos"), (1, "channels"), (3, "rows"), (4, "columns")):
            if shape[dim] > 1:
                a, other = part.select(dim, 0).flatten(), part.select(dim, 1).flatten()
                found = torch.corrcoef(torch.stack([a, other]))[0, 1].abs().item()
                # At rho = 1 frames repeat each other: a share of 1/f of the numbers is independent.
                if found > 6 / math.sqrt(len(a) / f):
                    common.append((found, what))
        expect(not common, f"{name}: at rho = {at} {max(common, default=(0, ''))[1]} share their noise; only "
                           "frames of one video may.")
    variance = noise.movedim(2, 0).flatten(1).var(dim=1)     # of each frame
    worst = variance[(variance - 1).abs().argmax()].item()
    expect((variance - 1).abs().max() < 1.5 * slack,
           f"{name}: the variance is not one: frame {int((variance - 1).abs().argmax())} has {worst:.3f}. "
           "The network learned from noise of variance 1. Variances of independent parts add up: weights "
           "are roots.")
    expect(noise.mean().abs() < slack, f"{name}: the mean is {noise.mean():.3f}, not 0.")
    expect((correlations(own) - torch.eye(f)).abs().max() < slack,
           f"{name}: at rho = 0 frames are still correlated; each should have noise of its own.")
    expect(close(shared, shared[:, :, :1].expand(shape), 1e-5),
           f"{name}: at rho = 1 all frames of a video should have the very same noise (the paper's choice "
           "for SR_h); the noise is drawn per frame.")
    for part, at in ((own, 0), (shared, 1)):
        fourth = ((part - part.mean()) / part.std()).pow(4).mean().item()
        expect(abs(fourth - 3) < 0.4,                        # ten deviations, at the 20,000 pixels of a frame
               f"{name}: at rho = {at} the noise is not normal: the mean fourth power is {fourth:.2f}; that "
               "of a normal number is 3, of a uniform one 1.8. Draw with torch.randn.")
    found = correlations(noise)
    return name, found, slack, wanted(rho)


def pair(found):
    """The mean correlation of neighbouring frames."""
    return found.diagonal(offset=1).mean().item()


def check_correlated_noise(correlated_noise, shape=(2, 3, 6, 24, 24), rho=0.6):
    """noise = correlated_noise(shape, rho, generator): every two frames of a video correlate by rho."""
    f = shape[2]
    name, found, slack, wanted = check_noise(
        correlated_noise, shape, rho, lambda rho: torch.full((f, f), rho).fill_diagonal_(1))
    expect(abs(pair(found) - rho**2) > slack,
           f"{name}: neighbouring frames correlate by rho^2 = {rho**2:.2f}, not by rho = {rho:.2f}: the "
           "shared part enters two frames, so its weight is the root of rho.")
    expect(abs(pair(found) - (1 - rho)) > slack or abs(1 - 2 * rho) < 2 * slack,
           f"{name}: frames correlate by 1 - rho: the weights of shared and own noise are swapped.")
    expect(f < 3 or abs(found[0, -1] - found[0, 1]) < 2 * slack,
           f"{name}: the correlation falls with distance; here every two frames are equally correlated.")
    expect((found - wanted).abs().max() < slack,
           f"{name}: frames correlate by {pair(found):.3f}, not by rho = {rho:.2f}.")
    check_drawn_anew(correlated_noise, shape, rho)


def check_chain_noise(chain_noise, shape=(2, 3, 6, 24, 24), rho=0.6):
    """noise = chain_noise(shape, rho, generator): frames d apart correlate by rho^d."""
    f = shape[2]
    distance = (torch.arange(f)[:, None] - torch.arange(f)).abs()
    name, found, slack, wanted = check_noise(chain_noise, shape, rho, lambda rho: rho ** distance.double())
    expect(f < 3 or abs(found[0, -1] - found[0, 1]) > slack,
           f"{name}: frames far apart correlate as much as neighbours; in a chain the correlation falls as "
           "rho^d.")
    expect(abs(pair(found) - math.sqrt(rho)) > slack,
           f"{name}: neighbours correlate by root(rho): the frame before enters with weight rho, not with "
           "its root.")
    expect(abs(pair(found) - math.sqrt(1 - rho**2)) > slack or abs(math.sqrt(1 - rho**2) - rho) < 2 * slack,
           f"{name}: the weights are swapped: rho belongs to the frame before, root(1 - rho^2) to the new "
           "noise.")
    expect((found - wanted).abs().max() < slack,
           f"{name}: neighbours correlate by {pair(found):.3f}, not by rho = {rho:.2f}, or frames d apart "
           "not by rho^d.")
    check_drawn_anew(chain_noise, shape, rho)


def check_drawn_anew(make_noise, shape, rho):
    name = name_of(make_noise)
    expect(torch.equal(drawn(make_noise, shape, rho, seed=5), drawn(make_noise, shape, rho, seed=5)),
           f"{name}: the same generator state should give the same noise.")
    expect(not torch.equal(drawn(make_noise, shape, rho, seed=5), drawn(make_noise, shape, rho, seed=6)),
           f"{name}: another seed gives the same noise: the generator is not used.")


def check_augment(augment, shape=(3, 2, 4, 24, 24), levels=(0.0, 0.6, 1.0)):
    """noisy = augment(low, level, generator): one level (b,) a video, one noise for its frames."""
    name = "augment"
    b, c, f, h, w = shape
    level, low = torch.tensor(levels, dtype=torch.float64), normal(*shape, seed=1).clamp(-1, 1)
    made = tensor_like(call(augment, low, level, torch.Generator().manual_seed(2),
                            hint="level is (b,): one number a video."), shape, name)
    again = tensor_like(call(augment, low, level, torch.Generator().manual_seed(2)), shape, name)
    expect(torch.equal(made, again),
           f"{name}: the same generator state should give the same noise. Pass generator=.")
    keep = (1 - level**2).sqrt().view(-1, 1, 1, 1, 1)
    for i, value in enumerate(levels):
        if value == 0:
            expect(close(made[i], low[i], 1e-6), f"{name}: at level 0 the low-resolution clip should come "
                                                 "back as it is. Does each video get its own level?")
    noise = made - keep * low                                # level * noise, if low is weighted right
    differences = noise - noise[:, :, :1]
    alone = made - low
    expect(f == 1 or not close(alone, alone[:, :, :1].expand(shape), 1e-5),
           f"{name}: noise is added to all of low: the variance grows to 1 + level^2. Keep it: low enters "
           "with root(1 - level^2).")
    linear = made - (1 - level.view(-1, 1, 1, 1, 1)) * low
    expect(f == 1 or not close(linear, linear[:, :, :1].expand(shape), 1e-5),
           f"{name}: low enters with 1 - level; for a variance of one it is root(1 - level^2).")
    expect(differences.abs().max() < 1e-5,
           f"{name}: noise drawn per frame: what the network makes of it would flicker. Draw b c h w, for "
           "all frames of a video.")
    deviation, slack = noise.flatten(1).std(dim=1), 6 / math.sqrt(2 * c * h * w)
    expect(((deviation - level).abs() <= slack).all(),
           f"{name}: the noise has deviations {[round(d, 3) for d in deviation.tolist()]} at levels "
           f"{list(levels)}; they should be equal. (level is a deviation, not a variance.)")
    active = [i for i, value in enumerate(levels) if value > 0]
    first, second = (noise[i] / levels[i] for i in (active[0], active[-1]))
    expect(len(active) < 2 or not close(first, second, 1e-5),
           f"{name}: all videos get the same noise; only frames of one video should share it.")
    one = second[:, 0]                                       # c h w
    for dim, what in ((0, "channels"), (1, "rows"), (2, "columns")):
        expect(one.shape[dim] == 1 or not close(one.select(dim, 0), one.select(dim, 1), 1e-5),
               f"{name}: {what} share their noise; only frames should.")


def check_sr_input(sr_input, shape=(2, 2, 4, 6, 5), size=(12, 15)):
    """Input (b, 3 c, f, H, W) = sr_input(x_t, low): x_t, low enlarged bicubically, its change in time."""
    name = "sr_input"
    b, c, f, h, w = shape
    x_t = normal(b, c, f, *size, seed=1)

    def enlarged(low):
        made = call(sr_input, x_t, low, hint="F.interpolate takes b c h w: fold the frames into the batch.")
        first, frames, change = tensor_like(made, (b, 3 * c, f, *size), name).split(c, dim=1)
        expect(not close(frames, x_t) and not close(change, x_t),
               f"{name}: the order is x_t, then the enlarged low resolution, then its change.")
        expect(close(first, x_t), f"{name}: the first {c} channels should be x_t as it is.")
        return frames, change

    flat = torch.linspace(-1, 1, b * c * f, dtype=torch.float64).view(b, c, f, 1, 1)
    made, _ = enlarged(flat.expand(shape).clone())
    expect(close(made, flat.expand_as(made)),
           f"{name}: frames of one brightness each do not come back at their places: frames are permuted "
           "with channels or videos, or mixed with each other. b c f h w -> (b f) c h w, and back.")
    edge = torch.ones(h).double()
    edge[:h // 2] = -1
    edge = edge.view(1, 1, 1, h, 1).expand(shape)
    faint, _ = enlarged(edge / 2)
    expect(faint.max() > 0.5 + 1e-3,
           f"{name}: an edge does not overshoot: this is nearest or bilinear enlargement; bicubic was asked "
           "for.")
    made, _ = enlarged(edge.clone())
    expect(close(made, 2 * faint),
           f"{name}: an edge from -1 to 1 should overshoot twice as far as one from -0.5 to 0.5, to "
           f"{2 * faint.max():.3f}; it ends at {made.max():.3f}. Do not clamp the enlarged clip: its values "
           "may leave [-1, 1].")
    ramp = torch.arange(h).double() / h
    made = enlarged(ramp.view(1, 1, 1, h, 1).expand(shape).clone())[0][0, 0, 0, :, 0]
    centre = (torch.arange(size[0]) + 0.5) * h / size[0] - 0.5
    # Away from the border a bicubic ramp is a ramp on average over one period of the two grids.
    inside, period = (centre >= 1) & (centre <= h - 2), size[0] // math.gcd(size[0], h)
    made, centre = (x[inside].unfold(0, period, 1).mean(dim=1) for x in (made * h, centre))
    expect(close(made, centre),
           f"{name}: pixel centres move: a ramp of brightness comes back steeper, flatter or shifted. "
           "align_corners=True stretches a picture; leave it at False.")

    made, change = enlarged(normal(*shape, seed=2))
    none, step = torch.zeros_like(made[:, :, :1]), made.diff(dim=2)
    wanted = torch.cat([none, step], dim=2)
    expect(not close(change, -wanted),
           f"{name}: the change has the wrong sign: it is this frame minus the one before.")
    expect(not close(change, torch.cat([step, none], dim=2)),
           f"{name}: the change is the one to the next frame; it should be the one from the frame before.")
    expect(change[:, :, 0].abs().max() < 1e-6,
           f"{name}: frame 0 has no frame before it: its change should be 0.")
    expect(close(change, wanted),
           f"{name}: the last {c} channels should be each enlarged frame minus the one before it.")


def check_flicker(flicker, shape=(3, 2, 5, 8, 12), factor=4):
    """value (b,) = flicker(video, factor): how much detail finer than `factor` pixels changes over frames.

    factor: an even number.
    """
    name = "flicker"
    b, c, f, h, w = shape

    def made(video):
        return tensor_like(call(flicker, video, factor, hint="Blocks of factor x factor pixels."), (b,), name)

    still = normal(b, c, 1, h, w, seed=1).expand(shape).clone()
    expect(close(made(still), torch.zeros(b)),
           f"{name}: a still video should have none: differences are over frames.")
    coarse = normal(b, c, f, h // factor, w // factor, seed=2)
    coarse = coarse.repeat_interleave(factor, dim=3).repeat_interleave(factor, dim=4)
    expect(close(made(coarse), torch.zeros(b)),
           f"{name}: what changes is coarser than {factor} pixels and should not count. Subtract the mean of "
           "each block first.")
    # One pixel pattern, of mean 0 in each block, with its sign turned every frame: differences of 2 a.
    sign = torch.ones(h, w).double()
    sign[:, 1::2] = -1
    turn = (-1.0) ** torch.arange(f).double()
    amplitude = torch.arange(1, b + 1).double()
    video = (amplitude.view(b, 1, 1, 1, 1) * turn.view(1, 1, f, 1, 1) * sign).expand(shape)
    found, wanted = made(video.clone()), 2 * amplitude
    expect(not close(found, wanted**2), f"{name}: the mean of squares without its root: twice the contrast "
                                        "should give twice the flicker.")
    expect(b == 1 or not close(found, found.mean().expand(b)),
           f"{name}: one number for the whole batch; give each video its own.")
    expect(close(found, wanted), f"{name}: detail whose sign turns every frame, of size a, should give 2 a; "
                                 f"for a = 1 it is {found[0]:.4g}.")
    once = torch.zeros(shape, dtype=torch.float64)
    once[:, :, 0] = sign                                     # f - 1 differences, one of them 1
    found = made(once)
    expect(not close(found, torch.full((b,), 1 / (f - 1)).double()) or f == 2,
           f"{name}: a mean of absolute differences, or of one root for each frame; take the root of the "
           "mean square over all of them, which large changes dominate.")
    expect(close(found, torch.full((b,), (f - 1) ** -0.5).double()),
           f"{name}: it should be the root of the mean of squared differences over frames, channels and "
           "pixels.")
    # The first video again, in channel 0 alone and there at few pixels: a mean of roots would be smaller.
    local = torch.zeros(shape, dtype=torch.float64)
    local[:, 0, :, :h // 2, :2] = video[:, 0, :, :h // 2, :2]    # blocks keep their mean 0
    found, pixels = made(local), 1 / w                       # the share of the pixels
    right = 2 * amplitude * math.sqrt(pixels / c)
    for share, what in ((math.sqrt(pixels) / c, "channels"), (pixels / math.sqrt(c), "pixels"),
                        (pixels / c, "pixels or channels")):
        expect(close(found, right) or not close(found, 2 * amplitude * share),
               f"{name}: the root is taken before the mean over {what}; it comes last, once for each video.")
    expect(close(found, right),
           f"{name}: detail at a few pixels of one channel counts wrongly: take one mean of the squares over "
           "all frames, channels and pixels of a video, and its root last.")
