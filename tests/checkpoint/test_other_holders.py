"""Weights that lie elsewhere than in linear layers: 3-D experts, XLNet's raw parameters, LSTM gates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import nn

from compresskit.checkpoint.load import attach
from compresskit.checkpoint.operations import Operation

IDS = torch.arange(18).reshape(2, 9) + 5


def round_trip(model: Any, folder: Path) -> list[Operation]:
    """Save, load, save, load; the layout. All three compute the same bits."""
    model.eval()
    layout = attach(model)
    assert layout
    model.save_pretrained(folder / "one")
    loaded, report = type(model).from_pretrained(folder / "one", output_loading_info=True)
    assert not any(report.values())
    loaded.save_pretrained(folder / "two")
    again = type(model).from_pretrained(folder / "two")
    with torch.no_grad():
        expected = model(input_ids=IDS)[0]
        assert torch.equal(loaded(input_ids=IDS)[0], expected)
        assert torch.equal(again(input_ids=IDS)[0], expected)
    names = ("model.safetensors", "config.json")
    assert all((folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes() for name in names)
    return layout


def test_experts_that_are_stored_under_other_names(tmp_path: Path) -> None:
    config = hf.MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    model = hf.MixtralForCausalLM(config)
    experts = model.model.layers[0].mlp.experts
    gate, up = experts.gate_up_proj.detach().chunk(2, dim=1)
    experts.gate_up_proj = nn.Parameter(torch.cat([gate[:, :40], up[:, :40]], dim=1))
    experts.down_proj = nn.Parameter(experts.down_proj.detach()[:, :, :40].clone())
    experts.intermediate_dim = 40
    layout = round_trip(model, tmp_path)
    assert [operation["path"].rpartition(".")[2] for operation in layout] == ["gate_up_proj", "down_proj", "experts"]
    assert layout[0]["arguments"] == {"shape": [4, 80, 32]}


def test_raw_parameters_of_xlnet(tmp_path: Path) -> None:
    model = hf.XLNetModel(hf.XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=64))
    attention = model.layer[0].rel_attn
    for name in "qkvor":
        setattr(attention, name, nn.Parameter(getattr(attention, name).detach()[:, :3].clone()))
    for name in ("r_r_bias", "r_s_bias", "r_w_bias"):
        setattr(attention, name, nn.Parameter(getattr(attention, name).detach()[:3].clone()))
    attention.seg_embed = nn.Parameter(attention.seg_embed.detach()[:, :3].clone())
    attention.n_head = 3
    layout = round_trip(model, tmp_path)
    assert len(layout) == 10
    assert layout[-1] == {"op": "attrs", "path": "layer.0.rel_attn", "values": {"n_head": 3}}


class GatesConfig(hf.PreTrainedConfig):
    model_type = "gates-for-tests"
    hidden: int = 16


class Gates(hf.PreTrainedModel):
    """An LSTM tagger."""

    config_class = GatesConfig
    base_model_prefix = "gates"

    def __init__(self, config: GatesConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(64, 8)
        self.lstm = nn.LSTM(8, config.hidden, batch_first=True)
        self.head = nn.Linear(config.hidden, 2)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """torch's own start is good enough."""

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.head(self.lstm(self.table(input_ids))[0]),)


def test_gates_of_an_lstm(tmp_path: Path) -> None:
    model = Gates(GatesConfig())
    rows = torch.cat([16 * gate + torch.arange(12) for gate in range(4)])
    for name, parameter in list(model.lstm.named_parameters()):
        kept = parameter.detach()[rows]
        setattr(model.lstm, name, nn.Parameter(kept[:, :12].clone() if name == "weight_hh_l0" else kept))
    model.lstm.hidden_size = 12
    model.head = nn.Linear(12, 2)
    layout = round_trip(model, tmp_path)
    assert [operation["op"] for operation in layout] == ["resize"] * 4 + ["attrs", "resize"]
