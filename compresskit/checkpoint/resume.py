"""Training compressed models with transformers' ``Trainer``: its checkpoints, and resuming from them.

The stock Trainer reads weights straight from the file when it resumes, and so stumbles over shared tensors and the
guard; it pickles optimizer and random states; and it takes the checkpoint of the highest number, finished or not. Here
a checkpoint is a folder that loads by ``from_pretrained``, states are safetensors and JSON, and a folder counts only
with its ``manifest.json``, written last.

On the CPU, with equal versions and threads, training that was stopped and resumed gives the same bits as training that
wasn't.
"""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_callback import ExportableState

from compresskit.checkpoint import manifest
from compresskit.checkpoint.layout import read_layout
from compresskit.checkpoint.load import load_model
from compresskit.checkpoint.plainstate import read_state, write_state
from compresskit.checkpoint.readback import save_described
from compresskit.checkpoint.swap import commit, recover, staging_folder, sync_tree
from compresskit.core import processes
from compresskit.errors import ModelError, SecurityError, UsageError

_STATE = "trainer_state.json"
_OPTIMIZER, _SCHEDULER, _SCALER, _RANDOM = "optimizer", "scheduler", "scaler", "random"
_NUMBER = re.compile(r"checkpoint-(\d+)")
_logger = logging.getLogger(__name__)


class ResumableTrainer(Trainer):
    """A ``Trainer`` whose checkpoints hold compressed models, and from which training resumes exactly.

    ``train(resume_from_checkpoint=True)`` takes the newest checkpoint that is whole. No DeepSpeed, no FSDP, and one
    process only, but for subclasses that see to the others (``several_processes``): then the first one writes.

    Raises:
        UsageError: CK-L052 for a set-up that isn't supported.
    """

    several_processes: ClassVar[bool] = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        alone = self.several_processes or self.args.world_size == 1
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or not alone:
            raise UsageError(
                "CK-L052",
                "training of compressed models runs in one process",
                fix="start it without DeepSpeed, FSDP or torchrun",
            )
        self._random_states: list[dict[str, Any]] = []
        if not isinstance(self.model, PreTrainedModel):
            raise UsageError("CK-L052", f"{type(self.model).__name__} is no PreTrainedModel of transformers")

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **named: Any) -> Any:
        """As ``Trainer.train``; ``True`` means the newest whole checkpoint of ``args.output_dir``."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(newest_checkpoint(Path(str(self.args.output_dir))))
        elif resume_from_checkpoint:
            flaw = what_is_wrong(Path(resume_from_checkpoint))
            if flaw:
                raise ModelError(
                    "CK-L050", f"the training checkpoint is not whole: {flaw}", where=resume_from_checkpoint
                )
        return super().train(resume_from_checkpoint, *arguments, **named)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if trial is None:
            self.store_flos()
        self._random_states = processes.gather(_random_state())
        processes.lead(lambda: self._write_checkpoint(trial))

    def _write_checkpoint(self, trial: Any) -> None:
        run = Path(self._get_output_dir(trial=trial))
        final = run / f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step:
            best = run / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best) if best == final or best.exists() else None
        recover(final)
        with whole_folder(final) as staging:
            self.save_model(str(staging), _internal_call=True)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(staging))
                self._save_scaler(str(staging))
                self._save_rng_state(str(staging))
            self._keep_callback_states()
            self.state.save_to_json(str(staging / _STATE))
        self._remove_old_checkpoints(run)

    def _keep_callback_states(self) -> None:
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                name, states = type(callback).__name__, cast(dict[str, Any], self.state.stateful_callbacks)
                if isinstance(states.get(name), list):
                    states[name].append(callback.state())
                else:
                    states[name] = callback.state()

    def _remove_old_checkpoints(self, run: Path) -> None:
        limit = self.args.save_total_limit
        if not limit or limit < 0:
            return
        for path in _by_number(run)[:-limit]:
            if str(path) != self.state.best_model_checkpoint:
                shutil.rmtree(path)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        model = self._plain_model()
        save_described(model, folder)
        processor = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if processor is not None:
            processor.save_pretrained(folder)
        arguments = json.dumps(self.args.to_dict(), indent=1, sort_keys=True, default=str)
        (folder / "training_args.json").write_text(arguments + "\n", encoding="utf-8")

    def _plain_model(self) -> PreTrainedModel:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not isinstance(model, PreTrainedModel):
            raise UsageError("CK-L052", f"{type(model).__name__} is no PreTrainedModel of transformers")
        return model

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self._plain_model(), Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        load_weights(self._plain_model(), Path(str(self.state.best_model_checkpoint)))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        write_state(cast(Any, self.optimizer).state_dict(), Path(output_dir, _OPTIMIZER))
        write_state(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir, _SCHEDULER))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            cast(Any, self.optimizer).load_state_dict(read_state(Path(checkpoint, _OPTIMIZER)))
            cast(Any, self.lr_scheduler).load_state_dict(read_state(Path(checkpoint, _SCHEDULER)))

    def _save_scaler(self, output_dir: str) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None:
            write_state(scaler.state_dict(), Path(output_dir, _SCALER))

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if checkpoint is not None and scaler is not None:
            scaler.load_state_dict(read_state(Path(checkpoint, _SCALER)))

    def _save_rng_state(self, output_dir: str) -> None:
        states = self._random_states or [_random_state()]
        write_state(states[0] if len(states) == 1 else {"processes": states}, Path(output_dir, _RANDOM))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        states = read_state(Path(checkpoint, _RANDOM))
        if "processes" in states:
            states = states["processes"][processes.index()]
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        torch.random.set_rng_state(states["cpu"])
        if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states["cuda"])


def _random_state() -> dict[str, Any]:
    """The states of all global generators of this process."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Overwrite the values of ``model`` by those of the checkpoint ``folder``; ties stay.

    Raises:
        ModelError: CK-L053, if the checkpoint holds a model of another structure; CK-L040, if it doesn't load.
    """
    saved = load_model(folder, auto_class=type(model))
    if read_layout(saved) != read_layout(model) or _shapes(saved) != _shapes(model):
        raise ModelError(
            "CK-L053",
            "the training checkpoint holds a model of another structure",
            where=str(folder),
            why="it was written before the model was changed, or by another recipe",
            fix="train into an empty folder, or resume with the model that was being trained",
        )
    model.load_state_dict(saved.state_dict())


def _shapes(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to write into that becomes ``final`` at the end, or nothing if writing fails."""
    staged = staging_folder(final)
    staged.mkdir(parents=True)
    try:
        yield staged
        (staged / manifest.NAME).write_text(manifest.build(staged).to_json(), encoding="utf-8")
        sync_tree(staged)
        commit(staged, final)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def what_is_wrong(checkpoint: Path) -> str | None:
    """Why ``checkpoint`` is no whole training checkpoint, in a few words, or None."""
    try:
        manifest.check_files(checkpoint, manifest.read(checkpoint))
    except (ModelError, SecurityError) as error:
        return ": ".join(filter(None, [error.what, error.why]))
    return None


def newest_checkpoint(run: Path) -> Path:
    """The checkpoint of ``run`` with the most steps that is whole; a notice for each that isn't.

    Raises:
        ModelError: CK-L050, if there is none.
    """
    for path in reversed(_by_number(run)):
        flaw = what_is_wrong(path)
        if flaw is None:
            return path
        _logger.warning("compresskit: %s is passed over: %s", path.name, flaw)
    raise ModelError(
        "CK-L050", "there is no whole training checkpoint to resume from", where=str(run), fix="train from the start"
    )


def _by_number(run: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in run.glob("checkpoint-*") if (match := _NUMBER.fullmatch(path.name))]
    return [path for _, path in sorted(found)]
