"""The schedule and the parameterisations, in float64, against closed forms written down independently."""

import math

import pytest
import torch

from mavlite.diffusion import PREDICTION_TYPES, Diffusion, expand_to, interpolate_log_variance

torch.set_num_threads(1)


def make(prediction_type):
    return Diffusion(prediction_type, log_snr_min=-20 if prediction_type == "epsilon" else None)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randn(6, 2, 3, 4, 4, dtype=torch.float64, generator=generator)
    noise = torch.randn(6, 2, 3, 4, 4, dtype=torch.float64, generator=generator)
    t = torch.tensor([1e-4, 0.2, 0.5, 0.7, 0.95, 1.0], dtype=torch.float64)
    return x_0, noise, t


def test_expand_to():
    t = torch.arange(3.0)
    assert expand_to(t, torch.zeros(3, 1, 5, 8, 8)).shape == (3, 1, 1, 1, 1)
    assert expand_to(t, torch.zeros(3, 7)).tolist() == [[0.0], [1.0], [2.0]]
    assert expand_to(t, torch.zeros(3)).shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_schedule_is_the_quarter_circle_and_exact_at_its_ends(dtype):
    t = torch.linspace(0, 1, 101, dtype=dtype)
    alpha, sigma = Diffusion().alpha_sigma(t)
    assert alpha.dtype == sigma.dtype == dtype
    tolerance = 1e-15 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(alpha.double(), torch.cos(math.pi / 2 * t.double()), rtol=0, atol=tolerance)
    torch.testing.assert_close(sigma.double(), torch.sin(math.pi / 2 * t.double()), rtol=0, atol=tolerance)
    assert (alpha[0], sigma[0]) == (1, 0) and (alpha[-1], sigma[-1]) == (0, 1)  # not 6e-17: zero terminal SNR
    assert Diffusion().alpha_sigma(t.reshape(1, 101))[0].shape == (1, 101)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_snr_is_truncated_from_below_and_only_there(dtype):
    truncated, whole = Diffusion("epsilon", log_snr_min=-20), Diffusion()
    t = torch.tensor([0.1, 0.5, 0.999, 0.99999, 1.0], dtype=dtype)
    # The first three are before max_time = 1 - 2.9e-5, the last two after it.
    torch.testing.assert_close(truncated.snr(t)[:3], whole.snr(t)[:3], rtol=0, atol=0)
    expected = torch.full((2,), -20.0, dtype=dtype)
    torch.testing.assert_close(truncated.snr(t)[3:].log(), expected, rtol=1e-6, atol=0)
    alpha, sigma = truncated.alpha_sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    assert whole.snr(torch.tensor([0.0]))[0] == math.inf and whole.snr(torch.tensor([1.0]))[0] == 0


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_round_trip(prediction_type, data):
    x_0, noise, t = data
    diffusion = make(prediction_type)
    x_t = diffusion.add_noise(x_0, noise, t)
    prediction = diffusion.target(x_0, noise, t)
    # "epsilon" divides by alpha = 4.5e-5 at the truncated end; the others lose nothing.
    tolerance = 1e-10 if prediction_type == "epsilon" else 1e-14
    torch.testing.assert_close(diffusion.predict_x_0(prediction, x_t, t), x_0, rtol=0, atol=tolerance)
    torch.testing.assert_close(diffusion.epsilon(x_0, x_t, t), noise, rtol=0, atol=1e-10)


def test_targets_are_what_their_names_say(data):
    x_0, noise, t = data
    assert torch.equal(make("epsilon").target(x_0, noise, t), noise)
    assert torch.equal(make("sample").target(x_0, noise, t), x_0)
    # v is the velocity on the quarter circle:  d x_t / dt = (pi / 2) v
    diffusion = Diffusion("v_prediction")
    inside, dt = t.clamp(max=0.99), 1e-5
    step = diffusion.add_noise(x_0, noise, inside + dt) - diffusion.add_noise(x_0, noise, inside - dt)
    velocity = step / (2 * dt)
    torch.testing.assert_close(diffusion.target(x_0, noise, inside), velocity / (math.pi / 2))
    # At t = 1 the target of v is -x_0: the network still has to say something about the data.
    torch.testing.assert_close(diffusion.target(x_0, noise, t)[-1], -x_0[-1], rtol=0, atol=0)


def test_epsilon_agrees_with_a_clipped_x_0(data):
    x_0, noise, t = data
    diffusion = Diffusion()
    x_t = diffusion.add_noise(x_0, noise, t)
    clipped = x_0.clamp(-0.5, 0.5)
    epsilon = diffusion.epsilon(clipped, x_t, t)
    torch.testing.assert_close(diffusion.add_noise(clipped, epsilon, t), x_t, rtol=0, atol=1e-12)
    assert (epsilon - noise).abs()[1:-1].max() > 0.1                         # so keeping the old one is wrong


def test_posterior_is_bayes_rule():
    diffusion = Diffusion()
    t = torch.tensor([1.0, 0.9, 0.5, 0.3], dtype=torch.float64)
    s = torch.tensor([0.99, 0.4, 0.499, 0.001], dtype=torch.float64)
    c_t, c_0, beta, beta_tilde = diffusion.posterior(t, s)
    alpha_t, alpha_s = torch.cos(t * math.pi / 2), torch.cos(s * math.pi / 2)
    sigma_s = torch.sin(s * math.pi / 2)
    # x_s ~ N(alpha_s x_0, sigma_s^2) is the prior, x_t ~ N(ratio x_s, 1 - ratio^2) the likelihood.
    ratio = alpha_t / alpha_s
    precision = 1 / sigma_s**2 + ratio**2 / (1 - ratio**2)
    torch.testing.assert_close(beta, 1 - ratio**2, rtol=1e-10, atol=0)
    torch.testing.assert_close(beta_tilde, 1 / precision, rtol=1e-10, atol=0)
    torch.testing.assert_close(c_0, alpha_s / sigma_s**2 / precision, rtol=1e-10, atol=0)
    torch.testing.assert_close(c_t, ratio / (1 - ratio**2) / precision, rtol=1e-10, atol=1e-13)


def test_posterior_onto_s_0_is_x_0():
    c_t, c_0, _, beta_tilde = Diffusion().posterior(torch.tensor([0.3, 1.0]), torch.tensor([0.0, 0.0]))
    assert c_t.tolist() == [0, 0] and c_0.tolist() == [1, 1] and beta_tilde.tolist() == [0, 0]


def test_posterior_keeps_its_digits_in_float32():
    t = torch.tensor([0.002, 0.01, 0.5, 0.9, 0.999])
    single = Diffusion().posterior(t, t - 0.001)
    double = Diffusion().posterior(t.double(), (t - 0.001).double())
    for value, reference in zip(single, double):
        torch.testing.assert_close(value.double(), reference, rtol=1e-4, atol=0)


def test_learned_variance_interpolates_between_its_bounds():
    v = torch.tensor([-1.0, 0.0, 1.0])
    log_variance = interpolate_log_variance(v, math.log(4.0), math.log(1.0))
    torch.testing.assert_close(log_variance.exp(), torch.tensor([1.0, 2.0, 4.0]))


def test_errors_explain_themselves():
    with pytest.raises(ValueError, match="log_snr_min"):
        Diffusion("epsilon")
    with pytest.raises(ValueError, match="v_prediction"):
        Diffusion("velocity")
