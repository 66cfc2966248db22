"""Hooks: what a program adds to a training without touching the loop.

    class Greeter(TrainerHooks):
        def on_epoch_end(self, trainer, epoch): ...

    trainer.hook_manager.register_hook(Greeter())

A hook overrides what it wants, with as many of the arguments as it wants. One that has `state_dict` and
`load_state_dict` is part of each checkpoint.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any

from oellm_autoexp.errors import TrainerError

_log = logging.getLogger("oellm_autoexp.trainer")


class TrainerHooks:
    """The base of hooks: every event, doing nothing. Further positional arguments may be left out."""

    def on_train_start(self, trainer: Any) -> None: ...
    def on_train_end(self, trainer: Any) -> None: ...
    def on_epoch_start(self, trainer: Any, epoch: int) -> None: ...
    def on_epoch_end(self, trainer: Any, epoch: int, metrics: Mapping[str, float]) -> None: ...
    def on_train_batch_start(
        self, trainer: Any, batch: Any, batch_idx: int, dataloader_name: str
    ) -> None: ...
    def on_train_batch_end(
        self, trainer: Any, batch: Any, batch_idx: int, dataloader_name: str, metrics: Mapping[str, Any]
    ) -> None: ...
    def on_before_forward(self, trainer: Any) -> None: ...
    def on_after_forward(self, trainer: Any, milliseconds: float) -> None: ...
    def on_before_backward(self, trainer: Any, loss: Any) -> None: ...
    def on_after_backward(self, trainer: Any) -> None: ...
    def on_before_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None: ...
    def on_after_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None: ...
    def on_gradient_clip(self, trainer: Any, norm: float) -> None: ...
    def on_validation_start(self, trainer: Any, epoch: int) -> None: ...
    def on_validation_end(self, trainer: Any, epoch: int, metrics: Mapping[str, float]) -> None: ...
    def on_validation_batch_start(
        self, trainer: Any, batch: Any, batch_idx: int, dataloader_name: str
    ) -> None: ...
    def on_validation_batch_end(
        self, trainer: Any, batch: Any, batch_idx: int, dataloader_name: str, metrics: Mapping[str, Any]
    ) -> None: ...
    def on_checkpoint_save(self, trainer: Any, path: Any) -> None: ...
    def on_checkpoint_load(self, trainer: Any, path: Any) -> None: ...


EVENTS = tuple(name for name in vars(TrainerHooks) if name.startswith("on_"))


class HookManager:
    """Calls hooks in the order in which they were registered.

    With `continue_on_error` a hook that fails is logged and the training goes on, else it ends.
    """

    def __init__(self, *, continue_on_error: bool = True) -> None:
        self.hooks: list[TrainerHooks] = []
        self._continue = continue_on_error
        self._calls: dict[str, list[tuple[Callable[..., Any], int]]] = {}
        #: Of the event under way: those that are still to be told.
        self._untold: Iterator[tuple[Callable[..., Any], int]] = iter(())

    def register_hook(self, hook: TrainerHooks) -> None:
        """Add a hook behind those that are there.

        Raises:
            TypeError: it is none, or has a method that is like the name of an event but is none.
        """
        if not isinstance(hook, TrainerHooks):
            raise TypeError(f"a hook must be a TrainerHooks, got {type(hook).__name__}")
        unknown = [name for name in dir(hook) if name.startswith("on_") and name not in EVENTS]
        if unknown:
            from oellm_autoexp.errors import did_you_mean

            hint = did_you_mean(unknown[0], EVENTS)
            raise TypeError(f"{type(hook).__name__}.{unknown[0]} is no event of a training: {hint}")
        self.hooks.append(hook)
        for event in EVENTS:
            method = getattr(hook, event)
            if getattr(method, "__func__", method) is not getattr(TrainerHooks, event):
                self._calls.setdefault(event, []).append((method, _taken(method)))

    def wants(self, event: str) -> bool:
        """Whether any hook does something at an event."""
        return event in self._calls

    def call(self, event: str, *arguments: Any) -> None:
        """Tell every hook of an event.

        Raises:
            TrainerError: a hook failed, and `continue_on_error` is off.
        """
        calls = self._calls.get(event)
        if calls is None:
            return
        outer, self._untold = self._untold, iter(calls)
        try:
            for method, taken in self._untold:
                self._tell(method, arguments[:taken])
        finally:
            self._untold = outer

    def _tell(self, method: Callable[..., Any], arguments: Sequence[Any]) -> None:
        try:
            method(*arguments)
        except Exception as error:
            what = f"{method.__qualname__} failed: {type(error).__name__}: {error}"
            if not self._continue:
                hint = "repair the hook, or set hooks.continue_on_hook_error"
                raise TrainerError(what, hint=hint) from error
            _log.warning("%s (training goes on)", what, exc_info=True)

    @property
    def state_unsettled(self) -> bool:
        """Whether hooks with a state are still to be told of the event under way."""
        return any(
            hasattr(getattr(method, "__self__", None), "state_dict") for method, _ in copy(self._untold)
        )

    def state_dict(self) -> dict[str, Any]:
        """The states of hooks that have one, by class name and place."""
        states = {}
        for name, hook in self._named().items():
            if hasattr(hook, "state_dict"):
                states[name] = hook.state_dict()
        return states

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Hand states back. A state whose hook is not registered is left out, with a warning."""
        hooks = self._named()
        for name, state in states.items():
            if name in hooks and hasattr(hooks[name], "load_state_dict"):
                hooks[name].load_state_dict(state)
            else:
                _log.warning("the checkpoint has a state of the hook %s, which is not registered", name)

    def _named(self) -> dict[str, Any]:
        names: dict[str, Any] = {}
        for hook in self.hooks:
            name = type(hook).__name__
            number = sum(1 for each in names if each.split("#")[0] == name)
            names[f"{name}#{number}" if number else name] = hook
        return names


def _taken(method: Callable[..., Any]) -> int:
    """How many positional arguments a method takes."""
    parameters = inspect.signature(method).parameters.values()
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return 100
    return sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters)
