"""``README.md`` of a submission, from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flyweight.submission.budget import ByteBudget
from flyweight.submission.record import Record, describe_score
from flyweight.train.config import CONTAMINATED

__all__ = ["markdown_table", "write_readme"]

_WARNING = (
    "The model learned the validation text before it was scored on it, so these scores say nothing "
    "about other text and do not compare with those of legal submissions."
)


def write_readme(record: Record, budget: ByteBudget, *, classes: Mapping[str, int]) -> str:
    """Markdown text: result, scores, bytes, how to run it.

    Parameters
    ----------
    record, budget : of the submission
    classes : bytes by class, ``code`` among them; they sum to the total
    """
    scores = [
        (name, describe_score(name, s), f"{s['bpb']:.8f}", f"{s['bits']:.3f}", f"{s['bytes']:,}",
         f"{s['targets']:,}", f"{s['seconds']:.1f}")
        for name, s in record.scores.items()
    ]  # fmt: skip
    sizes = [
        (name, f"{size:,}", f"{size / budget.total_bytes:.2%}") for name, size in classes.items()
    ]
    column = "contaminated bpb" if record.contaminated else "bpb"
    rules = [(name, "yes" if holds else "no") for name, holds in record.compliance.items()]
    return _TEXT.format(
        record=record,
        budget=budget,
        seed=record.seeds[0],
        warning=f"**{CONTAMINATED}**. {_WARNING}\n\n" if record.contaminated else "",
        kind=f" ({CONTAMINATED})" if record.contaminated else "",
        seed_result=record.seed_results[str(record.seeds[0])],
        scores=markdown_table(
            ("score", "of", column, "bits", "bytes of text", "targets", "seconds"), scores
        ),
        sizes=markdown_table(
            ("class", "bytes", "share"),
            [*sizes, ("total", f"{budget.total_bytes:,}", "100.00%")],
        ),
        rules=markdown_table(("measured", "holds"), rules),
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars and line ends in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


_TEXT = """# {record.name}

{record.blurb}

{warning}**{record.val_bpb:.8f} bits per byte**{kind} ({record.val_protocol}); {budget}.

## Scores

Bits per byte = bits / bytes of text, both summed over the same targets and divided once.

{scores}

## Bytes

{sizes}

`code` is `train_gpt.py` as shipped: plain source, nothing packed. Everything else is `model.fly`.

## Run

    pip install -r requirements.txt
    python train_gpt.py --data FOLDER --out result.json

`FOLDER` holds `fineweb_val_*.bin`. The script decodes `model.fly`, checks that the weights have the
SHA-256 `{record.weights_sha256}`, and scores every target
once. `--protocol plain` or `sliding` gives the other scores. It needs no tokenizer: the bytes of
each token id are in it, for the tokenizer with SHA-256
`{record.tokenizer_sha256}`.

## Measured

Seed {seed}, {record.hardware}, PyTorch {record.pytorch_version}, {record.date}: \
{seed_result[steps]:,} steps in {seed_result[train_seconds]:.1f} s; training data was last read \
after {seed_result[train_data_seconds]:.1f} s; evaluation took {seed_result[eval_seconds]:.1f} s.

{rules}

All numbers come from the run's manifest. `flyweight audit` checks them against these files.
"""
