"""What a reader would throw away is refused, or handled; never lost unseen."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from nflows_mixer.data import load_images
from tests.test_data import everything, write_images

SHAPE = (4, 6, 3)


def pixels(shape=SHAPE):
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def write_png16(path, colour_type, bands):
    """A PNG file of 16 bits, which PIL writes of grey alone."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    height, width = SHAPE[:2]
    values = np.random.default_rng(0).integers(65536, size=(height, width, bands)).astype(">u2")
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks))


REFUSED = {
    "16 bits of grey": lambda p: write_png16(p, 0, 1),
    "16 bits of colours": lambda p: write_png16(p, 2, 3),
    "16 bits of grey and alpha": lambda p: write_png16(p, 4, 2),
    "16 bits of colours and alpha": lambda p: write_png16(p, 6, 4),
    "alpha": lambda p: Image.fromarray(pixels((4, 6, 4))).save(p),
    "alpha of grey": lambda p: Image.fromarray(pixels((4, 6, 4))).convert("LA").save(p),
    "alpha of a palette": lambda p: (
        Image.fromarray(pixels()).convert("P").save(p, transparency=bytes(99))
    ),
    "one transparent colour": lambda p: Image.fromarray(pixels()).save(
        p, transparency=tuple(map(int, pixels()[0, 0]))
    ),
    "animation": lambda p: Image.fromarray(pixels()).save(
        p, save_all=True, append_images=[Image.fromarray(255 - pixels())]
    ),
    "four inks": lambda p: Image.fromarray(pixels()).convert("CMYK").save(p, format="JPEG"),
    "another format": lambda p: Image.fromarray(pixels()).convert("P").save(p, format="GIF"),
}
SAID = {
    "16 bits of grey": "8 bits, got 16 bits",
    "16 bits of colours": "8 bits, got 16 bits .mode RGB",
    "16 bits of grey and alpha": "8 bits, got 16 bits",
    "16 bits of colours and alpha": "8 bits, got 16 bits",
    "animation": "one picture, got an animation of 2",
    "four inks": "grey or RGB, got mode CMYK",
    "another format": "got GIF inside",
}


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("name", REFUSED)
def test_file_with_more_than_is_read_is_refused_by_name(tmp_path, name, size):
    write_images(tmp_path, 4)
    REFUSED[name](tmp_path / "odd.png")
    said = SAID.get(name, "no transparency, got an alpha of")
    with pytest.raises(ValueError, match=rf"odd\.png: expected .*{said}"):
        load_images(tmp_path, size=size)


def test_alpha_that_hides_nothing_and_palettes_keep_every_colour(tmp_path):
    few = pixels() // 64 * 64
    opaque = np.concatenate([few, np.full((4, 6, 1), 255, np.uint8)], axis=2)
    Image.fromarray(opaque).save(tmp_path / "0.png")
    Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "1.png")
    Image.fromarray(few).save(tmp_path / "2.png")
    images = everything(load_images(tmp_path))
    assert all(np.array_equal(image.permute(1, 2, 0).numpy(), few) for image in images)


def test_black_and_white_of_one_bit_keep_their_pixels(tmp_path):
    bits = pixels((4, 6)) > 127
    for index in range(3):
        Image.fromarray(bits).save(tmp_path / f"{index}.png")
    assert torch.equal(everything(load_images(tmp_path))[0, 0], torch.from_numpy(255 * bits).byte())


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_images_are_turned_as_the_camera_says(tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    brighter = np.zeros((8, 16, 3), np.uint8)
    brighter[:, 8:] = 255
    for index in range(4):
        Image.fromarray(brighter).save(tmp_path / f"{index}.{ending}", exif=exif)
    data = load_images(tmp_path)
    assert data.image_shape == (3, 16, 8)
    images = everything(data).float()
    assert images[:, :, :7].max() < 40 and images[:, :, 9:].min() > 215


def test_image_files_of_other_formats_are_not_left_out_in_silence(tmp_path):
    write_images(tmp_path, 4)
    Image.fromarray(pixels()).save(tmp_path / "odd.tiff")
    with pytest.warns(UserWarning, match=r"1 image files of other formats .* such as odd\.tiff"):
        assert len(everything(load_images(tmp_path))) == 4


def test_labels_that_no_integer_of_64_bits_holds_are_refused(tmp_path):
    labels = np.full(9, 2**63 + 5, np.uint64)
    np.savez(tmp_path / "x.npz", images=np.zeros((9, 4, 4), np.uint8), labels=labels)
    with pytest.raises(ValueError, match="one integer label for each of 9 images, got 92233"):
        load_images(tmp_path / "x.npz")
