"""The three files of an encoder-decoder together: do they write what the model writes?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskit.errors import ExportError
from compresskit.export.parity import FLOAT_TOLERANCE, Case, compare
from compresskit.export.seq2seq import ENCODER_FILE, FIRST_FILE, STEP_FILE, start_token

NEW_TOKENS = 8
WRITING = "writing"
"""Name of the case."""


def write(
    sessions: Mapping[str, Any], read: Mapping[str, Tensor], start: int, tokens: int, given: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Decoding with the files in ONNX Runtime: the likeliest ids (B, tokens) after the first, logits (B, tokens, V).

    Args:
        sessions: of the three graphs, by name.
        read: ``input_ids`` and ``attention_mask`` (B, S).
        given: ids (B, tokens) to go on with instead of the likeliest ones.
    """
    feed = {name: tensor.numpy() for name, tensor in read.items()}
    mask = feed["attention_mask"]
    (states,) = sessions[ENCODER_FILE].run(["last_hidden_state"], feed)
    ids = np.full((len(mask), 1), start, dtype=np.int64)
    feed = {"encoder_attention_mask": mask, "input_ids": ids, "encoder_hidden_states": states}
    session, past = sessions[FIRST_FILE], dict[str, Any]()
    written, logits = [], []
    for step in range(tokens):
        names = [item.name for item in session.get_outputs()]
        found = dict(zip(names, session.run(names, feed), strict=True))
        logits.append(found.pop("logits")[:, -1:])
        ids = logits[-1].argmax(-1)
        written.append(ids)
        past |= {name.replace("present", "past_key_values"): array for name, array in found.items()}
        if given is not None:
            ids = given[:, step : step + 1].numpy()
        session, feed = sessions[STEP_FILE], {"encoder_attention_mask": mask, "input_ids": ids, **past}
    return torch.from_numpy(np.concatenate(written, 1)), torch.from_numpy(np.concatenate(logits, 1))


@torch.no_grad()
def expected(model: PreTrainedModel, read: Mapping[str, Tensor], given: Tensor) -> Tensor:
    """Logits (B, N, V) of the model with its own cache, token by token, after the start and those ``given``."""
    states = model.get_encoder()(**read, return_dict=True)
    token, cache, logits = torch.full_like(given[:, :1], start_token(model)), None, []
    for step in range(given.shape[1]):
        found = model(
            encoder_outputs=states,
            attention_mask=read["attention_mask"],
            decoder_input_ids=token,
            past_key_values=cache,
            use_cache=True,
        )
        cache, token = found.past_key_values, given[:, step : step + 1]
        logits.append(found.logits)
    return torch.cat(logits, 1)


def check_writing(
    model: PreTrainedModel, sessions: Mapping[str, Any], read: Mapping[str, Tensor], held_to: str
) -> Case:
    """Compare the logits of the files one after the other with the model's, and for float models the likeliest tokens.

    They go on with the tokens read, which differ: a model that writes one token again and again (an untrained one
    whose head is tied does) gives the same logits from a wrong cache.

    Raises:
        ExportError: CK-X013, the files write other tokens.
    """
    given = read["input_ids"][:, :NEW_TOKENS]
    written, found = write(sessions, read, start_token(model), given.shape[1], given)
    logits = expected(model, read, given)
    if held_to == "float":
        lost = logits.max(-1).values - logits.gather(-1, written.unsqueeze(-1)).squeeze(-1)
        allowed = 2 * FLOAT_TOLERANCE * max(1.0, float(logits.abs().max()))
        if bool((lost > allowed).any()):
            row, step = (lost > allowed).nonzero()[0].tolist()
            raise ExportError(
                "CK-X013",
                f"the files write token {int(written[row, step])} where the model writes "
                f"{int(logits[row, step].argmax())}",
                where=f"text {row}, token {step}",
                why="each file agrees with the model by itself, so the cache is handed on wrongly",
                fix="please report it with the model's name. Nothing was written.",
            )
    return compare(STEP_FILE, WRITING, "logits", logits, found.numpy(), None)
