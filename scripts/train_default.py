"""Train, write and evaluate the default checkpoint: a small GPT-2 that predicts and copies.

    python scripts/train_default.py --work DIR                    train (resumes what DIR holds)
    python scripts/train_default.py --work DIR --write            write verify/data/default/
    python scripts/train_default.py --evaluate verify/data/default/openai

``docs/default-checkpoint.md`` says what came out. Training needs torch, writing needs TensorFlow
(in a process of its own), evaluating needs NumPy only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run from a clone: reference and verify need not be installed

import default_text as text  # noqa: E402  # beside this script; needs the line above
from default_batches import Batches  # noqa: E402  # the same

from gpt_verify.reference import Config, parameter_count, tensor_table  # noqa: E402  # after the two above

if TYPE_CHECKING:
    import torch

#: No two dimensions of a tensor are equal (128, 256, 384, 512, 2003): no transpose can hide.
CONFIG = Config(n_vocab=2003, n_ctx=256, n_embd=128, n_head=4, n_layer=4)
SEED = 1611
STEPS = 3200
WARMUP_STEPS = 100
LEARNING_RATE = 3e-3
#: The rate at the end, as a part of the rate at the top.
FINAL_RATE = 0.02
BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0
LOG_EVERY, SAVE_EVERY = 100, 200
SHIPPED = ROOT / "verify" / "data" / "default"


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine."""
    if step < WARMUP_STEPS:
        return peak * (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return peak * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def prepare_text(work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Learn the BPE from the training part, write its files, and encode both parts."""
    train, held_out = text.split_chapters(text.load_chapters())
    merges = text.learn_merges(train, CONFIG.n_vocab - 257)
    bpe = text.read_bpe(*text.write_bpe(work, merges))
    if len(bpe.encoder) != CONFIG.n_vocab:
        raise ValueError(f"{len(bpe.encoder)} symbols, should be {CONFIG.n_vocab}")
    return text.encode_documents(bpe, train), text.encode_documents(bpe, held_out)


def train(work: Path, steps: int, stop: int, threads: int, peak: float) -> None:
    """Train for ``steps`` steps (or leave off after ``stop``), going on from the saved state.

    Args:
        work: the directory of the state.
        steps: of the whole training.
        stop: the step after which this run leaves off.
        threads: of torch.
        peak: the highest learning rate.
    """
    import torch
    from default_model import initial_parameters, scored_loss

    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    ids, held_out = prepare_text(work)
    log = (work / "log.txt").open("a", buffering=1)
    parameters = initial_parameters(CONFIG, SEED)
    roles = {name: spec.role for name, spec in tensor_table(CONFIG).items()}
    groups = [
        {
            "params": [p for name, p in parameters.items() if (roles[name] == "matrix") is matrix],
            "weight_decay": WEIGHT_DECAY if matrix else 0.0,
        }
        for matrix in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=BETAS)
    batches = Batches(ids, CONFIG.n_vocab, CONFIG.n_ctx, SEED)
    first, seconds = restore(work, parameters, optimizer, batches)
    started = time.monotonic() - seconds
    for step in range(first, min(steps, stop)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        rows, scored = (torch.from_numpy(a) for a in batches.draw())
        loss = scored_loss(parameters, CONFIG, rows, scored)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), CLIP_NORM)
        optimizer.step()
        done = step + 1
        if done % LOG_EVERY == 0 or done == steps:
            prose, copied = probe(parameters, held_out)
            line = (
                f"{done} mixture {loss.item():.3f} held-out {prose:.3f} copied {copied:.3f} "
                f"rate {learning_rate(step, steps, peak):.2e} {time.monotonic() - started:.0f} s"
            )
            print(line, file=log)
            print(line, flush=True)
        if done % SAVE_EVERY == 0 or done == min(steps, stop):
            save(work, parameters, optimizer, batches, done, time.monotonic() - started)


def probe(parameters: dict[str, torch.Tensor], held_out: np.ndarray) -> tuple[float, float]:
    """Two quick numbers for the log: loss on held-out text, and on 64 random tokens come again."""
    import torch
    from default_model import scored_loss

    width = CONFIG.n_ctx + 1
    prose = held_out[: len(held_out) // width * width].reshape(-1, width)[::15]
    rng = np.random.default_rng(0)
    random = np.tile(rng.integers(CONFIG.n_vocab, size=(16, 64)), 2)
    again = np.broadcast_to(np.arange(128) >= 65, random.shape)
    with torch.no_grad():
        losses = [
            scored_loss(parameters, CONFIG, torch.from_numpy(rows), torch.from_numpy(scored.copy()))
            for rows, scored in ((prose, np.ones(prose.shape, bool)), (random, again))
        ]
    return losses[0].item(), losses[1].item()


def save(
    work: Path,
    parameters: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    step: int,
    seconds: float,
) -> None:
    """Keep everything that going on needs; the old state is replaced in one step.

    Args:
        work: the directory of the state.
        parameters: name → tensor.
        optimizer: and its state.
        batches: whose random state is kept.
        step: how many were made.
        seconds: that they took.
    """
    import torch

    state: dict[str, Any] = {
        "parameters": {name: p.detach() for name, p in parameters.items()},
        "optimizer": optimizer.state_dict(),
        "random": json.dumps(batches.rng.bit_generator.state),
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, work / "state.new")
    (work / "state.new").replace(work / "state.pt")
    np.savez(work / "tensors.npz", **{name: p.detach().numpy() for name, p in parameters.items()})


def restore(
    work: Path,
    parameters: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Batches,
) -> tuple[int, float]:
    """Load what ``save`` kept.

    Args:
        work: the directory of the state.
        parameters, optimizer, batches: are set to what was kept.

    Returns:
        Steps that were made and seconds that they took; (0, 0.0) where there is nothing yet.
    """
    import torch

    if not (work / "state.pt").exists():
        return 0, 0.0
    state = torch.load(work / "state.pt", weights_only=True)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state["parameters"][name])
    optimizer.load_state_dict(state["optimizer"])
    batches.rng.bit_generator.state = json.loads(state["random"])
    return state["step"], state["seconds"]


def write(work: Path) -> None:
    """Write both shipped directories, and read them back bit for bit."""
    from gpt_verify.checkpoint import open_checkpoint
    from gpt_verify.checkpoint.write import write_huggingface, write_openai

    with np.load(work / "tensors.npz") as file:
        tensors = {name: np.ascontiguousarray(file[name]) for name in tensor_table(CONFIG)}
    for name, spec in tensor_table(CONFIG).items():
        if tensors[name].shape != spec.shape or tensors[name].dtype != np.float32:
            raise ValueError(f"{name}: {tensors[name].dtype}{tensors[name].shape}")
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"{name} is not finite")
    encoder, merges = work / "encoder.json", work / "vocab.bpe"
    write_openai(SHIPPED / "openai", CONFIG, tensors, encoder, merges)
    write_huggingface(SHIPPED / "huggingface", CONFIG, tensors, encoder, merges)
    for directory in ("openai", "huggingface"):
        shipped = open_checkpoint(SHIPPED / directory)
        if shipped.config != CONFIG or set(shipped.tensors) != set(tensors):
            raise ValueError(f"{directory}: config or names changed on the way")
        for name, value in tensors.items():
            if shipped.tensors[name].tobytes() != value.tobytes():
                raise ValueError(f"{directory}: {name} changed on the way")
        print(f"{SHIPPED / directory}: {len(tensors)} tensors, bit for bit as trained")
    write_manifest(SHIPPED)


def write_manifest(root: Path) -> None:
    """Write ``SHA256SUMS`` as ``sha256sum`` would; ``gpt-verify doctor`` compares it."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.parent != root)
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(root).as_posix()}\n"
        for path in files
    ]
    (root / "SHA256SUMS").write_text("".join(lines), "utf-8")


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="directory for the state and the log")
    parser.add_argument("--write", action="store_true", help="write the shipped directories")
    parser.add_argument("--evaluate", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--stop", type=int, default=sys.maxsize, help="leave off after this step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rate", type=float, default=LEARNING_RATE)
    arguments = parser.parse_args()
    if arguments.evaluate:
        from default_evaluation import evaluate

        evaluate(arguments.evaluate)
    elif arguments.work is None:
        parser.error("--work DIR or --evaluate CHECKPOINT")
    elif arguments.write:
        write(arguments.work)
    else:
        print(f"{parameter_count(CONFIG):,} parameters, seed {SEED}")
        train(arguments.work, arguments.steps, arguments.stop, arguments.threads, arguments.rate)


if __name__ == "__main__":
    main()
