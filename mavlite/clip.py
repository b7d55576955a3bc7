"""C: CLIP through open_clip. C_y embeds frames, C_x embeds prompts, and the prior also reads C_x's tokens.

The default is a tiny open_clip model that is trained here, because a CLIP that knows two overlapping digits
is what this domain needs. It is built from open_clip's parts, not registered under a name
(`open_clip.add_model_config`): its sizes come from the config, its ids from the tokenizer. Any public
open_clip checkpoint can stand in its place (`clip: {model: ViT-B-32, pretrained: <tag or safetensors file>}`)
and then takes any text.
"""

import functools
import math
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from einops import repeat
from torch import nn

from mavlite.config import ClipConfig
from mavlite.device import full_precision
from mavlite.errors import MavliteError
from mavlite.prompts import VOCABULARY, check_words, parse_prompt


def _without_batch_norm(module):
    """Replace every BatchNorm2d by a norm of each sample by itself (GroupNorm of one group), in place.

    BatchNorm ties the samples of a batch together: eval mode would need its statistics recalibrated after
    training, and two data-parallel halves would not compute what one whole batch does.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(1, child.num_features))
        else:
            _without_batch_norm(child)
    return module


def _for_small_frames(model):
    """Adapt open_clip's ResNet tower: no pooling in the stem, so it takes frames of half its nominal size."""
    model.visual.avgpool = nn.Identity()
    return _without_batch_norm(model)


@functools.cache
def _bpe(context_length):
    """open_clip's tokenizer, which reads all of its table when made: half a second."""
    return open_clip.SimpleTokenizer(context_length=context_length)


class CompactTokenizer:
    """open_clip's own BPE tokenizer with its 49,408 ids renumbered to the 24 that the vocabulary uses.

    A token table for all of BPE would dwarf a tiny text tower. 0 pads; the end of text stays the largest
    id, because open_clip pools the text at the position of the largest.
    """

    def __init__(self, context_length):
        self.bpe = _bpe(context_length)
        ids = sorted({i for word in VOCABULARY for i in self.bpe.encode(word)})
        ids = [0, *ids, self.bpe.sot_token_id, self.bpe.eot_token_id]
        self.table = {i: new for new, i in enumerate(ids)}
        self.vocab_size, self.context_length = len(self.table), context_length

    def __call__(self, prompts):
        """list of str -> int64 (n, context_length). MavliteError for unknown words and for long prompts."""
        prompts = [" ".join(prompt.split()) for prompt in prompts]       # BPE knows fewer kinds of blanks
        for prompt in prompts:
            check_words(prompt)
            if len(self.bpe.encode(prompt)) + 2 > self.context_length:
                raise MavliteError(f"the prompt {prompt!r} is too long: at most {self.context_length - 2} "
                                   "words")
        table = [[self.table[i] for i in row] for row in self.bpe(prompts).tolist()]
        return torch.tensor(table)


class Clip(nn.Module):
    """The two towers and their tokenizer. Frames are (b, c, h, w) in [0, 1], of any size."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        if config.model == "tiny":
            self.tokenizer = CompactTokenizer(config.context_length)
            width = config.vision_width
            self.model = _for_small_frames(open_clip.CLIP(
                config.embed_dim,
                open_clip.CLIPVisionCfg(layers=tuple(config.vision_layers), width=width, head_width=width * 8,
                                        image_size=2 * config.image_size),
                open_clip.CLIPTextCfg(context_length=config.context_length,
                                      vocab_size=self.tokenizer.vocab_size, width=config.text_width, heads=4,
                                      layers=config.text_layers),
                init_logit_scale=math.log(10), output_dict=False))
            self.image_size = config.image_size
            mean, std = (0.0,) * 3, (0.3,) * 3                # black stays 0: the empty canvas says nothing
        else:
            self.model, self.tokenizer, mean, std = _public_model(config)
            size = self.model.visual.image_size
            self.image_size = size if isinstance(size, int) else size[0]
        self.tiny = config.model == "tiny"
        self.embed_dim = self.model.text_projection.shape[-1]
        self.token_dim = self.model.ln_final.normalized_shape[0]
        self.context_length = self.model.context_length
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def preprocess(self, frames):
        """To the size, the three channels and the normalisation that the image tower expects."""
        if frames.shape[-1] != self.image_size or frames.shape[-2] != self.image_size:
            shrink = frames.shape[-1] > self.image_size
            frames = F.interpolate(frames, (self.image_size,) * 2, mode="bilinear", antialias=shrink)
        if frames.shape[1] == 1:
            frames = repeat(frames, "b 1 h w -> b c h w", c=3)
        return ((frames - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, frames, tokens):
        """Training: unit image and text features (b, d) and the logit scale."""
        return self.model(self.preprocess(frames), tokens)

    def image_embeds(self, frames):
        """C_y: (b, c, h, w) in [0, 1] -> (b, d), scaled to length sqrt(d).

        A unit vector has variance 1/d per number; scaled like this the numbers are of order one, which
        suits diffusion with standard normal noise (and the networks that read them).
        """
        return math.sqrt(self.embed_dim) * self.model.encode_image(self.preprocess(frames), normalize=True)

    def text(self, prompts):
        """C_x: prompts -> (per-token encodings (b, n, token_dim), text embeds (b, d) of length sqrt(d)).

        prompts: a list of str, or one str.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if self.tiny:
            for prompt in prompts:
                parse_prompt(prompt)
        tokens = self.tokenizer(prompts).to(self.mean.device)
        if not self.tiny and tokens[:, -1].any():            # open_clip would cut what does not fit, silently
            raise MavliteError(f"a prompt is too long: {self.context_length} tokens do not hold all of it")
        out = self.model.forward_intermediates(text=tokens, text_indices=1,
                                               normalize_intermediates=True)
        return out["text_intermediates"][0], math.sqrt(self.embed_dim) * out["text_features"]


class PairClipLoss(open_clip.ClipLoss):
    """open_clip's contrastive loss, but equal captions are no negatives of each other.

    ClipLoss takes every other sample of a batch as a negative. With 55 pairs of digits and batches of
    hundreds, many of those show the very same pair; they are left out of the softmax here.
    """

    def forward(self, image_features, text_features, logit_scale, groups):
        """groups: (n,) int, equal where captions mean the same; n is the whole batch over all ranks.

        The scale is at most 100, as in CLIP (Radford et al. 2021, 2.5). Never in 16 bits: there, logits
        around 100 are half a unit apart.
        """
        features = (x if x.dtype == torch.float64 else x.float() for x in (image_features, text_features))
        with full_precision(image_features.device):
            logits, _ = self.get_logits(*features, logit_scale.clamp(max=100.0))     # n n
        others = groups[:, None].eq(groups) & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
        logits = logits.masked_fill(others, -math.inf)
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


# ---------------------------------------------------------------- public checkpoints

def _public_model(config):
    """A public open_clip architecture with weights from a safetensors file or a tag.

    (model, tokenizer, mean, std): the last two are what the checkpoint's pixels were normalised with.
    """
    if config.model not in open_clip.list_models():
        raise MavliteError(f"clip.model: open_clip knows no {config.model!r}; name tiny or one of "
                           "open_clip.list_models(), such as ViT-B-32")
    if not config.pretrained:
        raise MavliteError(f"clip.pretrained: {config.model} needs a tag (such as laion2b_s34b_b79k) or a "
                           ".safetensors file")
    path, trained = Path(config.pretrained), {}
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl"):
        raise MavliteError(f"clip.pretrained: {path} is a pickle, which is never loaded; convert it to "
                           ".safetensors")
    if path.suffix != ".safetensors":
        path, trained = _fetch(config.model, config.pretrained)
    elif not path.is_file():
        raise MavliteError(f"clip.pretrained: {path}: no such file")
    try:                                                     # created with its weights, or it warns of none
        # Some tags were trained with another activation than their architecture's name says.
        model = open_clip.create_model(config.model, pretrained=str(path),
                                       force_quick_gelu=trained.get("quick_gelu", False))
    except Exception as error:                               # safetensors and torch raise many kinds
        raise MavliteError(f"clip.pretrained: {path} does not hold weights of {config.model} "
                           f"({' '.join(str(error).split())[:100]})") from None
    if not isinstance(model, open_clip.CLIP):
        raise MavliteError(f"clip.model: {config.model} is not a plain CLIP; choose one such as ViT-B-32")
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise MavliteError(f"clip.pretrained: {path} holds NaN or infinity; get the file anew")
    return (model, open_clip.get_tokenizer(config.model),
            trained.get("mean") or open_clip.OPENAI_DATASET_MEAN,
            trained.get("std") or open_clip.OPENAI_DATASET_STD)


def _fetch(model, tag):
    """(the safetensors file of a tag, how open_clip says it was trained): from the local Hub cache, else
    downloaded, else an error at once."""
    from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.utils import get_session

    trained = open_clip.get_pretrained_cfg(model, tag)
    repository, name = trained.get("hf_hub", "").rstrip("/"), "open_clip_model.safetensors"
    if not repository:
        raise MavliteError(f"clip.pretrained: {model} has no tag {tag!r} with safetensors on the Hub; it has "
                           f"{', '.join(open_clip.list_pretrained_tags_by_model(model)) or 'none'}")
    cached = try_to_load_from_cache(repository, name)
    if isinstance(cached, str):
        return Path(cached), trained
    try:
        if HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        # Asked once: without network, hf_hub_download would try again for most of a minute.
        get_session().head(hf_hub_url(repository, name), timeout=5)
        return Path(hf_hub_download(repository, name)), trained
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise MavliteError(f"clip.pretrained: {tag!r} is not in the local cache and cannot be downloaded "
                           f"({reason}); give a local .safetensors file") from None
