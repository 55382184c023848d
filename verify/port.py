"""The protocol of a port: what is judged, and what it may show of itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

F = TypeVar("F")
Dtype = Literal["float64", "float32", "bfloat16", "float16"]
Tokens = NDArray[np.integer]
Floats = NDArray[np.floating]
Index = tuple[NDArray[np.int64] | slice, ...]

#: The label of a token that is not to be predicted (torch's ``cross_entropy(ignore_index=-100)``).
IGNORED = -100


class NotExamined(Exception):
    """What was asked for cannot be shown or examined on this port; the message says what is
    missing: ``no cache``. No failure of the port: the law that needs it is reported as such."""


#: What is said of a site that a port does not show.
NOT_SHOWN = "not shown by the port"


#: What is said of a law that needs the logits of all positions of one call.
LAST_ONLY = "the port returns the logits of the last position only"


class Visit(Protocol):
    """Called while the port runs, once for every site that it shows, in order of computation."""

    def __call__(self, site: str, value: Floats, narrowest: Dtype | None = None) -> None:
        """``value`` is valid only during the call.

        Args:
            site: as in ``gpt_verify.sites``.
            value: ``[B, T, features]``; ``[B, H, T, S]`` for scores and pattern.
            narrowest: the narrowest floating format that the port was seen to use on the way
                here from the site before, where the port can tell. A module cast to float64 may
                still compute its softmax in float32, and is judged accordingly.
        """


@dataclass(frozen=True)
class Parameter:
    """One trained tensor of a port, in the port's own layout.

    Attributes:
        name: the port's own name, ``transformer.wte.weight``.
        shape: the port's own shape.
        read: copies the values into a float32 array, or float64 where the port keeps that;
            narrower formats are widened, which is exact.
        storage: equal for two parameters that share memory.
        implies: the checkpoint name that it is, where the port knows (a TensorFlow variable);
            None where that must be found by content.
        write: copies values of the same shape into the port's memory, rounded to its format; None
            where the port cannot be written to.
        padding: rows of a table beyond the vocabulary, of which nothing is asked.
        lies: how it lies in the port, where that was found out before: words for the report.
        read_at, write_at: the same of the elements at an index (a slice or a vector of integers for
            each axis, one vector at most), without a copy of the others; what is written is
            broadcast. None where only the whole can be read or written.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Floats]
    storage: Hashable
    implies: str | None = None
    write: Callable[[Floats], None] | None = None
    padding: bool = False
    lies: str = ""
    read_at: Callable[[Index], Floats] | None = None
    write_at: Callable[[Index, Floats], None] | None = None


class End(Enum):
    """One of the two ends of wte: what comes through it is part of d loss / d wte, [V, D]."""

    LOOKUP = "lookup"
    HEAD = "head"


class GradientSink(Protocol):
    """Takes the derivatives of the mean next-token loss (nats, over all predictions of the batch)
    one by one, while the backward pass runs, so that they need not be held together."""

    def add(self, where: str | End, value: Floats) -> None:
        """A contribution; those of one parameter add up. ``value`` is valid only during the call.

        Args:
            where: name of a parameter, or an end of wte where the port can tell them apart. Each
                name of a piece of memory has the total of that memory.
            value: in the parameter's own layout; [V, D] of an end.
        """

    def restart(self) -> None:
        """What was added so far is void: the port begins anew."""


@dataclass
class Gradients:
    """A sink that keeps everything, for whoever needs whole tensors.

    Attributes:
        parameters: parameter name → derivative. What the loss does not depend on is absent.
        ends: the same of the two ends of wte.
    """

    parameters: dict[str, Floats] = field(default_factory=dict)
    ends: dict[End, Floats] = field(default_factory=dict)

    def add(self, where: str | End, value: Floats) -> None:
        kept: dict[Any, Floats] = self.ends if isinstance(where, End) else self.parameters
        kept[where] = kept[where] + value if where in kept else np.array(value)

    def restart(self) -> None:
        self.parameters.clear()
        self.ends.clear()


@dataclass(frozen=True)
class Lesson:
    """A batch that a port learns from.

    Attributes:
        tokens: int[B, T].
        labels: int[B, T], not shifted; IGNORED where nothing is learnt.
        mask: int[B, T], 1 real, 0 padding; None without padding.
        positions: int[B, T], where there is a mask; None where the port finds them by itself.
        share: factor of its loss, where gradients of several batches are added up.
        items: how many predictions all these batches have together, where the port's own loss is
            to be divided by that; None for the mean over the batch.
        plain: the loss is the mean cross entropy of the port's logits, whatever its own code is.
    """

    tokens: Tokens
    labels: Tokens
    mask: Tokens | None = None
    positions: Tokens | None = None
    share: float = 1.0
    items: int | None = None
    plain: bool = False


@dataclass(frozen=True)
class Prompt:
    """What a port is asked to continue, greedily.

    Attributes:
        tokens: int[B, T].
        new: how many tokens at most.
        mask: int[B, T], 1 real, 0 padding on the left; None without padding.
        end: the token after which a row ends; None where nothing ends one.
    """

    tokens: Tokens
    new: int
    mask: Tokens | None = None
    end: int | None = None


@dataclass(frozen=True)
class TrainingMode:
    """A way in which a port is made to learn.

    Attributes:
        name: ``train()``.
        checkpointing: activations are computed a second time in the backward pass.
        enter: a context in which the port is in that mode, and after which it is as it was, bit for
            bit. With False no dropout drops anything; with True those drop that the port has.
    """

    name: str
    checkpointing: bool
    enter: Callable[[bool], AbstractContextManager[None]]


class Tokenizer(Protocol):
    """Text to ids and back."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added at either end; special tokens in it are plain text."""

    def decode(self, ids: list[int]) -> str:
        """Text of ids, nothing cleaned up; bytes that are no UTF-8 become U+FFFD."""


class StoredGraph(Protocol):
    """The graph that came with the weights, as it turned out to be."""

    @property
    def found(self) -> bool:
        """It holds a forward pass."""

    @property
    def description(self) -> str:
        """One line: which operations, or why there is no forward pass or it was not run."""

    @property
    def tied(self) -> bool | None:
        """One variable feeds the lookup and the last product; None without a forward pass."""

    @property
    def logits(self) -> Floats | None:
        """Computed by that graph; None where it was not run."""


class Port:
    """A port. Subclasses implement ``logits``, and a method for whatever else they can show: each
    capability below has the name of its method, its arguments and what it returns.

    Attributes:
        name: as the report prints it.
        dtype: the precision that the port declares to compute in.
        device: ``cpu`` or ``cuda``.
        weights_from: ``"checkpoint"`` where the weights were converted from the checkpoint under
            test, otherwise the directory or hub id whose files the port loaded by itself;
            ``"port"`` where they are its own and it does not say whence, ``"both"`` where some are.
        taken: set by who built it from a factory that was watched: how many of the checkpoint's
            tensors it has looked up so far, and how many there are.
    """

    name: str
    dtype: Dtype = "float32"
    device: str = "cpu"
    weights_from: str = "checkpoint"
    taken: Callable[[], tuple[int, int]] | None = None

    #: Law, or ``law.part``, → why it does not bind this port. Each must excuse a failure.
    waivers: Mapping[str, str] = {}

    #: What a reader of the report should know of this port, a line each: a format that was
    #: recognised, a version that was exported.
    remarks: Sequence[str] = ()

    #: Why it is not run in float64, where that is known.
    not_in_float64: str = ""
    #: Numbers that its last run in float64 kept in a tensor of one element, and that are no
    #: constant of the reference.
    odd_constants: Sequence[float] = ()
    #: Whether ``logits`` returns those of the last position only, so that those of all positions
    #: are asked for prefix by prefix. Found out while the port runs.
    by_prefixes: bool = False

    __changed: Mapping[Capability[Any], Any] = {}

    def provenance(self) -> str:
        """``weights_from``, as far as it was seen: nothing is *converted* that was not looked up.

        Asked when the port has run: it may look tensors up as late as it likes.
        """
        if self.weights_from != "checkpoint" or self.taken is None:
            return str(self.weights_from)
        taken, there = self.taken()
        return "port" if taken == 0 else "checkpoint" if taken == there else "both"

    def logits(self, tokens: Tokens) -> Floats:
        """tokens int[B, T] → logits float[B, T, V]."""
        raise NotImplementedError

    def special_ids(self) -> Mapping[str, int]:
        """Ids of tokens to which the port itself gives a meaning: its name for one
        (``pad_token_id``) → the id."""
        return {}

    def offers(self) -> Offers:
        """What this port can do besides its logits: its methods that have the name of a
        capability, and what ``offer`` and ``withdraw`` made of them."""
        methods = {c: getattr(self, c.name, None) for c in CAPABILITIES}
        return Offers({c: how for c, how in (methods | dict(self.__changed)).items() if how})

    def offer(self, capability: Capability[F], how: F) -> None:
        """Offer a capability in this way, which depends on what the port was made of."""
        self.__changed = {**self.__changed, capability: how}

    def withdraw(self, *capabilities: Capability[Any]) -> None:
        """Offer these no longer."""
        self.__changed = {**self.__changed, **dict.fromkeys(capabilities)}

    def close(self) -> None:
        """Release memory and processes. Called once; the port is not used again."""


@dataclass(frozen=True, eq=False)
class Capability(Generic[F]):
    """Something that a port may be able to do.

    Attributes:
        name: of the method of ``Port`` that does it.
        lacking: what is said of a port that cannot.
    """

    name: str
    lacking: str


class Offers:
    """The capabilities of one port."""

    def __init__(self, found: Mapping[Capability[Any], Any]) -> None:
        self._found = found

    def __iter__(self) -> Iterator[Capability[Any]]:
        return iter(self._found)

    def __contains__(self, capability: Capability[Any]) -> bool:
        return capability in self._found

    def get(self, capability: Capability[F]) -> F | None:
        """The function that has this capability; None where none has."""
        found: F | None = self._found.get(capability)
        return found

    def __getitem__(self, capability: Capability[F]) -> F:
        """The function that has this capability.

        Raises:
            NotExamined: nothing does.
        """
        found = self.get(capability)
        if found is None:
            raise NotExamined(capability.lacking)
        return found


#: float[B, V], the logits of the last position by a call that makes no others: what a port that
#: also makes all of them does where it generates.
LAST = Capability[Callable[[Tokens], Floats]]("last", "no call for the last position alone")

#: The trained tensors of the port.
PARAMETERS = Capability[Callable[[], Iterator[Parameter]]]("parameters", "no parameters shown")

#: Runs once, calling ``visit`` for every site that can be seen, in the order of computation;
#: returns the logits of that run, float[B, T, V].
ACTIVATIONS = Capability[Callable[[Tokens, Visit], Floats]]("activations", "no activations shown")

#: A context in which the same port computes in float64 with the same weights.
FLOAT64_COPY = Capability[Callable[[], AbstractContextManager[Port]]]("float64", "no float64")

#: A graph that is stored beside the weights and is no code of the port's own. Found or not, what
#: it is, and the logits that it computes, float[B, T, V]. Called last: the port need not be usable
#: afterwards.
META_GRAPH = Capability[Callable[..., StoredGraph]]("meta_graph", "no stored graph")

#: Every floating-point constant of the graph that is run.
CONSTANTS = Capability[Callable[[], list[float]]]("constants", "no graph")

#: The loss by the port's own code. tokens int[B, T], labels int[B, T] → nats, the mean over the
#: predicted tokens. Labels are the tokens themselves, not shifted, or IGNORED.
LOSS = Capability[Callable[[Tokens, Tokens], float]]("loss", "no loss")

#: The same of a padded batch. tokens int[B, T], mask int[B, T] (1 real, 0 padding), labels
#: int[B, T] → nats; the port finds the positions by itself, as it does for ``padded``.
MASKED_LOSS = Capability[Callable[[Tokens, Tokens, Tokens], float]](
    "masked_loss", "no loss with an attention mask"
)

#: Decodes with a cache. tokens int[B, S] that follow those in the cache (None at the start) →
#: logits float[B, S, V] and the cache with them added. A cache that was handed in is not used
#: again.
STEP = Capability[Callable[[Tokens, Any], tuple[Floats, Any]]]("step", "no cache")

#: Logits float[B, T, V] of sequences that are padded, on the left or anywhere else. tokens int[B,
#: T], mask int[B, T] (1 real, 0 padding); the port finds the positions by itself. What it returns
#: at padding is not looked at.
PADDED = Capability[Callable[[Tokens, Tokens], Floats]]("padded", "no attention mask")

#: The same with positions int[B, T] given (0 at padding).
PADDED_AT = Capability[Callable[[Tokens, Tokens, Tokens], Floats]](
    "padded_at", "no attention mask with positions"
)

#: What training does with batches but for the update: for each, the loss in nats (by the port's own
#: code, where it has one) and the logits, float[B, T, V]. The derivatives of the sum of the losses,
#: each times its share, are handed to the sink when all is done. NotExamined where the port is not
#: differentiable, does not take what a batch has, or draws at random although nothing drops.
LEARN = Capability[Callable[[Sequence[Lesson], GradientSink], list[tuple[float, Floats]]]](
    "learn", "no gradients"
)

#: The modes in which the port is trained, ``train()`` first.
MODES = Capability[Callable[[], Sequence[TrainingMode]]]("modes", "no training mode")

#: A context in which every parameter was frozen and is no longer.
UNFROZEN = Capability[Callable[[], AbstractContextManager[None]]](
    "unfrozen", "no parameters to freeze"
)

#: The same with masks of other types, bool[B, T] or float32[B, T]; positions int[B, T], or None
#: where the port finds them by itself. It raises where it does not take such a mask.
MASKED = Capability[Callable[[Tokens, NDArray[Any], Tokens | None], Floats]](
    "masked", "no masks of other types than the tokens'"
)

#: Decodes padded sequences with a cache. tokens int[B, S], the cache (None at the start), mask
#: int[B, past + S] of all tokens so far, those of the cache included → logits float[B, S, V] and
#: the cache; the port finds the positions by itself. A cache that was handed in is not used again.
STEP_PADDED = Capability[Callable[[Tokens, Any, Tokens], tuple[Floats, Any]]](
    "step_padded", "no attention mask with a cache"
)

#: The same with positions int[B, S] of the tokens of the call given (0 at padding).
STEP_PADDED_AT = Capability[Callable[[Tokens, Any, Tokens, Tokens], tuple[Floats, Any]]](
    "step_padded_at", "no attention mask with a cache and positions"
)

#: Derivatives of the mean next-token loss of a batch, tokens int[B, T], T ≥ 2, in the precision
#: that the port computes in; in its float64 copy, in float64. Each is handed to the sink as soon as
#: it is known. Returns whether the two ends of wte were told apart. NotExamined where the port
#: turns out not to be differentiable.
GRADIENTS = Capability[Callable[[Tokens, GradientSink], bool]]("gradients", "no gradients")

#: tokens int[1, T], position i < T - 1 → float[T, D]: the derivative of the loss at that position
#: (predicting token i + 1) with respect to the sum of embeddings at each j. NotExamined as for
#: ``gradients``.
INPUT_GRADIENTS = Capability[Callable[[Tokens, int], Floats]](
    "input_gradients", "no gradients at the input"
)

#: Whether one piece of memory feeds both the lookup and the last product of the graph that is run,
#: and a line that names both operations and that memory. NotExamined where the graph cannot be
#: seen.
TYING = Capability[Callable[[], tuple[bool, str]]]("tying", "no graph")

#: Copies of the port made in every way in which its users make them: ``(how, copy)`` one at a time.
#: A copy has ``logits`` and ``parameters`` with the names of the original, and is closed by the
#: port before the next one is made. What is not wte, or in its memory, it may share with the
#: original, and nobody writes to it. Where the port does not offer a way (a local class cannot be
#: pickled) the reason, a string, is in the place of the copy.
COPIES = Capability[Callable[[], Iterator[tuple[str, Port | str]]]]("copies", "no copies")

#: Names of the parts that are in training mode.
TRAINING = Capability[Callable[[], list[str]]]("training", "no training mode")

#: Parts that drop at random when they are in training mode → the probability.
DROPOUT = Capability[Callable[[], Mapping[str, float]]]("dropout", "no dropout")

#: Where one plain run draws random numbers: ``h.1.mlp (bernoulli_)``.
DRAWS = Capability[Callable[[Tokens], list[str]]]("draws", "no draws shown")

#: One plain run in whatever mode the process is in, which is how its users call it; ``logits`` may
#: set one, and set it back. What it returns is not looked at.
PLAIN_CALL = Capability[Callable[[Tokens], object]]("plain_call", "logits() sets no mode")

#: A context in which the same port runs on another device, ``cpu`` or ``cuda``. NotExamined where
#: there is no such device, or the port does not run on it.
ELSEWHERE = Capability[Callable[[str], AbstractContextManager[Port]]](
    "elsewhere", "no other device"
)

#: The port's own logit lens. tokens int[B, T] → ``(site, logits float[B, T, V])`` of ``embed`` and
#: each block's ``h.I.resid_post``: the states that its own interface hands out, read by its own
#: last norm and head. NotExamined where it turns out to hand out none.
LENS = Capability[Callable[[Tokens], Iterator[tuple[str, Floats]]]]("lens", "no lens")

#: Continues prompts by the likeliest token each time → the new tokens, int[B, N], N ≤ new; what
#: stands in a row after its end is not looked at. NotExamined where it takes no mask, or no end.
GENERATE = Capability[Callable[[Prompt], Tokens]]("generate", "no generate()")

#: What the port hands out of its inside on request. tokens int[B, T] → ``(sites, value)`` for each
#: hidden state, in its order: the sites one of which it is, as whoever offers it documents it.
STATES = Capability[Callable[[Tokens], Sequence[tuple[tuple[str, ...], Floats]]]](
    "states", "no hidden states handed out"
)

#: The same of the patterns of attention, [B, H, T, S], one for each layer.
PATTERNS = Capability[Callable[[Tokens], Sequence[Floats]]]("patterns", "no attentions handed out")

#: A copy of the port whose vocabulary has so many rows, which is closed afterwards. Its
#: ``parameters`` have the names of the original, as far as they are there, and lie as they lie.
RESIZED = Capability[Callable[[int], AbstractContextManager[Port]]](
    "resized", "no method that resizes its vocabulary"
)

#: The port's tokenizers by name.
TOKENIZERS = Capability[Callable[[], Mapping[str, Tokenizer]]]("tokenizers", "no tokenizer")

CAPABILITIES: tuple[Capability[Any], ...] = (
    LAST,
    PARAMETERS,
    ACTIVATIONS,
    FLOAT64_COPY,
    META_GRAPH,
    CONSTANTS,
    LOSS,
    MASKED_LOSS,
    STEP,
    PADDED,
    PADDED_AT,
    LEARN,
    MODES,
    UNFROZEN,
    MASKED,
    STEP_PADDED,
    STEP_PADDED_AT,
    GRADIENTS,
    INPUT_GRADIENTS,
    TYING,
    COPIES,
    TRAINING,
    DROPOUT,
    DRAWS,
    PLAIN_CALL,
    ELSEWHERE,
    LENS,
    STATES,
    PATTERNS,
    RESIZED,
    GENERATE,
    TOKENIZERS,
)
