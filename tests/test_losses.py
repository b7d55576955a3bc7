"""The losses: closed forms, the same weights for every parameterisation, and who gets which gradient."""

import math

import pytest
import torch

from mavlite.diffusion import PREDICTION_TYPES, Diffusion, expand_to
from mavlite.losses import VLB_STEP, diffusion_loss, min_snr_weight, variational_bound

torch.set_num_threads(1)


def make(prediction_type):
    # Truncated alike, so that the three can be compared at every t.
    return Diffusion(prediction_type, log_snr_min=-8)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x_0, noise, guess = torch.randn(3, 6, 2, 3, 4, dtype=torch.float64, generator=generator)
    t = torch.tensor([0.01, 0.1, 0.5, 0.8, 0.95, 1.0], dtype=torch.float64)
    return x_0, noise, guess, t


def as_prediction(diffusion, x_0, x_t, t):
    """What a network that believes in x_0 outputs."""
    return diffusion.target(x_0, diffusion.epsilon(x_0, x_t, t), t)


def test_simple_is_the_mean_squared_error(data):
    x_0, noise, guess, t = data
    seen = {}

    def model(x_t, t):
        seen["x_t"] = x_t
        return guess

    loss = diffusion_loss(Diffusion(), model, x_0, t, noise)
    alpha, sigma = expand_to(torch.cos(t * math.pi / 2), x_0), expand_to(torch.sin(t * math.pi / 2), x_0)
    torch.testing.assert_close(seen["x_t"], alpha * x_0 + sigma * noise)
    torch.testing.assert_close(loss, (guess - (alpha * noise - sigma * x_0)).pow(2).mean())
    assert loss.dtype == torch.float64


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("loss_type", ["simple", "min_snr", "hybrid"])
def test_a_perfect_model_has_no_loss(prediction_type, loss_type, data):
    x_0, noise, _, t = data
    diffusion = make(prediction_type)

    def model(x_t, t):
        target = diffusion.target(x_0, noise, t)
        v = -torch.ones_like(target)                                            # the posterior's own variance
        return torch.cat([target, v], dim=1) if loss_type == "hybrid" else target

    assert diffusion_loss(diffusion, model, x_0, t, noise, loss_type=loss_type).abs() < 1e-9


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weighs_x_0_alike_in_every_parameterisation(prediction_type, data):
    x_0, noise, guess, t = data
    diffusion = make(prediction_type)
    snr = expand_to(diffusion.snr(t), x_0)
    expected = (torch.clamp(snr + 1, max=5.0) * (guess - x_0) ** 2).mean()
    loss = diffusion_loss(
        diffusion, lambda x_t, t: as_prediction(diffusion, guess, x_t, t), x_0, t, noise, loss_type="min_snr"
    )
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_min_snr_weight_at_the_ends_and_beyond_gamma():
    t = torch.tensor([0.0, 1.0])
    assert min_snr_weight(Diffusion("v_prediction"), t).tolist() == [0, 1]       # t = 1 is not forgotten
    assert min_snr_weight(Diffusion("sample"), t).tolist() == [5, 1]
    assert min_snr_weight(make("epsilon"), t)[0] == 0
    # With gamma beyond every SNR + 1 nothing is left of the weight on v.
    assert min_snr_weight(Diffusion("v_prediction"), torch.tensor([0.1, 0.9]), gamma=1e6).tolist() == [1, 1]


@pytest.mark.parametrize("loss_type", ["simple", "min_snr", "hybrid"])
def test_weight_is_a_mean_over_what_it_keeps(loss_type, data):
    x_0, noise, guess, t = data
    output = torch.cat([guess, guess.flip(0)], dim=1) if loss_type == "hybrid" else guess

    def loss(x_0=x_0, noise=noise, output=output, weight=None):
        return diffusion_loss(
            Diffusion(), lambda x_t, t: output, x_0, t, noise, loss_type=loss_type, weight=weight
        )

    hidden = torch.tensor([1.0, 0.0, 1.0]).reshape(1, 1, 3, 1)                   # dim 2 plays the frames
    keep = [0, 2]
    torch.testing.assert_close(
        loss(weight=hidden), loss(x_0[:, :, keep], noise[:, :, keep], output[:, :, keep]), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(loss(weight=hidden.bool()), loss(weight=hidden))
    torch.testing.assert_close(loss(weight=torch.full((1,), 3.0)), loss())
    assert loss(weight=torch.zeros(1)) == 0                                      # not nan

    # The loss does not see what is masked, whatever it is.
    changed = output.clone()
    changed[:, :, 1] = 1e3
    torch.testing.assert_close(loss(output=changed, weight=hidden), loss(weight=hidden), rtol=0, atol=0)


def test_all_samples_count_alike_however_much_of_them_is_weighted(data):
    x_0, noise, guess, t = data

    def loss(rows, weight):
        return diffusion_loss(Diffusion(), lambda x_t, t: guess[rows], x_0[rows], t[rows], noise[rows],
                              weight=weight[rows])

    hidden = torch.arange(3) < torch.tensor([3, 1, 2, 2, 0, 1])[:, None]         # none of the last but one
    hidden = hidden[:, None, :, None].double()
    parts = [loss(slice(start, start + 2), hidden) for start in (0, 2, 4)]
    torch.testing.assert_close(sum(parts) / 3, loss(slice(None), hidden), rtol=1e-12, atol=0)
    each = [loss(slice(i, i + 1), hidden) for i in range(6)]
    torch.testing.assert_close(sum(each) / 6, loss(slice(None), hidden), rtol=1e-12, atol=0)
    assert each[4] == 0 and min(each[:4]) > 0
    torch.testing.assert_close(each[0], loss(slice(0, 1), torch.ones_like(hidden)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_variational_bound_is_the_kl_divergence(prediction_type, data):
    x_0, noise, guess, _ = data
    diffusion = make(prediction_type)
    t = torch.tensor([0.002, 0.01, 0.1, 0.5, 0.9, diffusion.max_time], dtype=torch.float64)
    v = torch.tanh(noise.flip(0))
    x_t = diffusion.add_noise(x_0, noise, t)
    bound = variational_bound(diffusion, as_prediction(diffusion, guess, x_t, t), v, x_0, x_t, t)

    # Ho et al. 2020, eq. 7, with alpha bar and 1 - alpha bar.
    bar_t = expand_to(torch.cos(t * math.pi / 2) ** 2, x_0)
    bar_s = expand_to(torch.cos((t - 0.001) * math.pi / 2) ** 2, x_0)
    beta = 1 - bar_t / bar_s
    beta_tilde = (1 - bar_s) / (1 - bar_t) * beta

    def mean(x_0):
        return (bar_s.sqrt() * beta * x_0 + (bar_t / bar_s).sqrt() * (1 - bar_s) * x_t) / (1 - bar_t)

    variance = beta ** ((v + 1) / 2) * beta_tilde ** ((1 - v) / 2)
    q = torch.distributions.Normal(mean(x_0), beta_tilde.sqrt().expand_as(x_0))
    p = torch.distributions.Normal(mean(guess), variance.sqrt())
    kl = torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(bound, kl / VLB_STEP, rtol=1e-7, atol=1e-7)
    assert (bound >= 0).all()


def test_hybrid_adds_the_bound_and_spares_the_mean(data):
    x_0, noise, guess, t = data
    diffusion = Diffusion()
    x_t = diffusion.add_noise(x_0, noise, t)
    prediction, v = guess.clone().requires_grad_(), noise.flip(0).clone().requires_grad_()

    simple = diffusion_loss(diffusion, lambda x_t, t: prediction, x_0, t, noise)
    (simple_gradient,) = torch.autograd.grad(simple, prediction)
    hybrid = diffusion_loss(
        diffusion, lambda x_t, t: torch.cat([prediction, v], dim=1), x_0, t, noise, loss_type="hybrid"
    )
    prediction_gradient, v_gradient = torch.autograd.grad(hybrid, [prediction, v])

    bound = variational_bound(diffusion, prediction, v, x_0, x_t, t).mean()
    torch.testing.assert_close(hybrid, simple + 0.001 * bound)
    torch.testing.assert_close(prediction_gradient, simple_gradient, rtol=0, atol=0)
    assert (v_gradient.abs() > 0).all()


def test_the_best_variance_is_the_true_one():
    # If x_0 is missed by e everywhere, KL is least where variance = beta_tilde + (c_0 e)^2.
    diffusion = Diffusion()
    t = torch.full((1,), 0.5, dtype=torch.float64)
    x_0, noise, missed = torch.zeros(1, 1, 1), torch.ones(1, 1, 1), 0.5
    x_t = diffusion.add_noise(x_0, noise, t)
    v = torch.linspace(-1, 1, 20001, dtype=torch.float64).reshape(1, 1, -1)
    prediction = as_prediction(diffusion, x_0 + missed, x_t, t)
    best = v.flatten()[variational_bound(diffusion, prediction, v, x_0, x_t, t).argmin()]

    _, c_0, beta, beta_tilde = diffusion.posterior(t, t - VLB_STEP)
    variance = beta ** ((best + 1) / 2) * beta_tilde ** ((1 - best) / 2)
    expected = beta_tilde + (c_0 * missed) ** 2
    assert -0.999 < best < 0.999                                                # inside, so the test can fail
    torch.testing.assert_close(variance, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_hybrid_is_finite_at_every_time_in_float32(prediction_type):
    diffusion = Diffusion(prediction_type, log_snr_min=-20 if prediction_type == "epsilon" else None)
    t = torch.tensor([0.0, 1e-6, 5e-4, 1e-3, 1.5e-3, 2e-3, 0.5, 0.999, 1.0])
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, len(t), 1, 4, generator=generator)
    output = torch.randn(len(t), 2, 4, generator=generator).requires_grad_()
    loss = diffusion_loss(diffusion, lambda x_t, t: output, x_0, t, noise, loss_type="hybrid")
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(output.grad).all()
    assert (output.grad[:5, 1] == 0).all() and (output.grad[5:, 1] != 0).all()   # steps that count, and not


def test_half_precision_outputs_are_compared_in_float32(data):
    x_0, noise, guess, t = (value.float() for value in data)
    expected = diffusion_loss(Diffusion(), lambda x_t, t: guess.bfloat16().float(), x_0, t, noise)
    loss = diffusion_loss(Diffusion(), lambda x_t, t: guess.bfloat16(), x_0, t, noise)
    assert loss.dtype == torch.float32 and loss == expected


def test_errors_explain_themselves(data):
    x_0, noise, guess, t = data
    with pytest.raises(ValueError, match="min_snr"):
        diffusion_loss(Diffusion(), lambda x_t, t: guess, x_0, t, noise, loss_type="mse")
    with pytest.raises(ValueError, match="4 channels"):
        diffusion_loss(Diffusion(), lambda x_t, t: guess, x_0, t, noise, loss_type="hybrid")
    with pytest.raises(ValueError, match="the model returned"):                  # would broadcast otherwise
        diffusion_loss(Diffusion(), lambda x_t, t: guess[:, :1], x_0, t, noise)
