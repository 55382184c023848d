"""Reports made by hand, for the tests of what is printed and written."""

from __future__ import annotations

from gpt_verify.findings import Finding, PortReport, Report, Status

SITES = ("attn.qkv", "attn.pattern", "mlp.act")
BUDGET = "h.0.mlp.act[0, 0, 3, 17] = -0.1588, should be -0.1587 ± 1.2e-08"


def findings(layers: int = 2, *, wrong_act: bool = False) -> list[Finding]:
    """Every layer passes, but the pattern is not seen; GELU is wrong where that is asked for."""
    found = [Finding("weights.values", Status.PASSED, "equal bit for bit", "embed", 0.0, 0.0)]
    for layer in range(layers):
        for name in SITES:
            site = f"h.{layer}.{name}"
            if name == "attn.pattern":
                message = "not shown by the port"
                found.append(Finding("activations.local", Status.NOT_EXAMINED, message, site))
            elif name == "mlp.act" and wrong_act:
                found.append(Finding("activations.local", Status.FAILED, BUDGET, site, 735.0, 4.0))
            else:
                score = 1.0 + layer / 100
                found.append(
                    Finding("activations.local", Status.PASSED, "within budget", site, score, 4.0)
                )
            if name == "mlp.act":
                status = Status.FAILED if wrong_act else Status.PASSED
                found.append(
                    Finding("activations.cascaded", status, "the message", site, 3.0, 2.0)
                    if wrong_act
                    else Finding("activations.cascaded", status, "within", site, 1.0, 2.0)
                )
    found.append(Finding("logits", Status.PASSED, "within", "logits", 1.0, 2.0))
    return found


def good(name: str = "good", layers: int = 2) -> PortReport:
    return PortReport(
        name, "float32", "cpu", "checkpoint", tuple(findings(layers)), logits_floors=0.98
    )


def wrong(name: str = "wrong", layers: int = 2) -> PortReport:
    return PortReport(
        name,
        "bfloat16",
        "cuda",
        "some/directory",
        tuple(findings(layers, wrong_act=True)),
        first_divergence="h.0.mlp.act",
        explained_by=("erf_gelu",),
        logits_floors=196.0,
    )


def broken(name: str = "my.py:port") -> PortReport:
    error = f"{name}: the factory raised ValueError: no weights"
    unseen = [Finding("logits", Status.NOT_EXAMINED, error, "logits")]
    return PortReport(name, "float32", "cpu", "checkpoint", tuple(unseen), error=error)


def report(*ports: PortReport) -> Report:
    config = {"n_vocab": 97, "n_ctx": 24, "n_embd": 12, "n_head": 3, "n_layer": 2}
    return Report(
        checkpoint={
            "path": "models/tiny",
            "format": "openai",
            "config": config,
            "parameters": 5244,
            "files": {"model.ckpt.index": "0" * 64},
        },
        ports=ports,
        inputs={"seed": 0, "shapes": {"length 5": [1, 5]}, "tokens_in_all": 5},
        environment={"versions": {"python": "3.11"}, "platform": "Linux"},
        repeat="gpt-verify run --checkpoint models/tiny",
    )
