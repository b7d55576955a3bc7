"""What the guidance of D^t leads away from: what D would make of each frame by itself.

    x_0 + (scale - 1) (x_0 - x_0^D),     x_0^D of D, frame by frame, with the embedding dropped

Ordinary classifier-free guidance leads a clip away from D^t's own prediction with the embedding dropped. That
one moves as well as the guided one does, so guidance brings out the digits, not the motion; and it brings
them out in each frame separately. D is a weaker model of the same frames, as autoguidance wants it (Karras et
al. 2024, arXiv 2406.02507): D^t before it saw a video. Make-A-Video has nothing of the kind.
"""

from mavlite.diffusion import Diffusion
from mavlite.flat_memory import in_batches
from mavlite.layers import fold, unfold
from mavlite.sampling import make_denoiser


def single_frames(network, config):
    """denoise(x_t, t) of D for clips (b, c, f, h, w): each frame by itself, with the embedding dropped.

    network, config: D's. Its answer says neither what the frames shall show nor that they belong together;
    x_0 of D^t minus this one points to both.
    """
    def predict(x, t, drop):
        x, f = fold(x)
        embeds = network.null_embed.expand(len(x), -1)
        return unfold(network(x, t.repeat_interleave(f), image_embeds=embeds), f)

    d = config.diffusion
    hybrid = d.loss == "hybrid"
    denoise = make_denoiser(Diffusion(d.prediction_type, d.log_snr_min), in_batches(predict), clip=None,
                            learned_variance=hybrid)
    return (lambda x, t: denoise(x, t)[0]) if hybrid else denoise
