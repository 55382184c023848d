"""How a port rounds, operation by operation: its recipe, read off the bits of its own numbers.

In half precision two correct ports differ by what they keep in which format and in which order, and
no budget tells such ways apart: a gain of 1 + g that is rounded first raises a score from 0.4 to
0.6. Equal bits do.

* A ``Recipe`` says what an operation makes of the numbers that the port has shown, with each
  rounding where that way of computing has it (``recipe``; one file for each kind of operation).
* It is computed with ``Span``, the numbers that an engine may come to that follows it
  (``arithmetic``). Where no order of summation and no library's exponential can tip the rounding,
  that is one number, and the port must have it.
* ``agreement`` counts the elements that are equal, those in which the recipe leaves more than one
  number open, and those that lie outside. A recipe *fits* where nothing lies outside.
* ``identify`` does so at every site that a port shows, and ``summary`` says it in one line.

A recipe is named only where it fits, and together with every other one that fits as well. Where
none does, the one that is nearest is shown with what it leaves, and nothing is claimed.
"""
