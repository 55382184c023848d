"""All the trials of a checkpoint: chosen, run in several processes, and added up."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from gpt_verify.checkpoint import need_gpt2, open_checkpoint
from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.diagnosis.logits import deviations_kept
from gpt_verify.errors import MissingDependency, UsageError, install
from gpt_verify.laws.catalogue import CATALOGUE, faults_of
from gpt_verify.laws.table import CHECKS
from gpt_verify.power import family_variants
from gpt_verify.power.injection import (
    EVERYWHERE,
    LOGITS,
    ONE_LAYER,
    TENSORFLOW,
    Injection,
    injections,
    why_not_injected,
)
from gpt_verify.power.outcome import CorrectOutcome, FaultOutcome
from gpt_verify.power.trial import Bench
from gpt_verify.power.variants import unavailable, variants_of
from gpt_verify.process.errand import errand
from gpt_verify.process.pool import affordable, asked_for, cores, pool, scheduler
from gpt_verify.reference.config import Config
from gpt_verify.text import nearest

#: Of correct variants: how many seeds, and in a quick run.
SEEDS, QUICK_SEEDS = 10, 1
#: Of each family a quick run tries one fault in so many.
QUICK_EVERY = 3
#: Of the laws a quick run checks one in so many on each correct variant.
QUICK_TURNS = 2
#: Correct variants of a quick run: one of each kind.
QUICK_VARIANTS = (
    "eager",
    "fused attention",
    "bfloat16",
    "split q, k, v",
    "nn.Linear",
    "residual in place",
    "logits only",
    "decoded with a cache",
)
#: Correct variants that are judged beside faults, one or more of each kind: every precision,
#: attention, storage and way of calling. With ``correct`` all are judged.
CORRECT = (
    "eager",
    "fused attention",
    "torch.compile",
    "float64",
    "bfloat16",
    "float16",
    "masked by -1e4",
    "masked by -inf",
    "padded vocabulary",
    "split q, k, v",
    "nn.Linear",
    "F.layer_norm",
    "GELU by sigmoid",
    "residual in place",
    "logits only",
    "decoded with a cache",
    "in a batch with others",
    "padded on the left",
    "huggingface-eager",
    "huggingface-sdpa",
)


#: Bytes of one process.
PROCESS_BYTES = 10**9


def default_jobs() -> int:
    """As many processes as ``GPT_VERIFY_JOBS`` says, or as there are cores and memory for."""
    return asked_for() or min(cores(), affordable(PROCESS_BYTES))


@dataclass(frozen=True)
class Plan:
    """A plan of what is to be tried.

    Attributes:
        checkpoint: a directory.
        seed: of the inputs; the first of the seeds of correct variants.
        seeds: on how many seeds each correct variant is judged.
        quick: every third fault of each family, in all layers alone; a few of the correct
            variants. Of faults that are asked for, all.
        every_law: check all laws on each fault, not the one that must refute it alone, and
            against correct variants on every seed, not in turn.
        families: of faults, or the name of the family that the model is of; all faults where empty.
        faults: names; all where empty.
        correct: judge the correct variants alone, all of them on every seed and by all laws.
        jobs: processes.
        ignore_keys: keys of the checkpoint's configuration that do not alter what is computed.
        scheduler: address of a Dask cluster whose workers take the place of processes.
    """

    checkpoint: Path
    seed: int = 0
    seeds: int = SEEDS
    quick: bool = False
    every_law: bool = False
    families: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    correct: bool = False
    jobs: int = field(default_factory=default_jobs)
    ignore_keys: tuple[str, ...] = ()
    scheduler: str | None = None

    @property
    def of_faults(self) -> tuple[str, ...]:
        """The families of faults among the families."""
        return tuple(name for name in self.families if name not in FAMILIES)

    @property
    def partial(self) -> bool:
        """Only some faults were asked for, and no correct variants."""
        return bool(self.of_faults or self.faults)


@dataclass(frozen=True)
class Campaign:
    """Everything that was tried, and what was not.

    Attributes:
        plan: what was asked for.
        config: sizes of the checkpoint.
        injected: outcomes of faults.
        correct: outcomes of correct variants.
        left_out: what was not tried → why.
        seconds: wall time.
    """

    plan: Plan
    config: Config
    injected: tuple[FaultOutcome, ...]
    correct: tuple[CorrectOutcome, ...]
    left_out: dict[str, str]
    seconds: float


def run_campaign(plan: Plan, step: Callable[[str, int], None] = lambda what, n: None) -> Campaign:
    """Try everything.

    Args:
        plan: what.
        step: told of each trial when it is done: what it was, and how many there are.

    Raises:
        UsageError: no such fault or family, or another model than was said.
        MissingDependency: torch is not installed, into whose models faults are injected.
        CheckpointError: the checkpoint cannot be read.
    """
    if find_spec("torch") is None:
        raise MissingDependency(f"torch is not installed: {install('torch')}")
    start = time.perf_counter()
    checkpoint = open_checkpoint(plan.checkpoint, plan.ignore_keys)
    config = checkpoint.config
    if config.own is None:
        need_gpt2(checkpoint, "power is")
    if other := {*plan.families} & {*FAMILIES} - {config.architecture}:
        raise UsageError(f"--family {other.pop()}: {plan.checkpoint} is of {config.architecture}")
    left_out: dict[str, str] = {}
    faults: list[Injection] = []
    for name in () if plan.correct else chosen(plan, config):
        fault = CATALOGUE[name]
        if why := why_not_injected(fault, checkpoint):
            left_out[fault.name] = why
            continue
        for injection in injections(fault, config):
            if why := _not_tried(injection, plan):
                left_out[f"{injection.form} form of faults"] = why
            else:
                faults.append(injection)
    if plan.quick and not plan.partial:
        left_out["other faults"] = f"a quick run tries one in {QUICK_EVERY} of each family"
    tasks = _apart(faults)
    if not plan.partial:
        tasks = [*_variants(plan, config, left_out), *tasks]
    trials = sum(task.trials for task in tasks)
    injected: list[FaultOutcome] = []
    correct: list[CorrectOutcome] = []
    for done in _results(plan, tasks):
        for outcome in done:
            if isinstance(outcome, FaultOutcome):
                injected.append(outcome)
                step(f"{outcome.injection.fault}, {outcome.injection.form}", trials)
            else:
                correct.append(outcome)
                step(outcome.variant, trials)
    injected.sort(key=lambda o: faults.index(o.injection))
    names = list(dict.fromkeys(name for task in tasks for name, _ in task.runs))
    correct.sort(key=lambda o: (names.index(o.variant), o.seed))
    seconds = round(time.perf_counter() - start, 1)
    return Campaign(plan, config, tuple(injected), tuple(correct), left_out, seconds)


@dataclass(frozen=True)
class _Task:
    """What one process does at a stretch: injected faults, or runs of correct variants."""

    faults: tuple[Injection, ...] = ()
    runs: tuple[tuple[str, int], ...] = ()

    @property
    def trials(self) -> int:
        return len(self.faults) + len(self.runs)


def _apart(faults: Sequence[Injection]) -> list[_Task]:
    """One by one, but for those of a form for which something is made that serves all of them: a
    TensorFlow process, or what every fault would do to the logits."""
    made = [
        _Task(tuple(injection for injection in faults if injection.form == form))
        for form in (LOGITS, TENSORFLOW)
    ]
    rest = [
        _Task((injection,)) for injection in faults if injection.form in (EVERYWHERE, ONE_LAYER)
    ]
    return [task for task in made if task.faults] + rest


def chosen(plan: Plan, config: Config) -> list[str]:
    """Names of the faults that a plan tries on such a model; UsageError where it names one that is
    none."""
    families = {fault.family for fault in CATALOGUE.values()}
    if unknown := [name for name in plan.faults if name not in CATALOGUE]:
        raise UsageError(
            f"--fault {unknown[0]}: there is no such fault (--family lists a family)"
            f"{nearest(unknown[0], CATALOGUE)}"
        )
    if unknown := [name for name in plan.of_faults if name not in families]:
        known = {*families, *FAMILIES}
        raise UsageError(
            f"--family {unknown[0]}: not one of {', '.join(sorted(known))}"
            f"{nearest(unknown[0], known)}"
        )
    able = {
        name: fault
        for name, fault in faults_of(config).items()
        if config.own is None or fault.in_family is not None
    }
    if plan.partial:
        of = [name for name, fault in able.items() if fault.family in plan.of_faults]
        return [name for name in CATALOGUE if name in plan.faults or name in of]
    step = QUICK_EVERY if plan.quick else 1
    by_family = {family: [f for f in able.values() if f.family == family] for family in families}
    tried = {fault.name for faults in by_family.values() for fault in faults[::step]}
    return [name for name in CATALOGUE if name in tried]


def _not_tried(injection: Injection, plan: Plan) -> str | None:
    if plan.quick and injection.form != EVERYWHERE:
        return "not in a quick run"
    if injection.form == TENSORFLOW and find_spec("tensorflow") is None:
        return "TensorFlow is not installed"
    return None


def _names(plan: Plan, config: Config) -> tuple[str, ...]:
    """The correct variants that a plan judges."""
    if plan.correct:
        return tuple(variants_of(config))
    if config.own is not None:
        return tuple(family_variants.plain(config))
    return QUICK_VARIANTS if plan.quick else CORRECT


def _variants(plan: Plan, config: Config, left_out: dict[str, str]) -> list[_Task]:
    """Seed by seed: what is measured for one variant serves the next one."""
    names = _names(plan, config)
    if len(names) < len(variants_of(config)):
        left_out["the other correct variants"] = "judged with --correct, by every law"
    absent = {name: why for name in names if (why := unavailable(name))}
    left_out.update(absent)
    judged = [name for name in names if name not in absent]
    seeds = range(plan.seed, plan.seed + plan.seeds)
    return [_Task(runs=tuple((name, seed) for name in judged)) for seed in seeds]


def laws_of(plan: Plan, config: Config, variant: str, seed: int) -> set[str] | None:
    """The laws that a correct variant is judged by on one seed; all where None.

    They take turns, so that over all seeds each law has judged each variant; in a quick run, which
    has one seed, every other variant.
    """
    if plan.every_law or plan.correct:
        return None
    turn = seed + _names(plan, config).index(variant)
    turns = max(plan.seeds, QUICK_TURNS if plan.quick else 1)
    return {law.id for i, law in enumerate(CHECKS) if (i + turn) % turns == 0}


#: What this process has prepared for a plan.
_prepared: tuple[Plan, Bench] | None = None
_for_good = ExitStack()


def _results(
    plan: Plan, tasks: Sequence[_Task]
) -> Iterator[Sequence[FaultOutcome | CorrectOutcome]]:
    """The outcomes as they are done, in whatever order."""
    if plan.scheduler is None and (plan.jobs == 1 or len(tasks) == 1):
        yield from (_try(plan, task) for task in tasks)
        return
    with pool(plan.jobs) if plan.scheduler is None else scheduler(plan.scheduler) as executor:
        run = _try if plan.scheduler is None else partial(errand, _try)
        asked = [executor.submit(run, plan, task) for task in tasks]
        for future in as_completed(asked):
            yield future.result()


def _try(plan: Plan, task: _Task) -> Sequence[FaultOutcome | CorrectOutcome]:
    bench = _bench_of(plan)
    tried: list[FaultOutcome | CorrectOutcome] = [bench.fault(fault) for fault in task.faults]
    for name, seed in task.runs:
        laws = laws_of(plan, bench.checkpoint.config, name, seed)
        tried.append(bench.correct(name, seed, laws))
    return tried


def _bench_of(plan: Plan) -> Bench:
    """Prepared once in each process."""
    global _prepared
    if _prepared is None or _prepared[0] != plan:
        _for_good.close()
        _for_good.enter_context(deviations_kept())
        opened = open_checkpoint(plan.checkpoint, plan.ignore_keys)
        _prepared = plan, Bench(opened, plan.seed, plan.every_law)
        gc.freeze()  # what is loaded by now stays
    return _prepared[1]


def distinct(outcomes: Iterable[FaultOutcome]) -> list[str]:
    """The names of their faults, each once."""
    return list(dict.fromkeys(outcome.injection.fault for outcome in outcomes))
