"""Probes of the model in a bundle; imports torch when it is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyweight.data.facts import DataInfo
from flyweight.data.shards import BOS_ID, read_validation
from flyweight.errors import DataError
from flyweight.evaluate.probes import (
    Predictor,
    Scorer,
    Verdict,
    probe_bos_reset,
    probe_causality,
    probe_normalization,
    probe_permutation,
)
from flyweight.submission.claim import ARTIFACT_FILE
from flyweight.submission.decoder import decode_fly
from flyweight.submission.model_size import check_model_size
from flyweight.submission.subject import Subject
from flyweight.submission.subject import Verdict as Outcome

__all__ = ["MODEL_CHECKS"]

_MOST_TOKENS = 512
"""A row of the model is longer; on a CPU the probes run it some forty times."""
_DOCUMENTS = 4


def _check_probes(subject: Subject) -> Outcome:
    """Conditions 1 and 2 on the decoded model; 3 and 4 are the script's, see `script`."""
    tokens = _sample(subject.data)  # first: whoever gives none wants no model to run
    predict, vocab_size, _ = _load(subject, tokens)
    verdicts = [
        probe_causality(predict, tokens, vocab_size=vocab_size),
        probe_normalization(predict, tokens, vocab_size=vocab_size),
    ]
    return _outcome(verdicts, "C3 C4: by the engines and the ledger of the script, see there")


def _check_documents(subject: Subject) -> Outcome:
    """Scores do not change with later documents, nor, where the model claims it, with earlier."""
    tokens = _sample(subject.data)  # first: whoever gives none wants no model to run
    predict, vocab_size, masks = _load(subject, tokens)
    score = _read_off(predict)
    verdicts = [probe_permutation(score, tokens, bos_id=BOS_ID)]
    note = "BOS reset: not claimed, the model attends across documents"
    if masks:
        verdicts.append(probe_bos_reset(score, tokens, vocab_size=vocab_size, bos_id=BOS_ID))
        note = ""
    return _outcome(verdicts, note)


def _outcome(verdicts: list[Verdict], note: str) -> Outcome:
    passed = all(verdict.passed for verdict in verdicts)
    return ("PASS" if passed else "FAIL"), "; ".join([*map(str, verdicts), *filter(None, [note])])


def _load(subject: Subject, sample: NDArray[Any]) -> tuple[Predictor, int, bool]:
    """The model of a bundle as a predictor, its vocabulary, and whether it masks documents."""
    import torch

    from flyweight.model.config import ModelConfig
    from flyweight.submission.entry import build_model

    tensors, fields = decode_fly(subject.read(ARTIFACT_FILE))
    check_model_size(tensors, fields)
    model, config = build_model(tensors, fields).eval(), ModelConfig.from_fields(fields)
    if sample.max() >= config.vocab_size:
        raise DataError(
            f"{ARTIFACT_FILE}: a model of {config.vocab_size} ids, the data has {sample.max()}"
        )

    def predict(tokens: NDArray[Any]) -> NDArray[Any]:
        with torch.inference_mode():
            logits_BTV = model(torch.from_numpy(tokens[None, :-1].astype(np.int64)))
            rows: NDArray[Any] = logits_BTV[0].float().log_softmax(-1).numpy()
        return rows

    return predict, config.vocab_size, config.document_mask


def _read_off(predict: Predictor) -> Scorer:
    def score(tokens: NDArray[Any]) -> NDArray[Any]:
        rows = predict(tokens)
        return -rows[np.arange(len(rows)), tokens[1:].astype(np.int64)]

    return score


def _sample(data: DataInfo) -> NDArray[np.int64]:
    """The first validation tokens, ``(n,)``, cut into documents that each begin with a BOS."""
    tokens = read_validation(data.folder)[: _MOST_TOKENS + 1].astype(np.int64)
    tokens[:: max(tokens.size // _DOCUMENTS, 1)] = BOS_ID
    return tokens


MODEL_CHECKS: dict[str, Callable[[Subject], Outcome]] = {
    "probes": _check_probes,
    "documents": _check_documents,
}
