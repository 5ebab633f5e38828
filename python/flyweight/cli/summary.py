"""What a run came to: the facts for machines and the tables for people."""

from __future__ import annotations

from typing import Any

from flyweight.cli.output import table
from flyweight.errors import DataError
from flyweight.stages import STAGES, Run
from flyweight.submission.record import describe_score
from flyweight.train.config import CONTAMINATED

__all__ = ["check_audit", "run_facts", "run_text"]

_BYTE_CLASSES = ("codes", "scales", "float", "tables", "config", "metadata", "directory")
_SCORE_FACTS = (
    *("coverage", "chunks", "adapted_chunks", "plain_chunks"),
    *("seconds", "was_resumed", "phases", "recompilations", "deadline"),
)


def run_facts(run: Run) -> dict[str, Any]:
    """Stable keys of a run: ``bpb``, ``bytes``, ``audit``, ``seconds`` by stage, ``stages``."""
    stages = run.manifest["stages"]
    facts: dict[str, Any] = {
        "out": str(run.folder),
        "recipe": run.recipe.name,
        "seed": run.seed,
        "contaminated": run.recipe.is_contaminated,
        "stages": [name for name in STAGES if name in stages],
        "seconds": {name: stages[name]["seconds"] for name in STAGES if name in stages},
    }
    if "train" in stages:
        facts["train"] = stages["train"]["facts"]
    if "code" in stages:
        code = stages["code"]["facts"]
        facts["bytes"] = {"model": code["model_bytes"], "by_class": code["by_class"]}
    if "score" in stages:
        score = stages["score"]["facts"]
        for column in ("bpb", "contaminated_bpb"):  # never one for both
            facts[column] = score.get(column)
        facts["scores"] = [
            {"name": name, **{key: result[key] for key in _SCORE_FACTS}}
            for name, result in score["results"].items()
        ]
    if "bundle" in stages:
        bundle = stages["bundle"]["facts"]
        facts["bytes"] |= {"code": bundle["code_bytes"], "total": bundle["total_bytes"]}
    if "audit" in stages:
        facts["audit"] = stages["audit"]["facts"]
    return facts


def check_audit(run: Run) -> None:
    """Fail a verb whose run did not pass its audit."""
    audit = run.manifest["stages"].get("audit", {}).get("facts", {"passed": True, "items": []})
    if not audit["passed"]:
        failed = [item["name"] for item in audit["items"] if item["status"] == "FAIL"]
        raise DataError(f"{run.folder}: the audit failed: {', '.join(failed)}")


def run_text(run: Run) -> str:
    """Tables of what is done: stages, bits per byte, bytes by class, audit."""
    stages = run.manifest["stages"]
    blocks = [
        table(
            ("stage", "seconds"),
            [(name, f"{stages[name]['seconds']:.1f}") for name in STAGES if name in stages],
        )
    ]
    if "score" in stages:
        results = stages["score"]["facts"]["results"]
        blocks.append(_bpb_table(results, contaminated=run.recipe.is_contaminated))
    if "code" in stages:
        blocks.append(_bytes_table(run_facts(run)["bytes"], run.recipe.budget_bytes))
    if "audit" in stages:
        audit = stages["audit"]["facts"]
        rows = [(item["status"], item["name"], item["evidence"]) for item in audit["items"]]
        blocks.append(f"{table(('audit', 'item', 'evidence'), rows)}\n\naudit {audit['verdict']}")
    return "\n\n".join(blocks)


def _bpb_table(results: dict[str, dict[str, Any]], *, contaminated: bool) -> str:
    rows = [
        (
            describe_score(name, r),
            r["bpb"],
            f"{r['bits']:,.1f}",
            r["bytes"],
            r["targets"],
            f"{r['seconds']:.1f}",
        )
        for name, r in results.items()
    ]
    column = f"bits per byte ({CONTAMINATED})" if contaminated else "bits per byte"
    return table(("scored", column, "bits", "/ bytes", "targets", "seconds"), rows)


def _bytes_table(sizes: dict[str, Any], budget: int) -> str:
    by_class = sizes["by_class"]  # in no order once they were written to the manifest
    rows = [(f"model: {name}", by_class[name]) for name in _BYTE_CLASSES if by_class[name]]
    rows.append(("model, all", sizes["model"]))
    if "code" in sizes:
        rows += [("code (train_gpt.py)", sizes["code"]), ("total", sizes["total"])]
        rows.append((f"left of {budget:,}", budget - sizes["total"]))
    return table(("where the bytes are", "bytes"), rows)
