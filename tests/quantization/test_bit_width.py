"""Selectors: draws in training, the likeliest choice otherwise, and gradients that reach them."""

from __future__ import annotations

import torch

from pycodec.quantization.bit_width import WIDTHS, BitWidthSelector, channel_activity, chosen_bits


def selector_and_inputs(pictures: int = 6) -> tuple[BitWidthSelector, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    selector = BitWidthSelector(5, 3)
    activity = torch.rand(pictures, 5) * torch.tensor([0.01, 1, 1, 10, 0.0])
    return selector, activity, torch.linspace(1, 100, pictures)


def test_eight_bits_at_the_start():
    selector, activity, quality = selector_and_inputs()
    choice = selector.eval()(activity, quality)
    assert choice.shape == (6, 3, len(WIDTHS))
    assert chosen_bits(choice) == [[8, 8, 8]] * 6


def test_it_starts_with_the_cheapest_widths_at_each_quality():
    selector, activity, _ = selector_and_inputs()
    low = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.4, 0.6], [0.2, 0.3, 0.4]])
    high = torch.tensor([[0.3, 0.2, 0.1], [0.5, 0.4, 0.6], [0.2, 0.3, 0.4]])
    selector.start({1.0: low, 100.0: high}, unit=0.1)
    choice = selector.eval()(activity, torch.tensor([1.0, 30.0, 49.0, 52.0, 80.0, 100.0]))
    first = [bits[0] for bits in chosen_bits(choice)]
    assert first[:3] == [4, 4, 4] and first[3:] == [8, 8, 8]
    assert all(bits[1:] == [6, 4] for bits in chosen_bits(choice))
    # Differences in units are those of logits, but no choice is out of reach.
    logits = selector.logits(activity[:1], torch.tensor([1.0]))[0]
    assert torch.allclose(logits[0] - logits[0, 0], torch.tensor([0.0, -1.0, -2.0]), atol=1e-4)
    selector.start({50.0: 1000 * low}, unit=0.1)
    assert selector.logits(activity[:1], torch.tensor([7.0])).min() > -6


def test_cold_draws_are_the_likeliest():
    selector, activity, quality = selector_and_inputs()
    likeliest = selector.eval()(activity, quality)
    assert torch.equal(selector.train()(activity, quality, 0.02).round(), likeliest)


def test_draws_are_one_hot_and_as_likely_as_the_logits_say():
    selector, activity, quality = selector_and_inputs(2000)
    with torch.no_grad():
        selector.choice.bias.copy_(torch.tensor([[0.0, 1, 2], [2, 0, 0], [0, 0, 0]]).flatten())
    choice = selector.train()(activity, quality)
    # The softmax's part of a straight-through value cancels up to a rounding.
    assert torch.allclose(choice.max(2).values, torch.ones(2000, 3), atol=1e-6)
    assert torch.allclose(choice.sum(2), torch.ones(2000, 3), atol=1e-6)
    shares = choice.mean(0)
    expected = selector.logits(activity, quality)[0].softmax(1)
    assert torch.allclose(shares, expected, atol=0.04)


def test_gradients_reach_the_selector_but_not_its_input():
    selector, activity, quality = selector_and_inputs()
    activity.requires_grad_(True)
    choice = selector.train()(activity, quality, temperature=0.7)
    (choice @ torch.tensor([4.0, 6, 8])).mean().backward()
    assert activity.grad is None
    # Fewer bits cost less: a step against the gradient makes them likelier.
    gradient = selector.choice.bias.grad.view(3, 3)
    assert (gradient[:, 2] > 0).all() and (gradient[:, 0] < 0).all()


def test_it_learns_to_choose_by_content():
    """A channel that is active asks for 8 bits, one that is not for 4."""
    torch.manual_seed(3)
    selector = BitWidthSelector(2, 1, hidden=8)
    active = (torch.rand(128) < 0.5).float()
    activity = torch.stack([0.1 + active, torch.rand(128)], dim=1)
    quality = 1 + 99 * torch.rand(128)
    selector.calibrate(activity)
    optimizer = torch.optim.Adam(selector.parameters(), lr=0.1)
    bits = torch.tensor([4.0, 6, 8])
    for _ in range(60):
        chosen = selector(activity, quality)[:, 0] @ bits
        loss = (chosen - torch.where(active > 0, 8.0, 4.0)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chosen = torch.tensor(chosen_bits(selector.eval()(activity, quality)))[:, 0]
    assert (chosen[active > 0] == 8).float().mean() > 0.97
    assert (chosen[active == 0] == 4).float().mean() > 0.97


def test_what_a_layer_may_not_have_is_never_chosen():
    selector, activity, quality = selector_and_inputs(500)
    selector.allowed[1] = torch.tensor([True, False, False])
    selector.allowed[2] = torch.tensor([True, True, False])
    for mode in (True, False):
        bits = torch.tensor(chosen_bits(selector.train(mode)(activity, quality)))
        assert (bits[:, 1] == 4).all() and (bits[:, 2] <= 6).all()


def test_activity_of_tiles_may_be_averaged():
    x = torch.randn(2, 4, 6, 8)
    whole = channel_activity(x)
    halves = (channel_activity(x[..., :4]) + channel_activity(x[..., 4:])) / 2
    assert torch.allclose(whole, halves) and torch.allclose(whole[1, 2], x[1, 2].abs().mean())
