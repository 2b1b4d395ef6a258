"""Views of 360-degree pictures, from files and pictures of all kinds."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms
from skimage import data

from pycodec import api, cli
from pycodec.coding.container import Codec, peek
from pycodec.errors import InputError
from pycodec.images import Picture, load_image
from pycodec.projection import viewport
from pycodec.projection.viewport import Viewport

VIEWS = [
    Viewport(0, 0, 40, 64, 48),
    Viewport(180, -35, 90, 64, 64),
    Viewport(-100, 90, 60, 48, 64),
    Viewport(20, 0, 170, 64, 64),
]


@pytest.fixture(scope="module")
def panorama() -> np.ndarray:
    """A photograph and its mirror image, so that it meets itself; six tiles and a part of one."""
    photo = np.asarray(Image.fromarray(data.astronaut()).resize((410, 410)))
    return np.concatenate([photo, photo[:, ::-1]], axis=1)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_of_a_sphere(panorama, view):
    """What is decoded for the view shows what the whole picture does."""
    coded = api.encode_picture(Picture(panorama), 60, projection="erp", tile=128)[0]
    assert peek(coded).codec == Codec.SPHERE
    expected = view.render(api.decode(coded))
    picture, stats = api.view(coded, view)
    difference = np.abs(picture.pixels.astype(int) - expected)
    assert difference.max() <= 1 and difference.mean() < 1e-3  # floats rounded to the other side
    assert {"synthesis", "entropy", "view"} <= set(stats.seconds)


@pytest.mark.parametrize("options", [{"projection": "none"}, {"lossless": True}], ids=str)
def test_of_other_files(panorama, options):
    pixels = np.ascontiguousarray(panorama[:64, :96])
    coded = api.encode_picture(Picture(pixels), 60, **options)[0]
    picture, _ = api.view(coded, VIEWS[0])
    assert np.array_equal(picture.pixels, VIEWS[0].render(api.decode(coded)))


@pytest.mark.parametrize("erp", ["erp", "none"])
def test_gray_alpha_and_profile(panorama, erp):
    gray = np.ascontiguousarray(panorama[:128, :256, 1])
    alpha = np.broadcast_to(np.arange(256, dtype=np.uint8), gray.shape)
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = Picture(gray, np.ascontiguousarray(alpha), icc=icc, xmp=b"<x/>")
    coded, _ = api.encode_picture(source, 60, projection=erp)
    whole, _ = api.decode_picture(coded)
    picture, _ = api.view(coded, VIEWS[0])
    assert picture.pixels.shape == (48, 64)
    assert np.array_equal(picture.alpha, VIEWS[0].render(whole.alpha))
    assert picture.icc == icc and picture.xmp is None


def test_rows_of_a_file(panorama):
    coded, _ = api.encode_picture(Picture(np.ascontiguousarray(panorama[:64])), 60)
    whole, _ = api.decode_picture(coded)
    some, _ = api.decode_picture(coded, rows=(10, 30))
    assert np.array_equal(some.pixels, whole.pixels[10:30])
    for rows in ((5, 5), (-1, 5), (0, 65)):
        with pytest.raises(InputError, match="has 64 rows"):
            api.decode_picture(coded, rows=rows)


def test_large_views_are_drawn_in_blocks(panorama, monkeypatch):
    whole = [view.render(panorama) for view in VIEWS]
    rows = [view.rows(410) for view in VIEWS]
    monkeypatch.setattr(viewport, "_PIXELS_AT_ONCE", 500)
    for view, expected, needed in zip(VIEWS, whole, rows, strict=True):
        assert len(view._blocks()) > 6
        assert np.array_equal(view.render(panorama), expected)
        assert view.rows(410) == needed


def test_command(panorama, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(panorama[:128, :256]).save("a.png")
    assert cli.main(["encode", "a.png", "a.lci", "--projection", "erp", "--quiet"]) == 0
    camera = ["--yaw", "-100", "--pitch", "30", "--fov", "60", "--size", "48x40", "--quiet"]
    view = Viewport(-100, 30, 60, 48, 40)
    assert cli.main(["view", "a.png", "b.png", *camera]) == 0
    assert np.array_equal(load_image("b.png").pixels, view.render(panorama[:128, :256]))
    assert cli.main(["view", "a.png", "a.lci", "views/", "--format", "webp", *camera]) == 1
    assert "would both become" in capsys.readouterr().err
    assert cli.main(["view", "a.lci", "views/", "--format", "webp", *camera]) == 0
    assert load_image("views/a.webp").pixels.shape == (40, 48, 3)
    assert cli.main(["view", "a.lci", "b.png", *camera]) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["view", "a.lci", "c.png", "--pitch", "91"]) == 1
    assert "pitch must be -90 to 90" in capsys.readouterr().err
    assert cli.main(["view", "a.lci", "c.png", "--max-pixels", "100"]) == 1
    assert "more than 100" in capsys.readouterr().err
    (tmp_path / "damaged.lci").write_bytes((tmp_path / "a.lci").read_bytes()[:-9])
    assert cli.main(["view", "damaged.lci", "c.png"]) == 1
    assert "damaged.lci" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.lci",
        "a.png",
        "b.png",
        "damaged.lci",
        "views",
    ]


@pytest.mark.parametrize("option", [["--size", "640"], ["--size", "0x4"], ["--yaw", "inf"]])
def test_wrong_usage(option, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["view", "a.lci", "b.png", *option])
    assert exit.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_pipes(panorama, monkeypatch):
    class Pipe:
        def __init__(self, data: bytes = b"") -> None:
            self.buffer = io.BytesIO(data)

        def isatty(self) -> bool:
            return False

        def flush(self) -> None:
            pass

    source = io.BytesIO()
    Image.fromarray(panorama[:64, :128]).save(source, "PNG")
    out = Pipe()
    monkeypatch.setattr("sys.stdin", Pipe(source.getvalue()))
    monkeypatch.setattr("sys.stdout", out)
    assert cli.main(["view", "-", "-", "--size", "32x32", "--quiet"]) == 0
    assert load_image(out.buffer).pixels.shape == (32, 32, 3)
