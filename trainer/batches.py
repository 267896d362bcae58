"""Tensors of one forward pass, and the loss of its learnt tokens."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from trainer.chat_tokens import TokenSequence
from trainer.packing import MicroBatch


@dataclass(frozen=True, slots=True)
class Batch:
    """R rows of T tokens, K of which are predicted and learnt."""

    input_ids: Tensor  # [R, T] int64
    position_ids: Tensor | None  # [R, T] int64; packed rows only, beginning anew with each sequence
    attention_mask: Tensor | None  # [R, T] int64; padded rows only
    where: Tensor  # [K] int64: flat places in [R * T] whose hidden state predicts a learnt token
    labels: Tensor  # [K] int64: the tokens they predict
    owners: Tensor  # [K] int64: the sequence each belongs to
    tokens: int  # real ones, padding not counted


def build(
    micro: MicroBatch, sequences: Sequence[TokenSequence], *, packing: bool, pad: int, device: torch.device
) -> Batch:
    """Lay the sequences out as `micro` says.

    Packed rows have no attention mask: a model then takes each fresh position 0 for a border that
    attention does not cross. The padded tail of a packed row goes on with the positions of its last
    sequence: no real token looks ahead, and a row of one sequence stays plainly causal, which is faster.
    """
    shape = (len(micro.rows), micro.width)
    ids = np.full(shape, pad, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    where, labels, owners = [], [], []
    tokens = 0
    for row, numbers in enumerate(micro.rows):
        at = 0
        for number in numbers:
            sequence = sequences[number]
            end = at + sequence.length
            ids[row, at:end] = sequence.ids
            mask[row, at:end] = 1
            positions[row, at:] = np.arange(micro.width - at)
            learnt = sequence.loss[1:].nonzero()[0]
            where.append(learnt + (row * micro.width + at))
            labels.append(sequence.ids[learnt + 1])
            owners.append(np.full(len(learnt), number))
            tokens += sequence.length
            at = end

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64, copy=False)).to(device, non_blocking=True)

    return Batch(
        input_ids=tensor(ids),
        position_ids=tensor(positions) if packing else None,
        attention_mask=None if packing else tensor(mask),
        where=tensor(np.concatenate(where)),
        labels=tensor(np.concatenate(labels)),
        owners=tensor(np.concatenate(owners)),
        tokens=tokens,
    )


class LossHead:
    """Lets a causal LM compute its logits at chosen places only: with large vocabularies most of the cost.

    A hook before the output layer picks the places, so that whatever the model does with its logits
    afterwards (scaling, soft caps) stays the model's own.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._where: Tensor | None = None
        head = model.get_output_embeddings()  # type: ignore[operator]
        if head is not None:
            head.register_forward_pre_hook(self._pick)

    def _pick(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._where is None:
            return None
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._where).unsqueeze(0), *args[1:])

    def logits(self, batch: Batch) -> Tensor:
        """Logits [K, vocabulary] in float32 at the batch's K places."""
        self._where = batch.where
        inputs = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.position_ids is not None:
            inputs["position_ids"] = batch.position_ids
        if batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask
        try:
            found: Tensor = self._model(**inputs).logits
        finally:
            self._where = None
        found = found.reshape(-1, found.shape[-1])
        if len(found) != len(batch.where):  # a model that does not call its output layer as a module
            found = found.index_select(0, batch.where)
        return found.float()

    def losses(self, batch: Batch) -> Tensor:
        """Cross-entropy [K] of the learnt tokens, in nats, float32."""
        return nn.functional.cross_entropy(self.logits(batch), batch.labels, reduction="none")


@torch.no_grad()
def packs_cleanly(model: nn.Module, head: LossHead, device: torch.device) -> bool:
    """Whether this model keeps two samples in one row apart: tried on a dozen tokens, not believed.

    Attention that ignores position ids, recurrent layers and positions counted by the row all fail.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's own takes anything
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        return False
    some = [_probe(range(3, 9)), _probe(range(5, 13))]
    was_training = model.training
    model.eval()
    together = build(MicroBatch(((0, 1),), 14), some, packing=True, pad=0, device=device)
    alone = build(MicroBatch(((0,),), 8), some[1:], packing=True, pad=0, device=device)
    mixed, clean = head.logits(together)[-7:], head.logits(alone)
    model.train(was_training)
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1
    return bool((mixed - clean).abs().max() <= tolerance * clean.std())


def _probe(ids: range) -> TokenSequence:
    return TokenSequence(np.asarray(ids, dtype=np.int32), np.ones(len(ids), dtype=np.bool_))
