"""Several reports of the same ports over time: what moved from each to the next, and since when
something that passed does not pass any more."""
