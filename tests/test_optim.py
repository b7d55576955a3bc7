"""Muon against the SVD it approximates, and the learning rate's shape."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mavlite.config import TrainConfig, load_config
from mavlite.optim import Muon, build_optimizers, orthogonalise, rate
from mavlite.stages import build_network

SMOKE = Path(__file__).parent.parent / "configs" / "smoke.yaml"


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def steps_of_muon(start, gradients, together=True, **options):
    """The tensors `start` after one step for each list of gradients, with one optimizer or one each."""
    parameters = [nn.Parameter(p.clone()) for p in start]
    optimizers = [Muon(parameters, **options)] if together else [Muon([p], **options) for p in parameters]
    for step in gradients:
        for p, gradient in zip(parameters, step):
            p.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    return [p.detach() for p in parameters]


# --- orthogonalise -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 16, 64), (3, 64, 16), (2, 8, 200), (2, 48, 9)])
def test_singular_values_become_about_one(shape, dtype):
    singular_values = torch.linalg.svdvals(orthogonalise(random(*shape, dtype=dtype)).double())
    assert singular_values.min() > 0.65 and singular_values.max() < 1.25


def test_scale_of_the_gradient_does_not_matter():
    x = random(2, 12, 30)
    torch.testing.assert_close(orthogonalise(1e-3 * x), orthogonalise(x), atol=1e-3, rtol=0)


def test_singular_vectors_stay():
    x = random(1, 12, 30)
    u, _, vt = torch.linalg.svd(x[0], full_matrices=False)
    turned = u.T @ orthogonalise(x)[0] @ vt.T                # diagonal, with the new singular values
    assert (turned - turned.diag().diag()).abs().max() < 1e-9
    assert turned.diag().min() > 0.65


def test_tall_is_the_transpose_of_wide():
    x = random(2, 40, 10)
    torch.testing.assert_close(orthogonalise(x), orthogonalise(x.mT).mT)


def test_zero_stays_zero():
    assert orthogonalise(torch.zeros(1, 4, 6)).eq(0).all()


# --- Muon --------------------------------------------------------------------------------------------------

def test_a_kernel_is_its_flattened_matrix():
    kernel, gradients = random(8, 4, 3, 3), [random(8, 4, 3, 3, seed=k) for k in (1, 2, 3)]
    as_kernel, = steps_of_muon([kernel], [[g] for g in gradients], weight_decay=0.1)
    as_matrix, = steps_of_muon([kernel.flatten(1)], [[g.flatten(1)] for g in gradients], weight_decay=0.1)
    torch.testing.assert_close(as_kernel.flatten(1), as_matrix, atol=1e-12, rtol=0)
    assert (as_kernel - kernel).abs().max() > 1e-2


def test_memory_layout_does_not_matter():
    kernel, gradient = random(8, 4, 3, 3), random(8, 4, 3, 3, seed=1)
    plain, = steps_of_muon([kernel], [[gradient]] * 2)
    last, = steps_of_muon([kernel.to(memory_format=torch.channels_last)],
                          [[gradient.to(memory_format=torch.channels_last)]] * 2)
    torch.testing.assert_close(last, plain, atol=1e-12, rtol=0)


def test_batching_equal_shapes_changes_nothing():
    shapes = [(6, 10), (6, 10), (10, 6), (6, 10), (5, 2, 3, 3)]
    start = [random(*shape, seed=k) for k, shape in enumerate(shapes)]
    gradients = [[random(*shape, seed=10 * step + k) for k, shape in enumerate(shapes)] for step in (1, 2)]
    batched, apart = steps_of_muon(start, gradients), steps_of_muon(start, gradients, together=False)
    for a, b in zip(batched, apart):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_parameters_without_gradient_stay():
    p = nn.Parameter(random(4, 4))
    before = p.detach().clone()
    Muon([p]).step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_quadratic_is_minimised(optimizer):
    layer, target = nn.Linear(12, 6), 0.3 * random(6, 13, dtype=torch.float32)
    train = TrainConfig(steps=300, warmup_steps=10, optimizer=optimizer, lr=0.02, muon_lr=0.02)
    optimizers, losses = build_optimizers(layer, train), []
    for step in range(train.steps):
        loss = (torch.cat([layer.weight, layer.bias[:, None]], dim=1) - target).square().sum()
        losses.append(loss.item())
        layer.zero_grad()
        loss.backward()
        for each in optimizers:
            for group in each.param_groups:
                group["lr"] = group["peak_lr"] * rate(step, train)
            each.step()
    assert losses[-1] < 1e-3 * losses[0]


# --- who gets what -----------------------------------------------------------------------------------------

def split(optimizer):
    """A smoke U-Net's parameter names, as the optimizers share them out."""
    network = build_network(load_config(SMOKE, "sr_l_t"))
    names = {id(p): name for name, p in network.named_parameters()}
    optimizers = build_optimizers(network, TrainConfig(optimizer=optimizer))
    return network, [[names[id(p)] for g in each.param_groups for p in g["params"]] for each in optimizers]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_matrices_decay_but_for_vectors_and_conditioning(optimizer):
    network = build_network(load_config(SMOKE, "sr_l_t"))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    train = TrainConfig(optimizer=optimizer, weight_decay=0.5, lr=0.1, muon_lr=0.1)
    for each in build_optimizers(network, train):
        each.step()
    for name, p in network.named_parameters():
        kept = p.ndim < 2 or "scale_shift" in name or "embed" in name
        torch.testing.assert_close(p, before[name] * (1.0 if kept else 0.95))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_has_one_optimizer(optimizer):
    network, shares = split(optimizer)
    shared_out = [name for share in shares for name in share]
    assert sorted(shared_out) == sorted(dict(network.named_parameters()))


def test_muon_takes_hidden_matrices_only():
    network, (rest, hidden) = split("muon")
    parameters = dict(network.named_parameters())
    assert all(parameters[name].ndim >= 2 for name in hidden)
    assert not [name for name in hidden if name.startswith(("conv_in", "conv_out"))]
    assert "middle.0.conv1.spatial.weight" in hidden and "middle.0.conv1.temporal.weight" in hidden
    assert not [name for name in rest if name.startswith("middle.") and "conv" in name and "weight" in name]


# --- the rate ----------------------------------------------------------------------------------------------

def test_rate_warms_up_stays_and_falls_to_nearly_zero():
    train = TrainConfig(steps=1000, warmup_steps=100, decay_share=0.3)
    rates = [rate(step, train) for step in range(train.steps)]
    assert rates[0] == pytest.approx(0.01) and rates[49] == pytest.approx(0.5)
    assert set(rates[99:701]) == {1.0}
    assert rates[850] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.005
    assert rates[:100] == sorted(rates[:100]) and rates[700:] == sorted(rates[700:], reverse=True)


def test_rate_without_warm_up_and_decay_is_constant():
    train = TrainConfig(steps=10, warmup_steps=0, decay_share=0.0)
    assert {rate(step, train) for step in range(10)} == {1.0}
