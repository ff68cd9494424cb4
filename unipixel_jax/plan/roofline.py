"""The roofline: the shortest time that a program could take on its chips, and which resource bounds it."""

from __future__ import annotations

from dataclasses import dataclass

from unipixel_jax.plan.hlo import Costs
from unipixel_jax.plan.topology import Topology

BOUNDS = ("compute", "hbm", "links", "network")


@dataclass(frozen=True)
class Roofline:
    """The times that one execution takes of each resource of a chip, at the figures of the data sheets and as if nothing else took any time.

    Attributes:
        compute: seconds of the matrix units.
        hbm: seconds in which main memory moves the bytes that are read and written.
        links: seconds in which the chip sends its bytes to chips of the same slice, over all links to them: ICI, or NVLink.
        network: seconds in which the chip sends its bytes to other slices, or hosts.
        model_flops: FLOPs that the model needs of this chip, without recomputation and padding, as the caller counts them.
        peak: FLOPs per second of the chip.
        intensity: the program's FLOPs per byte of main memory.
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
        """Return the roofline of a program.

        Args:
            costs: the program's costs on one chip.
            topology: the topology that it was compiled for.
            model_flops: FLOPs that the model needs of one chip.
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
        """The name of the largest of the four times, which bounds the program."""
        return max(BOUNDS, key=lambda name: getattr(self, name))

    @property
    def seconds(self) -> float:
        """The largest of the four times: no execution is shorter, and an execution is that short only if all four overlap perfectly."""
        return getattr(self, self.bound)

    @property
    def mfu(self) -> float:
        """The model FLOPs utilisation if the program takes ``seconds``: an upper bound, which no run exceeds."""
        return self.model_flops / (self.peak * self.seconds) if self.seconds else 0.0
