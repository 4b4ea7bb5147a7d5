"""The arithmetic of a plan against what torch really allocates, saves and counts, and against sums done by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from worlds import NO_DROPOUT, SHAPE, model_config, optimizer_config

from gpt1cli.config.data import TokenizerConfig
from gpt1cli.models.batch import Batch, windows_batch
from gpt1cli.models.heads import Classifier
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.models.lstm import LSTM
from gpt1cli.models.transformer import Transformer
from gpt1cli.training import dry_run
from gpt1cli.training.device import Machine
from gpt1cli.training.dry_run import Work, flops_per_token, hours, kept, parameters
from gpt1cli.training.objectives.causal import language_modelling
from gpt1cli.training.optimizer import Optimizer

V = 300
FP32, BF16 = torch.float32, torch.bfloat16
PARTS = {"tokens": 31_087_104, "positions": 393_216, "blocks": 85_054_464, "head": 0}  # base: 116,534,784


def machine(precision: torch.dtype = FP32, device: str = "cpu", micro_batch: int | None = None) -> Machine:
    return Machine(torch.device(device), precision, threads=1, micro_batch=micro_batch, compile=False)


def work(**changes: object) -> Work:
    """Base as the paper trains it: 64 x 512 tokens an update."""
    config = model_config("base")
    about = {"model": config, "vocabulary": 40_478, "outputs": 0, "logits": True, "updates": 10, "tokens": 327_680}
    return Work(**(about | {"context": 512, "batch_size": 64, "longest": 512} | changes))  # type: ignore[arg-type]


def windows(rows: int, context: int) -> Batch:
    return windows_batch(np.random.default_rng(0).integers(0, V, (rows, context + 1)))


# --- parameters -------------------------------------------------------------------------------------------------------


def test_the_parameters_of_base_are_the_published_ones():
    assert parameters(model_config("base"), 40_478) == PARTS
    assert sum(PARTS.values()) == 116_534_784


@pytest.mark.parametrize(("outputs", "norm"), [(1, "post"), (3, "post"), (1, "pre")])
def test_parameters_are_those_of_the_real_model(outputs, norm):
    config = model_config(**SHAPE, norm=norm)
    model = Classifier(Transformer(config, V), outputs, 0.1)
    found = parameters(config, V, outputs)
    assert found["tokens"] == model.body.tokens.weight.numel()
    assert found["positions"] == model.body.positions.weight.numel()
    assert found["blocks"] == sum(p.numel() for p in model.body.blocks.parameters())
    assert found["head"] == sum(p.numel() for p in model.head.parameters())
    assert sum(found.values()) == sum(p.numel() for p in model.parameters())


def test_a_vocabulary_that_is_not_at_hand_is_as_large_as_its_merges_say():
    published = TokenizerConfig(name="openai", source="hub", repo="a/b", merges=None)
    assert dry_run.vocabulary_of(published) == 40_478
    trained = dataclasses.replace(published, source="corpus", merges=8000)
    assert dry_run.vocabulary_of(trained) == 8478
    assert dry_run.vocabulary_of(dataclasses.replace(published, level="bytes")) == 50_257  # GPT-2's
    assert dry_run.vocabulary_of(dataclasses.replace(trained, level="bytes")) == 8257


# --- operations -------------------------------------------------------------------------------------------------------


def test_operations_of_a_token_by_hand():
    """Base: 84,934,656 weights in the blocks' matrices, 31,087,104 in the table; 12 layers attend to 512 tokens."""
    attention = 12 * 12 * 768 * 512
    assert flops_per_token(model_config("base"), 40_478, 512) == 6 * (84_934_656 + 31_087_104) + attention
    assert work(logits=False).flops_per_token == 6 * 84_934_656 + attention


@pytest.mark.parametrize("precision", [FP32, BF16])
def test_operations_are_those_that_torch_counts(precision):
    """With attention dropout, whose products are plain ones; rows of one block of queries: every pair is computed."""
    config = model_config(**SHAPE)
    model, batch = Transformer(config, V).to(precision), windows(3, 20)
    with FlopCounterMode(display=False) as counter:
        language_modelling(model, batch).total.backward()
    assert counter.get_total_flops() == 3 * 20 * flops_per_token(config, V, 20)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [FP32, BF16])
def test_weights_gradients_and_moments_have_the_bytes_of_the_real_tensors(precision):
    config, rows, context = model_config(**SHAPE), 4, 20
    model = Transformer(config, V)
    optimizer = Optimizer(model, optimizer_config(), precision)
    about = work(model=config, vocabulary=V, batch_size=rows, longest=context)
    whole, halves = (about.memory(machine(precision), size) for size in (rows, rows // 2))

    language_modelling(model, windows(rows, context)).total.backward()
    assert whole["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    optimizer.accumulate()
    language_modelling(model, windows(rows, context)).total.backward()
    held = [*optimizer.sums.values(), *(p.grad for p in model.parameters() if p.grad is not None)]
    optimizer.accumulate()  # the sum becomes fp32 here, while the newest gradient is still there
    if precision == BF16:
        newest = sum(tensor.nbytes for tensor in held) / 2
        assert halves["gradients"] == newest + sum(tensor.nbytes for tensor in optimizer.sums.values())
    else:
        assert halves["gradients"] == sum(tensor.nbytes for tensor in held)
    optimizer.step(1e-3, rows * context)

    masters = {t.data_ptr(): t.nbytes for t in [*optimizer.masters.values(), *optimizer.parameters.values()]}
    assert whole["weights"] == halves["weights"] == sum(masters.values())
    assert whole["optimizer"] == sum(m.nbytes + s.nbytes for _, m, s in optimizer.moments.values())


def saved_bytes(model: LanguageModel, batch: Batch) -> int:
    """What autograd keeps of a forward pass: storages, each counted once, without the model's own."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = language_modelling(model, batch).total
    for parameter in model.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    loss.backward()
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("precision", [FP32, BF16])
@pytest.mark.parametrize("dropout", [NO_DROPOUT, {}], ids=["no dropout", "dropout"])
@pytest.mark.parametrize(("rows", "context", "norm"), [(3, 40, "post"), (2, 300, "post"), (3, 40, "pre")])
def test_what_is_kept_for_the_backward_pass_is_what_autograd_saves(precision, dropout, rows, context, norm):
    config = model_config(n_layer=3, d_model=64, n_head=4, d_ff=192, n_positions=300, norm=norm, **dropout)
    model = Transformer(config, V).to(precision).train()
    found = saved_bytes(model, windows(rows, context))
    assert kept(config, V, rows, context, machine(precision)) == pytest.approx(found, rel=0.005)


@pytest.mark.parametrize("dropout", [NO_DROPOUT, {}], ids=["no dropout", "dropout"])
@pytest.mark.parametrize(("rows", "context"), [(3, 40), (2, 300)])
def test_what_an_lstm_keeps_is_what_autograd_saves(dropout, rows, context):
    """In bf16; torch's own layer, which computes in fp32, does not show what it keeps."""
    config = model_config(architecture="lstm", d_model=64, lstm_units=96, n_positions=300, **dropout)
    model = LSTM(config, V).to(BF16).train()
    found = saved_bytes(model, windows(rows, context))
    assert kept(config, V, rows, context, machine(BF16)) == pytest.approx(found, rel=0.005)


def test_a_micro_batch_is_what_the_budget_holds_and_the_devices_leave():
    assert work().micro_batch(machine()) == 8  # 4,096 tokens on a CPU
    assert work().micro_batch(machine(device="cuda")) == 64  # 65,536 on a GPU, and an update has no more
    assert work().micro_batch(machine(device="cuda"), devices=8) == 8
    assert work(batch_size=10).micro_batch(machine(device="cuda"), devices=4) == 3
    assert work().micro_batch(machine(micro_batch=5)) == 5
    assert work(longest=512, height=2).micro_batch(machine()) == 4


def test_memory_grows_with_the_micro_batch_and_without_logits_there_are_none():
    at = [work().memory(machine(BF16, "cuda"), size)["activations"] for size in (1, 2, 4, 8, 16)]
    assert at == sorted(at)
    saved = at[-1] - work(logits=False).memory(machine(BF16, "cuda"), 16)["activations"]
    assert saved > 1024 * 40_478 * 2  # the logits of a chunk in bf16, and more


# --- hours ------------------------------------------------------------------------------------------------------------


def test_hours_by_hand():
    assert hours(flops=3.6e18, tflops=100, devices=1) == 10  # 3.6e18 / 1e14 are 36,000 seconds
    assert hours(flops=3.6e18, tflops=100, devices=8) == 1.25
