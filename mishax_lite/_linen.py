"""`modules` for Flax linen: a subclass of the model's class, in whose calls an interceptor taps.

Submodules of linen exist only while the outermost one runs, so they cannot be replaced beforehand. Flax's interceptors
see each of their calls. JAX's caches do not: while a hook looks, a context that is part of the key of these caches says
what is tapped. Otherwise a part of the model that is jitted (`nn.jit`) would come from the cache with other taps.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import types
from collections.abc import Callable
from typing import Any

import jax

from mishax_lite.module_taps import matches, no_match, tap_output
from mishax_lite.primitive import is_watched

# The tapped models that are running: (class, path) of each, outermost first.
_running: contextvars.ContextVar[tuple] = contextvars.ContextVar("_running", default=())
# The same, as a part of the key of JAX's caches. It is set only while a hook looks: outside of jit, it would make JAX
# compile each operation anew.
_cache_key = jax.make_user_context(None)


def tapped(linen: types.ModuleType, model: Any, pattern: str) -> Any:
    """Returns a copy of a linen model, of a subclass of its class, that taps the modules that match the pattern."""
    if isinstance(model.parent, linen.Module) and model.scope is not None:
        raise ValueError(
            f"modules: {type(model).__name__} {'/'.join(model.path)!r} belongs to a model that is running or bound; "
            "give `modules` the whole model before it runs"
        )
    base, patterns = type(model), (pattern,)
    if "_mishax_patterns" in vars(base):
        base, patterns = base.__bases__[0], tuple(dict.fromkeys((*base._mishax_patterns, pattern)))
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.init and f.name != "parent"}
    # A model that is bound stays bound to the same variables.
    parent = None if model.scope is None else model.scope.rewound()
    return _tapped_class(linen, base, patterns)(**fields, parent=parent)


def _tapped_class(linen: types.ModuleType, base: type, patterns: tuple[str, ...]) -> type:
    # One class for the same patterns, so that equal models stay equal and JAX's caches are hit.
    for subclass in type.__subclasses__(base):
        if vars(subclass).get("_mishax_patterns") == patterns:
            return subclass
    copied = ("__module__", "__qualname__", "__doc__", "__eq__", "__hash__")
    namespace = {name: getattr(base, name) for name in copied} | {"_mishax_patterns": patterns}
    cls = type(base)(base.__name__, (base,), namespace)
    matched = {pattern for pattern in patterns if pattern == "*"}

    def call(self, fun, args, kwargs):
        """Runs a method of the model: Flax calls this for each of them, `setup` included."""
        root = self.path if self.scope is not None else ()
        running = (*_running.get(), (cls, root))
        if running[-1] in running[:-1]:
            return base._call_wrapped_method(self, fun, args, kwargs)
        names: list[str] = []

        def intercept(
            next_call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any
        ) -> Any:
            out = next_call(*args, **kwargs)
            name = _name(context.module, root, cls) if context.method_name == "__call__" else None
            if name is None:
                return out
            names.append(name)
            hits = [pattern for pattern in patterns if matches(name, pattern)]
            matched.update(hits)
            return tap_output(name, out) if hits else out

        # A call that comes from a cache shows no module, so nothing may come from one until all patterns have matched.
        looks = is_watched() or not matched.issuperset(patterns)
        token = _running.set(running)
        try:
            with _cache_key(running) if looks else contextlib.nullcontext(), linen.intercept_methods(intercept):
                out = base._call_wrapped_method(self, fun, args, kwargs)
        finally:
            _running.reset(token)
        if getattr(fun, "__name__", None) == "__call__":
            # A pattern has to match once: other calls may leave modules out.
            for pattern in patterns:
                if pattern not in matched:
                    raise no_match(pattern, names)
        return out

    # Set afterwards: Flax wraps the methods that a class is made with.
    cls._call_wrapped_method = call
    return cls


def _name(module: Any, root: tuple[str, ...], cls: type) -> str | None:
    """Returns the name of a module in the model of class `cls` at the path `root`."""
    if module.scope is None:  # a model that is called without variables, or a module that belongs to no model
        return cls.__name__ if isinstance(module, cls) else None
    path = module.path
    path = path[len(root) :] if path[: len(root)] == root else path
    return "/".join(path) or type(module).__name__
