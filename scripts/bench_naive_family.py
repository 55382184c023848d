"""What people write by hand for a family: the model in two attentions, and their logits compared.

    python scripts/bench_naive_family.py DIR LENGTH

No site, no weight, no float64, and one criterion, the cosine that ports are judged by. It is what
``scripts/bench.py --family`` measures a full verification against.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import transformers

directory, length = sys.argv[1], int(sys.argv[2])
models = [
    transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation=attention, dtype=torch.float32
    )
    for attention in ("eager", "sdpa")
]
ids = np.random.default_rng(0).integers(0, models[0].config.vocab_size, (1, length))
with torch.no_grad():
    eager, sdpa = (model(torch.tensor(ids)).logits[0] for model in models)
print("largest difference of the logits:", (eager - sdpa).abs().max().item())
print("cosine:", torch.cosine_similarity(eager, sdpa, dim=-1).min().item())
