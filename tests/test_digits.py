import socket
import struct

import pytest
import torch

from mavlite import digits
from mavlite.digits import GLYPH_FONTS, load_digits
from mavlite.errors import MavliteError


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """An empty working directory, no network, no settings, nothing remembered from the test before."""
    monkeypatch.chdir(tmp_path)
    for name in ("MAVLITE_DATA", "MAVLITE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(digits, "_notice_given", False)
    digits._download.cache_clear()
    yield attempts
    digits._download.cache_clear()


def write_fake_mnist(folder, train=20, test=10):
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", train), ("t10k", test)):
        pixels = bytes((i + len(name)) % 256 for i in range(count * 28 * 28))
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, count, 28, 28) + pixels)
        labels = bytes(i % 10 for i in range(count))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + labels)
    return raw


# --- glyphs

@pytest.mark.parametrize("split, count", [("train", 6000), ("test", 1000)])
def test_glyphs_look_like_mnist_in_form(split, count):
    glyphs = load_digits(split, "glyphs")
    assert glyphs.images.shape == (count, 28, 28) and glyphs.images.dtype == torch.uint8
    assert glyphs.labels.dtype == torch.int64 and glyphs.labels.bincount().tolist() == [count // 10] * 10
    assert (glyphs.source, glyphs.split, len(glyphs)) == ("glyphs", split, count)

    assert (glyphs.images.amax(dim=(1, 2)) > 200).all()                    # white
    assert 0.08 < (glyphs.images.float() / 255).mean() < 0.25              # on black
    assert (glyphs.images[:, 0] == 0).float().mean() > 0.99                # the digit stays in its box
    ink = glyphs.images.float()
    rows = torch.arange(28) + 0.5
    centre_y = (ink.sum(2) * rows).sum(1) / ink.sum((1, 2))
    centre_x = (ink.sum(1) * rows).sum(1) / ink.sum((1, 2))
    assert (centre_y - 14).abs().max() < 1 and (centre_x - 14).abs().max() < 1
    lit_rows = (ink.amax(2) > 64).sum(1).float()
    assert 17 < lit_rows.mean() < 23                                       # about 20 px high


def test_glyphs_of_both_splits_come_from_disjoint_fonts():
    assert not set(GLYPH_FONTS["train"]) & set(GLYPH_FONTS["test"])
    for fonts in GLYPH_FONTS.values():
        assert len(fonts) == len(set(fonts))
    train, test = (load_digits(split, "glyphs").images.flatten(1) for split in ("train", "test"))
    assert not {row.numpy().tobytes() for row in train} & {row.numpy().tobytes() for row in test}


def test_glyphs_are_deterministic_varied_and_not_shared():
    first = load_digits("test", "glyphs")
    expected = first.images.clone()
    first.images.zero_()  # a caller's own copy
    assert torch.equal(load_digits("test", "glyphs").images, expected)
    torch.manual_seed(123)  # the global generator has no say
    digits._draw_glyphs.cache_clear()
    assert torch.equal(load_digits("test", "glyphs").images, expected)
    assert len({image.numpy().tobytes() for image in expected}) == 1000


def test_a_nearest_neighbour_reads_test_glyphs():
    """A label that does not belong to its image would show here: chance is 0.1."""
    train, test = load_digits("train", "glyphs"), load_digits("test", "glyphs")
    distance = torch.cdist(test.images[:200].flatten(1).float(), train.images.flatten(1).float())
    assert (train.labels[distance.argmin(1)] == test.labels[:200]).float().mean() > 0.9


# --- where MNIST is looked for

def test_offline_auto_gives_glyphs_and_exactly_one_notice(bare_machine, tmp_path, capfd):
    assert load_digits("train").source == "glyphs"
    assert load_digits("test").source == "glyphs"
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("NOT MNIST") == 1 and "MAVLITE_DATA" in captured.err
    assert "Traceback" not in captured.err and "Failed to download" not in captured.err
    assert bare_machine                       # a download was tried
    assert list(tmp_path.iterdir()) == []     # and left nothing behind


def test_of_several_processes_one_downloads_and_speaks(bare_machine, monkeypatch, capfd):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert load_digits("train").source == "glyphs"
    assert bare_machine == [] and capfd.readouterr().err == ""


def test_a_folder_without_mnist_is_named(bare_machine, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MAVLITE_DATA", str(tmp_path / "nowhere"))
    load_digits("train")
    assert f"MAVLITE_DATA={tmp_path / 'nowhere'} holds no MNIST/raw" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["MAVLITE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_setting_does_not_touch_the_network(bare_machine, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert load_digits("test").source == "glyphs"
    assert bare_machine == []


def test_mnist_on_demand_fails_without_files_or_network():
    with pytest.raises(MavliteError, match="MAVLITE_DATA") as caught:
        load_digits("train", "mnist")
    assert "\n" not in str(caught.value)


def test_socket_timeout_is_restored():
    socket.setdefaulttimeout(33.0)
    try:
        load_digits("test")
        assert socket.getdefaulttimeout() == 33.0
    finally:
        socket.setdefaulttimeout(None)


def test_a_download_lands_in_the_data_folder(tmp_path, monkeypatch, capfd):
    import torchvision

    real = torchvision.datasets.MNIST

    class Downloading(real):
        def __init__(self, root, train=True, download=False):
            if download:
                from pathlib import Path
                write_fake_mnist(Path(root))
                print("noise of torchvision")
            super().__init__(root, train=train)

        raw_folder = property(lambda self: f"{self.root}/MNIST/raw")

    monkeypatch.setattr(torchvision.datasets, "MNIST", Downloading)
    assert load_digits("train").source == "mnist"
    assert len(list((tmp_path / "data" / "MNIST" / "raw").iterdir())) == 4
    assert len(load_digits("test", "mnist", data_dir=tmp_path / "own")) == 10   # ./data has it by now
    assert not (tmp_path / "own").exists()
    assert "noise" not in "".join(capfd.readouterr())


def test_mnist_is_found_in_order(bare_machine, tmp_path, monkeypatch, capfd):
    for name, count in (("env", 30), ("own", 40), ("data", 50)):
        write_fake_mnist(tmp_path / name, train=count)
    monkeypatch.setenv("MAVLITE_DATA", str(tmp_path / "env"))
    assert len(load_digits("train", data_dir=tmp_path / "own")) == 30
    monkeypatch.setenv("MAVLITE_DATA", str(tmp_path / "empty"))
    assert len(load_digits("train", data_dir=tmp_path / "own")) == 40
    assert len(load_digits("train", data_dir=str(tmp_path / "empty"))) == 50
    assert bare_machine == [] and capfd.readouterr() == ("", "")


def test_mnist_splits_and_content(tmp_path, monkeypatch):
    raw = write_fake_mnist(tmp_path / "files")
    monkeypatch.setenv("MAVLITE_DATA", str(tmp_path / "files"))
    train, test = load_digits("train"), load_digits("test")
    assert train.source == "mnist" and train.images.shape == (20, 28, 28)
    assert test.source == "mnist" and test.images.shape == (10, 28, 28)
    assert train.images.numpy().tobytes() == (raw / "train-images-idx3-ubyte").read_bytes()[16:]
    assert test.images.numpy().tobytes() == (raw / "t10k-images-idx3-ubyte").read_bytes()[16:]
    assert train.labels.dtype == torch.int64 and test.labels.tolist() == list(range(10))


@pytest.mark.parametrize("name, damage", [
    ("train-images-idx3-ubyte", lambda data: data[:-100]),             # cut short
    ("train-images-idx3-ubyte", lambda data: b""),
    ("train-images-idx3-ubyte", lambda data: b"<html>not found</html>" * 50),
    ("train-images-idx3-ubyte", lambda data: struct.pack(">4i", 0x803, 20, 14, 56) + data[16:]),
    ("train-labels-idx1-ubyte", lambda data: data[:-1]),
    ("train-labels-idx1-ubyte", lambda data: data[:-1] + b"\x0b"),     # a label of 11
    ("train-labels-idx1-ubyte", lambda data: struct.pack(">2i", 0x801, 19) + data[8:-1]),  # one label missing
])
def test_damaged_files_are_an_error_even_with_auto(tmp_path, name, damage):
    raw = write_fake_mnist(tmp_path / "data")
    (raw / name).write_bytes(damage((raw / name).read_bytes()))
    with pytest.raises(MavliteError, match="damaged") as caught:
        load_digits("train", "auto")
    assert "\n" not in str(caught.value)
    assert len(load_digits("test")) == 10     # the other split's files are whole


def test_unreadable_files_are_not_called_damaged(tmp_path, monkeypatch):
    """Whoever may not read his files should not be told to delete them."""
    import torchvision

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    write_fake_mnist(tmp_path / "data")
    monkeypatch.setattr(torchvision.datasets.mnist, "read_image_file", forbidden)
    with pytest.raises(MavliteError, match="Permission denied"):
        load_digits("train")


@pytest.mark.parametrize("arguments", [("validation",), ("train", "svhn")])
def test_unknown_arguments(arguments):
    with pytest.raises(MavliteError, match=arguments[-1]):
        load_digits(*arguments)


def test_to_moves_both_tensors():
    moved = load_digits("test", "glyphs").to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta" and moved.source == "glyphs"
