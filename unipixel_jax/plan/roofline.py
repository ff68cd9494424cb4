"""How fast a program could run on its chips at best, and what holds it back."""

from __future__ import annotations

from dataclasses import dataclass

from unipixel_jax.plan.hlo import Costs
from unipixel_jax.plan.topology import Topology

BOUNDS = ("compute", "hbm", "links", "network")


@dataclass(frozen=True)
class Roofline:
    """Times of one execution on one chip, each as if nothing else took any, at the figures of the data sheets.

    Attributes:
        compute: seconds of the matrix units.
        hbm: seconds in which main memory moves what is read and written.
        links: seconds in which the chip sends what goes to its own slice, over all links that lead there: ICI, or NVLink.
        network: seconds in which it sends what goes to other slices, or hosts.
        model_flops: what the model needs of this chip, without recomputation and padding; the caller's count.
        peak: FLOPs per second of the chip.
        intensity: FLOPs per byte of main memory.
    """

    compute: float
    hbm: float
    links: float
    network: float
    model_flops: float
    peak: float
    intensity: float

    @classmethod
    def of(cls, costs: Costs, topology: Topology, model_flops: float) -> Roofline:
        """The times of a program.

        Args:
            costs: of one chip.
            topology: what it was compiled for.
            model_flops: of one chip.
        """
        chip = topology.chip
        return cls(
            compute=costs.flops / chip.flops,
            hbm=costs.bytes / chip.bandwidth,
            links=costs.sent / topology.links if costs.sent else 0.0,
            network=costs.sent_between_slices / topology.network if costs.sent_between_slices else 0.0,
            model_flops=model_flops,
            peak=chip.flops,
            intensity=costs.flops / costs.bytes if costs.bytes else 0.0,
        )

    @property
    def bound(self) -> str:
        """The largest of the four times, by name; it holds the program back."""
        return max(BOUNDS, key=lambda name: getattr(self, name))

    @property
    def seconds(self) -> float:
        """The largest of the four: no execution is shorter, and one is as short only if all of them overlap perfectly."""
        return getattr(self, self.bound)

    @property
    def mfu(self) -> float:
        """Share of the peak that the model's FLOPs can reach in those seconds: a bound, which no run exceeds."""
        return self.model_flops / (self.peak * self.seconds) if self.seconds else 0.0
