"""What was found in each built-in port, as one page: docs/field-report.md.

    gpt-verify run --port onnx --json onnx.json          # in an environment that has it
    python scripts/field_report.py *.json --out docs/field-report.md

Takes the JSON reports of any number of runs, which may come from environments that exclude each
other (two versions of transformers), and says nothing that is not in them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HEAD = """\
# Field report

What `gpt-verify run` found in each port on the default checkpoint ({parameters:,} parameters).
Written by `scripts/field_report.py` from the JSON reports of the runs; nothing here was written by
hand.

<!-- figures: {made} -->

| port | with | verdict | checks | floors | tied by value | by storage | by gradient | precision |
|---|---|---|--:|--:|---|---|---|---|
"""
#: Packages that are named beside a port, where the report's environment has them.
_OF = {
    "openai-tf": ("tensorflow", "tensorflow-cpu"),
    "keras-hub": ("keras-hub", "tensorflow"),
    "onnx": ("onnxruntime", "torch"),
    "ctranslate2": ("ctranslate2",),
    "transformer-lens": ("transformer-lens", "transformers"),
    "transformer-lens-processed": ("transformer-lens", "transformers"),
}


def page(reports: list[dict[str, Any]]) -> str:
    head = {"parameters": reports[0]["checkpoint"]["parameters"], "made": _made_with(reports)}
    lines = [HEAD.format(**head)]
    remarks = []
    for report in reports:
        for port in report["ports"]:
            lines.append(_row(port, report["environment"]) + "\n")
            remarks += [f"- **{port['name']}**: {remark}\n" for remark in port["remarks"]]
            remarks += [
                f"- **{port['name']}**: {waiver['law']} is waived: {waiver['reason']}\n"
                for waiver in port["waivers"]
            ]
    lines.append(
        "\n*not examined* means that the port does not show what is needed. *floors* is the error "
        "of the logits in units of what rounding in the port's precision does to the reference on "
        "the same input; of a port whose logits are correct up to a constant at each position it "
        "counts that constant.\n"
    )
    if remarks:
        lines += ["\n", *remarks]
    return "".join(lines)


def _made_with(reports: list[dict[str, Any]]) -> str:
    """The laws that judged all of them, and the oldest numerics (``scripts/figures.py``)."""
    made = [report["environment"].get("made_with") for report in reports]
    if not all(made):
        return "{}"
    laws = set.intersection(*(set(each["laws"]) for each in made))
    return json.dumps({"laws": sorted(laws), "numerics": min(each["numerics"] for each in made)})


def _row(port: dict[str, Any], environment: dict[str, Any]) -> str:
    checks = port["checks"]
    passed = sum(check["status"] == "passed" for check in checks)
    floors = port["logits_floors"]
    cells = [
        Path(port["name"]).name if "=" in port["name"] else port["name"],
        _versions(port["name"], environment),
        port["verdict"],
        f"{passed} of {len(checks)}",
        f"{floors:.3g}" if isinstance(floors, float) else "–",
        *(_status(checks, f"tying.{how}") for how in ("value", "storage", "gradient")),
        _status(checks, "precision", passed=port["dtype"]),
    ]
    return "| " + " | ".join(cells) + " |"


def _versions(name: str, environment: dict[str, Any]) -> str:
    packages = environment["versions"]
    wanted = _OF.get(name, ("transformers", "torch"))
    return ", ".join(f"{p} {packages[p]}" for p in wanted if packages.get(p)) or "–"


def _status(checks: list[dict[str, Any]], law: str, passed: str = "yes") -> str:
    found = {check["status"] for check in checks if check["id"] == law}
    if "failed" in found:
        return "no"
    return passed if "passed" in found else "not examined"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="+", type=Path, help="of gpt-verify run --json")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.write_text(page([json.loads(path.read_text()) for path in args.reports]))


if __name__ == "__main__":
    main()
