"""The solver as two modules: Start makes the first state of a batch, Solver executes one table row per sample.

Samples and rows: a guided sample owns two denoiser rows, an unguided one owns one. Index vectors say which, so
guided and unguided samples, schedulers and step counts mix in one batch. A row's output is gathered, never
multiplied by a mask: 0·NaN from a neighbour would spread. All arithmetic is float32; the cast to the
denoiser's type is the last thing. Does not know how a table is made (export/solver.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.solver import COLUMNS, HISTORY, ROWS

AT = {column: k for k, column in enumerate(COLUMNS)}


class Row:
    """One table row per sample, its columns broadcast over (samples, C, H/8, W/8)."""

    def __init__(self, table: Tensor, row: Tensor) -> None:
        index = row.long().view(-1, 1, 1).expand(-1, 1, table.shape[2])
        self.values = torch.gather(table, 1, index)[:, 0]

    def __call__(self, column: str) -> Tensor:
        return self.values[:, AT[column]].view(-1, 1, 1, 1)

    def noise(self, bank: Tensor) -> Tensor:
        """The draw that this row names out of (samples, draws, C, H/8, W/8)."""
        index = self.values[:, AT["j"]].round().long().view(-1, 1, 1, 1, 1)
        return torch.gather(bank, 1, index.expand(-1, 1, *bank.shape[2:]))[:, 0]

    def known(self, image_latents: Tensor, noise: Tensor) -> Tensor:
        """The image as noisy as the state that this row leaves: u·image_latents + v·noise of draw 0."""
        return self.part("u", image_latents) + self.part("v", noise[:, 0])

    def part(self, column: str, x: Tensor) -> Tensor:
        """A column times x; 0 where the column is, whatever x is: of a sample without an image nothing spreads."""
        factor = self(column)
        return torch.where(factor == 0, torch.zeros_like(x), factor * x)

    def model_input(self, x: Tensor, sample_of_row: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The denoiser's next `sample` (rows, C, H/8, W/8) and `timestep` (rows,)."""
        sample = torch.index_select(self("s") * x, 0, sample_of_row).to(dtype)
        return sample, torch.index_select(self.values[:, AT["t"]], 0, sample_of_row)


class Start(nn.Module):
    """Table row 0: latents = a·image_latents + c·noise[j], an empty history, and the first model input."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, table: Tensor, noise: Tensor, image_latents: Tensor, sample_of_row: Tensor) -> tuple[Tensor, ...]:
        """Returns latents, history, row (all zero rows become 1), sample and timestep."""
        first = torch.zeros_like(table[:, 0, 0], dtype=torch.int32)
        at = Row(table, first)
        latents = at.part("a", image_latents) + at("c") * at.noise(noise)
        history = torch.zeros_like(latents)[:, None].repeat(1, HISTORY, 1, 1, 1)
        return latents, history, first + 1, *at.model_input(latents, sample_of_row, self.dtype)


class Solver(nn.Module):
    """One step of every sample: guidance, the row's update, what the mask keeps, the history, the next model input."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(
        self,
        noise_pred: Tensor,
        latents: Tensor,
        history: Tensor,
        row: Tensor,
        table: Tensor,
        noise: Tensor,
        guidance_scale: Tensor,
        cond_row: Tensor,
        uncond_row: Tensor,
        sample_of_row: Tensor,
        image_latents: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, ...]:
        """Returns next_latents, next_history, next_row, sample and timestep. The equation is export/solver.py's."""
        cond = torch.index_select(noise_pred, 0, cond_row).float()
        uncond = torch.index_select(noise_pred, 0, uncond_row).float()
        e = uncond + guidance_scale.view(-1, 1, 1, 1) * (cond - uncond)
        at = Row(table, row)
        # A sample that is done takes nothing of e: not even 0·inf, should the denoiser overflow on it meanwhile.
        e = torch.where((at("q") == 0) & (at("d") == 0), torch.zeros_like(e), e)
        m = at("p") * latents + at("q") * e
        x = at("a") * latents + at("d") * e + at("b0") * m
        for k in range(HISTORY):
            x = x + at(f"b{k + 1}") * history[:, k]
        x = x + at("c") * at.noise(noise)
        # A row of neither image nor noise pads a table: all stays. So does, to the bit, what is under a mask of 1.
        free = (mask == 1) | ((at("u") == 0) & (at("v") == 0))
        x = torch.where(free, x, mask * x + (1 - mask) * at.known(image_latents, noise))
        next_history = torch.cat([m[:, None], history[:, :-1]], 1)
        next_row = torch.clamp(row + 1, max=ROWS - 1)
        return x, next_history, next_row, *at.model_input(x, sample_of_row, self.dtype)
