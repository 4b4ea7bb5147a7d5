"""Cost estimates compared with what torch allocates, saves and counts, and with results by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from worlds import NO_DROPOUT, SHAPE, model_config, optimizer_config

from gpt1cli.config.data import TokenizerConfig
from gpt1cli.models.batch import Batch, windows_batch
from gpt1cli.models.create import parameter_counts
from gpt1cli.models.heads import Classifier
from gpt1cli.models.language_model import LanguageModel
from gpt1cli.models.lstm import LSTM
from gpt1cli.models.transformer import Transformer
from gpt1cli.training import dry_run
from gpt1cli.training.device import Machine
from gpt1cli.training.dry_run import TrainingCost, flops_per_token, saved_bytes, training_hours
from gpt1cli.training.objectives.causal import causal_objective
from gpt1cli.training.optimizer import Optimizer

V = 300
FP32, BF16 = torch.float32, torch.bfloat16
PARTS = {"tokens": 31_087_104, "positions": 393_216, "blocks": 85_054_464, "head": 0}  # base: 116,534,784


def machine(precision: torch.dtype = FP32, device: str = "cpu", micro_batch: int | None = None) -> Machine:
    return Machine(torch.device(device), precision, threads=1, micro_batch=micro_batch, compile=False)


def cost(**changes: object) -> TrainingCost:
    """Return the cost of base as trained in the paper: 64 x 512 tokens per step."""
    config = model_config("base")
    settings = {"model": config, "vocabulary": 40_478, "outputs": 0, "logits": True, "steps": 10, "tokens": 327_680}
    return TrainingCost(**(settings | {"context": 512, "batch_size": 64, "longest_row": 512} | changes))  # type: ignore[arg-type]


def windows(rows: int, context: int) -> Batch:
    return windows_batch(np.random.default_rng(0).integers(0, V, (rows, context + 1)))


# --- parameters -------------------------------------------------------------------------------------------------------


def test_base_has_the_published_parameter_counts():
    assert parameter_counts(model_config("base"), 40_478) == PARTS
    assert sum(PARTS.values()) == 116_534_784


@pytest.mark.parametrize(("outputs", "norm"), [(1, "post"), (3, "post"), (1, "pre")])
def test_parameter_counts_equal_the_model(outputs, norm):
    config = model_config(**SHAPE, norm=norm)
    model = Classifier(Transformer(config, V), outputs, 0.1)
    counts = parameter_counts(config, V, outputs)
    assert counts["tokens"] == model.body.tokens.weight.numel()
    assert counts["positions"] == model.body.positions.weight.numel()
    assert counts["blocks"] == sum(p.numel() for p in model.body.blocks.parameters())
    assert counts["head"] == sum(p.numel() for p in model.head.parameters())
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())


def test_vocabulary_size_is_estimated_from_the_merges():
    published = TokenizerConfig(name="openai", source="hub", repo="a/b", merges=None)
    assert dry_run.vocabulary_size(published) == 40_478
    trained = dataclasses.replace(published, source="corpus", merges=8000)
    assert dry_run.vocabulary_size(trained) == 8478
    assert dry_run.vocabulary_size(dataclasses.replace(published, level="bytes")) == 50_257  # GPT-2's
    assert dry_run.vocabulary_size(dataclasses.replace(trained, level="bytes")) == 8257


# --- FLOPs ------------------------------------------------------------------------------------------------------------


def test_flops_per_token_by_hand():
    """Base: 84,934,656 weights in the matrices of the blocks, 31,087,104 in the embedding; 12 layers, context 512."""
    attention = 12 * 12 * 768 * 512
    assert flops_per_token(model_config("base"), 40_478, 512) == 6 * (84_934_656 + 31_087_104) + attention
    assert cost(logits=False).flops_per_token == 6 * 84_934_656 + attention


@pytest.mark.parametrize("precision", [FP32, BF16])
def test_flops_equal_torch(precision):
    """With attention dropout, which uses plain products; rows fit into one chunk of queries: all pairs are computed."""
    config = model_config(**SHAPE)
    model, batch = Transformer(config, V).to(precision), windows(3, 20)
    with FlopCounterMode(display=False) as counter:
        causal_objective(model, batch).total.backward()
    assert counter.get_total_flops() == 3 * 20 * flops_per_token(config, V, 20)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [FP32, BF16])
def test_bytes_of_weights_gradients_and_optimizer_state(precision):
    config, rows, context = model_config(**SHAPE), 4, 20
    model = Transformer(config, V)
    optimizer = Optimizer(model, optimizer_config(), precision)
    estimate = cost(model=config, vocabulary=V, batch_size=rows, longest_row=context)
    whole, halves = (estimate.memory_bytes(machine(precision), size) for size in (rows, rows // 2))

    causal_objective(model, windows(rows, context)).total.backward()
    assert whole["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    optimizer.accumulate()
    causal_objective(model, windows(rows, context)).total.backward()
    in_memory = [*optimizer.accumulated_grads.values(), *(p.grad for p in model.parameters() if p.grad is not None)]
    optimizer.accumulate()  # the sum becomes fp32 here, while the newest gradient still exists
    if precision == BF16:
        newest = sum(tensor.nbytes for tensor in in_memory) / 2
        assert halves["gradients"] == newest + sum(tensor.nbytes for tensor in optimizer.accumulated_grads.values())
    else:
        assert halves["gradients"] == sum(tensor.nbytes for tensor in in_memory)
    optimizer.step(1e-3, rows * context)

    masters = {t.data_ptr(): t.nbytes for t in [*optimizer.masters.values(), *optimizer.parameters.values()]}
    assert whole["weights"] == halves["weights"] == sum(masters.values())
    assert whole["optimizer"] == sum(m.nbytes + s.nbytes for _, m, s in optimizer.moments.values())


def count_saved_bytes(model: LanguageModel, batch: Batch) -> int:
    """Count the bytes that autograd saves in a forward pass: each storage once, without the model's weights."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = (
            tensor.untyped_storage()
        )  # kept alive, so that addresses are unique
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = causal_objective(model, batch).total
    for parameter in model.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    loss.backward()
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("precision", [FP32, BF16])
@pytest.mark.parametrize("dropout", [NO_DROPOUT, {}], ids=["no dropout", "dropout"])
@pytest.mark.parametrize(("rows", "context", "norm"), [(3, 40, "post"), (2, 300, "post"), (3, 40, "pre")])
def test_saved_bytes_equal_autograd(precision, dropout, rows, context, norm):
    config = model_config(n_layer=3, d_model=64, n_head=4, d_ff=192, n_positions=300, norm=norm, **dropout)
    model = Transformer(config, V).to(precision).train()
    actual = count_saved_bytes(model, windows(rows, context))
    assert saved_bytes(config, V, rows, context, machine(precision)) == pytest.approx(actual, rel=0.005)


@pytest.mark.parametrize("dropout", [NO_DROPOUT, {}], ids=["no dropout", "dropout"])
@pytest.mark.parametrize(("rows", "context"), [(3, 40), (2, 300)])
def test_lstm_saved_bytes_equal_autograd(dropout, rows, context):
    """Only in bf16: torch's own fp32 layer does not show what it saves."""
    config = model_config(architecture="lstm", d_model=64, lstm_units=96, n_positions=300, **dropout)
    model = LSTM(config, V).to(BF16).train()
    actual = count_saved_bytes(model, windows(rows, context))
    assert saved_bytes(config, V, rows, context, machine(BF16)) == pytest.approx(actual, rel=0.005)


def test_micro_batch_by_token_budget_and_devices():
    assert cost().micro_batch(machine()) == 8  # 4,096 tokens on a CPU
    assert cost().micro_batch(machine(device="cuda")) == 64  # 65,536 tokens on a GPU; a step has only 64 sequences
    assert cost().micro_batch(machine(device="cuda"), devices=8) == 8
    assert cost(batch_size=10).micro_batch(machine(device="cuda"), devices=4) == 3
    assert cost().micro_batch(machine(micro_batch=5)) == 5
    assert cost(longest_row=512, rows_per_sequence=2).micro_batch(machine()) == 4


def test_activation_bytes_grow_with_the_micro_batch_and_with_logits():
    sizes = [cost().memory_bytes(machine(BF16, "cuda"), size)["activations"] for size in (1, 2, 4, 8, 16)]
    assert sizes == sorted(sizes)
    logits_bytes = sizes[-1] - cost(logits=False).memory_bytes(machine(BF16, "cuda"), 16)["activations"]
    assert logits_bytes > 1024 * 40_478 * 2  # the logits of a chunk in bf16, and more


# --- hours ------------------------------------------------------------------------------------------------------------


def test_training_hours_by_hand():
    assert training_hours(flops=3.6e18, tflops=100, devices=1) == 10  # 3.6e18 / 1e14 are 36,000 seconds
    assert training_hours(flops=3.6e18, tflops=100, devices=8) == 1.25
