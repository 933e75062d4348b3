"""Our linear layer is torch's, whatever the number of rows, the type and the mode."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from hanmo.families.huggingface.modeling import adopt
from hanmo.nn.cpu.layers import FEW, NARROW, Linear, reads_rows_slowly


@pytest.fixture(autouse=True)
def slow_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where the other way round is quicker, whatever this one is."""
    monkeypatch.setattr("hanmo.nn.cpu.layers.reads_rows_slowly", lambda: True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (2, 3), (FEW,), (FEW + 1, 1), (0, 2), ()], ids=str)
@pytest.mark.parametrize("width", [24, 25])
def test_same_as_torch(width: int, shape: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = Linear(width, 7, bias=bias, dtype=dtype).eval(), nn.Linear(width, 7, bias=bias, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    inputs = torch.randn(*shape, width, dtype=dtype)
    with torch.no_grad():
        found, expected = ours(inputs), theirs(inputs)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert found.is_contiguous()


def test_gradients_flow() -> None:
    layer = Linear(24, 7)
    layer(torch.randn(4, 24)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


def test_few_rows_are_computed_with_the_weight_on_the_left(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(Linear(24, 24), nn.ReLU(), Linear(24, 7)).eval()
    products: list[torch.Size] = []
    original = torch.mm
    monkeypatch.setattr(torch, "mm", lambda left, right: products.append(right.shape) or original(left, right))
    with torch.no_grad():
        network(torch.randn(4, 24))
        network(torch.randn(1, 24))
        network(torch.randn(FEW + 1, 24))
        network.train()(torch.randn(4, 24))
        Linear(NARROW + 2, 7).eval()(torch.randn(1, NARROW + 2))
    assert products == [(24, 4), (24, 4), (12, 2), (12, 2)]


def test_where_torch_is_quick_nothing_is_turned_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanmo.nn.cpu.layers.reads_rows_slowly", lambda: False)
    monkeypatch.setattr(torch, "mm", lambda *_: pytest.fail("torch's own layer was to be used"))
    with torch.no_grad():
        for rows in (1, 4, FEW):
            Linear(24, 7).eval()(torch.randn(rows, 24))


@pytest.mark.parametrize(("vendor", "slow"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_processor_decides(vendor: str, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda _: f"vendor_id : {vendor}")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert reads_rows_slowly.__wrapped__() is slow


def test_models_of_transformers_have_it() -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48,
    )  # fmt: skip
    plain = Qwen3ForCausalLM(config).eval()
    ours = adopt(deepcopy(plain))
    assert {type(layer) for layer in ours.modules() if isinstance(layer, nn.Linear)} == {Linear}
    assert ours.state_dict().keys() == plain.state_dict().keys() and type(ours).__name__ == "Qwen3ForCausalLM"
    for ids in (torch.tensor([[5]]), torch.arange(12).view(2, 6)):
        with torch.no_grad():
            torch.testing.assert_close(ours(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
