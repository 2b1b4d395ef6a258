import copy

import pytest
import torch

from pycodec.errors import InputError
from pycodec.models.lossless_network import (
    LosslessConfig,
    LosslessNetwork,
    bit_planes,
    bits_per_pixel,
)
from pycodec.training.soap import Soap


class Mixtures:
    """A linear problem: the target depends on all inputs alike, but we see mixtures of them."""

    def __init__(self, kernel: int) -> None:
        torch.manual_seed(1)
        rotation = torch.linalg.qr(torch.randn(6, 6))[0]
        self.mixture = rotation @ torch.diag(torch.logspace(0, -1.5, 6))
        self.conv = torch.nn.Conv2d(6, 16, kernel, padding=kernel // 2)
        self.truth = torch.nn.Conv2d(6, 16, kernel, padding=kernel // 2)

    def loss(self, conv: torch.nn.Conv2d) -> torch.Tensor:
        white = torch.randn(4, 6, 12, 12)
        mixed = torch.einsum("ij,njhw->nihw", self.mixture, white)
        return (conv(mixed) - self.truth(white).detach()).square().mean()

    def train(self, conv, optimizer, steps: int) -> float:
        """The loss after ``steps``, each on new inputs, while the learning rate falls."""
        torch.manual_seed(2)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 0.2 * (1 - step / steps)
            loss = self.loss(conv)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return self.loss(conv).item()


def bits_of_smooth_pictures() -> torch.Tensor:
    noise = torch.rand(4, 1, 40, 40)
    smooth = torch.nn.functional.avg_pool2d(noise, 9, stride=1)[:, 0]
    return bit_planes((smooth * 255).to(torch.uint8)).float()


def test_beats_adam_on_bit_planes():
    torch.manual_seed(1)
    start = LosslessNetwork(LosslessConfig(width=4, first=3, hidden=(), blocks=(), head=1))
    losses = {}
    for name, optimizer_class, rate in (
        ("soap", Soap, 0.04),
        ("adam", torch.optim.Adam, 0.003),
        ("faster adam", torch.optim.Adam, 0.01),
        ("fastest adam", torch.optim.Adam, 0.03),
    ):
        network = copy.deepcopy(start)
        optimizer = optimizer_class(network.parameters(), rate, betas=(0.9, 0.98))
        torch.manual_seed(2)
        for _ in range(60):
            bits = bits_of_smooth_pictures()
            loss = bits_per_pixel(network(bits), bits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses.pop("soap") < 0.95 * min(losses.values())


def test_is_adam_where_the_inputs_axes_are_the_eigenvectors():
    torch.manual_seed(2)
    weight = torch.nn.Parameter(torch.randn(8, 3, 1, 1))
    other = torch.nn.Parameter(weight.detach().clone())
    soap = Soap([weight], 0.1, every=10**9)
    adam = torch.optim.Adam([other], 0.1, betas=(0.9, 0.98), eps=1e-12)
    # The first gradient sets the bases: one axis a group, so that each basis is a permutation up
    # to signs of the unit vectors.
    first = torch.zeros(8, 3, 1, 1)
    first[:, 1] = 1
    for step in range(6):
        gradient = first if step == 0 else torch.randn(8, 3, 1, 1)
        weight.grad = gradient.clone()
        soap.step()
        if step:
            other.grad = gradient.clone()
            adam.step()
    bases = soap.state[weight]["bases"][0]
    assert torch.equal(bases.abs().sort(1).values[:, -1], torch.ones(8, 3))
    torch.testing.assert_close(weight, other)


@pytest.mark.parametrize("kernel", [3, 11], ids=["one basis", "bases of channels and of taps"])
def test_goes_on_from_its_state(kernel):
    problem = Mixtures(kernel)
    conv = problem.conv
    optimizer = Soap(conv.parameters(), 0.2, every=5)
    problem.train(conv, optimizer, 23)
    other = copy.deepcopy(conv)
    resumed = Soap(other.parameters(), 0.2, every=5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert problem.train(conv, optimizer, 23) == problem.train(other, resumed, 23)


def test_bases_stay_orthonormal_and_squares_follow_them():
    problem = Mixtures(3)
    optimizer = Soap(problem.conv.parameters(), 0.2, every=3)
    problem.train(problem.conv, optimizer, 60)
    state = optimizer.state[problem.conv.weight]
    basis = state["bases"][0]
    torch.testing.assert_close(basis.mT @ basis, torch.eye(54).expand(8, 54, 54), atol=1e-4, rtol=0)
    power = ((state["covariances"][0] @ basis) * basis).sum(1)
    square = state["square"].sum(1)
    for number in power, square:  # the first third of the axes has most of both
        assert (number[:, :18].sum(1) > 0.7 * number.sum(1)).all()


def test_parameters_of_a_shape_do_not_meet():
    """All of a shape are updated at once, and each as if it were alone."""
    torch.manual_seed(3)
    shapes = [(16, 6, 3, 3), (16,), (16, 6, 3, 3), (8, 80, 3, 3), (16,), (16, 6, 3, 3)]
    start = [torch.randn(shape) for shape in shapes]
    together, alone = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    optimizers = [Soap(together, 0.1, every=3), *(Soap([p], 0.1, every=3) for p in alone)]
    for _ in range(8):
        for parameter, other in zip(together, alone, strict=True):
            parameter.grad = torch.randn_like(parameter)
            other.grad = parameter.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for parameter, other, before in zip(together, alone, start, strict=True):
        assert (parameter - before).abs().max() > 0.1
        torch.testing.assert_close(parameter, other, atol=1e-4, rtol=1e-4)


def test_the_parameters_stay_the_same():
    parameters = [torch.nn.Parameter(torch.zeros(8)) for _ in range(2)]
    optimizer = Soap(parameters, 0.1)
    parameters[0].grad = torch.ones(8)
    optimizer.step()
    parameters[1].grad = torch.ones(8)
    with pytest.raises(InputError, match="of other parameters"):
        optimizer.step()


def test_takes_no_closure():
    with pytest.raises(ValueError, match="no closure"):
        Soap([torch.nn.Parameter(torch.zeros(8))], 0.1).step(lambda: 0)
