"""The training losses of all diffusion stages: simple, min-SNR, and the hybrid, which learns the variance."""

import torch

from mavlite.diffusion import expand_to, interpolate_log_variance

LOSS_TYPES = ("simple", "min_snr", "hybrid")
VLB_STEP = 1 / 1000  # the variational bound is taken over 1000 equal steps (unCLIP-derived: 1000 train steps)


def diffusion_loss(
    diffusion, model, x_0, t, noise, *, loss_type="simple", min_snr_gamma=5.0, weight=None, vlb_weight=0.001
):
    """Noise x_0 to time t, ask the model, compare: the loss of one training step.

    Args:
        diffusion: a Diffusion; it says what the model should predict.
        model: called as model(x_t, t). Returns the prediction, in x_0's shape; for "hybrid" twice the
            channels (dim 1): the prediction, then v, which interpolates the log-variance of a step.
        x_0, noise: (b, c, ...): clean data, in [-1, 1] for pixels, and standard normal noise.
        t: (b,) in [0, 1].
        loss_type: "simple"   mean squared error of the prediction (Ho et al. 2020, eq. 14);
                   "min_snr"  the same, weighted per sample, see `min_snr_weight`;
                   "hybrid"   simple + vlb_weight * variational bound, see `variational_bound`
                              (Nichol & Dhariwal 2021, eq. 16; the paper's D follows unCLIP in this).
        min_snr_gamma: for "min_snr", the most that an x_0 error may count.
        weight: broadcastable to x_0, for example 1 on hidden and 0 on known frames. A sample's loss is then
            the mean over its weighted elements, 0 where there are none; all samples count alike.
        vlb_weight: for "hybrid".

    Returns:
        A scalar, in float32 even if the model outputs half precision, in float64 if it outputs that.

    Raises:
        ValueError: for an unknown loss_type, and for a model output of the wrong shape.
    """
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type is {loss_type!r}; it must be one of {LOSS_TYPES}")

    x_t = diffusion.add_noise(x_0, noise, t)                                     # (b, c, ...)
    output = model(x_t, t)                                                       # (b, c or 2c, ...)
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    channels = x_0.shape[1] * (2 if loss_type == "hybrid" else 1)
    if output.shape != (x_0.shape[0], channels, *x_0.shape[2:]):
        # Checked, because a wrong shape may well broadcast, and would then train towards nonsense.
        raise ValueError(
            f"the model returned {tuple(output.shape)} for x_0 of {tuple(x_0.shape)}; "
            f"loss_type {loss_type!r} needs {channels} channels (dim 1)"
        )
    prediction = output[:, : x_0.shape[1]]                                       # (b, c, ...)

    error = (prediction - diffusion.target(x_0, noise, t)) ** 2                  # (b, c, ...)
    if loss_type == "min_snr":
        error = error * expand_to(min_snr_weight(diffusion, t, min_snr_gamma), error)
    if loss_type == "hybrid":
        v = output[:, x_0.shape[1] :]                                            # (b, c, ...)
        error = error + vlb_weight * variational_bound(diffusion, prediction, v, x_0, x_t, t)
    return weighted_mean(error, weight)


def weighted_mean(error, weight=None):
    """Mean of error (b, ...), or the mean over samples of each one's sum(weight error) / sum(weight).

    Not of the sums over the batch: parts of a batch, as micro-batches and ranks are, then have losses whose
    mean is that of the whole, however their weights differ.
    """
    if weight is None:
        return error.mean()
    weight = weight.to(error.dtype).expand_as(error).flatten(1)                  # (b, n)
    total = weight.sum(dim=1).clamp(min=torch.finfo(error.dtype).tiny)
    return ((weight * error.flatten(1)).sum(dim=1) / total).mean()


def min_snr_weight(diffusion, t, gamma=5.0):
    """The weight, (b,), on the error of a network's output that amounts to min(SNR + 1, gamma) on x_0's.

    Hang et al. 2023 (arXiv 2303.09556) put min(SNR, gamma) on x_0. We take SNR + 1, because v's plain loss is
    SNR + 1 on x_0 and because min(SNR, gamma) gives t = 1, where every sample starts, no weight at all.

    With "epsilon" the weight grows as 1 / SNR towards t = 1, up to e^20 at log_snr_min = -20: that is what an
    equal weight on x_0 asks of a network that predicts the noise. Prefer "simple" there.
    """
    snr = diffusion.snr(t)                                                       # (b,), infinite at t = 0
    if diffusion.prediction_type == "sample":
        # min(SNR + 1, gamma)
        return (snr + 1).clamp(max=gamma)
    if diffusion.prediction_type == "epsilon":
        # error(x_0) = error(epsilon) / SNR:   min(SNR + 1, gamma) / SNR, written so that infinite SNR gives 0
        return torch.minimum(1 + 1 / snr, gamma / snr)
    # error(x_0) = error(v) sigma^2 = error(v) / (SNR + 1):   min(1, gamma / (SNR + 1))
    return (gamma / (snr + 1)).clamp(max=1.0)


def variational_bound(diffusion, prediction, v, x_0, x_t, t):
    """L_vlb, per element and in nats, with s = t - 1/1000; trains the variance and leaves the mean alone.

        L_vlb = sum over 1000 steps of KL( q(x_s | x_t, x_0) || p(x_s | x_t) )

    is estimated from one t a sample, as 1000 KL; so 0.001 L_vlb is the KL of an average step
    (Nichol & Dhariwal 2021, eq. 4 and 16). The mean is detached (their section 3.1): only v gets a gradient.

    Steps that end before s = 1/1000 count as 0. In the discrete bound the last step, onto s = 0, is the
    likelihood of 8-bit pixels; our data are real numbers without bins, for which that term has no lower
    bound, and no sampler uses the variance of its last step. This concerns t < 2/1000.

    Args:
        prediction, v, x_0, x_t: (b, c, ...); t: (b,).

    Returns:
        (b, c, ...)
    """
    counts = expand_to(t >= 2 * VLB_STEP, x_0)                                   # (b, 1, ...), bool
    x_0_error = x_0 - diffusion.predict_x_0(prediction.detach(), x_t, t)         # (b, c, ...)

    t = t.clamp(2 * VLB_STEP, diffusion.max_time)                                # keeps all of it finite
    _, c_0, beta, beta_tilde = diffusion.posterior(t, t - VLB_STEP)              # (b,) each
    log_beta, log_beta_tilde = expand_to(beta.log(), x_0), expand_to(beta_tilde.log(), x_0)
    log_variance = interpolate_log_variance(v, log_beta, log_beta_tilde)         # (b, c, ...)

    # The two means are c_t x_t + c_0 x_0 with the true and the predicted x_0:  difference = c_0 x_0_error
    mean_difference = expand_to(c_0, x_0) * x_0_error
    # KL(N(m, q) || N(n, p)) = 1/2 [ log p - log q + q / p + (m - n)^2 / p - 1 ]
    kl = 0.5 * (
        log_variance - log_beta_tilde
        + torch.exp(log_beta_tilde - log_variance)
        + mean_difference**2 * torch.exp(-log_variance)
        - 1
    )                                                                            # (b, c, ...)
    return torch.where(counts, kl / VLB_STEP, torch.zeros_like(kl))
