"""Views: against torchvision's blur, and the properties of section 3.1."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from pydantic import ValidationError
from torchvision.transforms.v2 import functional as tv

from lookhere.blur import effective_sigma, gaussian_blur, varying_blur
from lookhere.views import ViewOptions, saliency_views


def photographs(b: int = 3, h: int = 40, w: int = 33) -> torch.Tensor:
    return torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def soft_maps(images: torch.Tensor) -> torch.Tensor:
    b, _, h, w = images.shape
    return torch.rand(b, 1, h, w, generator=torch.Generator().manual_seed(1), dtype=images.dtype)


@pytest.mark.parametrize(("kernel", "sigma"), [(3, 0.5), (7, 10.0), (7, 1.0), (15, 4.0), (61, 10.0)])
def test_blur_is_torchvisions(kernel: int, sigma: float) -> None:
    images = photographs(h=70, w=80)
    torch.testing.assert_close(
        gaussian_blur(images, kernel, sigma), tv.gaussian_blur(images, [kernel, kernel], [sigma])
    )


def test_varying_blur_with_one_sigma_is_the_blur() -> None:
    images = photographs()
    sigma = torch.full((3, 1, 40, 33), 2.5, dtype=images.dtype)
    torch.testing.assert_close(varying_blur(images, sigma, 7), gaussian_blur(images, 7, 2.5))


def test_varying_blur_at_one_pixel_is_its_own_gaussian_mean() -> None:
    images = photographs()
    sigma = 0.1 + 5 * soft_maps(images)
    y, x = 20, 11
    offset = torch.arange(-3, 4, dtype=images.dtype)
    weights = torch.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * sigma[1, 0, y, x] ** 2))
    expected = (images[1, :, y - 3 : y + 4, x - 3 : x + 4] * weights).sum((1, 2)) / weights.sum()
    torch.testing.assert_close(varying_blur(images, sigma, 7)[1, :, y, x], expected)


@pytest.mark.parametrize("options", [ViewOptions(), ViewOptions(blend="sigma"), ViewOptions(degrade="dim", dim=0.5)])
def test_maps_of_ones_and_zeros_give_the_extreme_views(options: ViewOptions) -> None:
    images = photographs()
    everything, nothing = torch.ones(3, 1, 40, 33), torch.zeros(3, 1, 40, 33)
    all_salient = saliency_views(images, everything, options, black=-1.0)
    none_salient = saliency_views(images, nothing, options, black=-1.0)
    torch.testing.assert_close(all_salient.kept, images)
    torch.testing.assert_close(all_salient.removed, all_salient.degraded)
    torch.testing.assert_close(none_salient.kept, none_salient.degraded)
    torch.testing.assert_close(none_salient.removed, images)
    assert (all_salient.degraded - images).abs().max() > 0.1


@pytest.mark.parametrize("options", [ViewOptions(), ViewOptions(degrade="swap"), ViewOptions(degrade="dim")])
def test_blended_views_are_complementary(options: ViewOptions) -> None:
    images = photographs()
    views = saliency_views(images, soft_maps(images), options)
    torch.testing.assert_close(views.kept + views.removed, views.clean + views.degraded)


def test_inverting_the_map_exchanges_kept_and_removed() -> None:
    images = photographs()
    saliency = soft_maps(images)
    for options in (ViewOptions(), ViewOptions(blend="sigma")):
        views, flipped = saliency_views(images, saliency, options), saliency_views(images, 1 - saliency, options)
        torch.testing.assert_close(views.kept, flipped.removed)
        torch.testing.assert_close(views.removed, flipped.kept)


def test_blurred_views_commute_with_normalisation() -> None:
    images = photographs()
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)
    saliency = soft_maps(images)
    for before, after in zip(
        saliency_views(images, saliency), saliency_views((images - mean) / std, saliency), strict=True
    ):
        torch.testing.assert_close((before - mean) / std, after)


def test_dimming_goes_towards_black_and_noise_has_its_deviation() -> None:
    images = photographs()
    saliency = soft_maps(images)
    black = torch.tensor([-2.1, -2.0, -1.8], dtype=images.dtype).view(1, 3, 1, 1)
    dimmed = saliency_views(images, saliency, ViewOptions(degrade="dim", dim=1.0), black=black).degraded
    torch.testing.assert_close(dimmed, black.expand_as(images))
    noise = saliency_views(images, saliency, ViewOptions(degrade="noise", noise=2.0)).degraded - images
    assert float(noise.std()) == pytest.approx(2.0, rel=0.05)


def test_swap_shows_the_salient_region_on_another_image() -> None:
    images = photographs()
    saliency = (soft_maps(images) > 0.5).double()
    plain = ViewOptions(degrade="swap", respect_partner=False, feather=0)
    views = saliency_views(images, saliency, plain)
    mine = saliency.bool().expand_as(images)
    assert torch.equal(views.degraded, images[[2, 0, 1]])
    assert torch.equal(views.kept[mine], images[mine])
    assert torch.equal(views.kept[~mine], images[[2, 0, 1]][~mine])
    others = images.flip(0)
    assert torch.equal(saliency_views(images, saliency, plain, others=others).degraded, others)


@pytest.mark.parametrize(
    ("kernel", "sigma", "expected"), [(7, 1, 0.998), (7, 3, 1.835), (7, 5, 1.940), (7, 10, 1.985), (61, 10, 9.87)]
)
def test_effective_sigma(kernel: int, sigma: float, expected: float) -> None:
    # The K = 7 values were computed independently of this code; at K = 6 sigma + 1 a Gaussian keeps 98.7 % of sigma.
    assert effective_sigma(kernel, sigma) == pytest.approx(expected, abs=6e-4 if kernel == 7 else 0.02)


def test_a_truncated_gaussian_is_told_and_a_whole_one_is_not() -> None:
    with pytest.warns(UserWarning, match=r"effective standard deviation of 1\.99 px.*kernel >= 41"):
        ViewOptions().warn_if_truncated()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ViewOptions(kernel=41).warn_if_truncated()
        ViewOptions(degrade="dim").warn_if_truncated()


def test_views_are_differentiable() -> None:
    images = photographs(1, 6, 5).requires_grad_()
    saliency = soft_maps(images).clamp(0.2, 0.8).requires_grad_()
    for options in (ViewOptions(kernel=3, sigma=1), ViewOptions(kernel=3, sigma=1, blend="sigma")):
        assert torch.autograd.gradcheck(lambda x, s, o=options: torch.cat(saliency_views(x, s, o)), (images, saliency))


def test_dtype_is_kept() -> None:
    images = photographs().to(torch.bfloat16)
    assert {view.dtype for view in saliency_views(images, soft_maps(images).float())} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("blend", ["alpha", "sigma"])
def test_binary_maps_in_half_precision_give_finite_views(dtype: torch.dtype, blend: str) -> None:
    images, saliency = photographs(), (soft_maps(photographs()) > 0.5).double()
    exact = saliency_views(images, saliency, ViewOptions(blend=blend))
    for half, full in zip(saliency_views(images.to(dtype), saliency, ViewOptions(blend=blend)), exact, strict=True):
        torch.testing.assert_close(half.double(), full, atol=0.02, rtol=0)


def test_what_does_not_fit_is_refused() -> None:
    images = photographs()
    with pytest.raises(ValueError, match="needs another image"):
        saliency_views(images[:1], soft_maps(images)[:1], ViewOptions(degrade="swap"))
    with pytest.raises(ValueError, match="saliency must be b 1 h w"):
        saliency_views(images, images)
    with pytest.raises(ValueError, match="does not fit an image of 40 x 33"):
        saliency_views(images, soft_maps(images), ViewOptions(kernel=67, sigma=10))
    for wrong in ({"kernel": 6}, {"sigma": 0}, {"sigma": math.nan}, {"dim": 1.5}, {"blend": "sigma", "degrade": "dim"}):
        with pytest.raises(ValidationError):
            ViewOptions(**wrong)
