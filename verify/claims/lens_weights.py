"""Claims about what the lens shows in a trained model: measured, and asserted on OpenAI's only.

The lens is read after every block: state 0 is the embedding, state n what block n - 1 left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt_verify.claims.case import Case
from gpt_verify.claims.claim import Claim, Kind, Measured, Verdict
from gpt_verify.claims.evidence import evidence
from gpt_verify.claims.sources import LW
from gpt_verify.lens import Lens
from gpt_verify.port import NotExamined

Ints = NDArray[np.integer]

#: The word that the text ``rare`` copies.
RARE_WORD = " zither"
#: How often the text ``repetition`` says its sentence.
TIMES = 3
_ON_PROSE = "It depends on the weights; on this checkpoint it {word}. On ordinary prose ({tokens} "

CLAIMS = (
    Claim(
        id="lens-input-self",
        statement="Under the lens the input embedding is close to certain of the input token.",
        kind=Kind.WEIGHTS,
        expected=Verdict.DEPENDS,
        answer=(
            _ON_PROSE + "tokens) the lens on the embedding puts the token that was just read first "
            "in {first_percent:.0f} % of the positions, with a median probability of "
            "{probability:.3f}."
        ),
        criterion=(
            "the input token comes first in more than 90 % of the positions, and its median "
            "probability is above 0.9."
        ),
        sources=(LW,),
        released=True,
    ),
    Claim(
        id="lens-early-unlike",
        statement=(
            "After the first block the distribution no longer resembles the input: KL and rank "
            "jump."
        ),
        kind=Kind.WEIGHTS,
        expected=Verdict.DEPENDS,
        answer=(
            _ON_PROSE + "tokens) the first block moves the distribution by KL(input ‖ layer) = "
            "{kl_first:.2f} nats, {share_percent:.0f} % of the largest value it ever has; the "
            "input token is first in {first_percent:.0f} % of the positions before and in "
            "{later_percent:.0f} % after it."
        ),
        criterion=(
            "the first block makes more than half of the largest KL(input ‖ layer), and the "
            "input token then comes first less than half as often as before."
        ),
        sources=(LW,),
        released=True,
    ),
    Claim(
        id="lens-converges",
        statement=(
            "The rank of the final top token falls smoothly over the layers, and is small by the "
            "middle."
        ),
        kind=Kind.WEIGHTS,
        expected=Verdict.DEPENDS,
        answer=(
            _ON_PROSE + "tokens) the geometric mean of the final top token's rank, counted from 1, "
            "is {ranks} from the embedding to the last block; it falls at {falls} of {blocks} "
            "blocks."
        ),
        criterion=(
            "that rank falls at every block, and is below a hundredth of the vocabulary after "
            "half of them."
        ),
        sources=(LW,),
        released=True,
    ),
    Claim(
        id="lens-kl-input",
        statement=(
            "KL(input ‖ layer) jumps at the first block too, but less than KL(final ‖ layer) "
            "suggests."
        ),
        kind=Kind.WEIGHTS,
        expected=Verdict.DEPENDS,
        answer=(
            _ON_PROSE + "tokens) the first block raises KL(input ‖ layer) from 0 to {kl_input:.2f} "
            "nats, while KL(final ‖ layer) falls by {kl_final:.2f} nats there."
        ),
        criterion=(
            "no later block raises KL(input ‖ layer) by more than the first, which raises it by "
            "less than it lowers KL(final ‖ layer)."
        ),
        sources=(LW,),
        released=True,
    ),
    Claim(
        id="lens-rare-kept",
        statement="A rare input token keeps a better rank in later layers than a common one.",
        kind=Kind.WEIGHTS,
        expected=Verdict.DEPENDS,
        answer=(
            _ON_PROSE
            + "tokens) the median rank of the input token in the upper half of the layers "
            "is {rare:.0f} for the rarest third of the tokens and {common:.0f} for the commonest "
            "third (rare: merged late, so of a large id)."
        ),
        criterion="the median rank of the rarest third is the smaller one.",
        sources=(LW,),
        released=True,
    ),
    Claim(
        id="lens-copy-late",
        statement="A rare word that occurred before is recovered only in the last layers.",
        kind=Kind.WEIGHTS,
        expected=Verdict.DEPENDS,
        answer=(
            "It depends on the weights; on this checkpoint it {word}. In a text that says "
            "“{said}” {times} times, the rest of the word becomes the first guess, and stays it, "
            "after {median:.1f} of {blocks} blocks (median over {tokens} tokens; for {never} of "
            "them it never does)."
        ),
        criterion="the median is more than two thirds of the blocks.",
        sources=(LW,),
        released=True,
    ),
    Claim(
        id="lens-repeat-upper",
        statement="Verbatim repetition is noticed in the upper half of the network.",
        kind=Kind.WEIGHTS,
        expected=Verdict.DEPENDS,
        answer=(
            "It depends on the weights; on this checkpoint it {word}. Where one sentence is said "
            "{times} times, the next token becomes the first guess, and stays it, after "
            "{median:.1f} of {blocks} blocks (median over those {tokens} of the {all} repeated "
            "tokens that the model gets right)."
        ),
        criterion="the median is more than half of the blocks.",
        sources=(LW,),
        released=True,
    ),
    Claim(
        id="embed-unigram",
        statement=(
            "The embedding alone predicts the next token poorly; the first block makes the big "
            "step."
        ),
        kind=Kind.WEIGHTS,
        expected=Verdict.DEPENDS,
        answer=(
            "It depends on the weights; on this checkpoint it {word}. Read through the lens, the "
            "embedding has a loss of {embed_nats:.2f} nats a token on ordinary prose (a uniform "
            "guess has {uniform_nats:.2f}), after the first block it is {first_nats:.2f}, and at "
            "the end {final_nats:.2f}; the largest drop is made by block {largest_block}, counted "
            "from 0."
        ),
        criterion=(
            "the loss of the embedding is nearer to that of a uniform guess than to the final "
            "one, or above it, and the first block lowers it most."
        ),
        sources=(LW,),
        released=True,
    ),
)


def measured(holds: bool, **numbers: object) -> Measured:
    """What a claim about weights measures: whether it holds here, and how much."""
    word = "holds" if holds else "does not hold"
    return Measured(Verdict.DEPENDS, {"word": word, **numbers}, bool(holds))


def _prose(case: Case) -> tuple[Lens, dict[str, float]]:
    lens = case.lens("prose")
    return lens, {"tokens": len(lens.tokens_T)}


def _first_percent(ranks_T: Ints) -> float:
    return 100.0 * float(np.mean(ranks_T == 0))


@evidence("lens-input-self")
def input_itself(case: Case) -> Measured:
    """Rank and probability of the input token, decoded from its embedding."""
    lens, numbers = _prose(case)
    first = lens.rank_input[0] == 0
    own = np.where(first, lens.top_probabilities[0, :, 0], 0.0)
    median = float(np.median(own))
    holds = bool(first.mean() > 0.9) and median > 0.9
    percent = _first_percent(lens.rank_input[0])
    return measured(holds, first_percent=percent, probability=median, **numbers)


@evidence("lens-early-unlike")
def unlike_the_input(case: Case) -> Measured:
    """Most of the way from the input is made by the first block, and the input token falls back."""
    lens, numbers = _prose(case)
    kl_N = lens.kl_input_layer_nats.mean(axis=1)
    before, after = (_first_percent(lens.rank_input[n]) for n in (0, 1))
    share = 100.0 * float(kl_N[1] / kl_N.max()) if kl_N.max() > 0 else 0.0
    numbers["kl_first"], numbers["share_percent"] = float(kl_N[1]), share
    holds = share > 50 and after < before / 2
    return measured(holds, first_percent=before, later_percent=after, **numbers)


@evidence("lens-converges")
def converges(case: Case) -> Measured:
    """Never up, and by the middle within a hundredth of the vocabulary."""
    lens, numbers = _prose(case)
    ranks_N = np.exp(np.log1p(lens.rank_final_top1).mean(axis=1))
    falls = int((np.diff(ranks_N) < 0).sum())
    small = ranks_N[len(ranks_N) // 2] < case.config.n_vocab / 100
    shown = ", ".join(f"{rank:.1f}" for rank in ranks_N)
    blocks = len(ranks_N) - 1
    holds = falls == blocks and bool(small)
    return measured(holds, ranks=shown, falls=falls, blocks=blocks, **numbers)


@evidence("lens-kl-input")
def jump_from_the_input(case: Case) -> Measured:
    """The largest step away from the input is the first, and smaller than that towards the end."""
    lens, numbers = _prose(case)
    from_input_N = lens.kl_input_layer_nats.mean(axis=1)
    to_final_N = lens.kl_final_layer_nats.mean(axis=1)
    jump, towards = float(from_input_N[1]), float(to_final_N[0] - to_final_N[1])
    largest = int(np.argmax(np.diff(from_input_N))) == 0
    return measured(largest and jump < towards, kl_input=jump, kl_final=towards, **numbers)


@evidence("lens-rare-kept")
def rare_kept(case: Case) -> Measured:
    """Rank of the input token in the upper half, of the rarest and the commonest positions."""
    lens, numbers = _prose(case)
    order = np.argsort(lens.tokens_T, kind="stable")
    third = max(1, len(order) // 3)
    upper = lens.rank_input[(len(lens.sites) + 1) // 2 :]
    common, rare = (float(np.median(upper[:, at])) for at in (order[:third], order[-third:]))
    return measured(rare < common, rare=rare, common=common, **numbers)


def settled(lens: Lens) -> Ints:
    """The number of blocks after which the next token comes first and stays so, [T - 1]; N where it
    never does."""
    first_NT = lens.rank_next[:, :-1] == 0
    stays_NT = np.flip(np.logical_and.accumulate(np.flip(first_NT, 0), 0), 0)
    count: Ints = len(lens.sites) - stays_NT.sum(axis=0)
    return count


@evidence("lens-copy-late")
def copied_late(case: Case) -> Measured:
    """The depth at which the later tokens of the rare word come first, from its second occurrence
    on."""
    word, tokens_T = case.bpe.encode(RARE_WORD), case.tokens("rare")
    starts = [
        at
        for at in range(len(tokens_T) - len(word) + 1)
        if tokens_T[at : at + len(word)].tolist() == word
    ]
    if len(starts) < 2:
        raise NotExamined(f"{RARE_WORD.strip()} does not occur twice in what the model can read")
    # A word of one token is foreseen from the token before it.
    within = range(1, len(word)) if len(word) > 1 else range(1)
    at = [start + n - 1 for start in starts[1:] for n in within]
    blocks = case.config.n_layer
    found = settled(case.lens("rare"))[at]
    never = int((found > blocks).sum())
    median = float(np.median(np.minimum(found, blocks)))
    numbers = {"said": RARE_WORD.strip(), "times": len(starts), "blocks": blocks}
    holds = never < len(found) and median > 2 * blocks / 3
    return measured(holds, median=median, tokens=len(found), never=never, **numbers)


@evidence("lens-repeat-upper")
def repetition_noticed(case: Case) -> Measured:
    """The depth at which what is being repeated comes first, among what comes first at the end."""
    found, blocks = settled(case.lens("repetition")), case.config.n_layer
    repeated = found[-(-len(found) // TIMES) :]
    right = repeated[repeated <= blocks]
    median = float(np.median(right)) if len(right) else float(blocks)
    numbers = {"times": TIMES, "blocks": blocks, "tokens": len(right), "all": len(repeated)}
    return measured(len(right) > 0 and median > blocks / 2, median=median, **numbers)


@evidence("embed-unigram")
def loss_by_layer(case: Case) -> Measured:
    """The embedding's loss is nearer to a uniform guess's than to the end, and block 0 lowers it
    most."""
    loss_N = np.nanmean(case.lens("prose").loss_nats, axis=1)
    drops_L = loss_N[:-1] - loss_N[1:]
    uniform = float(np.log(case.config.n_vocab))
    poor = bool(loss_N[0] > (uniform + loss_N[-1]) / 2)
    largest = int(np.argmax(drops_L))
    return measured(
        poor and largest == 0,
        embed_nats=float(loss_N[0]),
        first_nats=float(loss_N[1]),
        final_nats=float(loss_N[-1]),
        uniform_nats=uniform,
        largest_block=largest,
    )
