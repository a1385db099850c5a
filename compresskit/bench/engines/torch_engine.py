"""torch: checkpoints, as transformers loads them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compresskit.bench.engines.base import Arrays, Decoding, Engine, Settings, cannot_run, no_decoding
from compresskit.checkpoint.classes import model_class
from compresskit.checkpoint.quiet import quiet_transformers

_OUTPUTS = ("logits", "prediction_logits", "last_hidden_state")


class TorchEngine(Engine):
    """A model of transformers in evaluation mode, in inference mode."""

    name = "torch"
    package = "torch"

    model: Any

    def load(self, path: Path, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        if settings.device != "cpu" and not torch.cuda.is_available():
            raise cannot_run("torch", "there is no CUDA device", "run with --device cpu")
        self.device = torch.device(settings.device)
        self.on_device = self.device.type == "cuda"  # type: ignore[misc]
        with quiet_transformers():
            self.model, report = _class(path).from_pretrained(
                path,
                dtype=settings.dtype or "auto",
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        if report["missing_keys"] or report["mismatched_keys"]:
            raise cannot_run("torch", "the files don't hold all of its tensors", "`compresskit inspect` says which")
        self.model.eval().to(self.device)
        self._accepted = frozenset(inspect.signature(self.model.forward).parameters)

    @property
    def inputs(self) -> frozenset[str]:
        wanted = {"input_ids", "attention_mask", "token_type_ids", "head", "tail"}
        if self.model.config.is_encoder_decoder:
            wanted.add("decoder_input_ids")
        return self._accepted & wanted

    def prepare(self, batch: Arrays) -> dict[str, Any]:
        found: dict[str, Any] = {
            name: torch.from_numpy(array).to(self.device) for name, array in batch.items() if name in self.inputs
        }
        if "use_cache" in self._accepted and not self.model.config.is_encoder_decoder:
            found["use_cache"] = False
        return found

    @torch.inference_mode()
    def call(self, prepared: dict[str, Any]) -> Any:
        outputs = self.model(**prepared)
        self.synchronize()
        return outputs

    def synchronize(self) -> None:
        """Wait for the device, if there is one."""
        if self.on_device:
            torch.cuda.synchronize(self.device)

    def arrays(self, outputs: Any) -> dict[str, np.ndarray]:
        found = {}
        for name in _OUTPUTS:
            tensor = getattr(outputs, name, None)
            if isinstance(tensor, torch.Tensor):
                found[name] = tensor.float().cpu().numpy()
        return found

    @torch.inference_mode()
    def begin(self, prepared: dict[str, Any], new_tokens: int) -> Decoding:
        config = self.model.config
        if config.is_encoder_decoder or not self.model.can_generate():
            raise no_decoding(self.name)
        inputs = {**prepared, "use_cache": True}
        if "logits_to_keep" in self._accepted:
            inputs["logits_to_keep"] = 1
        outputs = self.model(**inputs)
        token = outputs.logits[:, -1:].argmax(-1)
        self.synchronize()
        rows, length = prepared["input_ids"].shape
        mask = torch.ones(rows, length + new_tokens, dtype=torch.long, device=self.device)
        return Decoding(token, (outputs.past_key_values, mask, length))

    @torch.inference_mode()
    def step(self, decoding: Decoding) -> Decoding:
        cache, mask, length = decoding.state
        outputs = self.model(
            input_ids=decoding.token, attention_mask=mask[:, : length + 1], past_key_values=cache, use_cache=True
        )
        token = outputs.logits[:, -1:].argmax(-1)
        self.synchronize()
        return Decoding(token, (outputs.past_key_values, mask, length + 1))

    def token_array(self, decoding: Decoding) -> np.ndarray:
        return np.asarray(decoding.token.cpu().numpy())

    def details(self) -> dict[str, Any]:
        return {
            "version": torch.__version__,
            "class": type(self.model).__name__,
            "attention": getattr(self.model.config, "_attn_implementation", None),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "device": str(self.device),
        }


def _class(path: Path) -> Any:
    """The class that the checkpoint was saved from."""
    import transformers

    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    names = config.get("architectures") or ["AutoModel"]
    return model_class(names[0]) or transformers.AutoModel
