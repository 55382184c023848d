"""Time and memory of the streamed lens, as ratios to the other ways of computing the same.

    python scripts/bench_lens.py                      # 13 × 1024 × 50257, D = 768
    python scripts/bench_lens.py --states 25          # after attention as well as after the MLP
    python scripts/bench_lens.py --walk 0.02          # every state close to the next one

Every contender gets the same states, runs in a process of its own with the same number of threads,
and is timed without imports and without making the states; they take turns. ``materialised`` keeps
[states, tokens, vocabulary]; ``layer at a time`` keeps [tokens, vocabulary]; both are written
plainly with torch and give the same statistics. ``transformer-lens``, if installed, computes its
residual stack, logits, log-probabilities, top 5 and one KL divergence, which is less.

"of peak" is the rate at which the logits' multiplications were made, as a share of the rate of
the fastest square product of this run (of NumPy or torch). It is given for time on the clock and
for processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

K = 5
#: Side of the square product that the peak is taken from, and how often it is repeated.
SIDE, PRODUCTS = 3072, 12


def make(sizes: dict[str, Any]) -> tuple[list[np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """States that walk at random, weights, tokens. Logits have a standard deviation of about 3."""
    n, t, v, d = (sizes[name] for name in ("states", "tokens", "vocabulary", "width"))
    rng = np.random.default_rng(0)
    wte = rng.standard_normal((v, d), dtype=np.float32) * np.float32(3 / d**0.5)
    weights = {"wte": wte, "ln_f/g": np.ones(d, np.float32), "ln_f/b": np.zeros(d, np.float32)}
    states = [rng.standard_normal((t, d), dtype=np.float32)]
    for _ in range(n - 1):
        step = rng.standard_normal((t, d), dtype=np.float32) * np.float32(sizes["walk"])
        states.append(states[-1] + step)
    return states, weights, rng.integers(0, v, t)


def streamed(engine: Any) -> Callable[..., object]:
    def run(states: Any, weights: Any, tokens: Any) -> object:
        from gpt_verify.lens import lens

        named = ((f"h.{i}.resid_post", x) for i, x in enumerate(states))
        return lens(named, weights, tokens, k=K, engine=engine)

    return run


def plain(logits: Any, log_q: Any, log_p: Any, log_r: Any, tokens: Any, predicted: Any) -> Any:
    """Every statistic of one layer, as one would write it.

    Args:
        logits: [T, V].
        log_q: their log-softmax.
        log_p, log_r: that of the last and of the first layer.
        tokens: ids, int[T].
        predicted: the most likely token of the last layer, int[T].
    """
    import torch

    q, p, r = log_q.exp(), log_p.exp(), log_r.exp()
    log_m = torch.logaddexp(log_p, log_q) - np.log(2)
    js = ((p * (log_p - log_m)).sum(-1) + (q * (log_q - log_m)).sum(-1)) / 2
    following = torch.roll(tokens, -1)
    ranks = [
        (logits > logits.gather(-1, i[:, None])).sum(-1) for i in (predicted, tokens, following)
    ]
    return (
        ranks,
        (p * (log_p - log_q)).sum(-1),
        (r * (log_r - log_q)).sum(-1),
        (q * (log_q - log_p)).sum(-1),
        js.clamp_min(0).sqrt(),
        (p - q).abs().sum(-1) / 2,
        -(q * log_q).sum(-1),
        -log_q.gather(-1, following[:, None]),
        q.topk(K),
    )


def materialised(states: Any, weights: Any, tokens: Any) -> object:
    import torch

    w, tokens = _tensors(weights), torch.from_numpy(tokens)
    logits = _ln_f(torch.stack([torch.from_numpy(x) for x in states]), w) @ w["wte"].T
    log_q = torch.log_softmax(logits, -1)
    predicted = logits[-1].argmax(-1)
    return [
        plain(logits[i], log_q[i], log_q[-1], log_q[0], tokens, predicted)
        for i in range(len(states))
    ]


def layer_at_a_time(states: Any, weights: Any, tokens: Any) -> object:
    import torch

    w, tokens = _tensors(weights), torch.from_numpy(tokens)

    def decode(x: np.ndarray) -> tuple[Any, Any]:
        logits = _ln_f(torch.from_numpy(x), w) @ w["wte"].T
        return logits, torch.log_softmax(logits, -1)

    final, log_p = decode(states[-1])
    log_r = decode(states[0])[1]
    predicted = final.argmax(-1)
    return [plain(*decode(x), log_p, log_r, tokens, predicted) for x in states]


def transformer_lens(states: Any, weights: Any, tokens: Any) -> object:
    """TransformerLens's way from the cache of a run to the logits of every layer, as its
    documentation has it."""
    import torch
    from transformer_lens import ActivationCache

    v, d = weights["wte"].shape
    model = _bridge(v, d, len(tokens))
    # The cache reads of the model how many layers there are, and its last norm.
    model.cfg.n_layers = len(states) - 1
    w_u = torch.from_numpy(weights["wte"]).T
    kept = {f"blocks.{i}.hook_resid_pre": x for i, x in enumerate(states[:-1])}
    kept[f"blocks.{len(states) - 2}.hook_resid_post"] = states[-1]
    centred = torch.from_numpy(states[-1] - states[-1].mean(-1, keepdims=True))
    kept["ln_final.hook_scale"] = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt().numpy()
    tensors = {name: torch.from_numpy(x)[None] for name, x in kept.items()}
    start = _begin()
    cache = ActivationCache(tensors, model)
    logits = cache.accumulated_resid(layer=-1, apply_ln=True) @ w_u
    log_q = logits.log_softmax(-1)
    kl = (log_q[-1].exp() * (log_q[-1] - log_q)).sum(-1)
    return start, (log_q.topk(K), kl)


def _bridge(v: int, d: int, n_ctx: int) -> Any:
    """A model of one layer, of the sizes that matter, loaded as TransformerLens loads models."""
    from transformer_lens.model_bridge import TransformerBridge

    from gpt_verify.checkpoint import default_checkpoint, open_checkpoint
    from gpt_verify.checkpoint.synthetic import synthetic_tensors
    from gpt_verify.checkpoint.write import write_huggingface
    from gpt_verify.reference import Config

    known = open_checkpoint(default_checkpoint())  # for its tokenizer, which must be one
    config = Config(v, n_ctx, d, d // 64, 1)
    tensors = dict(synthetic_tensors(config, 0))
    with tempfile.TemporaryDirectory() as directory:
        write_huggingface(directory, config, tensors, known.encoder, known.merges)
        return TransformerBridge.boot_transformers(directory, device="cpu")


def peak(module: str) -> Callable[..., object]:
    def run(states: Any, weights: Any, tokens: Any) -> object:
        a = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32)
        out = np.empty_like(a)

        def product() -> object:
            return np.matmul(a, a, out=out)

        if module == "torch":
            import torch

            x, y = torch.from_numpy(a), torch.from_numpy(out)

            def product():
                return torch.mm(x, x, out=y)

        product()
        start = _begin()
        for _ in range(PRODUCTS):
            product()
        return start, None

    return run


CONTENDERS: dict[str, Callable[..., object]] = {
    "matmul, NumPy": peak("numpy"),
    "matmul, torch": peak("torch"),
    "streamed, NumPy": streamed("numpy"),
    "streamed, torch's product": streamed("torch"),
    "layer at a time": layer_at_a_time,
    "materialised": materialised,
    "transformer-lens": transformer_lens,
}


def one(name: str, sizes: dict[str, Any]) -> None:
    """Run one contender and print its figures as JSON."""
    states, weights, tokens = make(sizes)
    run = CONTENDERS[name]
    if name == "streamed, torch's product" or not name.endswith("NumPy"):
        import torch

        torch.set_grad_enabled(False)
        torch.set_num_threads(sizes["threads"])
        torch.mm(torch.ones(64, 64), torch.ones(64, 64))
    if name.startswith("streamed"):
        run([x[:2] for x in states], weights, tokens[:2])  # imports, and threads that start
    start = _begin()
    result = run(states, weights, tokens)
    end = _now()
    if isinstance(result, tuple) and isinstance(result[0], tuple):
        start = result[0]
    print(
        json.dumps(
            {
                "wall_s": end[0] - start[0],
                "cpu_s": end[1] - start[1],
                "extra_mb": end[2] - start[2],
            }
        )
    )


def _tensors(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(value) for name, value in weights.items()}


def _ln_f(x: Any, w: dict[str, Any]) -> Any:
    import torch

    return torch.nn.functional.layer_norm(x, x.shape[-1:], w["ln_f/g"], w["ln_f/b"], 1e-5)


def _now() -> tuple[float, float, float]:
    return time.perf_counter(), time.process_time(), _peak_mb()


def _begin() -> tuple[float, float, float]:
    """The same, where the peak of memory begins anew at what is held now (Linux, proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")
    return _now()


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) / 1024


def measured(name: str, sizes: dict[str, Any]) -> dict[str, float]:
    """One contender in a process of its own."""
    threads = str(sizes["threads"])
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, __file__, "--one", name, "--sizes", json.dumps(sizes)],
        capture_output=True,
        text=True,
        env={**os.environ, **dict.fromkeys(pools, threads)},
    )
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=13)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--walk", type=float, default=1.0, help="length of a step")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=CONTENDERS, metavar="CONTENDER")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.sizes)
        return
    keys = ("states", "tokens", "vocabulary", "width", "walk", "threads")
    sizes = {key: getattr(arguments, key) for key in keys}
    names = list(arguments.only or CONTENDERS)
    if "transformer-lens" in names and importlib.util.find_spec("transformer_lens") is None:
        print("transformer-lens: left out, it is not installed: pip install transformer-lens")
        names.remove("transformer-lens")
    names = list(dict.fromkeys([n for n in CONTENDERS if n.startswith("matmul")] + names))
    rounds = []
    for number in range(arguments.rounds):
        rounds.append({name: measured(name, sizes) for name in names})
        print(f"round {number + 1}: " + _line(rounds[-1]), flush=True)
    summary = summarise(rounds, sizes)
    for name, figures in summary.items():
        print(f"{name:26}" + "  ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    if arguments.json:
        from gpt_verify.judging.run import environment

        result = {
            "sizes": sizes,
            "summary": summary,
            "rounds": rounds,
            "environment": environment(),
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def summarise(
    rounds: list[dict[str, dict[str, float]]], sizes: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Medians over the rounds; every ratio is of two figures of one round."""
    operations = 2.0 * sizes["states"] * sizes["tokens"] * sizes["vocabulary"] * sizes["width"]
    square = 2.0 * PRODUCTS * SIDE**3
    products = [name for name in rounds[0] if name.startswith("matmul")]
    ours = [name for name in rounds[0] if name.startswith("streamed")]
    summary: dict[str, dict[str, float]] = {}
    for name in rounds[0]:
        done = square if name in products else operations
        figures = {
            key: statistics.median(figures[name][key] for figures in rounds)
            for key in ("wall_s", "cpu_s", "extra_mb")
        }
        for clock in ("wall_s", "cpu_s"):
            figures[f"of_peak_{clock[:-2]}"] = statistics.median(
                done / figures[name][clock] / max(square / figures[p][clock] for p in products)
                for figures in rounds
            )
        for other in ours if name not in products else ():
            for key in ("wall_s", "cpu_s", "extra_mb"):
                figures[f"{key} ÷ {other}"] = statistics.median(
                    figures[name][key] / figures[other][key] for figures in rounds
                )
        summary[name] = figures
    return summary


def _line(figures: dict[str, dict[str, float]]) -> str:
    return "; ".join(
        f"{name} {f['wall_s']:.1f} s ({f['cpu_s']:.1f} CPU), {f['extra_mb']:,.0f} MB"
        for name, f in figures.items()
    )


if __name__ == "__main__":
    main()
