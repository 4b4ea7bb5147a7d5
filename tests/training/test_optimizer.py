"""Schedules compared with tables by hand, the optimizer with torch's AdamW and clipping."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from worlds import optimizer_config

from gpt1cli.training.optimizer import Optimizer
from gpt1cli.training.schedules import SCHEDULES, constant, cosine, linear

pytestmark = pytest.mark.usefixtures("exact_arithmetic")


# --- schedules --------------------------------------------------------------------------------------------------------

EIGHTHS = [1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060, 0]  # half a cosine in eight steps


@pytest.mark.parametrize(
    "schedule, total, warmup, factors",
    [
        (cosine, 10, 2, [0.5, 1, *EIGHTHS]),
        (cosine, 8, 0, EIGHTHS),
        (cosine, 3, 3, [1 / 3, 2 / 3, 1, 1]),  # only warm-up
        (cosine, 1, 0, [1, 0]),
        (cosine, 2, 0.5, [1, 0.75, 0]),  # warm-up of half a step
        (linear, 5, 0.002 * 5, [1, 0.8, 0.6, 0.4, 0.2, 0]),
        (linear, 10, 4, [0.25, 0.45, 0.6, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0]),  # decay also in the warm-up
        (linear, 10, 2.5, [0.4, 0.72, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0]),  # a fraction of a step
        (constant, 6, 4, [0.25, 0.5, 0.75, 1, 1, 1, 1]),
        (constant, 2, 0, [1, 1, 1]),
    ],
)
def test_schedules_by_hand(schedule, total, warmup, factors):
    assert [schedule(step, total, warmup) for step in range(total + 1)] == pytest.approx(factors, abs=1e-6)


def test_schedules_of_the_paper():
    peak = [cosine(step, 100_000, 2000) for step in (0, 999, 1999, 2000, 51_000, 100_000)]
    assert peak == pytest.approx([1 / 2000, 0.5, 1, 1, 0.5, 0])
    story_cloze = [linear(step, 138, 0.002 * 138) for step in (0, 69, 137)]  # warm-up of 0.276 steps: none
    assert story_cloze == pytest.approx([1, 0.5, 1 / 138])
    mnli = [linear(step, 36_000, 0.002 * 36_000) for step in (0, 35, 71, 72, 18_000)]  # warm-up of 72 steps
    assert mnli == pytest.approx([1 / 72, 0.5 * (1 - 35 / 36_000), 1 - 71 / 36_000, 1 - 72 / 36_000, 0.5])


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_factors_are_between_zero_and_one(name):
    for total in (1, 2, 3, 10, 137):
        for warmup in {0, 1, total // 10, total // 2, total}:
            factors = [SCHEDULES[name](step, total, warmup) for step in range(total + 1)]
            assert all(0 <= factor <= 1 for factor in factors)
            assert factors[0] > 0


# --- the optimizer ----------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Parameters with decay (embedding, matrix) and without (biases, gains)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 6)
        self.norm = nn.LayerNorm(6)
        self.linear = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.linear(self.norm(self.table(ids)))


def summed_loss(net: Net, step: int, part: slice = slice(None)) -> tuple[Tensor, int]:
    """Return a loss summed over twelve examples (or some of them), different for each step, and their count."""
    generator = torch.Generator().manual_seed(100 + step)
    ids, expected = torch.randint(0, 7, (12,), generator=generator)[part], torch.randn(12, 3, generator=generator)[part]
    return (net(ids).float() - expected).pow(2).sum(), len(ids)


def train(net: Net, optimizer: Optimizer, steps: range) -> list[float]:
    """Train with two micro-batches per step; return the gradient norms."""
    norms = []
    for step in steps:
        count = 0
        for part in (slice(0, 5), slice(5, 12)):
            loss, examples = summed_loss(net, step, part)
            loss.backward()
            optimizer.accumulate()
            count += examples
        norms.append(optimizer.step(0.01 / (step + 1), count).item())
    return norms


def test_optimizer_equals_torch_adamw_with_clipping():
    config = optimizer_config(clip_norm=3.5, weight_decay=0.1)
    ours, theirs = Net(), Net()
    adamw = torch.optim.AdamW(
        [
            {"params": [theirs.table.weight, theirs.linear.weight], "weight_decay": 0.1},
            {"params": [theirs.norm.weight, theirs.norm.bias, theirs.linear.bias], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.999),
        eps=1e-8,
        foreach=False,
    )
    norms = []
    for step in range(10):
        adamw.zero_grad()
        (summed_loss(theirs, step)[0] / 12).backward()
        norms.append(nn.utils.clip_grad_norm_(theirs.parameters(), 3.5).item())
        adamw.param_groups[0]["lr"] = adamw.param_groups[1]["lr"] = 0.01 / (step + 1)
        adamw.step()
    assert train(ours, Optimizer(ours, config), range(10)) == pytest.approx(norms, rel=1e-5)
    assert min(norms) < 3.5 < max(norms)  # some steps are clipped, some are not
    for (name, actual), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6, msg=name)


def test_defaults_are_those_of_the_paper():
    config = optimizer_config()
    assert (config.beta1, config.beta2, config.eps) == (0.9, 0.999, 1e-8)
    assert (config.weight_decay, config.clip_norm) == (0.01, 1)


def test_only_tensors_with_several_dimensions_decay():
    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    Optimizer(net, optimizer_config(weight_decay=0.5)).step(0.1, 1)
    for name, p in net.named_parameters():
        factor = 1 - 0.1 * 0.5 if name in ("table.weight", "linear.weight") else 1
        torch.testing.assert_close(p.detach(), before[name] * factor, msg=name)


def test_gradients_are_divided_by_the_count_and_cleared():
    net = Net()
    optimizer = Optimizer(net, optimizer_config())
    summed_loss(net, 0)[0].backward()
    whole = torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item()
    assert optimizer.step(0.0, 12).item() == pytest.approx(whole / 12)
    assert all(p.grad is None for p in net.parameters())


# --- master weights ---------------------------------------------------------------------------------------------------


def test_fp32_model_holds_the_masters():
    net = Net()
    optimizer = Optimizer(net, optimizer_config())
    assert all(optimizer.masters[name].data_ptr() == p.data_ptr() for name, p in net.named_parameters())


def test_bf16_model_holds_rounded_masters():
    net = Net()
    optimizer = Optimizer(net, optimizer_config(), torch.bfloat16)
    for _ in range(3):
        for name, p in net.named_parameters():
            assert p.dtype == torch.bfloat16 and optimizer.masters[name].dtype == torch.float32
            assert torch.equal(p, optimizer.masters[name].bfloat16()), name
        train(net, optimizer, range(3))


def test_masters_start_unrounded_and_train_like_fp32():
    net, whole = Net(), Net()
    optimizer = Optimizer(net, optimizer_config(), torch.bfloat16)
    for name, p in whole.named_parameters():  # the masters were not rounded
        assert torch.equal(optimizer.masters[name], p)
    train(net, optimizer, range(10))
    train(whole, Optimizer(whole, optimizer_config()), range(10))
    for name, p in whole.named_parameters():
        torch.testing.assert_close(optimizer.masters[name], p, rtol=0.05, atol=0.01)


def test_bf16_masters_accumulate_small_updates():
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    optimizer = Optimizer(net, optimizer_config(weight_decay=0.0), torch.bfloat16)
    for _ in range(40):  # each moves the weight by 1e-3; bf16 has no number between 1 and 1 - 1/256
        net.weight.grad = torch.ones_like(net.weight)
        optimizer.accumulate()
        optimizer.step(1e-3, 1)
    assert optimizer.masters["weight"].item() == pytest.approx(1 - 0.04, abs=1e-4)
    assert net.weight.item() == pytest.approx(1 - 0.04, abs=1 / 256)


def test_bf16_gradients_are_summed_in_fp32():
    net = nn.Linear(1, 1, bias=False)
    optimizer = Optimizer(net, optimizer_config(clip_norm=100.0), torch.bfloat16)
    for gradient in (1.0, *[1 / 512] * 4):  # in bf16 1 + 1/512 is 1
        net.weight.grad = torch.full_like(net.weight, gradient)
        optimizer.accumulate()
        assert net.weight.grad is None
    assert optimizer.accumulated_grads["weight"].item() == 1 + 4 / 512
    assert optimizer.step(0.0, 1).item() == 1 + 4 / 512
    assert optimizer.accumulated_grads == {} and net.weight.grad is None


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_restored_optimizer_continues_bit_for_bit(precision):
    net = Net()
    optimizer = Optimizer(net, optimizer_config(), precision)
    train(net, optimizer, range(4))
    weights = {name: p.detach().clone() for name, p in optimizer.masters.items()}
    state = {name: t.clone() for name, t in optimizer.state().items()}
    copies = {name: t.clone() for name, t in state.items()}
    train(net, optimizer, range(4, 9))

    other = Net()
    other.linear.reset_parameters()
    resumed = Optimizer(other, optimizer_config(), precision)
    resumed.restore(weights, state)
    train(other, resumed, range(4, 9))
    for name, master in optimizer.masters.items():
        assert torch.equal(resumed.masters[name], master), name
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), net.parameters(), strict=True))
    assert resumed.state().keys() == copies.keys()
    assert all(torch.equal(resumed.state()[name], t) for name, t in optimizer.state().items())
    assert all(torch.equal(state[name], t) for name, t in copies.items())  # restore copies its input


def test_state_has_step_and_both_moments_of_every_parameter():
    net = Net()
    optimizer = Optimizer(net, optimizer_config())
    assert optimizer.state() == {}
    train(net, optimizer, range(2))
    expected = {f"{name}/{key}" for name, _ in net.named_parameters() for key in ("step", "exp_avg", "exp_avg_sq")}
    assert optimizer.state().keys() == expected
    assert optimizer.state()["linear.bias/step"] == 2
