"""Checks of assignment 1: a shifted schedule, a turn by v, a second-order step, the walk from 1 to 0."""

import math

import torch

from mavlite.diffusion import Diffusion, expand_to
from mavlite.teaching.checks.common import call, close, expect, normal, tensor_like


def pair_of(result, shape, name, first, second):
    """The two tensors that a function should return."""
    expect(isinstance(result, tuple) and len(result) == 2, f"{name} should return a pair: {first}, {second}.")
    return tensor_like(result[0], shape, f"{name}: {first}"), tensor_like(result[1], shape, f"{name}: "
                                                                                            f"{second}")


def check_shifted_cosine(shifted_cosine, shift=0.5, num_times=9):
    """alpha, sigma = shifted_cosine(t, shift): the cosine schedule with its log SNR moved by 2 log(shift)."""
    t = torch.linspace(0, 1, num_times, dtype=torch.float64)
    name = "shifted_cosine"
    alpha, sigma = pair_of(call(shifted_cosine, t, shift), t.shape, name, "alpha", "sigma")
    expect(alpha.isfinite().all() and sigma.isfinite().all(),
           f"{name}: nan or infinity. The tangent is infinite at t = 1 and the log SNR at both ends; look "
           "for a form with sin and cos alone (multiply through by what is zero).")
    expect(alpha[0] > sigma[0] and sigma[-1] > alpha[-1],
           f"{name}: alpha and sigma are swapped: at t = 0 all is data (alpha 1, sigma 0), at t = 1 all is "
           "noise.")
    expect(close(alpha**2 + sigma**2, torch.ones_like(t)),
           f"{name}: alpha^2 + sigma^2 is not 1, so x_t has no unit variance. Divide both by the root of the "
           "sum of their squares.")
    inside = slice(1, -1)
    angle = math.pi * t[inside] / 2
    moved = torch.log(alpha / sigma)[inside] - torch.log(angle.cos() / angle.sin())  # half of log SNR's
    right = close(moved, torch.full_like(moved, math.log(shift)))
    expect(right or not close(moved, torch.full_like(moved, -math.log(shift))),
           f"{name}: the shift works the wrong way: shift < 1 should add noise (lower the SNR), shift > 1 "
           "remove it. Look at which of cos and sin it multiplies.")
    expect(right or not close(moved, torch.full_like(moved, math.log(shift) / 2)),
           f"{name}: the log SNR moved by log(shift), not by 2 log(shift): SNR is alpha^2 / sigma^2, so "
           "alpha / sigma takes the shift itself, not its root.")
    expect(right,
           f"{name}: alpha / sigma should be shift * cos(pi t / 2) / sin(pi t / 2) at every t; it is not.")
    ends = torch.stack([alpha, sigma])[:, [0, -1]]           # rows alpha and sigma, columns t = 0 and t = 1
    expect(close(ends, torch.eye(2)),
           f"{name}: (alpha, sigma) should be (1, 0) at t = 0 and (0, 1) at t = 1; yours are "
           f"({ends[0, 0]:.3g}, {ends[1, 0]:.3g}) and ({ends[0, 1]:.3g}, {ends[1, 1]:.3g}). Clamping t, say, "
           "leaves a bit of the data in what should be pure noise.")


def check_turn(turn, shape=(3, 2, 4, 3)):
    """x_s, v_s = turn(v, x_t, alpha_t, sigma_t, alpha_s, sigma_s), (b, ...) tensors and (b,) coefficients."""
    b, name = shape[0], "turn"
    x_0, noise = normal(*shape, seed=1), normal(*shape, seed=2)
    angle_t = math.pi / 2 * (1 - torch.arange(b, dtype=torch.float64) / max(b - 1, 1))       # t = 1 ... 0
    angle_s = 0.6 * angle_t
    pairs = [((math.pi / 2 - angle).sin(), angle.sin()) for angle in (angle_t, angle_s)]     # alpha, sigma
    (a_t, s_t), (a_s, s_s) = (tuple(expand_to(value, x_0) for value in pair) for pair in pairs)
    x_t, v = a_t * x_0 + s_t * noise, a_t * noise - s_t * x_0
    x_s, v_s = a_s * x_0 + s_s * noise, a_s * noise - s_s * x_0
    result = call(turn, v, x_t, *pairs[0], *pairs[1], hint="alphas and sigmas are (b,): one number a sample.")
    found_x, found_v = pair_of(result, shape, name, "x_s", "v_s")
    expect(found_x.isfinite().all() and found_v.isfinite().all(),
           f"{name}: it divides by an alpha or a sigma, and sigma is 0 at t = 0, alpha at t = 1. (x, v) at t "
           "is turned by an angle to become (x, v) at s: products and sums are all it takes.")
    if close(found_x, x_s) and close(found_v, v_s):
        return
    expect(not (close(found_x, v_s) and close(found_v, x_s)),
           f"{name}: the pair is the wrong way round: x_s first, then v_s.")
    expect(not (close(found_x, x_0) and close(found_v, noise)),
           f"{name}: this goes all the way to s = 0, to x_0 and the noise. Go on to the angle of s.")
    cos, sin = a_t * a_s + s_t * s_s, s_t * a_s - a_t * s_s
    expect(not close(found_x, cos * x_t + sin * v),
           f"{name}: it turns the wrong way, from t to more noise. v points along growing t, and s comes "
           "before t.")
    expect(not close(found_x, s_s * x_0 + a_s * noise),
           f"{name}: alpha and sigma of s are swapped: alpha_s belongs to x_0.")
    if shape[-1] == b:
        flat = [value for pair in pairs for value in pair]
        cos, sin = flat[0] * flat[2] + flat[1] * flat[3], flat[1] * flat[2] - flat[0] * flat[3]
        expect(not close(found_x, cos * x_t - sin * v),
               f"{name}: alphas and sigmas (b,) were spread over the last dimension of (b, c, h, w). Give "
               "them as many dimensions as x_t first: (b, 1, 1, 1).")
    expect(not close(found_x, x_s),
           f"{name}: x_s is right and v_s is not: v_s = alpha_s noise - sigma_s x_0.")
    raise AssertionError(f"{name}: x_s should be alpha_s x_0 + sigma_s noise, and v_s alpha_s noise - "
                         "sigma_s x_0. Look at what x_t and v say of x_0 and the noise, and put that in.")


TIMES = "alpha_sigma and denoise take times as tensors without dimensions."


class Watched:
    """denoise(x, t) that remembers what it was asked, and whether x carried gradients."""

    def __init__(self, denoise):
        self.denoise, self.times, self.inputs, self.recorded = denoise, [], [], []

    def __call__(self, x, t):
        self.times.append(float(torch.as_tensor(t).flatten()[0]))
        self.inputs.append(x.detach().clone())
        self.recorded.append(x.requires_grad)
        return self.denoise(x, t)


def check_heun_step(heun_step, shape=(2, 1, 3, 4), t=0.7, s=0.4):
    """x_s = heun_step(denoise, x, t, s, alpha_sigma), with t and s tensors without dimensions."""
    name, alpha_sigma = "heun_step", Diffusion().alpha_sigma
    a, b, x = normal(*shape, seed=1), normal(*shape, seed=2), normal(*shape, seed=3)
    t, s, zero = (torch.tensor(value, dtype=torch.float64) for value in (t, s, 0.0))
    alpha_t, sigma_t = alpha_sigma(t)
    alpha_s, sigma_s = alpha_sigma(s)
    r_t, r_s = alpha_t / sigma_t, alpha_s / sigma_s

    # A network whose x_0 is a + b r, with r = alpha / sigma: d(x / sigma) = x_0 dr is then solved by hand.
    denoise = Watched(lambda x, time: a + b * (alpha_sigma(time)[0] / alpha_sigma(time)[1]))
    exact = sigma_s * (x / sigma_t + a * (r_s - r_t) + b * (r_s**2 - r_t**2) / 2)
    euler = sigma_s * (x / sigma_t + (a + b * r_t) * (r_s - r_t))
    found = tensor_like(call(heun_step, denoise, x, t, s, alpha_sigma, hint=TIMES), shape, name)
    expect(len(denoise.times) != 1,
           f"{name}: this is DDIM's step, of first order: it uses the network at t alone. Look a second "
           "time, at the predicted x_s and time s, and step with the mean of both.")
    expect(len(denoise.times) == 2,
           f"{name}: the network was asked {len(denoise.times)} times; a Heun step asks twice, at t and at "
           "s.")
    expect(abs(denoise.times[0] - float(t)) < 1e-6, f"{name}: the first look should be at time t.")
    expect(abs(denoise.times[1] - float(s)) < 1e-6,
           f"{name}: the second look is at time {denoise.times[1]:g}; it should be at s = {float(s):g}, "
           "where the step ends.")
    expect(not close(denoise.inputs[1], x),
           f"{name}: the second look is at x_t; it should be at the x_s that a first-order step predicts.")
    expect(close(denoise.inputs[1], euler),
           f"{name}: the predicted x_s is not DDIM's: (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / "
           "sigma_t) x_0. Are alpha and sigma, or t and s, swapped?")
    again = sigma_s * (euler / sigma_t + (a + b * (r_t + r_s) / 2) * (r_s - r_t))
    expect(not close(found, again),
           f"{name}: the second half starts from the predicted x_s, so the way is gone twice. Step from x_t "
           "again, with the mean of both x_0.")
    expect(not close(found, sigma_s * (x / sigma_t + (a + b * r_s) * (r_s - r_t))),
           f"{name}: the step uses the second x_0 alone; take the mean of both.")
    expect(close(found, exact),
           f"{name}: the step misses the solution of d(x / sigma) = x_0 d(alpha / sigma) for an x_0 that is "
           "linear in alpha / sigma, where the mean of both ends is exact. Look at the weights of x_t and "
           "x_0.")

    last = Watched(denoise.denoise)
    found = tensor_like(call(heun_step, last, x, t, zero, alpha_sigma), shape, name)
    expect(len(last.times) == 1,
           f"{name}: at s = 0 the network was asked {len(last.times)} times. There alpha / sigma is "
           "infinite: the last step lands on x_0, with one look.")
    expect(close(found, a + b * r_t), f"{name}: the last step (s = 0) should land on x_0; it does not.")


def gaussian(mean, deviation, alpha_sigma):
    """(denoise, solve) for data N(mean, deviation^2): the best x_0, and the exact walk's end."""
    def denoise(x, t):
        alpha, sigma = alpha_sigma(torch.as_tensor(t, dtype=torch.float64))
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return denoise, lambda x: mean + deviation * x


def check_sample_heun(sample_heun, shape=(2, 1, 3, 4), num_steps=10, mean=0.3, deviation=0.5):
    """x_0 = sample_heun(denoise, x, alpha_sigma, num_steps), from t = 1 to t = 0 in equal steps."""
    name, alpha_sigma = "sample_heun", Diffusion().alpha_sigma
    best, solve = gaussian(mean, deviation, alpha_sigma)
    x = normal(*shape, seed=4)
    denoise = Watched(best)
    found = tensor_like(call(sample_heun, denoise, x, alpha_sigma, num_steps, hint=TIMES), shape, name)
    expect(found.isfinite().all(),
           f"{name}: nan or infinity. alpha / sigma is infinite at t = 0: the last step may not ask there.")
    expect(denoise.times, f"{name}: denoise was never asked.")
    expect(abs(denoise.times[0] - 1) < 1e-6,
           f"{name}: the walk starts at t = {denoise.times[0]:g}. Pure noise belongs to t = 1; the network "
           "never saw such an input earlier.")
    expect(len(denoise.times) != 2 * num_steps,
           f"{name}: {2 * num_steps} looks for {num_steps} steps: the last step lands on x_0 and needs no "
           "second one.")
    ends = sorted({round(time, 5) for time in denoise.times}, reverse=True)          # as float32 has them
    steps = [round(1 - i / num_steps, 5) for i in range(num_steps)]
    expect(ends == steps,
           f"{name}: the network was asked at times {[round(e, 3) for e in ends]}; {num_steps} equal steps "
           f"from 1 to 0 visit {[round(e, 3) for e in steps]}.")
    expect(len(denoise.times) == 2 * num_steps - 1,
           f"{name}: {len(denoise.times)} looks for {num_steps} steps; two a step and one for the last are "
           f"{2 * num_steps - 1}.")

    def error(n):
        made = tensor_like(call(sample_heun, best, x, alpha_sigma, n), shape, name)
        return (made - solve(x)).abs().max().item()

    coarse, fine = error(num_steps), error(2 * num_steps)
    order = math.log2(coarse / max(fine, 1e-15))
    expect(order > 1.25,
           f"{name}: twice the steps make the error {2**order:.1f} times smaller; a second-order walk gains "
           "a factor of 4. Look at heun_step, and whether x is handed from step to step.")

    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    learning = Watched(lambda x, t: weight * best(x, t))
    result = sample_heun(learning, x, alpha_sigma, 2)        # three looks: the third begins the second step
    expect(not (result.requires_grad or learning.recorded[-1]),
           f"{name}: it records gradients, so memory grows with every step. Walk under torch.no_grad().")
