"""Which programs are compiled while some code runs."""

import contextlib
from collections.abc import Iterator

import jax.monitoring

_EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """A list that gets the name of every function that is compiled until the end of the block."""
    names: list[str] = []

    def listen(event: str, _: float, **about) -> None:
        if event == _EVENT:
            names.append(about.get("fun_name", "").removeprefix("jit(").removesuffix(")"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
