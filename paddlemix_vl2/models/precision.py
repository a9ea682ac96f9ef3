"""What stays float32 whatever the weights are and whatever amp would do."""

import functools
from collections.abc import Callable

import paddle


def keeps_float32(function: Callable) -> Callable:
    """Decorator: run a function outside ``paddle.amp.auto_cast``.

    Inside it, amp would cast matrix products (level O1) or everything (O2) to 16 bits, whatever dtype the
    function has chosen: router logits, attention scores and rotary tables would lose the bits that they need.
    """

    @functools.wraps(function)
    def run(*arguments, **keywords):
        if not paddle.amp.is_autocast_enabled():  # the usual case, in every decode step
            return function(*arguments, **keywords)
        with paddle.amp.auto_cast(enable=False):
            return function(*arguments, **keywords)

    return run
