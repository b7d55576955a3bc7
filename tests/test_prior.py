"""P: what its causal transformer reads, and choosing among its samples."""

import pytest
import torch

from mavlite.config import PriorConfig
from mavlite.prior import Prior, closest, renormalise

WORDS, TOKEN, EMBED = 5, 12, 8


@pytest.fixture
def prior(randomise):
    config = PriorConfig(width=16, layers=2, heads=2)
    network = Prior(config, embed_dim=EMBED, token_dim=TOKEN, context_length=WORDS)
    return randomise(network).double().eval().requires_grad_(False)


def inputs(b=3):
    def randn(*shape):
        return torch.randn(shape, dtype=torch.float64)
    return {"x": randn(b, EMBED), "t": torch.rand(b, dtype=torch.float64), "tokens": randn(b, WORDS, TOKEN),
            "text_embeds": randn(b, EMBED)}


def hidden(prior, **given):
    """The transformer's output at every place of its sequence: (b, n + 4, width)."""
    seen = []
    handle = prior.blocks[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    prior(**given)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", ["x", "t", "tokens", "text_embeds"])
def test_the_prediction_depends_on_everything(prior, name):
    given = inputs()
    y = prior(**given)
    assert y.shape == (3, EMBED)
    assert ((prior(**given | {name: given[name].flip(0)}) - y)[[0, 2]].abs().amax(dim=1) > 1e-4).all()


@pytest.mark.parametrize("name, first", [("text_embeds", WORDS), ("t", WORDS + 1), ("x", WORDS + 2)])
def test_nothing_reads_what_comes_later(prior, name, first):
    given = inputs()
    changed = given | {name: given[name].flip(0)}
    moved = (hidden(prior, **changed) - hidden(prior, **given))[0].abs().amax(dim=-1)
    assert (moved[:first] < 1e-12).all() and (moved[first:] > 1e-6).all()


def test_a_word_reads_the_words_before_it(prior):
    given = inputs()
    tokens = given["tokens"].clone()
    tokens[:, 2] += 1
    moved = (hidden(prior, **given | {"tokens": tokens}) - hidden(prior, **given))[0].abs().amax(dim=-1)
    assert (moved[:2] < 1e-12).all() and (moved[2:] > 1e-6).all()


def test_drop_hides_the_whole_prompt_of_its_sample_alone(prior):
    given, drop = inputs(), torch.tensor([True, False, True])
    y = prior(**given, drop=drop)
    another_prompt = {"tokens": given["tokens"].flip(0) + 1, "text_embeds": -given["text_embeds"]}
    other = prior(**given | another_prompt, drop=drop)
    plain = prior(**given)
    assert (other - y)[drop].abs().max() < 1e-12 and (other - y)[1].abs().max() > 1e-4
    assert (plain - y)[1].abs().max() < 1e-12 and (plain - y)[drop].abs().amax(dim=1).min() > 1e-4


def test_a_dropped_sample_still_reads_its_noise_and_time(prior):
    given, drop = inputs(), torch.ones(3, dtype=torch.bool)
    y = prior(**given, drop=drop)
    assert (prior(**given | {"x": given["x"] + 1}, drop=drop) - y).abs().amax(dim=1).min() > 1e-4
    assert (prior(**given | {"t": given["t"] / 2}, drop=drop) - y).abs().amax(dim=1).min() > 1e-4


def test_samples_do_not_depend_on_their_batch(prior):
    given = inputs()
    alone = {name: value[1:2] for name, value in given.items()}
    assert (prior(**given)[1:2] - prior(**alone)).abs().max() < 1e-12


def test_training_and_evaluation_compute_the_same(prior):
    given = inputs()
    evaluated = prior(**given)                               # PyTorch takes a fused path here
    assert (prior.train().requires_grad_(True)(**given) - evaluated).abs().max() < 1e-12


def test_renormalising_gives_a_real_embeddings_length_and_a_new_tensor():
    embeds = torch.randn(4, 9, dtype=torch.float64)
    before = embeds.clone()
    y = renormalise(embeds)
    assert torch.equal(embeds, before) and y.data_ptr() != embeds.data_ptr()
    assert torch.allclose(y.norm(dim=-1), torch.full((4,), 3.0, dtype=torch.float64))
    assert torch.allclose(y / y.norm(dim=-1, keepdim=True), embeds / embeds.norm(dim=-1, keepdim=True))


def test_renormalising_survives_zero():
    assert renormalise(torch.zeros(1, 4)).isfinite().all()


def test_the_closest_candidate_is_chosen_by_direction_for_each_prompt():
    text = torch.eye(3)[:2]
    candidates = torch.stack([torch.tensor([[0.1, 0.0, 0.0], [9.0, 9.0, 9.0]]),
                              torch.tensor([[9.0, 9.0, 9.0], [0.0, 0.1, 0.01]])])
    chosen = closest(candidates, text)
    assert torch.equal(chosen, torch.stack([candidates[0, 0], candidates[1, 1]]))
