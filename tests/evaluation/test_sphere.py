import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage import data
from skimage.metrics import structural_similarity

from pycodec.errors import InputError
from pycodec.evaluation.metrics import psnr
from pycodec.evaluation.sphere import (
    row_weights,
    s_psnr,
    viewport_psnr,
    viewports,
    ws_psnr,
    ws_ssim,
)
from pycodec.projection.viewport import Viewport


def directions(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    longitude = ((np.arange(width) + 0.5) / width - 0.5) * 360
    latitude = (0.5 - (np.arange(height) + 0.5) / height) * 180
    return np.meshgrid(longitude, latitude)


def linear(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """A smooth function on the sphere, without poles or borders."""
    longitude, latitude = np.radians(longitude), np.radians(latitude)
    x = np.cos(latitude) * np.sin(longitude)
    z = np.cos(latitude) * np.cos(longitude)
    return np.stack([x + 0.5 * z, np.sin(latitude) - x], axis=-1)


def pair(height: int = 64, width: int = 128) -> tuple[np.ndarray, np.ndarray]:
    picture = data.astronaut()[100 : 100 + height, 150 : 150 + width]
    noise = np.random.default_rng(0).normal(0, 6, picture.shape)
    return picture, (picture + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("yaw", [0, 100, 179, -90.5])
@pytest.mark.parametrize("pitch", [0, 37, 90, -90, -60])
def test_views_show_what_lies_in_their_direction(yaw, pitch):
    view = Viewport(yaw, pitch, 80, 33, 21)
    seen = view.render(linear(*directions(180, 360)))
    np.testing.assert_allclose(seen, linear(*view.directions()), atol=2e-3)
    longitude, latitude = (d[10, 16] for d in view.directions())
    assert latitude == pytest.approx(pitch, abs=1e-6)
    if abs(pitch) < 90:
        assert (longitude - yaw + 180) % 360 - 180 == pytest.approx(0, abs=1e-6)


def test_views_are_upright_and_not_mirrored():
    longitude, latitude = Viewport(20, 10, 60, 9, 7).directions()
    assert (np.diff(longitude, axis=1) > 0).all()
    assert (np.diff(latitude[:, 4]) < 0).all()
    assert longitude[3, 8] - longitude[3, 0] < 60  # between the outermost pixels' centres


def test_field_of_view_is_between_the_borders():
    longitude, _ = Viewport(0, 0, 90, 1001, 1).directions()
    np.testing.assert_allclose(longitude[0, -1], 45, atol=0.06)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (3, 2), (7, 13)])
def test_views_of_tiny_pictures_and_odd_ones(height, width):
    picture = np.full((height, width, 3), 77, np.uint8)
    for pitch in (-90, 0, 45):
        assert (Viewport(150, pitch, 120, 8, 8).render(picture) == 77).all()


@pytest.mark.parametrize("pitch", [0, 50, -90, 80])
def test_a_view_needs_its_rows_only(pitch):
    picture, _ = pair()
    view = Viewport(-170, pitch, 40, 24, 16)
    low, high = view.rows(64)
    assert high - low < 45
    part = view.render(picture[low:high], first_row=low, height=64)
    assert np.array_equal(part, view.render(picture))
    if low > 0:
        with pytest.raises(InputError, match="needs rows"):
            view.render(picture[low + 1 : high], first_row=low + 1, height=64)
    if high < 64:
        with pytest.raises(InputError, match="needs rows"):
            view.render(picture[low : high - 1], first_row=low, height=64)


@given(
    st.floats(-180, 180),
    st.floats(-90, 90),
    st.floats(1, 179),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_the_rows_of_a_view_are_those_it_reads(yaw, pitch, fov, width, height):
    view = Viewport(yaw, pitch, fov, width, height)
    low, high = view.rows(100)
    _, latitude = view.directions()
    row = (0.5 - latitude / 180) * 100 - 0.5
    first, last = int(np.floor(row.min())), int(np.floor(row.max())) + 1
    first, last = max(first, 0), min(last, 99)
    # Rounding may move a border by one; around a pole all of the cap is taken.
    assert low <= first and last < high
    assert low >= first - 1 or low == 0
    assert high <= last + 2 or high == 100


@pytest.mark.parametrize(
    "arguments",
    [
        {"pitch": 91},
        {"fov": 0},
        {"fov": 180},
        {"yaw": float("nan")},
        {"width": 0},
        {"height": 1 << 20},
    ],
)
def test_impossible_views(arguments):
    with pytest.raises(InputError):
        Viewport(**arguments)


def test_ws_psnr_is_the_weighted_mean():
    a, b = pair(10, 20)
    total = weight_sum = 0.0
    for i in range(10):
        weight = np.cos((i + 0.5 - 5) * np.pi / 10)
        for j in range(20):
            total += weight * sum((int(a[i, j, c]) - int(b[i, j, c])) ** 2 for c in range(3)) / 3
            weight_sum += weight
    assert ws_psnr(a, b) == pytest.approx(10 * np.log10(255**2 / (total / weight_sum)))
    assert ws_psnr(a, a) == np.inf
    assert ws_psnr(a, np.where(a > 127, a - 3, a + 3)) == pytest.approx(
        psnr(a, np.where(a > 127, a - 3, a + 3))
    )


def test_ws_ssim_is_the_weighted_mean_of_a_map_that_wraps_around():
    a, b = pair()
    wide = [np.concatenate([p] * 3, axis=1) for p in (a, b)]
    _, values = structural_similarity(
        *wide,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        full=True,
        truncate=3.0,
    )
    rows = values[5:-5, 128:256].mean(axis=(1, 2))
    weights = row_weights(64)[5:-5]
    expected = (rows * weights).sum() / weights.sum()
    assert ws_ssim(a, b) == pytest.approx(expected, abs=2e-3)
    assert ws_ssim(a, a) == pytest.approx(1)
    assert ws_ssim(np.roll(a, 30, 1), np.roll(b, 30, 1)) == pytest.approx(ws_ssim(a, b), abs=1e-6)
    with pytest.raises(InputError, match="11 pixels"):
        ws_ssim(a[:10], b[:10])


def test_ws_ssim_window_by_window():
    a, b = pair(14, 20)
    kernel = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    total = weight_sum = 0.0
    for i in range(5, 9):
        weight = np.cos((i + 0.5 - 7) * np.pi / 14)
        for j in range(20):
            columns = np.arange(j - 5, j + 6) % 20
            for c in range(3):
                x, y = (p[i - 5 : i + 6, columns, c].astype(float) for p in (a, b))
                mean_x, mean_y = (kernel * x).sum(), (kernel * y).sum()
                dx, dy = x - mean_x, y - mean_y
                total += (
                    weight
                    * (2 * mean_x * mean_y + 2.55**2)
                    / (mean_x**2 + mean_y**2 + 2.55**2)
                    * (2 * (kernel * dx * dy).sum() + 7.65**2)
                    / ((kernel * dx * dx).sum() + (kernel * dy * dy).sum() + 7.65**2)
                )
                weight_sum += weight
    assert ws_ssim(a, b) == pytest.approx(total / weight_sum, abs=1e-5)


def test_s_psnr_point_by_point():
    a, b = pair(16, 32)
    total = 0
    for i in range(500):
        latitude = np.arcsin(1 - (2 * i + 1) / 500)
        longitude = 2 * np.pi * ((i + 0.5) / ((1 + np.sqrt(5)) / 2) % 1)
        row, column = int((0.5 - latitude / np.pi) * 16), int(longitude / (2 * np.pi) * 32)
        total += sum((int(a[row, column, c]) - int(b[row, column, c])) ** 2 for c in range(3))
    assert s_psnr(a, b, points=500) == pytest.approx(10 * np.log10(255**2 / (total / 1500)))


def test_s_psnr_counts_areas():
    a, b = pair()
    assert s_psnr(a, b) == pytest.approx(ws_psnr(a, b), abs=0.03)
    cap = np.zeros((64, 128), np.uint8)
    cap[:16] = 10  # north of 45 degrees: (1 - sin 45) / 2 of the sphere
    share = (1 - np.sin(np.pi / 4)) / 2
    expected = 10 * np.log10(255**2 / (100 * share))
    assert s_psnr(cap, np.zeros_like(cap)) == pytest.approx(expected, abs=0.01)
    half = np.zeros((64, 128), np.uint8)
    half[:, :64] = 10
    assert s_psnr(half, np.zeros_like(half)) == pytest.approx(10 * np.log10(255**2 / 50), abs=0.01)
    assert s_psnr(a, a) == np.inf


def test_views_cover_the_sphere():
    seen = np.zeros((36, 72), bool)
    for view in viewports(64):
        longitude, latitude = view.directions()
        rows = ((0.5 - latitude / 180) * 36).astype(int).clip(0, 35)
        seen[rows, ((longitude / 360 + 0.5) * 72).astype(int) % 72] = True
    assert seen[1:-1].all()  # the rows at the poles have cells smaller than a view's pixels
    assert seen[0].any() and seen[-1].any()


def test_viewport_psnr():
    a, b = pair()
    assert viewport_psnr(a, a) == np.inf
    value = viewport_psnr(a, b)
    flat = np.full_like(a, 100)
    assert viewport_psnr(flat, flat + 10) == pytest.approx(psnr(flat, flat + 10))
    assert viewport_psnr(np.roll(a, 64, 1), np.roll(b, 64, 1)) == pytest.approx(value, abs=0.02)
    gray = viewport_psnr(a[..., 0], b[..., 0], [Viewport(10, 20, 60, 16, 16)])
    assert 20 < gray < 45
    with pytest.raises(InputError, match="no views"):
        viewport_psnr(a, b, [])
    with pytest.raises(InputError, match="shape"):
        viewport_psnr(a, b[:-1])
