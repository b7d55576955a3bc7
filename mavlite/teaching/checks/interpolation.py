"""Checks of assignment 4: masks, distances, the network's input, loss on hidden frames, known frames kept."""

import math

import torch

from mavlite.teaching.checks.common import call, close, expect, normal, tensor_like


def some_mask(batch, num_frames, seed=0):
    """Masks (b, f) with a different number of known frames in each row, frame 0 hidden in some, none full."""
    order = normal(batch, num_frames, seed=seed).argsort(dim=1).argsort(dim=1)
    return order < 1 + torch.arange(batch)[:, None] % (num_frames - 1)


def wide(known, x):
    """(b, f) -> (b, 1, f, 1, 1) in x's dtype."""
    return known.to(x.dtype)[:, None, :, None, None]


def nearest(known):
    """Frames from each frame to the nearest known one, (b, f) bool -> (b, f), found by trying all."""
    return torch.tensor([[min(abs(i - j) for j, given in enumerate(row) if given) for i in range(len(row))]
                         for row in known.tolist()])


def is_in_mavlite(row):
    """Whether mavlite's training masks make this row: a start, an end, one or two frames, every n-th."""
    frames, f = row.nonzero().flatten().tolist(), len(row)
    if len(frames) <= 2 or frames == list(range(len(frames))) or frames == list(range(f - len(frames), f)):
        return True
    return any(frames == list(range(0, f, skip)) for skip in range(2, f))


def check_mask_pattern(mask_pattern, batch=64, num_frames=16, draws=200):
    """known = mask_pattern(batch, num_frames, generator): bool (b, f), True where a frame is given."""
    name = "mask_pattern"

    def made(seed):
        state = torch.get_rng_state()
        result = call(mask_pattern, batch, num_frames, torch.Generator().manual_seed(seed))
        expect(torch.equal(state, torch.get_rng_state()),
               f"{name}: it draws from the global generator. Pass generator= to every torch.rand and "
               "torch.randint.")
        return tensor_like(result, (batch, num_frames), name)

    known = made(1)
    expect(known.dtype == torch.bool, f"{name}: the mask is {known.dtype}; it should be torch.bool.")
    expect(known.any(dim=1).all(),
           f"{name}: {int((~known.any(dim=1)).sum())} of {batch} rows know no frame at all: nothing to "
           "interpolate from.")
    expect(not known.all(dim=1).any(),
           f"{name}: {int(known.all(dim=1).sum())} of {batch} rows hide no frame: nothing to learn from.")
    different = len(known.unique(dim=0))
    expect(different > 1 or batch < 8,
           f"{name}: all {batch} rows are the same; each clip of a batch draws its own mask.")
    expect(different > 2 or batch < 32,
           f"{name}: {batch} rows hold {different} different masks; at least 3 are asked for. Each clip of a "
           "batch draws its own.")
    expect(torch.equal(known, made(1)), f"{name}: the same generator state should give the same masks.")
    expect(not torch.equal(known, made(2)),
           f"{name}: another seed gives the same masks: the generator is not used.")
    # Rows that draw for themselves agree as often as rows of different batches do.
    masks = torch.stack([made(seed) for seed in range(draws)])                       # draws b f
    _, kind, counts = masks.flatten(0, 1).unique(dim=0, return_inverse=True, return_counts=True)
    kind, chance = kind.view(draws, batch), (counts / counts.sum()).square().sum().item()
    agree = (kind[:, :, None] == kind[:, None]).double().mean(dim=0)                 # b b
    i, j = divmod(int(agree.triu(1).argmax()), batch)
    # Bernstein's inequality: six deviations, and what rare events need beyond them.
    expect(i >= j or agree[i, j] - chance < 6 * math.sqrt(chance * (1 - chance) / draws) + 12 / draws,
           f"{name}: rows {i} and {j} have the same mask in {agree[i, j]:.0%} of {draws} batches; where each "
           f"row draws for itself, it is {chance:.0%}. Are a few masks drawn and then handed round?")
    own = sum(not is_in_mavlite(row) for row in known) / batch
    expect(own >= 0.25,
           f"{name}: only {own:.0%} of the rows are a pattern of your own; the others are a start, an end, "
           "one or two frames, or every n-th, which mavlite trains on already. At least a quarter should be "
           "new.")


def check_distance_to_known(distance_to_known, batch=7, num_frames=9):
    """d = distance_to_known(known): for (b, f) bool, frames to the nearest known one, divided by f."""
    name, f = "distance_to_known", num_frames
    known = some_mask(batch, f, seed=5)
    wanted = nearest(known)
    found = tensor_like(call(distance_to_known, known), (batch, f), name)
    expect(found.is_floating_point(),
           f"{name}: the result is {found.dtype}; a network's input is floating point.")
    if close(found, wanted / f):
        return
    expect(found.isfinite().all(), f"{name}: there is nan or infinity in it.")
    expect(not close(found, nearest(~known) / f),
           f"{name}: the mask is inverted: distances are to the nearest hidden frame.")
    expect(not found[known].any(),
           f"{name}: a known frame is no distance away from itself; yours says otherwise.")
    expect(not close(found, wanted.float()),
           f"{name}: not divided by the number of frames, so that the input grows with the clip.")
    expect((found >= 0).all(), f"{name}: there are negative distances; take their absolute value.")
    past = torch.tensor([[min([i - j for j in range(i + 1) if row[j]] or [f]) for i in range(f)]
                         for row in known.tolist()])
    expect(not close(found, past / f),
           f"{name}: it looks back only; the nearest known frame may come later.")
    row = int((found - wanted / f).abs().amax(dim=1).argmax())                       # where it is worst
    raise AssertionError(
        f"{name}: for known = {known[row].int().tolist()} it should be {wanted[row].tolist()} / {f}, it is "
        f"{[round(value, 3) for value in (found[row] * f).tolist()]} / {f}.")


def check_interpolation_input(interpolation_input, shape=(3, 2, 5, 4, 3)):
    """Input (b, 2 c + 2, f, h, w) = interpolation_input(x_t, x_0, known)."""
    name = "interpolation_input"
    b, c, f, h, w = shape
    x_t, x_0, known = normal(*shape, seed=1), normal(*shape, seed=2), some_mask(b, f, seed=3)
    made = tensor_like(call(interpolation_input, x_t, x_0, known, hint="known is (b, f): make it b 1 f 1 1."),
                       (b, 2 * c + 2, f, h, w), name)
    noisy, given, mask, far = made.split([c, c, 1, 1], dim=1)
    one = wide(known, x_0)
    expect(not close(noisy, given) and not close(noisy, x_0 * one),
           f"{name}: the order is noisy frames, known frames, mask, distance; the first {c} channels are not "
           "x_t.")
    expect(close(noisy, x_t), f"{name}: the first {c} channels should be x_t as it is, of all frames.")
    expect(not close(given, x_0),
           f"{name}: hidden frames leak: the network is shown all of x_0. Multiply by the mask.")
    expect(not close(given, x_0 * (1 - one)),
           f"{name}: the mask is inverted: it shows the hidden frames and hides the known ones.")
    expect(not close(given, x_t * one),
           f"{name}: the known frames are noisy: they should come from x_0, not from x_t.")
    expect(close(given, x_0 * one),
           f"{name}: channels {c} to {2 * c - 1} should be x_0 at known frames and 0 at hidden ones. Along "
           "which dimension does known (b, f) act?")
    expect(not close(mask, (1 - one).expand_as(mask)),
           f"{name}: the mask channel is inverted: 1 means known.")
    expect(close(mask, one.expand_as(mask)),
           f"{name}: channel {2 * c} should be 1 at known frames and 0 at hidden ones.")
    distance = nearest(known)
    expect(close(far, (wide(distance, x_0) / f).expand_as(far)),
           f"{name}: the last channel should be distance_to_known, the same at every pixel of a frame.")


def check_hidden_loss(hidden_loss, shape=(5, 2, 6, 2, 1)):
    """loss = hidden_loss(prediction, target, known): each clip's mean, weighted by distance, averaged."""
    name, b = "hidden_loss", shape[0]
    target, known = normal(*shape, seed=1), some_mask(b, shape[2], seed=2)
    # Clips differ in error and in how much is hidden, known frames have an error of their own.
    error = normal(*shape, seed=3) * (1 + torch.arange(b).double().view(-1, 1, 1, 1, 1))
    square = error.square()
    weight = (wide(nearest(known), error) / shape[2]).expand(shape)                  # 0 at known frames

    def made(known, error):
        return tensor_like(call(hidden_loss, target + error, target, known), (), name).item()

    def same(value, other):                                  # what keeps 0 / 0 away may be added
        return abs(value - float(other)) < 1e-4 * (1 + abs(float(other)))

    def per_clip(weight, square):
        return (square * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)

    found, right = made(known, error), per_clip(weight, square)
    if not same(found, right.mean()):
        inverted = (wide(nearest(~known), error) / shape[2]).expand(shape)
        sums, total = (square * weight).flatten(1).sum(1), weight.flatten(1).sum(1)
        frames = total / square[0, :, 0].numel()
        wrong = [(square.mean(), "known frames count too: the network would be rewarded for copying what it "
                                 "was given"),
                 (per_clip((weight > 0).double(), square).mean(),
                  "all hidden frames count alike, as in mavlite; here they count by their distance"),
                 (per_clip(inverted, square).mean(), "the mask is inverted: the loss is on the known frames"),
                 (((square * weight**2).flatten(1).sum(1) / total).mean(),
                  "the distance is squared with the error; it is a weight on the squared error"),
                 (sums.sum() / total.sum(),
                  "the whole batch is divided by one number, so that clips with more hidden frames count "
                  "more, and parts of a batch do not average to the whole"),
                 (sums.mean() / square[0].numel(),
                  "divided by all frames, hidden or not: masks that hide little count little"),
                 (sums.mean(), "it is a sum, not a mean: it grows with the frame size"),
                 ((sums / total.clamp(min=1)).mean(),
                  "what keeps 0 / 0 away also changes clips whose weights add up to less than 1; use "
                  "something tiny"),
                 (per_clip(weight, error.abs()).mean(), "absolute errors; the loss is on squares"),
                 ((sums / frames).mean(), "divided by the distances of *frames*; a frame has c h w numbers. "
                                          "Expand the weight first")]
        for value, reason in wrong:
            expect(not same(found, value), f"{name}: {reason}.")
        raise AssertionError(f"{name}: it should be, for each clip, sum(distance * (prediction - target)^2) "
                             "/ sum(distance) over all its numbers, and then the mean over clips. (What "
                             "keeps 0 / 0 away has to be tiny.)")
    full = known.clone()
    full[0] = True                                           # a clip with nothing to predict
    found = made(full, error)
    expect(found == found, f"{name}: nan for a clip without hidden frames: 0 / 0. Such a clip counts as 0.")
    right[0] = 0
    expect(same(found, right.mean()),
           f"{name}: a clip without hidden frames should count as 0, and the others as ever.")


def check_replace_known(replace_known, shape=(3, 2, 5, 4, 3), alpha=0.8, sigma=0.6):
    """x_s = replace_known(x_s, x_0, noise, known, alpha, sigma): known frames as noisy as the step needs."""
    name = "replace_known"
    x_s, x_0, noise = (normal(*shape, seed=seed) for seed in (1, 2, 3))
    known = some_mask(shape[0], shape[2], seed=4)
    one = wide(known, x_0)
    alpha, sigma = torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    found = tensor_like(call(replace_known, x_s, x_0, noise, known, alpha, sigma), shape, name)
    right = alpha * x_0 + sigma * noise
    expect(not close(found, right * (1 - one) + x_s * one),
           f"{name}: the mask is inverted: hidden frames are replaced and known ones left.")
    expect(not close(found, x_0 * one + x_s * (1 - one)),
           f"{name}: known frames are clean while the others are noisy; the network knows one time t for "
           "all. Noise them: alpha x_0 + sigma noise.")
    expect(not close(found, (sigma * x_0 + alpha * noise) * one + x_s * (1 - one)),
           f"{name}: alpha and sigma are swapped: alpha belongs to x_0.")
    expect(close(found * (1 - one), x_s * (1 - one)),
           f"{name}: hidden frames should stay as they are; they changed.")
    expect(close(found * one, right * one),
           f"{name}: known frames should be alpha x_0 + sigma noise; they are not.")
    end, nothing = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    found = tensor_like(call(replace_known, x_s, x_0, noise, known, end, nothing), shape, name)
    expect(torch.equal(found[known[:, None].expand(shape[:3])], x_0[known[:, None].expand(shape[:3])]),
           f"{name}: at the end (alpha 1, sigma 0) known frames should be copied through, to the last bit.")
