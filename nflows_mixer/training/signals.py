"""SIGTERM and SIGINT: the process ends with the usual status, and says how to go on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nflows_mixer._distributed import is_first_process

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """The end of a process that was sent a signal, with the status that a shell gives it.

    Args:
        number: of the signal.

    Example:
        >>> Stopped(signal.SIGTERM).code, Stopped(signal.SIGINT).code
        (143, 130)
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name, self.said = signal.Signals(number).name, False


@contextmanager
def stopped_by_signals(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Raise ``Stopped`` where a signal comes, and print one line; the innermost one prints.

    In another thread than the main one, which alone is sent signals, nothing changes.

    Args:
        how_to_go_on: the end of the line.

    Example:
        >>> with stopped_by_signals(lambda: "start it again"):
        ...     pass
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _stop) for number in SIGNALS}
    try:
        yield
    except Stopped as stopped:
        if not stopped.said and is_first_process():
            print(f"\nstopped by {stopped.name}: {how_to_go_on()}", file=sys.stderr, flush=True)
        stopped.said = True
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopOnSignals(Callback):
    """Within a trainer too: Lightning's own handler of SIGTERM would end with status 0."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the place of Lightning's handler, which is there by now."""
        if signal.getsignal(signal.SIGINT) is _stop:
            signal.signal(signal.SIGTERM, _stop)

    on_test_start = on_train_start

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop the processes that the trainer has started."""
        if isinstance(exception, Stopped) and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)


def _stop(number: int, frame: Any) -> NoReturn:
    for each in SIGNALS:  # the next one ends the process at once
        signal.signal(each, signal.SIG_DFL)
    raise Stopped(number)
