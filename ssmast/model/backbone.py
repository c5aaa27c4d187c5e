"""What every encoder of ours does: spectrograms of any size in, a grid of tokens out."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ssmast.model.grid import Grid
from ssmast.model.patch import PatchDrop, draw_patch_drop
from ssmast.model.pool import POOL_MODES
from ssmast.model.timm_interface import State, TimmInterface, Tokens

Pair = tuple[int, int]
Lengths = Sequence[int] | Tensor | None


class Backbone(TimmInterface):
    """An encoder of log-mel spectrograms, whatever its family: MAST or AST.

    Attributes:
        input_size: mel bins x frames of the training input.
        in_chans: input channels.
        num_features: channels of the last tokens.
        num_class_tokens: tokens beside the grid, which `Grid.class_tokens` then holds.
    """

    in_chans: int
    num_features: int
    num_class_tokens: int = 0

    # -- the way of the tensor -------------------------------------------------------------------

    def forward(
        self, log_mel: Tensor, *, lengths: Lengths = None, patch_drop: PatchDrop | None = None
    ) -> Tensor:
        """(B, C, F, T) -> logits (B, num_classes), or the pooled embedding without a head."""
        x, grid, mask = self.encode(log_mel, lengths=lengths, patch_drop=patch_drop)
        return self.forward_head(x, grid=grid, mask=mask)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, F, T) -> normed tokens (B, N, D), class tokens first where there are any."""
        state = self.embed_patches(x)
        for level in self.levels:
            state = self.advance(level, state)
        return self.norm(state.x)

    def encode(
        self, log_mel: Tensor, *, lengths: Lengths = None, patch_drop: PatchDrop | None = None
    ) -> Tokens:
        """Tokens of a batch of spectrograms.

        Args:
            log_mel: (B, C, F, T).
            lengths: frames of each clip, where clips were padded to one width; a clip gets the
                tokens that it would get alone.
            patch_drop: patches to leave out, from `draw_patch_drop`.

        Returns:
            tokens (B, N, D) of the grid after the final norm, their Grid (with the class tokens of
            a model that has them), and a mask bool (B, N), True where a token is valid, or None
            where all are.

        Raises:
            ValueError: for an input smaller than the stem, or lengths or a drop that do not fit.
        """
        state = self.embed_patches(log_mel, lengths, patch_drop)
        for level in self.levels:
            state = self.advance(level, state)
        return self.tokens_of(state, norm=True)

    def encode_blocks(self, log_mel: Tensor, *, lengths: Lengths = None) -> list[Tokens]:
        """What `encode` returns, after every block; the last one is normed, the others are not.

        `stage_ends` gives the indices of the stages' last blocks.
        """
        state = self.embed_patches(log_mel, lengths)
        states: list[State] = []
        for level in self.levels:
            states += self.each_block(level, state)
            state = states[-1]
        return [
            *(self.tokens_of(state) for state in states[:-1]),
            self.tokens_of(states[-1], norm=True),
        ]

    @abstractmethod
    def embed_patches(
        self, log_mel: Tensor, lengths: Lengths = None, patch_drop: PatchDrop | None = None
    ) -> State:
        """Stem tokens, their grid and mask after patch-drop, and what the family needs beside."""
        ...

    def each_block(self, level: nn.Module, state: State) -> Iterator[State]:
        """State after every block of one level."""
        yield self.advance(level, state)

    # -- sizes -----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def stage_ends(self) -> list[int]:
        """Index of each stage's last block in `encode_blocks`."""
        ...

    @property
    @abstractmethod
    def block_channels(self) -> list[int]:
        """Channels of the tokens after every block."""
        ...

    @property
    @abstractmethod
    def time_stride(self) -> int:
        """Frames from one column of the last grid to the next."""
        ...

    @property
    def fewest_frames(self) -> int:
        """Frames that an input needs at least."""
        return max(1, self.patch_embed.kernel[1] - 2 * self.patch_embed.padding[1])

    @property
    @abstractmethod
    def drop_group(self) -> Pair:
        """Rows x columns of stem tokens that structured patch-drop removes together."""
        ...

    def draw_patch_drop(
        self,
        freq_bins: int,
        frames: int,
        *,
        rate: float,
        mode: str,
        batch: int,
        generator: torch.Generator | None = None,
        uniforms: Tensor | None = None,
    ) -> PatchDrop:
        """`draw_patch_drop` for inputs of that size, in groups of this encoder's stride."""
        return draw_patch_drop(
            self.patch_embed.grid(freq_bins, frames),
            rate=rate,
            mode=mode,
            batch=batch,
            group=self.drop_group,
            generator=generator,
            uniforms=uniforms,
        )

    def check_pooling(self, mode: str) -> None:
        """Refuse a mode of `pool_tokens` that does not exist or not for this model.

        Raises:
            ValueError: naming those that do.
        """
        modes = [known for known in POOL_MODES if known != "cls" or self.num_class_tokens]
        if mode not in modes:
            why = " (only ast_* models have class tokens)" if mode == "cls" else ""
            raise ValueError(f"pooling must be one of {', '.join(modes)}, got {mode!r}{why}")

    # -- parts -----------------------------------------------------------------------------------

    def _stem(
        self, log_mel: Tensor, lengths: Lengths
    ) -> tuple[Tensor, Grid, Tensor | None, Tensor | None]:
        """Stem tokens (B, N, D), grid, mask (B, N) and valid columns (B,) of clips with lengths."""
        if log_mel.ndim != 4 or log_mel.shape[1] != self.in_chans:
            raise ValueError(
                f"log_mel must have shape (B, {self.in_chans}, mel bins, frames), "
                f"got {tuple(log_mel.shape)}"
            )
        log_mel = log_mel.to(self.patch_embed.proj.weight.dtype)  # after `encoder.half()`
        if lengths is None:
            return *self.patch_embed(log_mel), None, None
        lengths = self._check_lengths(lengths, log_mel)
        frames = torch.arange(log_mel.shape[-1], device=log_mel.device)
        padded = frames >= lengths[:, None]  # (B, T)
        x, grid = self.patch_embed(log_mel.masked_fill(padded[:, None, None, :], 0.0))
        columns = self.patch_embed.length(1, lengths)  # valid stem columns of each clip
        mask = torch.arange(grid.time, device=x.device) < columns[:, None]
        return x, grid, mask.repeat(1, grid.freq), columns  # (B, t) -> (B, f * t)

    def _check_lengths(self, lengths: Sequence[int] | Tensor, log_mel: Tensor) -> Tensor:
        lengths = torch.as_tensor(lengths)
        shortest = self.fewest_frames
        if lengths.shape != log_mel.shape[:1]:
            raise ValueError(
                f"lengths must be one number for each of {len(log_mel)} clips, "
                f"got shape {tuple(lengths.shape)}"
            )
        # On another device the check would have to wait for it.
        if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(lengths.min()), int(lengths.max())
            if low < shortest or high > log_mel.shape[-1]:
                raise ValueError(
                    f"lengths must lie in {shortest}..{log_mel.shape[-1]} frames, got {low}..{high}"
                )
        return lengths.to(log_mel.device)


def pair(numbers: Sequence[int]) -> Pair:
    """Two numbers as a tuple; JSON knows only lists."""
    freq, time = numbers
    return int(freq), int(time)
