"""Schedule steps about running values, as prefix sums have them."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.schedule.step import AtAxis, OfAxes


@dataclass(frozen=True)
class Scan(OfAxes):
    """Run the iterations of loops at once that need of each other what they add to running values: `scan k`.

        for k in 0..64 { run += x[k]; y[k] = run }   ->   scan k in 0..64 { run += x[k]; y[k] = run }

    The bounds are numbers. Refused where a running value is read before it is accumulated, or is accumulated by several
    statements, and where one iteration needs anything else that another makes.
    """


@dataclass(frozen=True)
class Restart(AtAxis):
    """Let every iteration of a loop begin with what those before it add to a running value: `restart run at k -> sums`.

       run = 0.0; for k in 0..P { for j in 0..64 { run += x[64 * k + j]; y[64 * k + j] = run } }
    -> alloc sums: f32[P]; for k.0 in 0..P { sums[k.0] = 0.0 }
       for k.1 in 0..P { for j.0 in 0..64 { sums[k.1] += x[64 * k.1 + j.0] } }
       for k in 0..P {
         run = 0.0; for k.2 in 0..P { run += sums[k.2] where k.2 < k }
         for j in 0..64 { run += x[64 * k + j]; y[64 * k + j] = run }
       }

    Then no iteration needs another one. What the summands are made of is computed twice. Refused unless the running
    value is a scalar that is set to the neutral element right before the loop and not used after it, and what is added
    depends on nothing that the loop makes for others.
    """
