"""The mean of tensors over replicas, in few bytes and with every byte counted.

    fp32      bucket -> all-reduce in the tensors' own dtype -> / W
    others    bucket -> + residual -> encode -> all-to-all (chunk w goes to rank w)
                     -> decode, add up in fp32 or more, in the order of ranks, / W
                     -> encode -> all-gather -> decode: bitwise the same on all ranks

Numbers of few bits cannot be added up on the way as an all-reduce does: every rank owns a chunk
and adds it up whole. That moves 2 (W-1)/W of the encoded bytes, as a ring all-reduce does.

Error feedback (Seide et al. 2014; Karimireddy et al., arXiv:1901.09847): what rounding withheld is
added to what is sent next. Each rank keeps the error of its own encoding; the owner of a chunk
also keeps that of the mean's, times W, as its residual counts once in W. With residuals r_t,

    applied_t = mean(true_t) + mean(r_t) - mean(r_t+1)

so that over rounds the sum of what was applied differs from the true one by one residual, not by
one residual a round.
"""

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor

from llmtrain.distributed.shards import to_local
from llmtrain.sync.bucket import Bucket, Segment, cut_into_chunks, make_buckets
from llmtrain.sync.codec import build_codec


class Reducer:
    """Means over one process group. Ranks call it alike: equal names, shapes, dtypes and order."""

    sent_bytes: int
    """Bytes this rank has sent so far: of all-reduces by the ring's formula 2 (W-1)/W N (Patarasuk
    and Yuan 2009), of the coded ways what was given to all-to-all and all-gather for others."""
    collectives: int
    """Collectives issued so far."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        *,
        wire_dtype: str = "fp32",
        block_size: int = 256,
        error_feedback: bool = True,
        bucket_bytes: int = 32 * 2**20,
    ) -> None:
        """Take means over `group`.

        Args:
            group: The replicas.
            wire_dtype: As in `codec.build_codec`; fp32 sends each tensor in its own dtype.
            block_size: Elements that share a scale in int8 and int4.
            error_feedback: Whether int8 and int4 send next what they withheld. 16 bits go without:
                their error is that of bf16 training, and residuals cost the memory of the tensors.
            bucket_bytes: Bytes of tensors that share a collective.

        Raises:
            ValueError: when `wire_dtype` or `block_size` is none.
        """
        self.group = group
        self.world_size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self.wire_dtype = wire_dtype
        self.block_size = block_size
        self.codec = build_codec(wire_dtype, block_size)
        self.feeds_back = error_feedback and self.codec.bits <= 8
        self.bucket_bytes = bucket_bytes
        self.sent_bytes = 0
        self.collectives = 0
        self._residuals: dict[str, Tensor] = {}
        self._in_flight = 0

    def mean_(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace every tensor by its mean over the group. Collective over the group.

        Args:
            tensors: Floating-point tensors by name, plain or DTensor (then the local shards count:
                the group's ranks hold the same ones), of any shape and strides.

        Raises:
            TypeError: when a tensor is not floating-point.
            ValueError: when a residual has another shape than its tensor.
        """
        self.start(tensors).wait()

    @torch.no_grad()
    def start(self, tensors: Mapping[str, Tensor]) -> "PendingMean":
        """Begin `mean_` and return while the numbers travel. Collective over the group.

        The values are read before this returns, so the tensors may change until `wait` writes the
        means into them. Several may be under way; ranks wait for them in the same order.
        """
        local = {name: to_local(tensor).detach() for name, tensor in tensors.items()}
        for name, tensor in local.items():
            if not tensor.is_floating_point():
                raise TypeError(f"{name} is {tensor.dtype}; only floating-point tensors have means")
        if self.world_size == 1:
            return PendingMean(self, [])
        kind = _Summed if self.wire_dtype == "fp32" else _Coded
        return PendingMean(self, [kind(self, b) for b in make_buckets(local, self.bucket_bytes)])

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the residuals by name of tensor, shaped as the local shards.

        They differ between ranks; a run that loses them loses one rounding error. Of dtype fp32, or
        fp64 for fp64 tensors; empty before the first round and without error feedback.

        Raises:
            RuntimeError: when a mean is under way, whose last errors are not known yet.
        """
        if self._in_flight:
            raise RuntimeError("wait() for the means under way before saving the residuals")
        return {name: residual.clone() for name, residual in self._residuals.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave on this rank."""
        self._residuals = {name: residual.clone() for name, residual in state.items()}

    def residual(self, name: str, like: Tensor) -> Tensor:
        """Return the residual of the tensor `name`, flat, to be changed in place.

        Raises:
            ValueError: when it has another shape than `like`.
        """
        if name not in self._residuals:
            self._residuals[name] = torch.zeros(like.shape, dtype=_exact(like), device=like.device)
        residual = self._residuals[name]
        if residual.shape != like.shape:
            raise ValueError(
                f"the residual of {name} has shape {tuple(residual.shape)}, the tensor "
                f"{tuple(like.shape)}: it was saved by another layout."
            )
        return residual.view(-1)


class PendingMean:
    """Means under way."""

    def __init__(self, reducer: Reducer, buckets: "Sequence[_Summed | _Coded]") -> None:
        """Hold what `Reducer.start` began."""
        self._reducer = reducer
        self._buckets = buckets
        reducer._in_flight += bool(buckets)

    @torch.no_grad()
    def wait(self) -> None:
        """Write the means into the tensors given to `start`. Collective over the group, once.

        A second call does nothing.
        """
        # All second halves are issued before the first is waited for.
        for bucket in self._buckets:
            bucket.send_means()
        for bucket in self._buckets:
            bucket.write()
        self._reducer._in_flight -= bool(self._buckets)
        self._buckets = []


class _Summed:
    """A bucket that the group adds up on the way."""

    def __init__(self, reducer: Reducer, bucket: Bucket) -> None:
        """Begin."""
        self._reducer = reducer
        self._tensors = list(bucket.values())
        self._flat = torch.cat([tensor.reshape(-1) for tensor in self._tensors])
        self._work = None
        if self._flat.numel():
            self._work = dist.all_reduce(self._flat, group=reducer.group, async_op=True)
            size = reducer.world_size
            reducer.sent_bytes += 2 * (size - 1) * self._flat.nbytes // size
            reducer.collectives += 1

    def send_means(self) -> None:
        """The sums travel already."""

    def write(self) -> None:
        """Wait, divide, and write into the tensors."""
        if self._work is not None:
            self._work.wait()
        self._flat.div_(self._reducer.world_size)
        parts = self._flat.split([tensor.numel() for tensor in self._tensors])
        for tensor, part in zip(self._tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


class _Coded:
    """A bucket that travels encoded; see the head of the file."""

    def __init__(self, reducer: Reducer, bucket: Bucket) -> None:
        """Encode, and begin the all-to-all."""
        self._reducer = reducer
        self._names, self._tensors = list(bucket), list(bucket.values())
        self._dtype = self._tensors[0].dtype
        self._chunks = cut_into_chunks(
            [tensor.numel() for tensor in self._tensors],
            self._dtype,
            reducer.world_size,
            reducer.codec,
            reducer.block_size,
        )
        self._chunk_bytes = [sum(map(self._segment_bytes, chunk)) for chunk in self._chunks]
        if not any(self._chunk_bytes):
            return
        own_bytes = self._chunk_bytes[reducer.rank]
        self._sent = self._encode_own()
        self._received = self._sent.new_empty(own_bytes * reducer.world_size)
        self._work = dist.all_to_all_single(
            self._received,
            self._sent,
            [own_bytes] * reducer.world_size,
            self._chunk_bytes,
            group=reducer.group,
            async_op=True,
        )
        reducer.sent_bytes += sum(self._chunk_bytes) - own_bytes
        reducer.collectives += 1

    def send_means(self) -> None:
        """Add up the own chunk and begin the all-gather of its mean."""
        if not any(self._chunk_bytes):
            return
        reducer = self._reducer
        self._work.wait()
        # All-gather wants equal parts: the shorter chunks are padded, by two blocks or so.
        part_bytes = max(self._chunk_bytes)
        own = self._received.new_zeros(part_bytes)
        own[: self._chunk_bytes[reducer.rank]] = self._encode_mean()
        self._sent, self._received = own, own.new_empty(part_bytes * reducer.world_size)
        self._work = dist.all_gather_into_tensor(
            self._received, self._sent, group=reducer.group, async_op=True
        )
        reducer.sent_bytes += part_bytes * (reducer.world_size - 1)
        reducer.collectives += 1

    def write(self) -> None:
        """Wait, decode, and write into the tensors."""
        if not any(self._chunk_bytes):
            return
        self._work.wait()
        parts: list[list[Tensor]] = [[] for _ in self._tensors]
        by_rank = self._received.view(self._reducer.world_size, -1)
        for chunk, encoded in zip(self._chunks, by_rank, strict=True):
            for segment, mean in self._decode(encoded, chunk, self._dtype):
                parts[segment.tensor].append(mean)
        for tensor, means in zip(self._tensors, parts, strict=True):
            if means:
                tensor.copy_(torch.cat(means).view(tensor.shape))

    def _encode_own(self) -> Tensor:
        """Return what this rank contributes, by chunks, and keep what rounding withholds."""
        codec, exact = self._reducer.codec, _exact(self._tensors[0])
        flat = [tensor.reshape(-1) for tensor in self._tensors]
        encoded = []
        for segment in chain.from_iterable(self._chunks):
            values = flat[segment.tensor][segment.start : segment.stop].to(exact)
            residual = self._residual(segment)
            if residual is not None:
                values = values + residual
            encoded.append(codec.encode(values))
            if residual is not None:
                sent = codec.decode(encoded[-1], segment.numel, exact)
                residual.copy_(_finite(values - sent))
        return torch.cat(encoded)

    def _encode_mean(self) -> Tensor:
        """Return the mean of the own chunk, encoded, and keep what rounding withholds of it."""
        reducer, exact = self._reducer, _exact(self._tensors[0])
        own = self._chunks[reducer.rank]
        encoded = [self._received.new_empty(0)]
        by_rank = self._received.view(reducer.world_size, self._chunk_bytes[reducer.rank])
        ranks = [self._decode(part, own, exact) for part in by_rank]
        for i, segment in enumerate(own):
            total = ranks[0][i][1]
            for values in ranks[1:]:
                total += values[i][1]
            mean = total.div_(reducer.world_size)
            encoded.append(reducer.codec.encode(mean))
            residual = self._residual(segment)
            if residual is not None:
                # As written: rounding to the tensors' own dtype is an error like the other.
                applied = reducer.codec.decode(encoded[-1], segment.numel, self._dtype).to(exact)
                residual += _finite(mean - applied) * reducer.world_size
        return torch.cat(encoded)

    def _decode(
        self, encoded: Tensor, segments: list[Segment], dtype: torch.dtype
    ) -> list[tuple[Segment, Tensor]]:
        """Return the segments of a chunk and their values; bytes after the last are padding."""
        values, start = [], 0
        for segment in segments:
            stop = start + self._segment_bytes(segment)
            part = self._reducer.codec.decode(encoded[start:stop], segment.numel, dtype)
            values.append((segment, part))
            start = stop
        return values

    def _segment_bytes(self, segment: Segment) -> int:
        return self._reducer.codec.encoded_bytes(segment.numel, self._dtype)

    def _residual(self, segment: Segment) -> Tensor | None:
        """Return the residual of a segment, to be changed in place; None without error feedback."""
        if not self._reducer.feeds_back:
            return None
        name, tensor = self._names[segment.tensor], self._tensors[segment.tensor]
        return self._reducer.residual(name, tensor)[segment.start : segment.stop]


def _exact(tensor: Tensor) -> torch.dtype:
    """Return the dtype to add up in: fp32, or fp64 where the tensors are."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _finite(error: Tensor) -> Tensor:
    """Return `error` without the blocks that were not finite: they must not poison later rounds."""
    return error.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
