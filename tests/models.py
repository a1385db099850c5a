"""Tiny random models of every supported architecture, their inputs, a real tokenizer, and checkpoints of them.

The weights are large enough for outputs to differ visibly when something is changed, and biases and norms are random
too, so that a forgotten bias or a norm applied twice shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import transformers as hf
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import BertProcessing
from torch import Tensor, nn

Task = Literal["base", "classifier", "lm"]

VOCABULARY = 512
HIDDEN = 64
LAYERS = 3
WIDTH = 128
LABELS = 3
PAD, UNKNOWN, FIRST, LAST, MASK = range(5)
SPECIAL = {"pad_token_id": PAD, "bos_token_id": FIRST, "eos_token_id": LAST}

_BERT_LIKE = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": WIDTH,
    "max_position_embeddings": 130,
    "initializer_range": 0.15,
    **SPECIAL,
}
_GROUPED = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": WIDTH,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    **SPECIAL,
}
_T5 = {
    "d_model": HIDDEN,
    "d_kv": 16,
    "num_heads": 4,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "d_ff": WIDTH,
    "decoder_start_token_id": PAD,
    **SPECIAL,
}

# family -> (config class, its arguments, classes by task)
_TABLE: dict[str, tuple[str, dict[str, Any], dict[Task, str]]] = {
    "bert": (
        "BertConfig",
        _BERT_LIKE,
        {"base": "BertModel", "classifier": "BertForSequenceClassification", "lm": "BertForMaskedLM"},
    ),
    "roberta": (
        "RobertaConfig",
        _BERT_LIKE,
        {"base": "RobertaModel", "classifier": "RobertaForSequenceClassification", "lm": "RobertaForMaskedLM"},
    ),
    "distilbert": (
        "DistilBertConfig",
        {
            "dim": HIDDEN,
            "n_layers": LAYERS,
            "n_heads": 4,
            "hidden_dim": WIDTH,
            "max_position_embeddings": 128,
            "initializer_range": 0.15,
            **SPECIAL,
        },
        {"base": "DistilBertModel", "classifier": "DistilBertForSequenceClassification", "lm": "DistilBertForMaskedLM"},
    ),
    "albert": (
        "AlbertConfig",
        {**_BERT_LIKE, "embedding_size": 32},
        {"base": "AlbertModel", "classifier": "AlbertForSequenceClassification", "lm": "AlbertForMaskedLM"},
    ),
    "gpt2": (
        "GPT2Config",
        {
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": 4,
            "n_inner": WIDTH,
            "n_positions": 128,
            "initializer_range": 0.15,
            **SPECIAL,
        },
        {"base": "GPT2Model", "classifier": "GPT2ForSequenceClassification", "lm": "GPT2LMHeadModel"},
    ),
    "llama": (
        "LlamaConfig",
        _GROUPED,
        {"base": "LlamaModel", "classifier": "LlamaForSequenceClassification", "lm": "LlamaForCausalLM"},
    ),
    "qwen2": (
        "Qwen2Config",
        _GROUPED,
        {"base": "Qwen2Model", "classifier": "Qwen2ForSequenceClassification", "lm": "Qwen2ForCausalLM"},
    ),
    "qwen3": (
        "Qwen3Config",
        {**_GROUPED, "head_dim": 16},
        {"base": "Qwen3Model", "classifier": "Qwen3ForSequenceClassification", "lm": "Qwen3ForCausalLM"},
    ),
    "t5": (
        "T5Config",
        _T5,
        {"base": "T5Model", "classifier": "T5ForSequenceClassification", "lm": "T5ForConditionalGeneration"},
    ),
    "t5encoder": ("T5Config", _T5, {"base": "T5EncoderModel"}),
    "xlnet": (
        "XLNetConfig",
        {
            "d_model": HIDDEN,
            "n_layer": LAYERS,
            "n_head": 4,
            "d_inner": WIDTH,
            "initializer_range": 0.15,
            **SPECIAL,
        },
        {"base": "XLNetModel", "classifier": "XLNetForSequenceClassification", "lm": "XLNetLMHeadModel"},
    ),
    "switch": (
        "SwitchTransformersConfig",
        {
            **_T5,
            "d_ff": 32,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "num_experts": 3,
            "expert_capacity": 64,
        },
        {"base": "SwitchTransformersModel", "lm": "SwitchTransformersForConditionalGeneration"},
    ),
    "mixtral": (
        "MixtralConfig",
        {**_GROUPED, "intermediate_size": 32, "num_local_experts": 3, "num_experts_per_tok": 2},
        {"base": "MixtralModel", "classifier": "MixtralForSequenceClassification", "lm": "MixtralForCausalLM"},
    ),
}

# Architectures of which the suites take a part: experts, raw parameters.
MORE = ("mixtral", "xlnet", "switch")
FAMILIES = tuple(name for name in _TABLE if name not in MORE)
ENCODERS = ("bert", "roberta", "distilbert", "albert", "t5encoder")
DECODERS = ("gpt2", "llama", "qwen2", "qwen3")


def config(name: str, **changes: Any) -> hf.PretrainedConfig:
    """The configuration of the family ``name``, with ``changes`` in the config's own words."""
    kind, arguments, _ = _TABLE[name]
    return getattr(hf, kind)(vocab_size=VOCABULARY, num_labels=LABELS, **{**arguments, **changes})


def tasks(name: str) -> tuple[Task, ...]:
    """The tasks that the family has a class for."""
    return tuple(_TABLE[name][2])


def model_class(name: str, task: Task = "base") -> type[hf.PreTrainedModel]:
    """The stock class of the family for ``task``."""
    return getattr(hf, _TABLE[name][2][task])


def tiny(name: str, seed: int = 0, task: Task = "base", **changes: Any) -> hf.PreTrainedModel:
    """A random float32 model in evaluation mode: three layers, hidden size 64, 512 tokens; equal for equal seeds."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = model_class(name, task)(config(name, **changes))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    finally:
        torch.random.set_rng_state(state)
    return model.eval()


def inputs(name: str, batch: int = 3, length: int = 12, padded: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs: ``input_ids`` and ``attention_mask`` (B, T); for ``t5`` also ``decoder_input_ids`` (B, 5).

    Each row ends with the end token, as from the tokenizer. With ``padded``, row b is shorter than row b-1 by one to
    three tokens, filled up on the right.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(MASK + 1, VOCABULARY, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    left = length
    for row in range(batch):
        if padded and row:
            left = max(2, left - int(torch.randint(1, 4, (), generator=generator)))
        ids[row, left - 1], ids[row, left:], mask[row, left:] = LAST, PAD, 0
    result = {"input_ids": ids, "attention_mask": mask}
    if name in ("t5", "switch"):
        result["decoder_input_ids"] = torch.randint(MASK + 1, VOCABULARY, (batch, 5), generator=generator)
    return result


def output(model: hf.PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Logits where the model has a head, else the last hidden state, without gradients."""
    if isinstance(model, (hf.T5EncoderModel, hf.T5ForSequenceClassification)):
        batch = {key: value for key, value in batch.items() if key != "decoder_input_ids"}
    with torch.no_grad():
        result = model(**batch)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


def max_difference(
    left: hf.PreTrainedModel, right: hf.PreTrainedModel, batch: dict[str, Tensor], *, attended: bool = True
) -> float:
    """Largest absolute difference of two models' outputs, at attended positions only unless told otherwise."""
    difference = (output(left, batch) - output(right, batch)).abs()
    mask = batch["attention_mask"].bool()
    if attended and difference.dim() == 3 and difference.shape[:2] == mask.shape:
        difference = difference[mask]
    return float(difference.max())


def vocabulary() -> dict[str, int]:
    """Five special tokens, letters and digits in both WordPiece forms, some words, then made-up syllables: 512."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = "the a of and to in is model small big cat dog sat on mat runs fast slow good bad film book we like it not"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,!?'-", *letters, *("##" + letter for letter in letters)]
    tokens += [word for word in words.split() if word not in tokens]
    syllables = (first + second for first in "bcdfghjklmnprstvwz" for second in letters)
    while len(tokens) < VOCABULARY:
        syllable = next(syllables)
        if syllable not in tokens:
            tokens.append(syllable)
    return {token: index for index, token in enumerate(tokens)}


def tokenizer(max_length: int = 128) -> hf.PreTrainedTokenizerFast:
    """A WordPiece tokenizer that knows every lower-case word, with ids that all tiny models accept."""
    core = Tokenizer(WordPiece(vocabulary(), unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = BertProcessing(("[SEP]", LAST), ("[CLS]", FIRST))
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def write_checkpoint(model: hf.PreTrainedModel, folder: Path, *, with_tokenizer: bool = True) -> Path:
    """Save ``model`` as the Hub would hold it: config, safetensors, tokenizer."""
    model.save_pretrained(folder)
    if with_tokenizer:
        tokenizer().save_pretrained(folder)
    return folder


def tied(model: nn.Module) -> set[frozenset[str]]:
    """Names of parameters that are one, group by group."""
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name)
    return {frozenset(names) for names in owners.values() if len(names) > 1}
