"""What changes while a run goes on, and its way into a checkpoint and back."""

import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.optim.lr_scheduler import StepLR

from ..boundary.checkpoints import save_checkpoint
from ..errors import UserError, quoted
from ..models.folding import synchronise_batch_norms
from ..models.model import DetectionModel

MOST_DROPS = 400  # after which no rate is above 0


class TrainingState:
    """A model with its optimiser and schedule.

    Args:
        model: on any device.
        parameter_groups: (regular expression, learning rate), see ``Detector.parameter_groups``.
        args: the options, which the checkpoints keep.
        accelerator: prepares model and optimiser for its device, its processes and its precision.
        description: what the checkpoints tell beside all this.
    """

    def __init__(
        self,
        model: DetectionModel,
        parameter_groups: list[tuple[str, float]],
        args: Namespace,
        accelerator: Accelerator,
        description: dict[str, Any],
    ):
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            model = synchronise_batch_norms(model)
        self.args, self.accelerator, self.description = args, accelerator, description
        self.n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        groups = group_parameters(model, parameter_groups)
        common = {"lr": args.lr, "weight_decay": args.weight_decay, "fused": True}
        with_momentum = getattr(args, "sgd", False)  # an option of some detectors
        optimizer = torch.optim.SGD(groups, momentum=0.9, **common) if with_momentum else torch.optim.AdamW(groups, **common)
        self.lr_scheduler = StepLR(optimizer, args.lr_drop)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

    def save(self, epoch: int, log: dict[str, Any], *paths: Path) -> None:
        """Writes checkpoints, the same to each path. All processes take part.

        Args:
            epoch: the last one that is finished; -1 before the first.
            log: what is known of it, for the log, in case that the run is stopped before it is written there.
        """
        random_states = gather_object([_random_state(self.accelerator)])
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        checkpoint = {
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "args": {name: _plain(value) for name, value in vars(self.args).items()},
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "random_states": random_states,
            "epoch": epoch,
            "log": log,
        }
        for path in paths:
            save_checkpoint(path, checkpoint | self.description)

    def restore(self, checkpoint: dict[str, Any]) -> int:
        """Optimiser, schedule and random states as they were at the end of the checkpoint's epoch; returns the next epoch. That it
        is of a run is known, see :func:`check_continuation`.

        Rates, their drop and the weight decay are those of the options, which may have been given anew.

        Raises:
            UserError: the optimiser's state is of another model.
        """
        rates = [group["lr"] for group in self.optimizer.param_groups]
        try:
            self._restore_optimizer(checkpoint["optimizer"])
            if self.accelerator.scaler and checkpoint.get("scaler"):
                self.accelerator.scaler.load_state_dict(checkpoint["scaler"])
            states = checkpoint["random_states"]
            if len(states) == self.accelerator.num_processes:
                _set_random_state(states[self.accelerator.process_index], self.accelerator)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:  # whatever a foreign state provokes
            raise UserError(
                f"{self.args.resume} cannot be continued: the state of its optimiser or of its random numbers does not fit "
                f"({quoted(error)}); start from its weights with --finetune"
            ) from error
        epoch = checkpoint["epoch"] + 1
        for group in self.optimizer.param_groups:
            for _ in range(min(epoch // self.args.lr_drop, MOST_DROPS)):  # step by step, for the bits of a run without a break
                group["lr"] *= self.lr_scheduler.gamma
        now = [group["lr"] for group in self.optimizer.param_groups]
        self.lr_scheduler.load_state_dict({"last_epoch": epoch, "_step_count": epoch + 1, "base_lrs": rates, "_last_lr": now})
        return epoch

    def _restore_optimizer(self, saved: dict[str, Any]) -> None:
        """What it has gathered of each parameter; its options are those of this run.

        Raises:
            ValueError: something does not fit, which the optimiser itself would not notice before it crashes.
        """
        own = self.optimizer.state_dict()["param_groups"]
        if [len(group["params"]) for group in saved["param_groups"]] != [len(group["params"]) for group in own]:
            raise ValueError("it has other groups of parameters")
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": own})
        gathered = {"momentum_buffer"} if getattr(self.args, "sgd", False) else {"step", "exp_avg", "exp_avg_sq"}
        for parameter, state in self.optimizer.state.items():
            if state.keys() != gathered:
                raise ValueError(f"it holds {sorted(map(str, state))} of a parameter")
            for name, value in state.items():
                if not isinstance(value, torch.Tensor) or value.shape != (torch.Size() if name == "step" else parameter.shape):
                    raise ValueError(f"its {name} is not of the shape of a parameter")
                if name != "step":  # laid out as the parameters, which --channels_last may have changed
                    state[name] = torch.empty_like(parameter).copy_(value)


def group_parameters(model: nn.Module, rates: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """The trained parameters as an optimiser's groups: each belongs to the first regular expression that is found in its name.

    The groups come in reverse order: the rate of the first one, what no special rate is given to, is that of the log.

    Raises:
        ValueError: no expression is found in a parameter's name.
    """
    params: list[list[nn.Parameter]] = [[] for _ in rates]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found = [group for group, (pattern, _) in zip(params, rates, strict=True) if re.search(pattern, name)]
            if not found:
                raise ValueError(f"no learning rate fits the parameter {name}: end the list of rates with an empty expression")
            found[0].append(parameter)
    groups = [{"params": found, "lr": rate} for found, (_, rate) in zip(params, rates, strict=True) if found]
    return groups[::-1]


def _random_state(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return state


def _set_random_state(state: dict[str, torch.Tensor], accelerator: Accelerator) -> None:
    torch.set_rng_state(state["cpu"])
    if accelerator.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], accelerator.device)


def _plain(value: Any) -> Any:
    """Options as what ``weights_only=True`` reads back."""
    if isinstance(value, Path):
        return os.fspath(value)
    return [_plain(v) for v in value] if isinstance(value, list) else value
