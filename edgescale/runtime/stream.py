"""An ONNX Runtime session of a model with state: every run continues the stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from edgescale.core.state import StateSpec

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class StreamSession:
    """Stands for the session it wraps, without the inputs and outputs that hold state: those it feeds back itself.

    A stream starts when it is made and at `reset`. Runs from several threads take turns.
    """

    def __init__(self, session: InferenceSession, states: Sequence[StateSpec]) -> None:
        self._session = session
        self._states = tuple(states)
        self._lock = Lock()
        self.reset()

    def reset(self) -> None:
        """Start another stream: every state holds its initial value."""
        self._held = {state.input: state.initial for state in self._states}

    def get_inputs(self) -> list[Any]:
        """Inputs that a caller feeds."""
        return [port for port in self._session.get_inputs() if port.name not in self._held]

    def get_outputs(self) -> list[Any]:
        """Outputs that a caller gets."""
        hidden = {state.output for state in self._states}
        return [port for port in self._session.get_outputs() if port.name not in hidden]

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any], options: Any = None) -> list[Any]:
        """One inference, the next of the stream: the outputs `names` (None: all), as InferenceSession.run."""
        wanted = [port.name for port in self.get_outputs()] if names is None else list(names)
        left = [state.output for state in self._states]
        with self._lock:
            found = self._session.run([*wanted, *left], {**feed, **self._held}, options)
            values = found[len(wanted) :]
            self._held = {state.input: value for state, value in zip(self._states, values, strict=True)}
        return list(found[: len(wanted)])

    def __getattr__(self, name: str) -> Any:
        # Everything else is the session's own: providers, metadata, profiling.
        return getattr(self._session, name)
