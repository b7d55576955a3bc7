"""C: the compact tokenizer, the two towers, the contrastive loss, and public checkpoints."""

import math
import time

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mavlite.checkpoint import save_weights
from mavlite.clip import Clip, CompactTokenizer, PairClipLoss
from mavlite.config import ClipConfig
from mavlite.errors import MavliteError
from mavlite.prompts import VOCABULARY, all_prompts
from mavlite.stages import load_network

TINY = ClipConfig(embed_dim=16, image_size=16, vision_width=8, text_width=16, text_layers=1)


@pytest.fixture(scope="module")
def tokenizer():
    return CompactTokenizer(8)


@pytest.fixture(scope="module")
def shared(randomise):
    return randomise(Clip(TINY)).requires_grad_(False)


@pytest.fixture
def clip(shared):
    return shared.eval()


def frames(b=4, size=16, channels=1):
    return torch.rand(b, channels, size, size)


# --- tokens

def test_the_vocabulary_is_24_ids(tokenizer):
    assert tokenizer.vocab_size == len(VOCABULARY) + 3 == 24
    used = tokenizer(all_prompts()).unique()
    assert used.tolist() == list(range(24))


def test_all_prompts_have_tokens_of_their_own(tokenizer):
    tokens = tokenizer(all_prompts())
    assert tokens.shape == (400, 8) and tokens.dtype == torch.int64
    assert len(tokens.unique(dim=0)) == 400


def test_the_end_of_text_is_the_largest_id_and_follows_the_words(tokenizer):
    tokens = tokenizer(all_prompts())
    assert (tokens == 23).sum(dim=1).eq(1).all()
    assert (tokens.argmax(dim=1) == 4).all()                 # start, three words, end
    assert (tokens[:, 0] == 22).all() and (tokens[:, 5:] == 0).all()


def test_the_table_of_tokens_is_read_once(tokenizer):
    assert CompactTokenizer(8).bpe is tokenizer.bpe is not CompactTokenizer(9).bpe


@pytest.mark.parametrize("blank", ["\x85", "\x1c", "\x1d", "\u2003", "\n"])
def test_all_kinds_of_blanks_are_one(blank, tokenizer):
    assert torch.equal(tokenizer([f"two{blank}and 4"]), tokenizer(["two and 4"]))


def test_case_and_blanks_do_not_matter(tokenizer):
    assert torch.equal(tokenizer(["  Two  AND 4 "]), tokenizer(["two and 4"]))


def test_an_unknown_word_is_named_with_the_vocabulary(tokenizer):
    with pytest.raises(MavliteError) as error:
        tokenizer(["2 and 4", "two and cat"])
    assert "'cat'" in str(error.value) and all(word in str(error.value) for word in VOCABULARY)


def test_a_long_prompt_is_refused_rather_than_cut(tokenizer):
    assert tokenizer(["1 and 2 and 3 4"]).shape == (1, 8)
    with pytest.raises(MavliteError, match="too long: at most 6 words"):
        tokenizer(["1 and 2 and 3 and 4"])


def test_text_must_name_two_digits(clip):
    with pytest.raises(MavliteError, match="does not read"):
        clip.text(["2 and 4", "2 4"])


# --- towers

def test_one_prompt_is_a_list_of_one(clip):
    for one, listed in zip(clip.text("two and 4"), clip.text(["two and 4"])):
        assert torch.equal(one, listed)


def test_the_encoding_at_the_end_of_text_is_what_the_embedding_is_made_of(clip):
    """The prior reads the very encodings that C_x pools: last layer, after its norm (DALL-E 2's prior)."""
    prompts = all_prompts()[::37]
    encodings, embeds = clip.text(prompts)
    ends = encodings[torch.arange(len(prompts)), clip.tokenizer(prompts).argmax(dim=1)]
    pooled = ends @ clip.model.text_projection
    pooled = math.sqrt(clip.embed_dim) * pooled / pooled.norm(dim=-1, keepdim=True)
    assert torch.allclose(pooled, embeds, atol=1e-5)


@torch.no_grad()
def test_embeddings_have_the_length_of_standard_normal_ones(clip):
    tokens, text = clip.text(["2 and 4", "two and four", "0 and nine"])
    assert tokens.shape == (3, clip.context_length, clip.token_dim) and text.shape == (3, clip.embed_dim)
    for embeds in (clip.image_embeds(frames()), text):
        assert torch.allclose(embeds.norm(dim=-1), torch.full((len(embeds),), math.sqrt(clip.embed_dim)))


@pytest.mark.parametrize("size", [8, 16, 24])
@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_frames_of_any_size_and_either_colour_are_taken(clip, size, channels):
    grey = frames(size=size)
    embeds = clip.image_embeds(grey.expand(-1, channels, -1, -1))
    assert embeds.shape == (4, 16) and torch.allclose(embeds, clip.image_embeds(grey), atol=1e-5)


@torch.no_grad()
def test_what_is_encoded_is_what_is_trained(clip):
    x, prompts = frames(), ["2 and 4", "1 and 1", "two and 4", "0 and nine"]
    image, text, scale = clip(x, clip.tokenizer(prompts))
    assert torch.allclose(4 * image, clip.image_embeds(x), atol=1e-5)
    assert torch.allclose(4 * text, clip.text(prompts)[1], atol=1e-5)
    assert scale > 0


@torch.no_grad()
def test_training_and_evaluation_compute_the_same(clip):
    x, prompts = frames(), ["2 and 4", "1 and 1"]
    image, (tokens, text) = clip.image_embeds(x), clip.text(prompts)
    clip.train()
    assert torch.allclose(clip.image_embeds(x), image, atol=1e-5)
    assert torch.allclose(clip.text(prompts)[0], tokens, atol=1e-5)
    assert torch.allclose(clip.text(prompts)[1], text, atol=1e-5)


def test_there_are_no_batch_statistics(clip):
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in clip.modules())


@torch.no_grad()
def test_samples_do_not_depend_on_their_batch(clip):
    x, prompts = frames(), ["2 and 4", "1 and 1", "two and 4"]
    assert torch.allclose(clip.image_embeds(x)[2:3], clip.image_embeds(x[2:3]), atol=1e-5)
    assert torch.allclose(clip.text(prompts)[1][1:2], clip.text(prompts[1:2])[1], atol=1e-5)


@torch.no_grad()
def test_another_spelling_and_another_frame_are_told_apart(clip):
    text = clip.text(["2 and 4", "two and 4", "4 and 2"])[1]
    image = clip.image_embeds(frames())
    for embeds in (text, image):
        assert torch.pdist(embeds).min() > 1e-4


@torch.no_grad()
def test_saved_weights_give_the_same_embeddings(clip, smoke_config, tmp_path):
    config = smoke_config("clip")
    assert config.clip == TINY
    save_weights(tmp_path / "clip", clip.state_dict(), config, provenance={})
    loaded, _, _ = load_network(tmp_path, "clip")
    x, prompts = frames(), ["2 and 4", "nine and nine"]
    assert not loaded.training
    assert torch.equal(loaded.image_embeds(x), clip.image_embeds(x))
    assert all(torch.equal(a, b) for a, b in zip(loaded.text(prompts), clip.text(prompts)))


# --- loss

def features(n):
    return (nn.functional.normalize(torch.randn(n, 6, dtype=torch.float64), dim=-1) for _ in range(2))


def test_with_different_captions_the_loss_is_open_clips():
    image, text = features(5)
    scale = torch.tensor(7.0)
    expected = open_clip.ClipLoss()(image, text, scale)
    assert torch.allclose(PairClipLoss()(image, text, scale, torch.arange(5)), expected)


def test_equal_captions_are_no_negatives_of_each_other():
    image, text = features(4)
    groups, scale = [3, 8, 3, 5], 7.0
    logits = (scale * image @ text.T).tolist()

    def term(row, i):
        others = [j for j in range(4) if j == i or groups[j] != groups[i]]
        return math.log(sum(math.exp(row[j]) for j in others)) - row[i]

    columns = list(zip(*logits))
    expected = sum(term(logits[i], i) + term(columns[i], i) for i in range(4)) / 8
    loss = PairClipLoss()(image, text, torch.tensor(scale), torch.tensor(groups))
    assert loss.item() == pytest.approx(expected)


def test_a_batch_of_one_caption_has_nothing_to_learn():
    image, text = features(3)
    image.requires_grad_(True)
    loss = PairClipLoss()(image, text, torch.tensor(7.0), torch.zeros(3, dtype=torch.long))
    loss.backward()
    assert loss == 0 and image.grad.isfinite().all()


# --- public checkpoints

SMALL = {"embed_dim": 16,
         "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
         "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}


def check_public(name, folder):
    """A locally saved checkpoint embeds as open_clip itself does, and takes any text."""
    model = open_clip.create_model(name, load_weights=False).eval()
    path = folder / "model.safetensors"
    save_file(model.state_dict(), path)
    clip = Clip(ClipConfig(model=name, pretrained=str(path))).eval()
    size, d = clip.image_size, clip.embed_dim
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    x, prompts = frames(2, size, channels=3), ["a cat on a mat", "two and 4"]
    with torch.no_grad():
        image = math.sqrt(d) * model.encode_image((x - mean) / std, normalize=True)
        text = math.sqrt(d) * model.encode_text(open_clip.get_tokenizer(name)(prompts), normalize=True)
        assert torch.allclose(clip.image_embeds(x), image, atol=1e-4)
        tokens, text_embeds = clip.text(prompts)
    assert torch.allclose(text_embeds, text, atol=1e-4)
    assert tokens.shape == (2, clip.context_length, clip.token_dim)


@pytest.fixture
def small(monkeypatch):
    """An architecture of open_clip's kind that is built in no time."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-test-16", SMALL)
    return "ViT-test-16"


def test_a_public_checkpoint_file_stands_in_for_the_tiny_model(small, tmp_path):
    check_public(small, tmp_path)


def test_a_public_checkpoint_is_loaded_without_warnings(small, tmp_path, caplog):
    save_file(open_clip.create_model(small, load_weights=False).state_dict(), tmp_path / "model.safetensors")
    caplog.clear()                                           # that one was without weights
    Clip(ClipConfig(model=small, pretrained=str(tmp_path / "model.safetensors")))
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []


@pytest.mark.slow
def test_a_checkpoint_of_vit_b_32_stands_in_for_the_tiny_model(tmp_path):
    check_public("ViT-B-32", tmp_path)


@pytest.mark.parametrize("pretrained, said", [
    (None, "needs a tag"),
    ("weights.pt", "pickle, which is never loaded"),
    ("weights.bin", "pickle, which is never loaded"),
    ("nowhere.safetensors", "nowhere.safetensors: no such file"),
    ("no_such_tag", "has no tag 'no_such_tag'"),
])
def test_a_checkpoint_that_cannot_be_used_is_named(pretrained, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"would run when unpickled")
    with pytest.raises(MavliteError, match=said):
        Clip(ClipConfig(model="ViT-B-32", pretrained=pretrained))


def test_an_unknown_model_is_named():
    with pytest.raises(MavliteError, match="open_clip knows no 'ViT-Z-99'"):
        Clip(ClipConfig(model="ViT-Z-99", pretrained="openai"))


def test_another_models_weights_are_refused(small, tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 100)
    for name in ("other", "damaged"):
        with pytest.raises(MavliteError, match=f"{name}.safetensors does not hold weights of {small}"):
            Clip(ClipConfig(model=small, pretrained=str(tmp_path / f"{name}.safetensors")))


def test_a_checkpoint_that_is_not_finite_is_refused(small, tmp_path):
    state = open_clip.create_model(small, load_weights=False).state_dict()
    state["ln_final.weight"][0] = math.nan
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(MavliteError, match="model.safetensors holds NaN or infinity"):
        Clip(ClipConfig(model=small, pretrained=str(tmp_path / "model.safetensors")))


@pytest.mark.parametrize("trained, activation", [
    ({"quick_gelu": True}, "QuickGELU"), ({"mean": (0.5,) * 3, "std": (0.25,) * 3}, "GELU")])
def test_a_tag_says_how_its_checkpoint_was_trained(trained, activation, small, tmp_path, monkeypatch):
    """Another activation, or another normalisation of pixels, would make other embeddings, silently."""
    path = tmp_path / "open_clip_model.safetensors"
    save_file(open_clip.create_model(small, load_weights=False).state_dict(), path)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: str(path))
    tags = {"a_tag": {"hf_hub": "some/where/"} | trained}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, small, tags)
    clip = Clip(ClipConfig(model=small, pretrained="a_tag"))
    assert {type(m).__name__ for m in clip.modules() if "GELU" in type(m).__name__} == {activation}
    usual = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    for name, value in (usual | trained).items():
        assert name == "quick_gelu" or torch.equal(getattr(clip, name).flatten(), torch.tensor(value))


@pytest.mark.parametrize("offline", [True, False])
def test_a_tag_without_network_fails_at_once(offline, tmp_path, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    started = time.perf_counter()
    with pytest.raises(MavliteError, match="not in the local cache and cannot be downloaded"):
        Clip(ClipConfig(model="ViT-B-32", pretrained="laion2b_s34b_b79k"))
    assert time.perf_counter() - started < 1
