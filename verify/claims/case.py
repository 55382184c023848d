"""What evidence is handed: a checkpoint, the models to ask, the texts, and the code in question.

Everything that takes long is made when it is first asked for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from importlib import resources
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.checkpoint.vocabulary import load
from gpt_verify.claims.mingpt import untied
from gpt_verify.claims.models import Model
from gpt_verify.claims.oracle_port import OraclePort
from gpt_verify.claims.released import released
from gpt_verify.claims.transformers_code import TransformersCode, installed
from gpt_verify.errors import CheckpointError, MissingDependency, install
from gpt_verify.lens import Lens, lens, oracle_states
from gpt_verify.numerics.weights import SharedWeights
from gpt_verify.port import NotExamined, Port
from gpt_verify.ports import registry
from gpt_verify.reference.bpe import BPE
from gpt_verify.reference.config import Config

#: The ports that are asked beside the reference, where they are installed.
PORTS = ("huggingface-eager", "openai-tf")
#: The texts that claims about weights are measured on; all written for this purpose.
TEXTS = ("prose", "rare", "repetition")


class Case:
    """Everything that one run has at hand. Close it, or processes stay.

    Args:
        checkpoint: whose claims are decided.
        models: what is asked; the reference and every built-in port if not given.
        code: the versions of transformers to examine; the installed one if not given.
        text: in the place of the prose.
        untied: makes a torch model with a head of its own.
        seed: of everything that is drawn.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        models: Sequence[Model] | None = None,
        code: Sequence[TransformersCode] | None = None,
        text: str | None = None,
        untied: Callable[[Checkpoint], Any] = untied,
        seed: int = 0,
    ) -> None:
        self.checkpoint, self.seed, self._text = checkpoint, seed, text
        self._given, self._code, self._untied = models, code, untied
        self._shared = SharedWeights(checkpoint.tensors, record=False)
        self._stack = ExitStack()
        self._made: dict[str, Model] = {}
        self._lenses: dict[str, Lens] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def callback(self, close: Callable[[], object]) -> None:
        """Something to be done when the case is closed."""
        self._stack.callback(close)

    @property
    def config(self) -> Config:
        return self.checkpoint.config

    @cached_property
    def released(self) -> str | None:
        """Which of OpenAI's released models this is, judged by its sizes and vocabulary files."""
        return released(self.checkpoint)

    @cached_property
    def reference(self) -> Model:
        """The first of the models, which everything can be asked of."""
        if self._given is not None:
            return self._given[0]
        return self._model(OraclePort(self.checkpoint))

    def _model(self, port: Port) -> Model:
        return Model(port, self.checkpoint, self.seed, self._shared)

    def models(self) -> list[Model]:
        """The reference, then every port."""
        if self._given is not None:
            return list(self._given)
        missing = {info.name: info.missing for info in registry.builtin_ports()}
        return [self.reference, *(self.port(name) for name in PORTS if not missing[name])]

    def port(self, name: str) -> Model:
        """One of the ports.

        Raises:
            NotExamined: it is not there.
        """
        if self._given is not None:
            for model in self._given:
                if model.name == name:
                    return model
            raise NotExamined(f"{name} is not asked")
        if name not in self._made:
            try:
                port = registry.build(name, self.checkpoint, None, "cpu")
            except MissingDependency as missing:
                raise NotExamined(str(missing)) from missing
            self._stack.callback(port.close)
            self._made[name] = self._model(port)
        return self._made[name]

    def code(self) -> list[TransformersCode]:
        """The versions of transformers to examine; NotExamined where there is none."""
        if self._code is None:
            self._code = installed()
        if not self._code:
            raise NotExamined(f"transformers is not installed: {install('torch')}")
        return list(self._code)

    @property
    def code_names(self) -> tuple[str, ...]:
        return tuple(code.name for code in self.code())

    @property
    def versions(self) -> str:
        """The versions that were examined, by their major numbers: ``transformers 4 and 5``."""
        majors = sorted({code.facts["version"].partition(".")[0] for code in self.code()})
        return f"transformers {' and '.join(majors)}"

    def untied(self) -> Any:
        """A torch model with a head of its own; NotExamined where there is no torch."""
        if importlib.util.find_spec("torch") is None:
            raise NotExamined(f"torch is not installed: {install('torch')}")
        return self._untied(self.checkpoint)

    @cached_property
    def bpe(self) -> BPE:
        """The tokenizer beside the checkpoint; NotExamined where there is none."""
        try:
            return load(self.checkpoint)
        except CheckpointError as error:
            raise NotExamined(str(error)) from error

    def text(self, name: str) -> str:
        """One of ``TEXTS``; ``prose`` may be the user's own."""
        if name == "prose" and self._text is not None:
            return self._text
        found: str = (TEXTS_FOLDER / f"{name}.txt").read_text(encoding="utf-8")
        return found.strip()

    def tokens(self, name: str) -> NDArray[np.int64]:
        """Its ids, as many as the model takes."""
        ids = self.bpe.encode(self.text(name))[: self.config.n_ctx]
        if len(ids) < 2:
            raise NotExamined(f"the text {name} has {len(ids)} tokens")
        return np.asarray(ids, np.int64)

    def lens(self, name: str) -> Lens:
        """The lens of the first model on a text."""
        if name not in self._lenses:
            self._lenses[name] = self.read(self.tokens(name))
        return self._lenses[name]

    def read(self, tokens_T: NDArray[np.int64]) -> Lens:
        """The lens of the reference on a sequence, after every block."""
        states = oracle_states(self.checkpoint.tensors, self.config, tokens_T)
        whole = ((site, x_TD) for site, x_TD in states if not site.endswith("resid_mid"))
        return lens(whole, self.checkpoint.tensors, tokens_T, dtype=np.float64, engine="numpy")


TEXTS_FOLDER: Any = resources.files("gpt_verify.claims") / "texts"
