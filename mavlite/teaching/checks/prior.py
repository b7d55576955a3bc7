"""Checks of assignment 3: residual embeddings, guidance with rescaling, choosing, dropping text."""

import math

import torch
import torch.nn.functional as F

from mavlite.teaching.checks.common import call, close, expect, normal, tensor_like


def unit(*shape, seed):
    return F.normalize(normal(*shape, seed=seed), dim=-1)


def check_residual(residual, restore, num_pairs=64, dim=12):
    """r, scale = residual(image_embeds, text_embeds); image_embeds = restore(r, text_embeds, scale)."""
    name = "residual"
    text = unit(num_pairs, dim, seed=1)
    apart = unit(num_pairs, dim, seed=2) * torch.linspace(0.1, 0.8, dim).double()
    image = F.normalize(text + apart, dim=-1)
    result = call(residual, image, text)
    expect(isinstance(result, tuple) and len(result) == 2,
           f"{name} should return a pair: residuals and their scale.")
    r, scale = tensor_like(result[0], image.shape, name), torch.as_tensor(result[1]).detach().double()
    expect(scale.numel() == 1,
           f"{name}: the scale has {scale.numel()} numbers. One for all components: a scale for each would "
           "change which embeddings are similar.")
    expect(not close(r, image - text) and r.square().mean() > 0.25,
           f"{name}: the residuals are unscaled: their mean square is {r.square().mean():.3g}, and beside "
           "noise of variance 1 there would be next to nothing to see. Multiply by one number.")
    expect(not close(r, (text - image) * scale),
           f"{name}: the residual has the wrong sign: it is what must be *added* to the text to get the "
           "image.")
    expect(not close(r / r.norm(dim=-1, keepdim=True) * dim**0.5, r),
           f"{name}: every residual has the same length: how far text and image are apart is lost. One scale "
           "for all.")
    expect(close(r, (image - text) * scale),
           f"{name}: it should return (image_embeds - text_embeds) * scale.")
    # A tiny number under the root is fine; a standard deviation, which subtracts the mean, is not.
    expect(abs(r.square().mean().item() - 1) < 5e-5,
           f"{name}: the mean square of all components is {r.square().mean():.6g}, not 1. Scale is 1 / "
           "root(mean of the squares), over samples and components.")

    name = "restore"
    back = tensor_like(call(restore, r, text, scale), image.shape, name)
    expect(not close(back, r / scale), f"{name}: the text embedding is not added back.")
    expect(not close(back, F.normalize(text + r * scale, dim=-1)),
           f"{name}: multiply by 1 / scale, not by scale.")
    expect(close(back, image),
           f"{name}: restore(residual(image)) is not the image embedding: undo both steps.")
    sampled = 0.7 * normal(num_pairs, dim, seed=3)           # a sample of P, not exactly on the sphere
    back = tensor_like(call(restore, sampled, text, scale), image.shape, name)
    expect(close(back.norm(dim=-1), torch.ones(num_pairs)),
           f"{name}: for a sampled residual the result has no unit length, as every embedding of C has. "
           "Normalise last.")
    expect(close(back, F.normalize(text + sampled / scale, dim=-1)),
           f"{name}: it should be text + r / scale, normalised.")


def deviation(x):
    """Of each sample over all but the batch: (b, ...) -> (b, 1, ...)."""
    return x.flatten(1).std(dim=1).view(-1, *(1,) * (x.ndim - 1))


def check_guide(guide, shape=(5, 12), guidance_scale=3.0, phi=0.7):
    """x_0 = guide(conditional, unconditional, guidance_scale, phi): guidance, rescaled by a share phi."""
    name = "guide"
    # Samples of different spread, so that one standard deviation for the batch is told from one a sample.
    spread = torch.linspace(0.5, 2, shape[0], dtype=torch.float64).view(-1, *(1,) * (len(shape) - 1))
    conditional, unconditional = spread * normal(*shape, seed=1), normal(*shape, seed=2)

    def made(scale, phi):
        return tensor_like(call(guide, conditional, unconditional, scale, phi), shape, name)

    w, plain = guidance_scale, unconditional + guidance_scale * (conditional - unconditional)
    rescaled = plain * deviation(conditional) / deviation(plain)
    found = made(w, 0.0)
    expect(not close(found, conditional + w * (unconditional - conditional)),
           f"{name}: conditional and unconditional are swapped: scale 1 should give the conditional, 0 the "
           "other.")
    expect(not close(found, conditional + w * (conditional - unconditional)),
           f"{name}: scale {w:g} acts like {w + 1:g}: start from the unconditional, not from the "
           "conditional.")
    expect(not close(found, rescaled),
           f"{name}: phi works the wrong way: phi = 0 should leave the guided x_0 alone.")
    expect(close(found, plain), f"{name}: with phi = 0 it should be plain guidance, u + scale (c - u).")
    expect(close(made(1.0, 0.0), conditional), f"{name}: guidance_scale 1 should return the conditional.")

    full = made(w, 1.0)
    expect(not close(full, plain),
           f"{name}: phi has no effect: the guided x_0 keeps its too large deviation.")
    expect(not close(full, plain * conditional.std() / plain.std()),
           f"{name}: one standard deviation for the whole batch: a sample would depend on its neighbours. "
           "Take it over all dimensions but the first.")
    expect(not close(full, plain * deviation(unconditional) / deviation(plain)),
           f"{name}: the deviation is brought to that of the unconditional; it should be the conditional's.")
    expect(not close(full, plain * deviation(plain) / deviation(conditional)),
           f"{name}: the ratio of deviations is upside down: std(conditional) / std(guided).")
    expect(close(full, rescaled, 1e-4),                      # something tiny may keep 0 / 0 away
           f"{name}: with phi = 1 each sample should have the standard deviation of its conditional x_0.")
    expect(close(made(w, phi), phi * rescaled + (1 - phi) * plain, 1e-4),
           f"{name}: between 0 and 1 it should be phi * rescaled + (1 - phi) * guided.")


def check_choose(choose, num_candidates=6, batch=4, dim=10):
    """embeds (b, d) = choose(candidates (k, b, d), text_embeds (b, d)): the largest margin wins."""
    name = "choose"
    for seed in range(200):                                  # until every rule picks other candidates
        text, candidates, right, wrong = choice(num_candidates, batch, dim, seed)
        picks = {tuple(pick.flatten().tolist()) for pick in (right, *(other for other, _ in wrong))}
        if min(num_candidates, batch) == 1 or len(picks) == 1 + len(wrong):
            break
    found = tensor_like(call(choose, candidates, text), (batch, dim), name)
    expect(torch.isin(found, candidates).all(),
           f"{name}: what it returns is no candidate. Return one of them as it is, neither a mean nor "
           "rescaled.")
    if close(found, right):
        return
    for other, reason in wrong:
        expect(not close(found, other), f"{name}: {reason}.")
    expect(not any(close(found, candidates[i]) for i in range(num_candidates)),
           f"{name}: one candidate number for the whole batch; every prompt chooses for itself (argmax over "
           "dim 0).")
    raise AssertionError(f"{name}: not the candidate whose cosine with its own text exceeds the largest "
                         "cosine with another prompt's text the most.")


def choice(k, b, d, seed):
    """(texts, candidates, the right choice, [(a wrong choice, its reason)]): candidates of many lengths."""
    text, pull = unit(b, d, seed=seed), normal(k, b, b, seed=seed + 1000)
    candidates = F.normalize(pull @ text + 0.5 * normal(k, b, d, seed=seed + 2000), dim=-1)
    candidates = candidates * (1 + 3 * normal(k, b, 1, seed=seed + 3000).abs())
    dots = torch.einsum("kbd,nd->kbn", candidates, text)                             # k b n
    cosine = dots / candidates.norm(dim=-1, keepdim=True)
    same = torch.eye(b, dtype=torch.bool)

    def pick(similarity, rival):
        own = similarity.diagonal(dim1=1, dim2=2)                                    # k b
        return candidates[(own - rival).argmax(dim=0), torch.arange(b)]

    rival = cosine.masked_fill(same, -2).amax(dim=2) if b > 1 else torch.zeros(k, b)
    mean = cosine.masked_fill(same, 0).sum(dim=2) / max(b - 1, 1)
    return text, candidates, pick(cosine, rival), [
        (pick(cosine, 0),
         "it takes the candidate closest to its own text, as mavlite does; subtract the cosine with the "
         "other prompt that it resembles most"),
        (pick(-cosine, -rival), "it takes the smallest margin, not the largest"),
        (pick(cosine, cosine.amax(dim=2)),
         "a prompt counts among its own rivals, so that the best margin is 0; leave the diagonal out"),
        (pick(cosine, cosine.masked_fill(same, 0).amax(dim=2)),
         "the own text stays among the rivals with cosine 0, which is the largest where all others are "
         "negative; put -infinity there"),
        (pick(dots, dots.masked_fill(same, -1e9).amax(dim=2)),
         "it compares dot products, which long candidates win; compare cosines"),
        (pick(cosine, mean), "it takes the mean over the other prompts; the most similar one counts")]


def check_drop_text(drop_text, batch=12, dim=6, probability=0.3, draws=400):
    """embeds = drop_text(text_embeds, null, probability, generator): floor(p b + u) rows become null."""
    name, expected = "drop_text", probability * batch
    text, null = normal(batch, dim, seed=1), normal(dim, seed=2).requires_grad_()

    def made(probability, seed=3):
        generator = torch.Generator().manual_seed(seed)
        state = torch.get_rng_state()
        result = call(drop_text, text, null, probability, generator)
        expect(torch.equal(state, torch.get_rng_state()),
               f"{name}: it draws from the global generator, so a resumed training would differ. Pass "
               "generator=.")
        tensor_like(result, text.shape, name)
        return result

    result = made(probability)
    is_null, is_text = (result == null).all(dim=1), (result == text).all(dim=1)
    mixed = ((result == null) | (result == text)).all()
    expect((is_null | is_text).all() or not mixed,
           f"{name}: single components are dropped; a prompt is hidden as a whole. Draw rows, not numbers.")
    expect((is_null | is_text).all(),
           f"{name}: some rows are neither the text nor null: neither is to be scaled.")
    expect(torch.equal(result, made(probability)),
           f"{name}: the same generator state should give the same rows.")
    dropped = torch.stack([(made(probability, seed) == null).all(dim=1) for seed in range(draws)]).double()
    counts = dropped.sum(dim=1)                              # of each batch
    few, many = math.floor(expected), math.floor(expected) + (expected > math.floor(expected))
    mean, slack = counts.mean().item(), 3 / draws**0.5       # six deviations at most
    expect(abs(mean - (batch - expected)) > slack or abs(batch - 2 * expected) < 2 * slack,
           f"{name}: it drops {mean:.2f} of {batch} rows on average where {expected:g} were asked for: it "
           "keeps what it should drop.")
    expect(set(counts.tolist()) <= {few, many},
           f"{name}: of {batch} rows it drops {counts.min():.0f} in one batch and {counts.max():.0f} in "
           f"another; with probability {probability:g} it should always be {few} or {many}. Rows that draw "
           "one by one, as in mavlite, or one draw for all, make that number vary.")
    expect(abs(mean - expected) < slack,
           f"{name}: it drops {mean:.2f} rows on average, not {expected:g}: rounded without chance. Add a "
           "uniform number before rounding down.")
    shares = dropped.mean(dim=0)                             # of each row
    row = int((shares - probability).abs().argmax())
    expect(abs(shares[row] - probability) < slack,
           f"{name}: row {row} is dropped in {shares[row]:.0%} of {draws} batches, not in {probability:.0%}. "
           "Which rows they are is drawn anew each time.")
    # Any two rows are among n drawn ones with chance n(n-1) / (b(b-1)).
    chance = (counts * (counts - 1)).mean().item() / max(batch * (batch - 1), 1)
    together = dropped.T @ dropped / draws                   # b b
    i, j = divmod(int((together - chance).abs().triu(1).argmax()), batch)
    # Bernstein's inequality: six deviations, and what rare events need beyond them.
    expect(i >= j or abs(together[i, j] - chance) < 6 * math.sqrt(chance / draws) + 12 / draws,
           f"{name}: rows {i} and {j} are dropped together in {together[i, j]:.0%} of {draws} batches; where "
           f"all sets of n rows are alike, it is {chance:.0%}. Draw each row anew, not a block of neighbours "
           "or rows at a fixed distance.")
    expect(torch.equal(made(0.0), text), f"{name}: with probability 0 nothing may be dropped.")
    everything = made(1.0)
    expect(bool((everything == null).all()), f"{name}: with probability 1 everything must be dropped.")
    expect(everything.requires_grad,
           f"{name}: no gradient reaches null, which is learned. Look for .data or detach.")
