"""Quantizers with a codebook: how each kind searches, looks up, and is trained.

A scheme maps vectors (N, W) of the projected space to codes (N, Q) over plain codebooks
(Q, K, d_code), and back; W = groups · d_code. Code q quantizes what the codes before it left of
group q mod groups, so the first codes of a grouped residual quantizer are the coarse ones of every
group. All but IBQ are trained by vector-quantize-pytorch, which is imported when training begins.

Papers: l2-normalised codes (ViT-VQGAN, 2110.04627), EMA (VQ-VAE, 1711.00937), residual
(SoundStream, 2107.03312), grouped residual (HiFi-Codec, 2305.02765), SimVQ (2411.02038), IBQ
(2412.02692). Knows nothing of media, ids, projections or training loops.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from polyglyph.kernels.nearest_code import nearest_code, residual_codes

if TYPE_CHECKING:
    from polyglyph.tokenizers.quantize import QuantizerConfig

# Of the logits in IBQ's entropy (the paper's; its weight there is 0.05).
_ENTROPY_TEMPERATURE = 0.01
# A point so far out that its nearest code is the one with the largest inner product: |c|²/2 is
# then below the rounding of x·c in fp32.
_FAR = 1e9


class Scheme(ABC):
    """One kind of quantizer; this base is the Euclidean search over (residual, grouped) books."""

    saved = True  # the codebook is a part of the saved codec

    def __init__(self, config: QuantizerConfig) -> None:
        self.config = config
        self.groups = config.groups
        self.width = self.groups * config.d_code  # W
        self.commitment = config.commitment  # of a quantizer without learner

    def start(self) -> Tensor:
        """Codebooks (Q, K, d_code) to begin with."""
        c = self.config
        shape = (c.n_codebooks, c.codebook_size, c.d_code)
        return self.normed(torch.randn(shape) / math.sqrt(shape[-1]))

    def normed(self, x: Tensor) -> Tensor:
        """What the codes stand for, differentiable: (…, W), (…, d_code) of codes."""
        return x

    def search(self, x: Tensor, codebook: Tensor, n_codebooks: int) -> Tensor:
        """(N, W) → the first n_codebooks codes (N, n_codebooks): exact, ties to the lowest."""
        codes = x.new_empty((len(x), n_codebooks), dtype=torch.int64)
        for group, part in enumerate(x.chunk(self.groups, dim=-1)[:n_codebooks]):
            books = codebook[group : n_codebooks : self.groups]
            codes[:, group :: self.groups] = residual_codes(part, books)[0]
        return codes

    def lookup(self, codes: Tensor, codebook: Tensor) -> Tensor:
        """Codes (…, Q' ≤ Q) → (…, W). A code of -1, left out by dropout, adds nothing."""
        found = [_rows(book, codes[..., q]) for q, book in enumerate(codebook[: codes.shape[-1]])]
        found += [torch.zeros_like(found[0])] * (self.groups - len(found))
        sums = [torch.stack(found[g :: self.groups]).sum(0) for g in range(self.groups)]
        return sums[0] if self.groups == 1 else torch.cat(sums, dim=-1)

    # Training -------------------------------------------------------------------------------

    @abstractmethod
    def learner(self, codebook: Tensor) -> nn.Module:
        """What trains the codebooks."""

    def learn(self, learner: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One training forward, x (B, N, W) → quantized (B, N, W), codes (B, N, Q), loss."""
        quantized, codes, *losses = learner(x)
        loss = losses[0].sum() if losses else x.new_zeros(())
        return quantized, codes.reshape(*x.shape[:2], -1).long(), loss

    def learned(self, learner: nn.Module) -> Tensor | None:
        """The learner's codebooks (Q, K, d_code); None where nothing is learned."""
        return None

    def hand_over(self, learner: nn.Module, codebook: Tensor) -> None:
        """Give the learner our codebooks to go on from."""
        assert not self.saved, "what is learned is handed over"


def _rows(book: Tensor, codes: Tensor) -> Tensor:
    return book[codes.clamp_min(0)].masked_fill((codes < 0)[..., None], 0)


class EmaScheme(Scheme):
    """Codebooks that follow the running means of their vectors: "ema", "rvq" and "grouped".

    A code whose running count falls below `threshold_ema_dead_code` begins anew at a vector of the
    batch, with its running sum and count (EnCodec's lineage resets neither, which undoes it).
    """

    def _common(self) -> dict[str, Any]:
        c = self.config
        return {
            "dim": self.width,
            "codebook_size": c.codebook_size,
            "decay": c.decay,
            "commitment_weight": c.commitment,
            "threshold_ema_dead_code": c.threshold_ema_dead_code,
            "rotation_trick": c.rotation_trick,
            "kmeans_init": c.kmeans_init,
            # Said, not left to the library: it asks once per process and remembers the answer.
            "sync_codebook": n_processes() > 1,
        }

    def learner(self, codebook: Tensor) -> nn.Module:
        from vector_quantize_pytorch import VectorQuantize

        return self.made(VectorQuantize(use_cosine_sim=False, **self._common()))

    def layers(self, learner: Any) -> list[Any]:
        """The library's one-codebook quantizers in the order of our codebooks."""
        return [learner]

    def made(self, learner: nn.Module) -> nn.Module:
        """The learner, its dead codes begun anew where the config wants it."""
        if self.config.restart == "far":
            for layer in self.layers(learner):
                layer._codebook.replace_sample_fn = partial(_take_far, layer._codebook)
        return learner

    def learned(self, learner: nn.Module) -> Tensor | None:
        return torch.stack([layer._codebook.embed[0] for layer in self.layers(learner)])

    def draw_dropout(self, learners: Sequence[Any], x: Tensor) -> None:
        """Whether residual learners leave codebooks out in this step: `dropout_share` of all."""
        c = self.config
        if c.quantize_dropout and c.dropout_share < 1:
            draw = of_process_0(torch.rand(1, device=x.device))  # else they would wait forever
            for learner in learners:
                learner.quantize_dropout = bool(draw < c.dropout_share)

    def hand_over(self, learner: nn.Module, codebook: Tensor) -> None:
        """Each code gets the statistics of one vector."""
        for layer, book in zip(self.layers(learner), codebook, strict=True):
            state = layer._codebook
            state.embed.copy_(book[None])
            state.embed_avg.copy_(book[None])
            state.cluster_size.fill_(1.0)
            state.initted.fill_(True)


class CosineScheme(EmaScheme):
    """ "vq": both sides on the unit sphere."""

    def normed(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)

    def search(self, x: Tensor, codebook: Tensor, n_codebooks: int) -> Tensor:
        return nearest_code(x, codebook[0], metric="cosine")[:, None]

    def learner(self, codebook: Tensor) -> nn.Module:
        from vector_quantize_pytorch import VectorQuantize

        return self.made(VectorQuantize(use_cosine_sim=True, **self._common()))


class ResidualScheme(EmaScheme):
    """ "rvq": each codebook quantizes what the ones before it left."""

    def learner(self, codebook: Tensor) -> nn.Module:
        from vector_quantize_pytorch import ResidualVQ

        c = self.config
        learner = ResidualVQ(
            num_quantizers=c.n_codebooks, quantize_dropout=c.quantize_dropout, **self._common()
        )
        return self.made(learner)

    def learn(self, learner: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.draw_dropout([learner], x)
        return super().learn(learner, x)

    def layers(self, learner: Any) -> list[Any]:
        return list(learner.layers)


class GroupedScheme(EmaScheme):
    """ "grouped": n_groups parts of the vector, each with its own (residual) codebooks."""

    def learner(self, codebook: Tensor) -> nn.Module:
        from vector_quantize_pytorch import GroupedResidualVQ

        c = self.config
        learner = GroupedResidualVQ(
            groups=self.groups,
            num_quantizers=c.n_codebooks // self.groups,
            quantize_dropout=c.quantize_dropout,
            **self._common(),
        )
        return self.made(learner)

    def layers(self, learner: Any) -> list[Any]:
        depth = self.config.n_codebooks // self.groups
        return [rvq.layers[level] for level in range(depth) for rvq in learner.rvqs]

    def learn(self, learner: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.draw_dropout(learner.rvqs, x)
        quantized, codes, losses = learner(x)  # codes (groups, B, N, depth)
        codes = codes.permute(1, 2, 3, 0).flatten(2)  # (B, N, Q), coarse first
        return quantized, codes, losses.sum()


class SimScheme(Scheme):
    """ "simvq": one linear map moves a frozen random codebook as a whole.

    The library restarts no dead codes here; ours moves the frozen vector of a dead code so that
    the map takes it to a vector of the batch.
    """

    def learner(self, codebook: Tensor) -> nn.Module:
        from vector_quantize_pytorch import SimVQ

        c = self.config
        learner = SimVQ(
            dim=self.width,
            codebook_size=c.codebook_size,
            rotation_trick=c.rotation_trick,
            input_to_quantize_commit_loss_weight=c.commitment,
            commitment_weight=1.0,
        )
        learner.register_buffer("cluster_size", torch.ones(c.codebook_size))
        return learner

    def learn(self, learner: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dead, vectors = restart(learner.cluster_size, x, self.config, learner.codebook.detach())
        if len(dead):
            weight = learner.code_transform.weight.detach()
            frozen = torch.linalg.lstsq(weight, vectors.T).solution.T.contiguous()
            learner.frozen_codebook[dead] = of_process_0(frozen)  # solved, it may round otherwise
        out = super().learn(learner, x)
        tally(learner.cluster_size, out[1], self.config)
        return out

    def learned(self, learner: Any) -> Tensor | None:
        return learner.codebook.detach()[None]

    def hand_over(self, learner: Any, codebook: Tensor) -> None:
        learner.frozen_codebook.copy_(codebook[0])
        learner.code_transform.weight.copy_(torch.eye(self.width))


class IndexScheme(Scheme):
    """ "ibq": the code with the largest inner product, found and learned through a softmax."""

    def search(self, x: Tensor, codebook: Tensor, n_codebooks: int) -> Tensor:
        reach = _FAR * codebook[0].norm(dim=-1).max()
        return nearest_code(F.normalize(x.float(), dim=-1) * reach, codebook[0])[:, None]

    def learner(self, codebook: Tensor) -> nn.Module:
        return IndexBackpropagation(codebook[0], self.config)

    def learn(self, learner: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dead, vectors = restart(learner.cluster_size, x, self.config)
        if len(dead):
            with torch.no_grad():
                # Long enough to win its own vector: an inner product is won by the outermost codes.
                longest = (vectors @ learner.embedding.t()).amax(-1) / vectors.square().sum(-1)
                learner.embedding[dead] = vectors * (1.01 * longest).clamp_min(1)[:, None]
        out = super().learn(learner, x)
        tally(learner.cluster_size, out[1], self.config)
        return out

    def learned(self, learner: Any) -> Tensor | None:
        return learner.embedding.detach()[None]

    def hand_over(self, learner: Any, codebook: Tensor) -> None:
        learner.embedding.copy_(codebook[0])


class IndexBackpropagation(nn.Module):
    """Index backpropagation quantization (2412.02692): gradients reach every code.

    forward: (B, N, D) → quantized (B, N, D), codes (B, N), loss. The one-hot choice passes its
    gradient to the softmax over all codes; this costs N × K memory while training.
    """

    def __init__(self, codebook: Tensor, config: QuantizerConfig) -> None:
        super().__init__()
        self.commitment, self.entropy_weight = config.commitment, config.entropy_weight
        self.embedding = nn.Parameter(codebook.clone())
        self.register_buffer("cluster_size", torch.ones(len(codebook)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = x @ self.embedding.t()  # (B, N, K)
        codes = logits.argmax(dim=-1)
        chosen = self.embedding[codes]
        # The mix has the value 0 and the softmax's gradient; the codes' own comes with `chosen`.
        mix = logits.softmax(dim=-1) @ self.embedding.detach()
        quantized = chosen + (mix - mix.detach())
        loss = F.mse_loss(quantized, x) + F.mse_loss(x, chosen.detach())
        loss = loss + self.commitment * F.mse_loss(chosen, x.detach())
        if self.entropy_weight:
            loss = loss + self.entropy_weight * _entropy_loss(logits / _ENTROPY_TEMPERATURE)
        return quantized, codes, loss


def _entropy_loss(logits: Tensor) -> Tensor:
    """Entropy of the choices minus that of their mean: sure for each vector, even over all."""
    log_p = logits.flatten(0, -2).log_softmax(dim=-1)
    each = -(log_p.exp() * log_p).sum(-1).mean()
    mean = mean_of_processes(log_p.exp().mean(0))
    return each + (mean * (mean + 1e-5).log()).sum()


# Several processes -------------------------------------------------------------------------------


def n_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def of_process_0(x: Tensor) -> Tensor:
    """In place: what process 0 has; all bring one shape."""
    if n_processes() > 1:
        dist.broadcast(x, src=0)
    return x


def mean_of_processes(local: Tensor) -> Tensor:
    """The mean over all processes; the gradient is the local one, which DDP averages."""
    if n_processes() == 1:
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    return local + (total / n_processes() - local.detach())


@torch.no_grad()
def tally(count: Tensor, codes: Tensor, config: QuantizerConfig) -> None:
    """Updates the running count (K,) in place by the codes of all processes."""
    found = torch.bincount(codes.flatten(), minlength=len(count)).to(count)
    if n_processes() > 1:
        dist.all_reduce(found)
    count.lerp_(found, 1 - config.decay)


@torch.no_grad()
def restart(
    count: Tensor, x: Tensor, config: QuantizerConfig, book: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The dead codes (n,) and the vectors (n, D) out of x (…, D) at which they begin anew.

    book (K, D): the codes that "far" is far from. The dead ones' count is set to the threshold. At
    most as many as there are vectors, so that no two codes begin at one; on several processes all
    take those of process 0.
    """
    dead = (count < config.threshold_ema_dead_code).nonzero()[:, 0]
    vectors = x.detach().reshape(-1, x.shape[-1])
    if not len(dead):  # the same on all processes, as is the count
        return dead, vectors[:0]
    n = torch.tensor(min(len(dead), len(vectors)), device=x.device)
    if n_processes() > 1:
        dist.all_reduce(n, dist.ReduceOp.MIN)
    dead = dead[torch.randperm(len(dead), device=x.device)[: int(n)]]
    if config.restart == "far":
        assert book is not None
        vectors = far_vectors(vectors, book, int(n))
    else:
        vectors = vectors[torch.randperm(len(vectors), device=x.device)[: int(n)]]
    dead, vectors = of_process_0(dead), of_process_0(vectors)
    count[dead] = config.threshold_ema_dead_code
    return dead, vectors


@torch.no_grad()
def far_vectors(x: Tensor, book: Tensor, n: int) -> Tensor:
    """n vectors out of x (N, D), one after the other, each with a chance that grows with its
    squared distance to the codes (K, D) and to those taken before it (k-means++, Arthur 2007)."""
    distance = x.new_full((len(x),), 1.0)
    if len(book):
        _, distance = nearest_code(x, book, distances=True)
    taken = []
    for _ in range(n):
        taken.append(torch.multinomial(distance + 1e-12, 1))
        distance = torch.minimum(distance, (x - x[taken[-1]]).square().sum(-1))
    return x[torch.cat(taken)]


def _take_far(codebook: Any, samples: Tensor, n: int) -> Tensor:
    """What the library calls for its dead codes: (1, N, D) → (1, n, D)."""
    vectors = samples[0].float()
    book = codebook.embed[0][codebook.cluster_size[0] >= codebook.threshold_ema_dead_code]
    return of_process_0(far_vectors(vectors, book, n))[None]
