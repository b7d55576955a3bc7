"""The noise schedule and the three things a network may be asked to predict.

Time runs from t = 0 (clean) to t = 1 (pure noise):

    x_t = alpha(t) x_0 + sigma(t) noise,      alpha = cos(pi t / 2),  sigma = sin(pi t / 2)

This is the cosine schedule (Nichol & Dhariwal 2021, arXiv 2102.09672, section 3.2) without its offsets and
in continuous time. At t = 1 nothing of x_0 is left (zero terminal SNR, Lin et al. 2023, arXiv 2305.08891), so
that a sampler that starts from pure noise starts where training ended.

There is no network here, and nothing is drawn: noise and times are the caller's.
"""

import math

import torch

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


def expand_to(t, x):
    """Give one number per sample, (b,), as many dimensions as x, (b, ...): returns (b, 1, 1, ...)."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


class Diffusion:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2), and conversions between x_0, noise, x_t and predictions.

    Args:
        prediction_type: what the network outputs:
            "epsilon"       the noise                        (Ho et al. 2020, arXiv 2006.11239)
            "sample"        x_0                              (as the prior P does)
            "v_prediction"  v = alpha noise - sigma x_0      (Salimans & Ho 2022, arXiv 2202.00512, app. D)
        log_snr_min: if set, log(alpha^2 / sigma^2) never falls below it: times beyond `max_time` count
            as `max_time`. Required for "epsilon": at t = 1 the input *is* the noise, and says nothing of x_0.

    In the methods, x_0, noise, x_t and predictions share one shape (b, ...), t is (b,) in [0, 1]; the
    coefficients are computed in t's dtype.

    Raises:
        ValueError: for an unknown prediction_type, and for "epsilon" without log_snr_min.
    """

    def __init__(self, prediction_type="v_prediction", log_snr_min=None):
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type is {prediction_type!r}; it must be one of {PREDICTION_TYPES}")
        if prediction_type == "epsilon" and log_snr_min is None:
            raise ValueError(
                "prediction_type 'epsilon' needs log_snr_min (for example -20): at t = 1, alpha = 0, and "
                "x_0 = (x_t - sigma * epsilon) / alpha would divide by zero"
            )
        self.prediction_type = prediction_type
        self.log_snr_min = log_snr_min
        # log SNR = 2 log cot(pi t / 2) = log_snr_min   <=>   1 - t = (2 / pi) atan(exp(log_snr_min / 2))
        # Kept as the distance from t = 1, which is small: 1 - t has all its digits there, and t has not.
        self.min_time_left = 0.0
        if log_snr_min is not None:
            self.min_time_left = math.atan(math.exp(log_snr_min / 2)) * 2 / math.pi
        self.max_time = 1.0 - self.min_time_left

    def alpha_sigma(self, t):
        """(alpha, sigma) at times t in [0, 1]; any shape, and both have t's shape and dtype.

        Exact at both ends: (1, 0) at t = 0 and, when log_snr_min is None, (0, 1) at t = 1.
        """
        # cos(pi t / 2) = sin(pi (1 - t) / 2): a cosine in floating point is 6e-17 at t = 1, this sine is 0.
        alpha = torch.sin((1 - t).clamp(min=self.min_time_left) * (math.pi / 2))
        sigma = torch.sin(t.clamp(max=self.max_time) * (math.pi / 2))
        return alpha, sigma

    def snr(self, t):
        """Signal-to-noise ratio alpha^2 / sigma^2, in t's shape; infinite at t = 0."""
        alpha, sigma = self.alpha_sigma(t)
        return (alpha / sigma) ** 2

    def add_noise(self, x_0, noise, t):
        """x_t = alpha x_0 + sigma noise."""
        alpha, sigma = self._coefficients(t, x_0)
        return alpha * x_0 + sigma * noise

    def target(self, x_0, noise, t):
        """What the network should output for x_t = add_noise(x_0, noise, t)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x_0
        # v = alpha noise - sigma x_0
        alpha, sigma = self._coefficients(t, x_0)
        return alpha * noise - sigma * x_0

    def predict_x_0(self, prediction, x_t, t):
        """The x_0 that a network's prediction amounts to; the inverse of `target`."""
        if self.prediction_type == "sample":
            return prediction
        alpha, sigma = self._coefficients(t, x_t)
        if self.prediction_type == "epsilon":
            # x_0 = (x_t - sigma epsilon) / alpha
            return (x_t - sigma * prediction) / alpha
        # (x_t, v) is (x_0, noise) turned by the angle pi t / 2; turned back:  x_0 = alpha x_t - sigma v
        return alpha * x_t - sigma * prediction

    def epsilon(self, x_0, x_t, t):
        """The noise that x_t holds if x_0 is its clean part: (x_t - alpha x_0) / sigma, for t > 0.

        After x_0 was clipped the noise must be computed anew, by this, or the two no longer add up to x_t.
        """
        alpha, sigma = self._coefficients(t, x_t)
        return (x_t - alpha * x_0) / sigma

    def posterior(self, t, s):
        """q(x_s | x_t, x_0), a Gaussian, for times s < t <= max_time of any one shape.

            mean = c_t x_t + c_0 x_0,     variance = beta_tilde

        Returns (c_t, c_0, beta, beta_tilde) in t's shape. beta is the variance of q(x_t | x_s); it and
        beta_tilde bound the variance of q(x_s | x_t) from above and below. Ho et al. 2020, eq. 6-7, for any
        two times. At s = 0 this is (0, 1, sigma_t^2, 0): the step lands on x_0 and adds no noise.
        """
        alpha_t, sigma_t = self.alpha_sigma(t)
        alpha_s, sigma_s = self.alpha_sigma(s)
        # beta = 1 - (alpha_t / alpha_s)^2, factored because float32 would lose that difference for s near t:
        # beta = (sigma_t alpha_s - alpha_t sigma_s) (sigma_t alpha_s + alpha_t sigma_s) / alpha_s^2
        beta = (sigma_t * alpha_s - alpha_t * sigma_s) * (sigma_t * alpha_s + alpha_t * sigma_s) / alpha_s**2
        # c_t = (alpha_t / alpha_s) sigma_s^2 / sigma_t^2,   c_0 = alpha_s beta / sigma_t^2
        c_t = alpha_t / alpha_s * (sigma_s / sigma_t) ** 2
        c_0 = alpha_s * beta / sigma_t**2
        # beta_tilde = beta sigma_s^2 / sigma_t^2
        beta_tilde = beta * (sigma_s / sigma_t) ** 2
        return c_t, c_0, beta, beta_tilde

    def _coefficients(self, t, x):
        alpha, sigma = self.alpha_sigma(t)                                       # (b,), (b,)
        return expand_to(alpha, x), expand_to(sigma, x)                          # (b, 1, ...), (b, 1, ...)


def interpolate_log_variance(v, log_beta, log_beta_tilde):
    """The learned log-variance of an ancestral step, from a network's raw output v.

    v is -1 at the lower bound (beta_tilde) and 1 at the upper (beta), and not held between them
    (Nichol & Dhariwal 2021, eq. 15). The bounds are floats or broadcast to v.
    """
    v01 = (v + 1) / 2
    # log variance = v01 log beta + (1 - v01) log beta_tilde
    return v01 * log_beta + (1 - v01) * log_beta_tilde
